"""The metrics file of a TorchServe: its own metrics, and those that segserve's handlers tell.

TorchServe takes no addition to its file, only another in its place (`metrics_config`), so the whole
is written anew.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ...runtime.telemetry.metrics import OWN, Kind, Metric

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
