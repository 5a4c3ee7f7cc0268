"""Child processes of a server: what of the environment they get, their log, and their end."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
import requests

from ..runtime.cores import bounded_spinning
from . import ServerError

HIDDEN_SETTING = "blacklist_env_vars"
"""TorchServe's name for what is kept out of its workers' environment."""

EXTRA_VARIABLE = "SEGSERVE_WORKER_ENV"
"""Names more variables to hand on, with commas between."""

LOG_FILE = "server.log"

# A worker's unix socket is TMP/.ts.sock.9000, and its path may have 103 bytes on macOS.
_LONGEST_TMP_BYTES = 85
# Archives are code, and can read the environment of their process and of its parent. This is a list
# of what is passed on and not of what is hidden, because a secret need not look like one:
# `DATABASE_URL`, or a proxy's address with a password in it.
_KNOWN_NAMES = """
    PATH HOME USER LOGNAME LANG LANGUAGE TZ TMPDIR XDG_CACHE_HOME JAVA_HOME JAVA_TOOL_OPTIONS
    JDK_JAVA_OPTIONS LD_LIBRARY_PATH LD_PRELOAD VIRTUAL_ENV SSL_CERT_FILE SSL_CERT_DIR
    REQUESTS_CA_BUNDLE
"""
# Of the locale, the interpreter, numerical libraries, accelerators, and of traces
# (docs/metrics.md).
_KNOWN_BEGINNINGS = """
    LC_ PYTHON OMP_ GOMP_ KMP_ MKL_ OPENBLAS_ DNNL_ ONEDNN_ MALLOC_ TORCH ATEN_ PYTORCH_ TRITON_
    CUDA_ CUBLAS_ CUDNN_ NVIDIA_ NCCL_ ROCR_ HIP_ HSA_ OTEL_
"""
_NAMES, _BEGINNINGS = frozenset(_KNOWN_NAMES.split()), tuple(_KNOWN_BEGINNINGS.split())
_KILL_TIMEOUT_S = 10
_POLL_S = 0.05
_READY_POLL_S = 0.1
_EXIT_LAG_S = 3  # how long a process that has just ended may take to have a status
_LOG_TAIL_BYTES = 1 << 20
_HTTP_TIMEOUT_S = 5
_OWNER_ONLY = 0o077  # the umask of servers: their files contain parts of requests
# Creation times of one process, read twice, differ by less. A reused process id differs by more.
_CLOCK_S = 1.0


def allowed_environment(environment: Mapping[str, str], *, hidden: str = "") -> dict[str, str]:
    """The part of an environment that a server gets, with `bounded_spinning`.

    A name that the regular expression `hidden` matches whole is left out in any case. Raises
    ServerError: the expression is not valid.
    """
    extra = {name.strip() for name in environment.get(EXTRA_VARIABLE, "").split(",")}
    try:
        is_hidden = re.compile(hidden or r"(?!)").fullmatch
    except re.error as error:
        raise ServerError(
            f"{HIDDEN_SETTING}: {hidden!r} is not a regular expression: {error}"
        ) from error
    kept = {
        name: value
        for name, value in environment.items()
        if (name in extra or name in _NAMES or name.startswith(_BEGINNINGS)) and not is_hidden(name)
    }
    return {**bounded_spinning(kept), **kept}


def restrict_environment(hidden: str) -> None:
    """Removes what `allowed_environment` leaves out from this process, and so from its children."""
    kept = allowed_environment(os.environ, hidden=hidden)
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    os.environ.update(kept)


def make_tmp_dir(run_dir: Path, *, longest_bytes: int = _LONGEST_TMP_BYTES) -> Path:
    """An empty folder for models and sockets: in the run folder, unless that path is too long."""
    inside = run_dir / "tmp"
    shutil.rmtree(inside, ignore_errors=True)
    if len(os.fsencode(inside)) <= longest_bytes:
        inside.mkdir(mode=0o700)
        return inside
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) + len("/segserve-12345678") > longest_bytes:
        parent = "/tmp"  # noqa: S108 - mkdtemp makes a private folder in it
    return Path(tempfile.mkdtemp(prefix="segserve-", dir=parent))


def use_new_tmp_dir(run_dir: Path, *, longest_bytes: int = _LONGEST_TMP_BYTES) -> Path:
    """Makes this process and its later children write their temporary files to such a folder."""
    folder = make_tmp_dir(run_dir, longest_bytes=longest_bytes)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None  # look it up again
    return folder


@dataclass(frozen=True)
class ProcessTree:
    """A process that leads a session or a process group of its own, and everything in it.

    `created_s`, see `creation_s`, distinguishes our process from a later one with the same id.
    """

    pid: int
    created_s: float

    @classmethod
    def of(cls, pid: int) -> "ProcessTree":
        """The tree of a process that runs now."""
        return cls(pid, creation_s(pid))

    def alive(self) -> bool:
        """Whether the leader runs (a zombie does not)."""
        return self._leader() is not None

    def members(self) -> list[psutil.Process]:
        """The running processes of the session or group; none if the id is reused."""
        members = []
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
                if self.pid in (os.getsid(pid), os.getpgid(pid)):
                    members.append(psutil.Process(pid))
        if any(process.pid == self.pid for process in members) and not self._is_ours():
            return []
        return [process for process in members if _runs(process)]

    def stop(self, timeout_s: float) -> None:
        """Ends the leader with SIGTERM, then the others; after `timeout_s`, the rest with SIGKILL.

        Raises ServerError: a process outlives SIGKILL.
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
                pids = sorted(process.pid for process in left)
                raise ServerError(f"could not end the processes {pids}")
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


