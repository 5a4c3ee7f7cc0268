"""The training loop. A run killed at any moment goes on from its last checkpoint with the same
batches.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ...runtime.errors import ModelError
from ...runtime.network.build import SegmentationNetwork
from ...runtime.record import InputRule, ModelRecord, read_record
from ..data import LabelledImages, scan
from .balance import rare_classes, repeat_factors
from .copy_paste import ObjectPaste
from .crops import StepSampler, TrainingCrops
from .distributed import World, joined, leads
from .log import RunLog, StepReport
from .recipe import Recipe
from .state import TrainingState

logger = logging.getLogger(__name__)

Validate = Callable[[SegmentationNetwork], float]


@dataclass(frozen=True)
class RunOptions:
    """What does not change the weights that come out.

    Attributes:
        checkpoint_every: steps from one checkpoint to the next.
        validate_every: steps from one validation to the next.
        workers: processes that load data for this one.
    """

    checkpoint_every: int = 50
    validate_every: int = 500
    workers: int = 1


def train(
    model: Path,
    recipe: Recipe,
    data: LabelledImages,
    run: Path,
    report: Callable[[StepReport], None],
    *,
    validate: Validate | None = None,
    options: RunOptions = RunOptions(),
) -> SegmentationNetwork:
    """Trains the network of a model folder, or goes on with the run that `run` holds, to the last
    step of the recipe.

    Started by `torchrun`, every process computes its share of each batch, and the first one reports
    and writes.

    Args:
        model: folder with the record, and with the weights to start from where the recipe says so.
        run: folder of the checkpoint, `log.csv` and the TensorBoard files.
        report: called after every step.
        validate: gives the mean IoU, in 0..1, of a network, and leaves the network as it is.

    Returns:
        The trained network in evaluation mode.

    Raises:
        ModelError: `run` holds another run, or the recipe's batches do not divide among the
            processes.
        DataError: the data set has problems; all are listed.
        FloatingPointError: the loss is no longer a number.
    """
    record = read_record(model)
    with joined() as world:
        _check_recipe(recipe, world)
        state = TrainingState(record, recipe, model, world)
        state.resume(run)
        batches = _batches(record, recipe, data, state.step, world, options.workers)
        if leads():
            _lead(state, batches, run, report, validate, options)
        else:
            for images, labels in batches:
                state.advance(images, labels)
    return state.result().eval()


def _lead(
    state: TrainingState,
    batches: Iterator[tuple[Tensor, Tensor]],
    run: Path,
    report: Callable[[StepReport], None],
    validate: Validate | None,
    options: RunOptions,
) -> None:
    log = RunLog(run, state.step)
    began_s = time.perf_counter()
    for images, labels in batches:
        learning_rate, loss = state.learning_rate, state.advance(images, labels)
        seconds = time.perf_counter() - began_s
        mean_iou = (
            validate(state.result())
            if validate and state.step % options.validate_every == 0
            else None
        )
        made = StepReport(state.step, loss, learning_rate, seconds, mean_iou)
        log.add(made)
        report(made)
        if state.is_finished or state.step % options.checkpoint_every == 0:
            state.save(run)
        began_s = time.perf_counter()
    log.close()


def _check_recipe(recipe: Recipe, world: World) -> None:
    if recipe.start_share > 0 and recipe.start != "model":
        raise ModelError(
            f"start_share is {recipe.start_share}, but the run starts from a backbone: set start "
            "to model"
        )
    if recipe.batch_size % world.size:
        raise ModelError(
            f"batch_size is {recipe.batch_size}, which {world.size} processes cannot share evenly"
        )


def _batches(
    record: ModelRecord,
    recipe: Recipe,
    data: LabelledImages,
    first_step: int,
    world: World,
    workers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What falls to a process of the batches from `first_step` on, normalised and on its device."""
    scanned = scan(data, record.classes)
    for note in scanned.notes if leads() else ():
        logger.warning(note)
    presence = scanned.presence
    rare = rare_classes(presence, recipe.repeat_threshold)
    crops = TrainingCrops(
        data, recipe, record.input, ObjectPaste(data, presence, rare, recipe.copy_paste)
    )
    repeats = repeat_factors(presence, recipe.repeat_threshold)
    sampler = StepSampler(repeats, recipe, first_step, rank=world.rank, processes=world.size)
    ahead = 4 if workers else None
    for images, labels in DataLoader(
        crops, batch_sampler=sampler, num_workers=workers, prefetch_factor=ahead
    ):
        yield normalized(images.to(world.device), record.input), labels.to(world.device)


def normalized(images: Tensor, rule: InputRule) -> Tensor:
    """uint8 (N, 3, H, W), RGB -> float32 in channels_last, normalised by the rule's mean and
    std.
    """
    mean = images.new_tensor(rule.mean, dtype=torch.float32).view(1, 3, 1, 1)
    std = images.new_tensor(rule.std, dtype=torch.float32).view(1, 3, 1, 1)
    return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
