"""The training loop. An interrupted run continues with the same batches."""

import csv
import logging
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.tensorboard.writer import SummaryWriter

from ...recipe import Recipe
from ...runtime.errors import ModelError
from ...runtime.inference.segmenter import Segmenter
from ...runtime.network.weights import SegmentationNetwork
from ...runtime.record import InputRule, ModelRecord, read_record
from ...runtime.settings import Settings
from ..data import CheckedSplit, LabelledImages
from ..evaluate.measure import measure, predictor_of
from .crops import StepSampler, TrainingCrops
from .state import TrainingState, World, joined, leads

LOG_FILE = "log.csv"
TENSORBOARD_FOLDER = "tensorboard"
_COLUMNS = ("step", "loss", "learning_rate", "seconds", "mean_iou")


@dataclass(frozen=True)
class StepReport:
    """One finished step.

    Attributes:
        step: the number of finished steps.
        learning_rate: of the heads.
        seconds: duration of the step, with the wait for its batch.
        mean_iou: of the validation after the step, in 0..1; None if there was none.
    """

    step: int
    loss: float
    learning_rate: float
    seconds: float
    mean_iou: float | None = None


class RunLog:
    """Appends to the log of a run that has `finished` steps.

    Rows of later steps are removed: a resumed run repeats these steps.
    """

    def __init__(self, run: Path, finished: int) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._path = run / LOG_FILE
        self._writer = SummaryWriter(str(run / TENSORBOARD_FOLDER), purge_step=finished + 1)
        rows = [row for row in self._rows() if int(row[0]) <= finished]
        with self._path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([_COLUMNS, *rows])

    def _rows(self) -> list[list[str]]:
        """The complete rows. A killed run may leave part of a row."""
        if not self._path.exists():
            return []
        with self._path.open(newline="", encoding="utf-8") as file:
            return [
                row for row in csv.reader(file) if len(row) == len(_COLUMNS) and row[0].isdigit()
            ]

    def add(self, report: StepReport) -> None:
        mean_iou = "" if report.mean_iou is None else f"{report.mean_iou:.4f}"
        row = (
            report.step,
            f"{report.loss:.4f}",
            f"{report.learning_rate:.6g}",
            f"{report.seconds:.3f}",
            mean_iou,
        )
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)
        for name in ("loss", "learning_rate", "seconds", "mean_iou"):
            value = getattr(report, name)
            if value is not None:
                self._writer.add_scalar(name, value, report.step)

    def close(self) -> None:
        self._writer.close()


logger = logging.getLogger(__name__)

Validate = Callable[[SegmentationNetwork], float]


@dataclass(frozen=True)
class RunOptions:
    """Options that do not change the trained weights.

    Attributes:
        checkpoint_every: steps between checkpoints.
        validate_every: steps between validations.
        workers: processes that load data for this process.
    """

    checkpoint_every: int = 50
    validate_every: int = 500
    workers: int = 1


@dataclass(frozen=True)
class Validation:
    """Measures a network on a split with the code that serves it."""

    record: ModelRecord
    data: LabelledImages

    def __call__(self, network: SegmentationNetwork) -> float:
        """Mean IoU in 0..1 over the classes of the split. The network is not changed."""
        device = next(network.parameters()).device
        # A copy, because the segmenter converts its network to the precision of inference.
        segmenter = Segmenter(deepcopy(network), self.record, device=device, settings=Settings())
        with predictor_of(segmenter) as predictor:
            return measure(self.data, predictor, lambda _finished: None).mean_iou


def train(
    model: Path,
    recipe: Recipe,
    data: CheckedSplit,
    run: Path,
    report: Callable[[StepReport], None],
    *,
    validate: Validate | None = None,
    options: RunOptions = RunOptions(),
) -> SegmentationNetwork:
    """Trains the network of a model folder to the last step of the recipe, or resumes the run.

    With `torchrun`, every process computes its share of each batch. The first process reports and
    writes.

    Args:
        model: folder with the record, and with the weights if the recipe starts from the model.
        run: folder of the checkpoint, `log.csv` and the TensorBoard files.
        report: called after every step.
        validate: returns the mean IoU of a network, in 0..1, and does not change the network.

    Returns:
        The trained network in evaluation mode.

    Raises:
        ModelError: `run` holds another run, or the batch size is not a multiple of the number of
            processes.
        FloatingPointError: the loss is not finite.
    """
    record = read_record(model)
    with joined() as world:
        _check_recipe(recipe, world)
        state = TrainingState(record, recipe, model, world)
        state.resume(run)
        batches = _batches(record, recipe, data, state.step, world, options.workers)
        if leads():
            _advance_and_report(state, batches, run, report, validate, options)
        else:
            for images, labels in batches:
                state.advance(images, labels)
    return state.result().eval()


def _advance_and_report(
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
        finished = StepReport(state.step, loss, learning_rate, seconds, mean_iou)
        log.add(finished)
        report(finished)
        if state.is_finished or state.step % options.checkpoint_every == 0:
            state.save(run)
        began_s = time.perf_counter()
    log.close()


def _check_recipe(recipe: Recipe, world: World) -> None:
    if recipe.start_share > 0 and recipe.start == "backbone":
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
    split: CheckedSplit,
    first_step: int,
    world: World,
    workers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The share of this process in the batches from `first_step` on, normalised, on its device."""
    crops = TrainingCrops(split.data, recipe, record.input)
    sampler = StepSampler(len(crops), recipe, first_step, rank=world.rank, processes=world.size)
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
