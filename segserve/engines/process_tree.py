"""A process, all that it started, and their end."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from .errors import ServerError

_KILL_TIMEOUT_S = 10
_POLL_S = 0.05
# Creation times of one process, read twice, differ by less. A reused process id differs by more.
_CLOCK_S = 1.0


@dataclass(frozen=True)
class ProcessTree:
    """A process that leads a session or a process group of its own, and everything in it.

    `created_s` is the leader's time of creation, see `creation_s`: it distinguishes our process
    from a later one with the same id.
    """

    pid: int
    created_s: float

    @classmethod
    def of(cls, pid: int) -> "ProcessTree":
        """Return the tree of a process that runs now."""
        return cls(pid, creation_s(pid))

    def alive(self) -> bool:
        """Whether the leader runs (a zombie does not)."""
        return self._leader() is not None

    def members(self) -> list[psutil.Process]:
        """Return the running processes of the session or group; none if another process has its id
        by now.
        """
        members = []
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
                if self.pid in (os.getsid(pid), os.getpgid(pid)):
                    members.append(psutil.Process(pid))
        if any(process.pid == self.pid for process in members) and not self._is_ours():
            return []
        return [process for process in members if _runs(process)]

    def stop(self, timeout_s: float) -> None:
        """End the leader with SIGTERM, then the others; after `timeout_s` seconds whatever is left
        with SIGKILL.

        Raises:
            ServerError: a process outlives SIGKILL.
        """
        leader = self._leader()
        strays = leader.children(recursive=True) if leader else []  # some may have left the session
        deadline = time.monotonic() + timeout_s
        _signal([leader] if leader else [], signal.SIGTERM)
        while (left := self._left(strays)) and time.monotonic() < deadline:
            if not self.alive():
                _signal(left, signal.SIGTERM)
            time.sleep(_POLL_S)
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        while left := self._left(strays):
            if time.monotonic() > deadline:
                raise ServerError(
                    f"could not end the processes {sorted(process.pid for process in left)}"
                )
            _signal(left, signal.SIGKILL)
            time.sleep(_POLL_S)

    def _leader(self) -> psutil.Process | None:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if self._is_ours() and _runs(process):
                return process
        return None

    def _is_ours(self) -> bool:
        try:
            return abs(creation_s(self.pid) - self.created_s) < _CLOCK_S
        except psutil.NoSuchProcess:  # since just now: what it has left is ours
            return True

    def _left(self, strays: list[psutil.Process]) -> set[psutil.Process]:
        return {*self.members(), *filter(_runs, strays)}


def creation_s(pid: int) -> float:
    """When a process was created, in seconds. On Linux since the boot: the time since 1970 is
    computed from the time of the boot, which moves whenever the clock is set.
    """
    # Read first: older psutils add the boot time that they read last.
    booted_s = psutil.boot_time() if psutil.LINUX else 0.0
    return float(psutil.Process(pid).create_time()) - booted_s


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
