"""A server as a child process that may outlive its parent: find it, wait for it, stop it."""

import contextlib
import json
import os
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

import requests

from ..resources import resource
from .errors import ServerError
from .process_tree import ProcessTree
from .state import ServerState
from .store import fill_store
from .torchserve.config import merge, read_config
from .torchserve.launch import LOG_FILE, MODEL_STORE

if TYPE_CHECKING:
    from ..signing import TrustedKeys

STATE_FILE = "server.json"
KEY_FILE = "key_file.json"  # TorchServe's own name for it

_POLL_S = 0.25
_HTTP_TIMEOUT_S = 5
_LOG_TAIL_BYTES = 1 << 20


class RunningServer(ABC):
    """A running server, and the folder that holds its settings, log, model store and tokens.

    `with SERVER.start(...) as server:` stops it at the end; without `with` it outlives this
    process, and `SERVER.running(run_dir)` finds it again.
    """

    engine: ClassVar[str]

    def __init__(
        self, run_dir: Path, state: ServerState, child: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.run_dir = run_dir
        self.log_path = run_dir / LOG_FILE
        self._state = state
        self._child = child
        self._tree = ProcessTree(state.pid, state.created_s)

    @classmethod
    @abstractmethod
    def start(
        cls,
        archives: Sequence[Path],
        run_dir: Path,
        *,
        config: Path | None = None,
        overrides: Mapping[str, str] | None = None,
        trusted: "TrustedKeys | None" = None,
    ) -> Self:
        """Start a server for `archives`, with everything that it writes inside `run_dir`; does not
        wait for it.

        `config` replaces the project's config.properties, and `overrides` single settings of it.
        Ports come from the environment (see `choose_addresses`) and give way to free ones. With
        `trusted`, only archives that one of these keys has signed are served.

        Raises:
            ServerError: an archive or a setting that cannot be used, or a server that runs there
                already.
            SignatureError: an archive that is not signed by a trusted key; nothing of it was read
                or run.
        """

    @classmethod
    def running(cls, run_dir: Path) -> Self | None:
        """Return the server that an earlier `start` left running from `run_dir`, or None."""
        run_dir = run_dir.resolve()
        state = ServerState.read(run_dir / STATE_FILE)
        if (
            state is None
            or state.engine != cls.engine
            or not ProcessTree(state.pid, state.created_s).alive()
        ):
            return None
        return cls(run_dir, state)

    @staticmethod
    def _prepare(
        archives: Sequence[Path],
        run_dir: Path,
        config: Path | None,
        overrides: Mapping[str, str] | None,
        trusted: "TrustedKeys | None",
    ) -> tuple[tuple[str, ...], dict[str, str]]:
        """Make the run folder, with the archives in its store; return the models' names and the
        settings.
        """
        state = ServerState.read(run_dir / STATE_FILE)
        if state is not None and ProcessTree(state.pid, state.created_s).alive():
            raise ServerError(
                f"a server already runs from {run_dir} (process {state.pid}); stop it first"
            )
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / KEY_FILE).unlink(missing_ok=True)
        base = read_config(config or resource("config.properties"))
        settings = merge(base, model_store=run_dir / MODEL_STORE, overrides=overrides or {})
        if trusted is not None and settings.get("enable_model_api") == "true":
            raise ServerError(
                "enable_model_api=true: archives that are registered over HTTP are not verified; "
                "switch that off, or "
                "serve without trusted keys"
            )
        return fill_store(archives, run_dir / MODEL_STORE, trusted=trusted), settings

    @property
    def pid(self) -> int:
        """The id of the process that all others of the server come from."""
        return self._state.pid

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models that it was started with."""
        return self._state.models

    @property
    def inference_url(self) -> str:
        """The address for predictions: http://HOST:PORT."""
        return self._state.inference_url

    @property
    def grpc_address(self) -> str:
        """The address for predictions over gRPC: HOST:PORT; empty if the engine has no gRPC."""
        return self._state.grpc_address

    @property
    def management_url(self) -> str:
        """Where models are described: http://HOST:PORT."""
        return self._state.management_url

    @property
    def metrics_url(self) -> str:
        """Where Prometheus reads: http://HOST:PORT, path /metrics, no token needed."""
        return self._state.metrics_url

    @property
    def inference_token(self) -> str | None:
        """The bearer token for `inference_url`, read from the file each time; None if
        authorization is off.
        """
        return self._token("inference")

    @property
    def management_token(self) -> str | None:
        """The bearer token for `management_url`, read from the file each time; None if
        authorization is off.
        """
        return self._token("management")

    def wait_ready(self, timeout_s: float = 120) -> None:
        """Wait until every model has a worker that is READY. On an error the server is left as it
        is.

        Raises:
            ServerError: a model failed to load or the server ended, as soon as that is known and
                with the reason out of its log; or `timeout_s` seconds have passed.
        """
        deadline = time.monotonic() + timeout_s
        for model in self.models:
            while (obstacle := self._obstacle(model)) is not None:
                self._raise_if_failed()
                if time.monotonic() > deadline:
                    late = f"the model {model!r} is not ready after {timeout_s:g} s: {obstacle}"
                    raise ServerError(f"{late}; the log is {self.log_path}")
                time.sleep(_POLL_S)

    def obstacle(self) -> str | None:
        """Return what keeps a model from answering just now, or None where every one has a worker
        that is READY.

        Raises:
            ServerError: the server has ended; the message says why, as far as its log does.
        """
        for model in self.models:
            if (obstacle := self._obstacle(model)) is not None:
                if not self._tree.alive():
                    self._raise_if_failed()
                return f"the model {model!r}: {obstacle}"
        return None

    def stop(self, timeout_s: float = 30) -> None:
        """End the server and its workers, with SIGTERM and after `timeout_s` seconds with SIGKILL.
        Safe to repeat.

        Raises:
            ServerError: a process outlives SIGKILL.
        """
        self._tree.stop(timeout_s)
        if self._child is not None:
            self._child.wait()
        current = ServerState.read(self.run_dir / STATE_FILE)
        if (
            current is None or current == self._state
        ):  # else another server has been started here since
            for name in (STATE_FILE, KEY_FILE):
                (self.run_dir / name).unlink(missing_ok=True)
            shutil.rmtree(self._state.tmp_dir, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _token(self, kind: str) -> str | None:
        try:
            return str(
                json.loads((self.run_dir / KEY_FILE).read_text(encoding="utf-8"))[kind]["key"]
            )
        except (OSError, ValueError, KeyError):
            return None

    def _obstacle(self, model: str) -> str | None:
        """What keeps a model from answering, or None where a worker is READY."""
        if not self._tree.alive():
            return "the server does not run"  # another server may use its address
        token = self.management_token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with requests.Session() as session:
                session.trust_env = False  # no proxy for our own server
                response = session.get(
                    f"{self.management_url}/models/{model}",
                    headers=headers,
                    timeout=_HTTP_TIMEOUT_S,
                )
            if not response.ok:
                return f"the server says {response.status_code}: {response.json()['message']}"
            states = [
                worker["status"] for version in response.json() for worker in version["workers"]
            ]
        except (requests.RequestException, ValueError, TypeError, KeyError):
            return "the server does not respond yet"
        return (
            None if "READY" in states else f"its workers are {', '.join(states) or 'not there yet'}"
        )

    @abstractmethod
    def _raise_if_failed(self) -> None:
        """Raise a ServerError with the reason out of the log where the server or a model has failed
        for good.
        """

    def _exit_status(self, timeout_s: float) -> int | None:
        """The status of a server that has just ended, where it is a child of this process."""
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._child.wait(timeout_s)  # its threads may end a little after it
        return None

    def _log(self) -> str:
        with contextlib.suppress(OSError), self.log_path.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _LOG_TAIL_BYTES))
            return log.read().decode("utf-8", errors="replace")
        return ""