class ServerProcess(ABC):
    """A server in a process of its own, which writes in `run_dir`. `with` stops it at the end.

    `child` is None if another process has started it.
    """

    def __init__(
        self, run_dir: Path, tree: ProcessTree, child: subprocess.Popen[bytes] | None
    ) -> None:
        self.run_dir = run_dir
        self.log_path = run_dir / LOG_FILE
        self.pid = tree.pid
        self._tree = tree
        self._child = child

    @abstractmethod
    def not_ready_reason(self) -> str | None:
        """Why the server is not ready; None if every model has a worker that is ready.

        Raises ServerError: it has ended, or a model failed to load; with the reason from the log.
        """

    @abstractmethod
    def _clean_up(self) -> None:
        """Removes the files that nothing needs after its end."""

    def stop(self, timeout_s: float = 40) -> None:
        """Ends the server, see `ProcessTree.stop`. May be called again."""
        self._tree.stop(timeout_s)
        if self._child is not None:
            self._child.wait()
        self._clean_up()

    def wait_ready(self, timeout_s: float = 120) -> None:
        """Waits until every model has a worker that is ready. Never stops the server.

        Raises ServerError: as `not_ready_reason`, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while (reason := self.not_ready_reason()) is not None:
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the server is not ready after {timeout_s:g} s: {reason}; the log is "
                    f"{self.log_path}"
                )
            time.sleep(_READY_POLL_S)

    def _signal_that_killed_it(self) -> str | None:
        """The reason for the end of a process that ended by a signal."""
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if (status := self._child.wait(_EXIT_LAG_S)) < 0:
                    return f"signal {-status} killed it"
        return None

    def _log(self) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError), self.log_path.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _LOG_TAIL_BYTES))
            return log.read().decode("utf-8", errors="replace")
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def spawn(
    command: Sequence[str], run_dir: Path, environment: Mapping[str, str], *, new_session: bool
) -> subprocess.Popen[bytes]:
    """Starts a server in its run folder, with a new log that only this user can read.

    It leads a session of its own, or only a process group.
    """
    log_path = run_dir / LOG_FILE
    log_path.unlink(missing_ok=True)
    log_path.touch(mode=0o600)
    with log_path.open("ab") as log:  # append mode, so that a follower of the log may truncate it
        return subprocess.Popen(
            command,
            cwd=run_dir,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=new_session,
            process_group=None if new_session else 0,
            umask=_OWNER_ONLY,
        )


def get_directly(
    url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float = _HTTP_TIMEOUT_S
) -> requests.Response:
    """GET from a server of this machine, never through a proxy."""
    with requests.Session() as session:
        session.trust_env = False
        return session.get(url, headers=headers, timeout=timeout_s)


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
