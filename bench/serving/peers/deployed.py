"""The server as deployed: the container's first process, and the TLS proxy in front of it."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segserve.archive import build_archive
from segserve.client.request import JSON, as_fields, http_headers
from segserve.runtime.record import read_record

from ..load import Gateway, HttpPeer
from ..peer import BenchError, Opened
from ..workload import Workload
from .processes import HOST, free_port, running
from .proxy import make_secrets, write_proxy


@contextmanager
def open_deployed(workload: Workload) -> Iterator[Opened]:
    """Runs the container's command and the proxy, without a container. A container itself has no
    cost at runtime.

    Raises:
        BenchError: nginx or openssl is not installed, or one of the two servers does not start.
    """
    missing = [program for program in ("nginx", "openssl") if not shutil.which(program)]
    if missing:
        raise BenchError(f"{' and '.join(missing)} must be installed")
    folder = workload.scratch / "deployed"
    secrets = make_secrets(folder / "secrets")
    certificate, port, tls_port = secrets / "tls.crt", free_port(), free_port()
    environment = _environment(workload, folder, port)
    proxy = write_proxy(
        folder / "proxy", secrets, port=tls_port, server=f"{HOST}:{port}", page=f"{HOST}:{port}"
    )
    container = [sys.executable, "-m", "segserve.gateway"]
    plain, tls = f"http://{HOST}:{port}", f"https://{HOST}:{tls_port}"
    began_s = time.monotonic()
    with running(
        container, folder / "container.log", f"{plain}/ping", environment=environment
    ) as pid:
        start_s = time.monotonic() - began_s
        with running(proxy, folder / "proxy.log", f"{tls}/ping", ca_file=certificate):
            encoding, path = (
                workload.encodings[0],
                f"/predictions/{read_record(workload.model).name}",
            )
            token = (secrets / "token").read_text(encoding="utf-8").strip()
            headers = http_headers(JSON, as_fields(mask=encoding)) | {
                "Authorization": f"Bearer {token}"
            }
            gateways = {
                f"ours in the container, {encoding}": Gateway(plain + path, headers),
                f"ours behind the proxy, {encoding}": Gateway(
                    tls + path, headers, ca_file=str(certificate)
                ),
            }
            yield Opened(
                {title: HttpPeer(gateway, workload) for title, gateway in gateways.items()},
                pid,
                start_s,
            )


def _environment(workload: Workload, folder: Path, port: int) -> dict[str, str]:
    """The environment of the container's command: this process's, but with the command's own
    SEGSERVE_ variables.
    """
    settings = {
        "ARCHIVE": build_archive(workload.model, folder),
        "TOKEN_FILE": folder / "secrets" / "token",
        "RUN_DIR": folder / "run",
        "HOST": HOST,
        "PORT": port,
        "METRICS_PORT": free_port(),
    }
    others = {name: value for name, value in os.environ.items() if not name.startswith("SEGSERVE_")}
    return others | {f"SEGSERVE_{name}": str(value) for name, value in settings.items()}
