"""A gateway as a child process that may outlive its parent: start, find and stop it.

`find_endpoint` is for clients: the address for predictions, the given one or that of the server in
the current folder.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import requests
from pydantic import BaseModel, ConfigDict

from ..client.request import DEFAULT_MODEL
from ..engines import EngineName, ServerError
from ..engines.config import choose_addresses, configured_address, loopback, read_config
from ..engines.processes import (
    EXTRA_VARIABLE,
    HIDDEN_SETTING,
    ProcessTree,
    ServerProcess,
    allowed_environment,
    creation_s,
    get_directly,
    spawn,
)
from ..engines.store import model_name
from ..resources import resource
from ..runtime.files import write_whole
from . import CANNOT_SERVE, ENGINE_FOLDER, TOKEN_FILE
from .settings import PREFIX, GatewaySettings, variables

STATE_FILE = "server.json"

SERVE_DIR = Path(".run/serve")
"""The run folder of `segserve serve`, below the current folder."""

DEFAULT_URL = "http://127.0.0.1:8080"
URL_VARIABLE = "SEGSERVE_URL"
TOKEN_VARIABLE = "SEGSERVE_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_FILE_VARIABLE = "SEGSERVE_TOKEN_FILE"  # noqa: S105
"""Names a file that holds the token, as containers get secrets."""

_DRAIN_S = 20
_START_S = 300  # long enough for a busy machine; failures are reported immediately
_ORPHANS_S = 10
_PATHS = {
    "SEGSERVE_MANAGEMENT_TOKEN_FILE",
    "SEGSERVE_MODELS_DIR",
    "SEGSERVE_TOKEN_FILE",
    "SEGSERVE_TRUST",
}


class ServerState(BaseModel):
    """The content of `server.json`. It never holds a token. For `created_s` see `creation_s`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    created_s: float
    engine: str
    models: tuple[str, ...]
    inference_url: str
    metrics_url: str
    token_file: str

    @property
    def tree(self) -> ProcessTree:
        return ProcessTree(self.pid, self.created_s)

    @classmethod
    def read(cls, run_dir: Path) -> Self | None:
        """Reads it; None if there is no such file or it is not complete."""
        try:
            return cls.model_validate_json((run_dir / STATE_FILE).read_bytes())
        except (OSError, ValueError):
            return None


class Server(ServerProcess):
    """A running gateway with its engine.

    Without `with` it outlives this process, and `Server.running(run_dir)` finds it again.
    """

    def __init__(
        self,
        run_dir: Path,
        state: ServerState,
        child: subprocess.Popen[bytes] | None = None,
        *,
        replaced_port: int | None = None,
        start_timeout_s: float = _START_S,
    ) -> None:
        self.replaced_port = replaced_port
        """The wanted port of predictions, if it was in use and replaced by a free one."""
        self.start_timeout_s = start_timeout_s
        """How long loading the models may take."""
        super().__init__(run_dir, state.tree, child)
        self.engine, self.models = state.engine, state.models
        self.inference_url, self.metrics_url = state.inference_url, state.metrics_url
        """http://HOST:PORT of predictions, `/ping` and descriptions, and of Prometheus."""
        self.token_file = Path(state.token_file)
        self._state = state

    @classmethod
    def start(
        cls,
        archives: Sequence[Path],
        run_dir: Path,
        *,
        engine: str = EngineName.TORCHSERVE,
        config: Path | None = None,
        trust: Path | None = None,
    ) -> Self:
        """Starts a server and does not wait for it.

        The variables of docs/operations.md apply, except for the host, which is that of the config.
        A port in use is replaced by a free one.

        Args:
            run_dir: the folder for everything that is written.
            config: a config.properties, by default that of `SEGSERVE_CONFIG` or the project's own.
            trust: the file of the public keys that archives must be signed with.

        Raises:
            ServerError: there is no archive, a setting is invalid, or a server runs there already.
            SignatureError: an archive is not signed by a trusted key.
        """
        run_dir = run_dir.resolve()
        _end_orphans(run_dir)
        models = _model_names(archives, trust)
        chosen = config or os.environ.get(f"{PREFIX}CONFIG") or resource("config.properties")
        config = Path(chosen).resolve()
        settings = read_config(config)
        addresses = choose_addresses(settings)
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / TOKEN_FILE).unlink(missing_ok=True)
        host, _, port = addresses["inference_address"].removeprefix("http://").rpartition(":")
        metrics_port = addresses["metrics_address"].rpartition(":")[2]
        own = {
            "ARCHIVE": ",".join(str(archive.resolve()) for archive in archives),
            "ENGINE": engine,
            "CONFIG": config,
            "RUN_DIR": run_dir,
            "HOST": host,
            "PORT": port,
            "METRICS_PORT": metrics_port,
            **({"TRUST": trust.resolve()} if trust else {}),
        }
        given = _given_variables()
        environment = {
            **allowed_environment(os.environ, hidden=settings.get(HIDDEN_SETTING, "")),
            f"{PREFIX}DRAIN_TIMEOUT_S": str(_DRAIN_S),
            f"{PREFIX}START_TIMEOUT_S": str(_START_S),
            **given,
            **{f"{PREFIX}{name}": str(value) for name, value in own.items()},
        }
        start_timeout_s = GatewaySettings.from_environment(environment).start_timeout_s
        command = [sys.executable, "-m", "segserve.gateway"]
        child = spawn(command, run_dir, environment, new_session=True)
        state = ServerState(
            pid=child.pid,
            created_s=creation_s(child.pid),
            engine=engine,
            models=models,
            inference_url=loopback(f"http://{host}:{port}"),
            metrics_url=loopback(f"http://{host}:{metrics_port}"),
            token_file=given.get(f"{PREFIX}TOKEN_FILE", str(run_dir / TOKEN_FILE)),
        )
        write_whole(run_dir / STATE_FILE, state.model_dump_json(indent=2) + "\n")
        _, wanted = configured_address(settings, "inference_address")
        replaced_port = None if str(wanted) == port else wanted
        return cls(
            run_dir, state, child, replaced_port=replaced_port, start_timeout_s=start_timeout_s
        )

    @classmethod
    def running(cls, run_dir: Path) -> Self | None:
        """The server that an earlier `start` left running from `run_dir`, or None."""
        run_dir = run_dir.resolve()
        state = ServerState.read(run_dir)
        return cls(run_dir, state) if state is not None and state.tree.alive() else None

    @property
    def inference_token(self) -> str | None:
        """The bearer token, read from its file each time; None if no token is needed."""
        try:
            return self.token_file.read_text(encoding="utf-8").strip()
        except OSError:
            return None

    def not_ready_reason(self) -> str | None:
        if not self._tree.alive():  # another server may use its address
            raise ServerError(f"the server ended: {self._reason()}; the log is {self.log_path}")
        try:
            response = get_directly(f"{self.inference_url}/ping")
            return None if response.ok else str(response.json()["error"]["message"])
        except (requests.RequestException, ValueError, TypeError, KeyError):
            return "the server does not respond yet"

    def _clean_up(self) -> None:
        current = ServerState.read(self.run_dir)
        if current in (None, self._state):  # else another server was started here
            for name in (STATE_FILE, TOKEN_FILE):
                (self.run_dir / name).unlink(missing_ok=True)
            shutil.rmtree(self.run_dir / ENGINE_FOLDER / "tmp", ignore_errors=True)

    def _reason(self) -> str:
        """Why the server ended, from its exit status and the last line of its log."""
        if (killed := self._signal_that_killed_it()) is not None:
            return killed
        messages = [_message(line) for line in self._log().splitlines() if line.strip()]
        reported = [text for text in messages if text.startswith(CANNOT_SERVE)]
        return (reported or messages or ["it wrote nothing"])[-1].removeprefix(CANNOT_SERVE)


