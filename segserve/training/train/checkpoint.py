"""Checkpoints that a killed run goes on from.

A crash or a full disk while one is written leaves the last one whole.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from ...runtime.files import whole_file

CHECKPOINT_FILE = "checkpoint.pt"


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` finished steps.

    Attributes:
        origin: what the run was started with; a run goes on only with the same.
        states: state dicts by the name of the part: network, average, optimizer, scaler.
    """

    step: int
    origin: dict[str, Any]
    states: dict[str, dict[str, Any]]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / CHECKPOINT_FILE) as file:
            torch.save(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The folder's checkpoint, or None where there is none."""
        path = folder / CHECKPOINT_FILE
        if not path.exists():
            return None
        return cls(**torch.load(path, map_location="cpu", weights_only=True))
