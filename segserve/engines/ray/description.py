"""The management API's description of a model, with TorchServe's names."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from .archives import Archive

# Ray Serve's states of a replica, in TorchServe's terms for workers.
_STATUS = {"RUNNING": "READY", "STOPPING": "UNLOADING"}
_LOADING = "LOADING"


@dataclass(frozen=True)
class Served:
    """What the gateway knows about a model."""

    name: str
    version: str
    file: str
    config: Mapping[str, int]

    @classmethod
    def of(cls, archive: Archive) -> Self:
        numbers = archive.config.model_dump(exclude={"handler"}, exclude_none=True)
        return cls(archive.name, archive.version, archive.path.name, numbers)


def listed(models: Iterable[Served]) -> dict[str, Any]:
    """`GET /models`."""
    return {"models": [{"modelName": model.name, "modelUrl": model.file} for model in models]}


def describe(
    model: Served, replicas: Mapping[str, int], customized: bytes | None
) -> dict[str, Any]:
    """`GET /models/{model}`, with the handler's own description if `customized` is given.

    Args:
        replicas: the number of replicas in every state.
    """
    workers = [
        _STATUS.get(state, _LOADING) for state, count in replicas.items() for _ in range(count)
    ]
    document: dict[str, Any] = {
        "modelName": model.name,
        "modelVersion": model.version,
        "modelUrl": model.file,
        "runtime": "python",
        **model.config,
        "workers": [{"id": str(number), "status": status} for number, status in enumerate(workers)],
    }
    if customized is not None:
        document["customizedMetadata"] = json.loads(customized)
    return document
