"""What a server's Python workers took of the machine's memory."""

from pathlib import Path

import psutil


def peak_worker_bytes(server_pid: int) -> int:
    """The largest resident set that any worker of the server has had so far (Linux's VmHWM), in bytes."""
    workers = [
        process
        for process in psutil.Process(server_pid).children(recursive=True)
        if any("model_service_worker" in argument for argument in process.cmdline())
    ]
    return max(_peak_bytes(worker.pid) for worker in workers)


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) * 1024