def _given_variables() -> dict[str, str]:
    """The gateway's variables of this environment. It runs in another folder: paths are absolute.

    Links are not resolved, because they may be moved to another file, as to a new token.
    """
    names = (*variables(), EXTRA_VARIABLE)
    given = {name: value for name in names if (value := os.environ.get(name, "").strip())}
    paths = {name: str(Path(given[name]).absolute()) for name in _PATHS & given.keys()}
    return {**given, **paths}


def _end_orphans(run_dir: Path) -> None:
    """Ends what a killed gateway has left. Raises ServerError: a gateway runs."""
    before = ServerState.read(run_dir)
    if before is None:
        return
    if before.tree.alive():
        raise ServerError(
            f"a server already runs from {run_dir} (process {before.pid}); stop it first"
        )
    before.tree.stop(_ORPHANS_S)


def _model_names(archives: Sequence[Path], trust: Path | None) -> tuple[str, ...]:
    if trust is not None:  # before anything else of an archive is read
        from ..signing import TrustedKeys  # a client finds servers without cryptography

        trusted = TrustedKeys.read(trust)
        for archive in archives:
            trusted.verify(archive)
    return tuple(model_name(archive) for archive in archives)


def _message(line: str) -> str:
    """The message of a line of the log, which is JSON unless another program wrote it."""
    try:
        return str(json.loads(line)["message"])
    except (ValueError, TypeError, KeyError):
        return line


@dataclass(frozen=True)
class Endpoint:
    """Where to send requests. `running` is the server of this folder, if that is the one."""

    url: str
    token: str | None
    model: str
    running: Server | None


def find_endpoint(
    url: str | None = None, *, token: str | None = None, model: str | None = None
) -> Endpoint:
    """Completes what is not given: the address from $SEGSERVE_URL, then everything from the server
    that runs in this folder, if that is its address.

    A token in the environment comes last: the token of a server that runs here is newer.

    Raises:
        ServerError: the file that `$SEGSERVE_TOKEN_FILE` names cannot be read.
    """
    url = url or os.environ.get(URL_VARIABLE, "").strip() or None
    running = running_server()
    if running is not None and url is not None and _normal(url) != _normal(running.inference_url):
        running = None
    if running is None:
        token = token or _token_of_environment()
        return Endpoint(url or DEFAULT_URL, token, model or DEFAULT_MODEL, None)
    token = token or running.inference_token or _token_of_environment()
    return Endpoint(url or running.inference_url, token, model or running.models[0], running)


def running_server() -> Server | None:
    """The server that `segserve serve` left running in this folder."""
    return Server.running(SERVE_DIR)


def _token_of_environment() -> str | None:
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        return token
    file = os.environ.get(TOKEN_FILE_VARIABLE, "").strip()
    try:
        return Path(file).read_text(encoding="utf-8").strip() if file else None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ServerError(f"cannot read the file of ${TOKEN_FILE_VARIABLE}: {reason}") from error


def _normal(url: str) -> str:
    return url.rstrip("/").replace("//localhost:", "//127.0.0.1:")
