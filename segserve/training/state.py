"""The state of a training run, its loss, optimizer, learning rates and averages of weights, and the
checkpoints from which an interrupted run continues.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from ..fetch import model_named
from ..recipe import Recipe
from ..runtime.errors import ModelError
from ..runtime.files import whole_file
from ..runtime.network import SegmentationNetwork, build_network, load_network
from ..runtime.record import ModelRecord, named_weights, read_record, sha256_of
from .data import IGNORED, CheckedSplit
from .depthwise import use_fast_depthwise
from .model_folder import exported_sha256, load_backbone, load_start

CHECKPOINT_FILE = "checkpoint.pt"
_START = "starting weights"
_MOMENTUM, _WEIGHT_DECAY, _POLY_POWER = 0.9, 1e-4, 0.9

Network = TypeVar("Network", bound=nn.Module)


def is_main_process() -> bool:
    """Whether this process reports and writes: the only process, or the first of `torchrun`."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class World:
    """The rank of this process among the `size` processes of `torchrun`; 0 of 1 without it."""

    rank: int
    size: int
    device: torch.device


@contextmanager
def process_group() -> Iterator[World]:
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


def write_checkpoint(run: Path, checkpoint: Mapping[str, Any]) -> None:
    """Replaces the checkpoint of the run once the new one is complete on the disk."""
    run.mkdir(parents=True, exist_ok=True)
    with whole_file(run / CHECKPOINT_FILE) as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(run: Path) -> Any:  # noqa: ANN401 - as it was written
    """The checkpoint of the run, or None if there is none."""
    path = run / CHECKPOINT_FILE
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


class TrainingState:
    """Network, moving average, optimizer and schedule after `step` finished steps."""

    def __init__(
        self, record: ModelRecord, recipe: Recipe, model: Path, data: CheckedSplit, world: World
    ) -> None:
        self.step = 0
        self._recipe, self._world = recipe, world
        self._origin = {
            "recipe": recipe.model_dump(),
            "architecture": record.architecture.model_dump(),
            "classes": list(record.labels),
            "input rule": record.input.model_dump(),
            _START: _starting_sha256(record, recipe),
            "data": _fingerprint(data),
        }
        network = _starting_network(record, recipe, model).to(world.device)
        network.to(memory_format=torch.channels_last)
        self._network, self._average = network, moving_average(network, recipe.ema_decay)
        self._start = deepcopy(network) if recipe.start_share else None
        if world.device.type == "cpu":
            use_fast_depthwise(network)
        loss = SegmentationLoss(network, recipe)
        self._loss = _distributed(loss.to(world.device), world)
        self._optimizer = build_optimizer(network, recipe)
        self._schedule = build_schedule(self._optimizer, recipe, finished_steps=0)

    def result(self) -> SegmentationNetwork:
        """The network after the steps so far: the moving average, with `start_share` of the start.

        Do not change it: it may be the average itself.
        """
        average: SegmentationNetwork = self._average.module  # type: ignore[assignment]
        if self._start is None:
            return average
        return interpolated(average, self._start, self._recipe.start_share)

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
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._schedule.step()
        self._average.update_parameters(self._network)
        self.step += 1
        return loss.item()

    def save(self, run: Path) -> None:
        states = {name: part.state_dict() for name, part in self._parts().items()}
        write_checkpoint(run, {"step": self.step, "origin": self._origin, "states": states})

    def resume(self, run: Path) -> None:
        """Continues from the run's last checkpoint, if there is one.

        Raises:
            ModelError: the checkpoint is of another recipe or architecture, other classes, data or
                starting weights.
        """
        checkpoint = read_checkpoint(run)
        if checkpoint is None:
            return
        origin = checkpoint["origin"]
        differing = [name for name, value in self._origin.items() if origin.get(name) != value]
        error = ModelError(
            f"{run}: holds another run, which differs in {', '.join(differing)}; remove it, or "
            "give another folder with --run"
        )
        if differing and differing != [_START]:
            raise error
        for name, part in self._parts().items():
            part.load_state_dict(checkpoint["states"][name])
        self.step = checkpoint["step"]
        # A finished run may have replaced the weights in the model folder that it started from.
        if differing and not (
            self.is_finished and exported_sha256(self.result()) == self._origin[_START]
        ):
            raise error
        self._schedule = build_schedule(self._optimizer, self._recipe, finished_steps=self.step)

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "network": self._network,
            "average": self._average,
            "optimizer": self._optimizer,
        }
        # The checkpoint keeps the start: a finished run replaces the weights in the model folder.
        return parts if self._start is None else {**parts, "start": self._start}


