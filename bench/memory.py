"""What a server's Python processes took of the machine's memory."""

from contextlib import suppress
from pathlib import Path

import psutil


def peak_python_bytes(pid: int) -> int:
    """The largest resident set that any Python process of a tree has had so far (Linux's VmHWM), in bytes.

    A server's front end in Java does not count: beside the network it is small.
    """
    peaks = [0]
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, OSError):
                if process.name() != "java":
                    peaks.append(_peak_bytes(process.pid))
    return max(peaks)


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), "0")
    return int(kilobytes) * 1024
