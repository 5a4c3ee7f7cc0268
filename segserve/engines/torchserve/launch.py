"""Starts the Java process that is TorchServe, inside a run folder."""

import importlib.util
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...runtime.telemetry.metrics import OWN, Kind, Metric
from ..errors import ServerError
from ..process_tree import spawn

CONFIG_FILE = "config.properties"
MODEL_STORE = "model-store"

_LOG_SETTINGS = Path(__file__).with_name("log4j2.xml")


def launch(
    java_home: Path,
    run_dir: Path,
    tmp_dir: Path,
    *,
    models: Sequence[str],
    vm_arguments: str,
    environment: Mapping[str, str],
) -> subprocess.Popen[bytes]:
    """Start Java itself, so that the process we hold is the server and not a launcher of it."""
    site = torchserve_home()
    command = [
        str(java_home / "bin" / "java"),
        f"-Dmodel_server_home={site}",
        f"-Djava.io.tmpdir={tmp_dir}",
        f"-Dlog4j.configurationFile=classpath:log4j2.xml,{_LOG_SETTINGS.as_uri()}",
        *shlex.split(vm_arguments),
        *("-cp", str(site / "ts" / "frontend" / "*"), "org.pytorch.serve.ModelServer"),
        *("--python", sys.executable, "-f", CONFIG_FILE, "-s", MODEL_STORE, "-ncs"),
        *("-m", *(f"{name}={name}.mar" for name in models)),
    ]
    own = {"JAVA_HOME": str(java_home), "TMPDIR": str(tmp_dir)}
    return spawn(command, run_dir, {**environment, **own}, new_session=False)


def torchserve_home() -> Path:
    """The folder that holds TorchServe's package `ts`, which is located and not imported."""
    found = importlib.util.find_spec("ts")
    if found is None or found.origin is None:
        raise ServerError(
            "TorchServe is not installed; install it with: pip install torchserve==0.12.0"
        )
    return Path(found.origin).resolve().parents[1]


METRICS_FILE = "metrics.yaml"


def write_metrics_file(path: Path, torchserve_s: Path) -> None:
    """Writes TorchServe's own metrics and segserve's to `path`.

    Args:
        torchserve_s: its own file, `ts/configs/metrics.yaml`.
    """
    content = yaml.safe_load(torchserve_s.read_text(encoding="utf-8"))
    for kind, metrics in by_kind(OWN).items():
        content["model_metrics"].setdefault(kind, []).extend(metrics)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def by_kind(metrics: Iterable[Metric]) -> dict[str, list[dict[str, Any]]]:
    """The metrics as TorchServe's file has them; the label with the host's name is its own
    addition.
    """
    entries: dict[str, list[dict[str, Any]]] = {kind.value: [] for kind in Kind}
    for metric in metrics:
        entry = {"name": metric.name, "unit": metric.unit, "dimensions": list(metric.labels)}
        entries[metric.kind.value].append(entry)
    return entries