def _starting_sha256(record: ModelRecord, recipe: Recipe) -> str | None:
    """Of the file that a run starts from; None if there is no such file."""
    if recipe.start == "model":
        return named_weights(record).sha256
    if recipe.starts_from_other:
        return named_weights(read_record(model_named(recipe.start))).sha256
    source = Path(recipe.backbone_weights)
    return sha256_of(source) if source.is_file() else None


def _fingerprint(data: CheckedSplit) -> str:
    """Of the names of the images and the number of pixels of each class."""
    content = [list(data.data.names), data.pixels.tolist()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _starting_network(record: ModelRecord, recipe: Recipe, model: Path) -> SegmentationNetwork:
    torch.manual_seed(recipe.seed)
    if recipe.start == "model":
        network = load_network(record, model)
    else:
        network = build_network(record.architecture, len(record.classes))
    if recipe.starts_from_other:
        load_start(network, record, model_named(recipe.start))
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


# Loss, optimizer and averages


class SegmentationLoss(nn.Module):
    """A network and the loss of its logits in one module, as data parallelism needs it.

    Shape: normalised images, float32 (N, 3, S, S), and label maps, uint8 (N, S, S), 255 for ignored
    pixels -> the loss, float32 (): 0 if every pixel is ignored.
    """

    def __init__(self, network: SegmentationNetwork, recipe: Recipe) -> None:
        super().__init__()
        self.network = network
        self._recipe = recipe

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        reduced = self._recipe.precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=reduced):
            return self._cross_entropy(self.network(images), labels)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy, in float32, at every `loss_stride`th pixel of every such row."""
        stride = self._recipe.loss_stride
        truth = labels[:, stride // 2 :: stride, stride // 2 :: stride].long()
        logits = F.interpolate(
            logits.float(), size=truth.shape[-2:], mode="bilinear", align_corners=False
        )
        if not (truth != IGNORED).any():
            return logits.sum() * 0  # the mean over no pixel would be NaN
        return F.cross_entropy(logits, truth, ignore_index=IGNORED)


def build_optimizer(network: SegmentationNetwork, recipe: Recipe) -> Optimizer:
    """Builds the optimizer, with one learning rate for the backbone and one for the heads.

    Biases and batch norms have no weight decay.
    """
    heads = chain.from_iterable(
        part.parameters() for name, part in network.named_children() if name != "backbone"
    )
    parts = (list(network.backbone.parameters()), recipe.backbone_lr), (list(heads), recipe.head_lr)
    groups = [
        {
            "params": [parameter for parameter in parameters if (parameter.ndim > 1) == decayed],
            "lr": lr,
            "weight_decay": _WEIGHT_DECAY if decayed else 0.0,
        }
        for parameters, lr in parts
        for decayed in (True, False)
    ]
    if recipe.optimizer == "adamw":
        return AdamW(groups)
    return SGD(groups, momentum=_MOMENTUM, nesterov=True)


def build_schedule(optimizer: Optimizer, recipe: Recipe, finished_steps: int) -> LambdaLR:
    """Builds the schedule: linear warm-up, then poly or cosine.

    poly is (1 - step / steps) ** 0.9 (Chen et al., arXiv:1606.00915, section 4.1). cosine is half a
    period (Loshchilov and Hutter, arXiv:1608.03983).
    """
    length = recipe.schedule_steps or recipe.steps

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / (recipe.warmup_steps + 1))
        done = min(step, length) / length
        if recipe.schedule == "cosine":
            return warmup * (1 + math.cos(math.pi * done)) / 2
        return float(warmup * (1 - done) ** _POLY_POWER)

    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return LambdaLR(optimizer, factor, last_epoch=finished_steps - 1)


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of the network that follows it as an exponential moving average.

    The running statistics of batch norms are averaged too. The decay grows with the steps, as
    (1 + step) / (10 + step) up to `decay`, so that a short run does not keep the untrained weights.
    """

    def follow(average: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return current
        kept = min(decay, (1 + int(steps)) / (10 + int(steps)))
        return average.lerp(current, 1 - kept)

    return AveragedModel(network, avg_fn=follow, use_buffers=True)


def interpolated(network: Network, other: nn.Module, share: float) -> Network:
    """A copy of the network with `share` of the weights and running statistics of `other`."""
    copy, others = deepcopy(network), other.state_dict()
    copy.load_state_dict(
        {
            name: own.lerp(others[name], share) if own.is_floating_point() else own
            for name, own in network.state_dict().items()
        }
    )
    return copy
