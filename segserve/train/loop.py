"""The training loop. A run killed at any moment goes on from its last checkpoint with the same batches."""

import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.utils.data import DataLoader

from ..runtime.errors import ModelError
from ..runtime.network import SegmentationNetwork, build_network, load_network
from ..runtime.record import ModelRecord, read_record
from .backbone import load_backbone
from .checkpoint import Checkpoint
from .dataset import IGNORED, StepSampler, TrainingCrops, VocFolder
from .optimizer import build_optimizer, build_schedule
from .recipe import Recipe

CHECKPOINT_EVERY = 50  # steps
LOG_FILE = "log.csv"

Report = Callable[[int, float, float], None]


def train(model: Path, recipe: Recipe, data: VocFolder, run: Path, report: Report) -> SegmentationNetwork:
    """Trains the network of a model folder, or goes on with the run that `run` holds, to the last step of the recipe.

    Args:
        model: folder with the record, and with the weights to start from where the recipe says so.
        run: folder of the checkpoint and of `log.csv` (step, loss, seconds).
        report: called after every step with the number of finished steps, the loss and the step's seconds.

    Raises:
        ModelError: `run` holds a checkpoint of another recipe.
        FloatingPointError: the loss is no longer a number.
    """
    record = read_record(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = _starting_network(record, recipe, model).to(device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(network, recipe)
    finished = _resume(run, recipe, network, optimizer)
    schedule = build_schedule(optimizer, recipe, finished)

    for step, (images, labels) in enumerate(_batches(record, recipe, data, finished), start=finished):
        began_s = time.perf_counter()
        torch.manual_seed(recipe.seed + step)  # for dropout
        inputs = normalized(images.to(device), record)
        loss = _loss(network, inputs, labels.to(device), recipe)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        _log(run, step + 1, loss.item(), time.perf_counter() - began_s)
        report(step + 1, loss.item(), time.perf_counter() - began_s)
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == recipe.steps:
            Checkpoint(step + 1, recipe.model_dump(), network.state_dict(), optimizer.state_dict()).save(run)
    network.eval()
    return network


def normalized(images: Tensor, record: ModelRecord) -> Tensor:
    """uint8 (N, 3, H, W), RGB -> float32 in channels_last, normalised by the record's mean and std."""
    mean = images.new_tensor(record.input.mean, dtype=torch.float32).view(1, 3, 1, 1)
    std = images.new_tensor(record.input.std, dtype=torch.float32).view(1, 3, 1, 1)
    return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def _starting_network(record: ModelRecord, recipe: Recipe, model: Path) -> SegmentationNetwork:
    torch.manual_seed(recipe.seed)
    if recipe.start == "model":
        network = load_network(record, model)
    else:
        network = build_network(record.architecture, len(record.classes))
        load_backbone(network.backbone, record.architecture.backbone, recipe.backbone_weights)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = recipe.batch_norm_momentum
    network.train()
    return network


def _resume(run: Path, recipe: Recipe, network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Brings network and optimizer to the run's last checkpoint; the number of steps that it had finished."""
    checkpoint = Checkpoint.load(run)
    if checkpoint is None:
        return 0
    if checkpoint.recipe != recipe.model_dump():
        raise ModelError(f"{run}: holds a run of another recipe; remove it, or give another folder with --run")
    network.load_state_dict(checkpoint.network)
    optimizer.load_state_dict(checkpoint.optimizer)
    return checkpoint.step


def _batches(record: ModelRecord, recipe: Recipe, data: VocFolder, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
    crops = TrainingCrops(data, recipe, record.input)
    sampler = StepSampler(len(crops), recipe, first_step)
    return iter(DataLoader(crops, batch_sampler=sampler, num_workers=1, prefetch_factor=4))


def _loss(network: nn.Module, inputs: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Cross-entropy at the crop's full size, in float32."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
        logits = network(inputs)
    logits = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(logits, labels.long(), ignore_index=IGNORED)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()}: lower the learning rates")
    return loss


def _log(run: Path, step: int, loss: float, seconds: float) -> None:
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOG_FILE).open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow([step, f"{loss:.4f}", f"{seconds:.3f}"])
