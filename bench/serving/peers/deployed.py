"""The server as deployed: the container's first process, and the TLS proxy in front of it.

The proxy is that of deploy/compose.yaml: nginx with the project's settings, but other paths and
ports.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from segserve.archive import build_archive
from segserve.resources import resource
from segserve.runtime.record import read_record

from ..load import HttpPeer
from ..peer import BenchError, Opened, Workload
from .ours import gateway_of
from .processes import HOST, free_port, running, running_container

TLS_PORT = "8443"


@contextmanager
def open_deployed(workload: Workload) -> Iterator[Opened]:
    """Runs the container's command and the proxy, without a container, which itself has no cost at
    runtime. Raises BenchError if nginx or openssl is not installed, or a server does not start.
    """
    if not (shutil.which("nginx") and shutil.which("openssl")):
        raise BenchError("nginx and openssl must be installed")
    folder, encoding = workload.scratch / "deployed", workload.encodings[0]
    secrets = make_secrets(folder / "secrets")
    archive = build_archive(workload.model, folder)
    began_s = time.monotonic()
    with running_container(archive, secrets / "token", folder) as (plain, pid):
        start_s = time.monotonic() - began_s
        server, tls_port = plain.removeprefix("http://"), free_port()
        tls, certificate = f"https://{HOST}:{tls_port}", secrets / "tls.crt"
        proxy = write_proxy(folder / "proxy", secrets, port=tls_port, server=server, page=server)
        with running(proxy, folder / "proxy.log", f"{tls}/ping", ca_file=certificate):
            token = (secrets / "token").read_text(encoding="utf-8").strip()
            direct = gateway_of(plain, token, read_record(workload.model).name, encoding)
            proxied = replace(direct, url=direct.url.replace(plain, tls), ca_file=str(certificate))
            peers = {
                f"ours in the container, {encoding}": HttpPeer(direct, workload),
                f"ours behind the proxy, {encoding}": HttpPeer(proxied, workload),
            }
            yield Opened(peers, pid, start_s)


def write_proxy(folder: Path, secrets: Path, *, port: int, server: str, page: str) -> list[str]:
    """Writes the settings and copies of the secrets, the files of `make-secrets.sh`, to a folder.
    Returns the command that runs nginx in front of `server` and `page`, each a host with its port.
    """
    nginx = shutil.which("nginx")
    if nginx is None:
        raise FileNotFoundError("nginx is not installed")
    (folder / "extra").mkdir(parents=True)
    for file in secrets.iterdir():
        shutil.copy(file, folder)
    folder.chmod(0o755)
    settings = resource("deploy/proxy/nginx.conf").read_text(encoding="utf-8")
    places = {
        "/tmp/": f"{folder}/",  # noqa: S108 - must be first, because the other values may contain /tmp/
        f"listen {TLS_PORT}": f"listen 127.0.0.1:{port}",
        "server:8080": server,
        "127.0.0.1:7860": page,
        "/run/secrets/segserve": f"{folder}",
        "/etc/nginx/extra": f"{folder}/extra",
        "/dev/stdout": f"{folder}/access.log",
    }
    for there, here in places.items():
        if there not in settings:
            raise ValueError(f"nginx.conf does not name {there} any more")
        settings = settings.replace(there, here)
    if os.getuid() == 0:
        settings = f"user root;\n{settings}"  # Debian's default user cannot read our files
    (folder / "nginx.conf").write_text(settings, encoding="utf-8")
    return [nginx, "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]


def make_secrets(folder: Path) -> Path:
    """Creates a token, passwords and a certificate for localhost in a folder. Needs openssl."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["/bin/sh", resource("deploy/proxy/make-secrets.sh"), folder], check=True)
    return folder
