"""The container's command around a tiny model, and ways to hurt it."""

import time
from pathlib import Path

import psutil
import requests

from tests.deploy.served import Command, free_ports

TOKEN = "a-token-of-some-length"  # noqa: S105
MAX_REQUEST_BYTES = 4_000_000


class Served:
    """`python -m segserve.gateway`, started again at the same address whenever it is killed."""

    def __init__(self, folder: Path, archive: Path, **variables: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "token").write_text(TOKEN)
        ports = dict(zip(("PORT", "METRICS_PORT", "MANAGEMENT_PORT"), free_ports(3), strict=True))
        self.url = f"http://127.0.0.1:{ports['PORT']}"
        self.run_dir = Path(str(variables.get("RUN_DIR", folder / "run")))
        self._folder = folder
        own = {
            "ARCHIVE": archive,
            "TOKEN_FILE": folder / "token",
            "HOST": "127.0.0.1",
            "RUN_DIR": self.run_dir,
        }
        self._variables = own | ports | {"CLIENT_HEADER": "X-Real-IP"} | variables
        self.start()

    def start(self) -> None:
        self.command = Command(self._folder, **self._variables)

    def wait_ready(self) -> "Served":
        self.command.wait_ready(self.url, timeout_s=180)
        return self

    def wait_not_ready(self, timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while requests.get(f"{self.url}/ping", timeout=5).ok:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        """The command's own, Java's, and the worker's."""
        leader = psutil.Process(self.command.process.pid)
        return [leader, *leader.children(recursive=True)]

    def worker(self) -> psutil.Process:
        """Raises LookupError where there is none just now."""
        for process in self.processes():
            if any("model_service_worker" in part for part in process.cmdline()):
                return process
        raise LookupError("no worker")

    def kill(self) -> None:
        """SIGKILL for all of it, as when a machine or a container is lost."""
        for process in self.processes():
            process.kill()
        self.command.process.wait(30)

    def stop(self) -> int:
        """Its status after SIGTERM."""
        self.command.process.terminate()
        return self.command.process.wait(60)
