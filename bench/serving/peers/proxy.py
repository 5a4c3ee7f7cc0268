"""The proxy of deploy/compose.yaml on this machine: nginx with the project's settings, but other
paths and ports.
"""

import os
import shutil
import subprocess
from pathlib import Path

from segserve.resources import resource

TLS_PORT = "8443"


def write_proxy(folder: Path, secrets: Path, *, port: int, server: str, page: str) -> list[str]:
    """Writes the settings and copies of the secrets to a folder. Returns the command that runs
    nginx.

    Args:
        secrets: a folder with the files of `make-secrets.sh`.
        port: nginx's port on 127.0.0.1.
        server, page: host and port of the upstream servers.

    Raises:
        FileNotFoundError: nginx is not installed.
        ValueError: nginx.conf does not contain an expected path or port.
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
