"""The state of a training run, and the checkpoints from which an interrupted run continues."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..fetch import model_named
from ..recipe import Recipe
from ..runtime.errors import ModelError
from ..runtime.files import whole_file
from ..runtime.network.weights import SegmentationNetwork, build_network, load_network
from ..runtime.record import ModelRecord
from .depthwise import use_fast_depthwise
from .model_folder import load_backbone, load_start
from .optimization import SegmentationLoss, averaged, blended, build_optimizer, build_schedule


def leads() -> bool:
    """Whether this process reports and writes: the only process, or the first of `torchrun`."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class World:
    """The rank of this process among the `size` processes of `torchrun`; 0 of 1 without it."""

    rank: int
    size: int
    device: torch.device


@contextmanager
def joined() -> Iterator[World]:
    """Joins the processes that `torchrun` started, with NCCL on GPUs and Gloo on CPUs."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if size == 1:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(distributed.get_rank(), size, device)
    finally:
        distributed.destroy_process_group()


CHECKPOINT_FILE = "checkpoint.pt"


@dataclass(frozen=True)
class RunCheckpoint:
    """The state of a run after `step` finished steps.

    Attributes:
        origin: recipe and architecture of the run. Only a run with the same ones continues.
        states: part (network, average, optimizer, scaler) -> state dict.
    """

    step: int
    origin: dict[str, Any]
    states: dict[str, dict[str, Any]]

    def save(self, folder: Path) -> None:
        """Replaces the checkpoint of the folder once the new one is complete on the disk."""
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / CHECKPOINT_FILE) as file:
            torch.save(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The checkpoint of the folder, or None if there is none."""
        path = folder / CHECKPOINT_FILE
        if not path.exists():
            return None
        return cls(**torch.load(path, map_location="cpu", weights_only=True))


class TrainingState:
    """Network, moving average, optimizer and schedule after `step` finished steps."""

    def __init__(self, record: ModelRecord, recipe: Recipe, model: Path, world: World) -> None:
        self.step = 0
        self._recipe, self._world = recipe, world
        self._origin = {
            "recipe": recipe.model_dump(),
            "architecture": record.architecture.model_dump(),
        }
        network = _starting_network(record, recipe, model).to(world.device)
        network.to(memory_format=torch.channels_last)
        self._network, self._average = network, averaged(network, recipe.ema_decay)
        self._start = deepcopy(network) if recipe.start_share else None
        if world.device.type == "cpu":
            use_fast_depthwise(network)
        loss = SegmentationLoss(network, recipe, record.labels)
        self._loss = _distributed(loss.to(world.device), world)
        self._optimizer = build_optimizer(network, recipe)
        self._schedule = build_schedule(self._optimizer, recipe, finished_steps=0)
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.precision == "fp16")

    def result(self) -> SegmentationNetwork:
        """The network after the steps so far: the moving average, with `start_share` of the start.

        Do not change it: it may be the average itself.
        """
        average: SegmentationNetwork = self._average.module  # type: ignore[assignment]
        if self._start is None:
            return average
        return blended(average, self._start, self._recipe.start_share)

    @property
    def is_finished(self) -> bool:
        return self.step >= self._recipe.steps

    @property
    def learning_rate(self) -> float:
        """The current learning rate of the heads."""
        rate: float = self._optimizer.param_groups[-1]["lr"]
        return rate

    def advance(self, images: Tensor, labels: Tensor) -> float:
        """Makes one step and returns its loss.

        Args:
            images: float32 (N, 3, S, S), normalised, on the device.
            labels: uint8 (N, S, S), 255 for ignored pixels, on the device.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        torch.manual_seed(self._recipe.seed + self.step + (self._world.rank << 32))  # for dropout
        loss: Tensor = self._loss(images, labels)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()}: lower the learning rates")
        self._optimizer.zero_grad()
        torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        self._average.update_parameters(self._network)
        self.step += 1
        return loss.item()

    def save(self, run: Path) -> None:
        states = {name: part.state_dict() for name, part in self._parts().items()}
        RunCheckpoint(self.step, self._origin, states).save(run)

    def resume(self, run: Path) -> None:
        """Continues from the run's last checkpoint, if there is one.

        Raises:
            ModelError: the checkpoint is of another recipe or architecture.
        """
        checkpoint = RunCheckpoint.load(run)
        if checkpoint is None:
            return
        differing = [
            name for name, value in self._origin.items() if checkpoint.origin.get(name) != value
        ]
        if differing:
            raise ModelError(
                f"{run}: holds a run of another {' and '.join(differing)}; remove it, or give "
                "another folder with --run"
            )
        for name, part in self._parts().items():
            part.load_state_dict(checkpoint.states[name])
        self.step = checkpoint.step
        self._schedule = build_schedule(self._optimizer, self._recipe, finished_steps=self.step)

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "network": self._network,
            "average": self._average,
            "optimizer": self._optimizer,
            "scaler": self._scaler,
        }
        # The checkpoint keeps the start: a finished run replaces the weights in the model folder.
        return parts if self._start is None else {**parts, "start": self._start}


def _starting_network(record: ModelRecord, recipe: Recipe, model: Path) -> SegmentationNetwork:
    torch.manual_seed(recipe.seed)
    if recipe.start == "model":
        network = load_network(record, model)
    else:
        network = build_network(record.architecture, len(record.classes))
    if recipe.starts_from_other:
        load_start(network, model_named(recipe.start))
    elif recipe.start == "backbone":
        load_backbone(network.backbone, record.architecture.backbone, recipe.backbone_weights)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = recipe.batch_norm_momentum
            module.train(mode=recipe.batch_norm_momentum > 0)
    return network


def _distributed(loss: nn.Module, world: World) -> nn.Module:
    """Averages gradients over the processes. On GPUs, batch norms see the whole batch."""
    if world.size == 1:
        return loss
    if world.device.type == "cuda":
        loss = nn.SyncBatchNorm.convert_sync_batchnorm(loss)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(loss)
