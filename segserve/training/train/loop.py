"""The training loop. An interrupted run continues with the same batches."""

import csv
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
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
from ..evaluate.predictors import predictor_of
from ..evaluate.report import measure
from .crops import StepSampler, TrainingCrops
from .state import TrainingState, World, joined, leads

LOG_FILE = "log.csv"
TENSORBOARD_FOLDER = "tensorboard"
_COLUMNS = {"step": "d", "loss": ".4f", "learning_rate": ".6g", "seconds": ".3f", "mean_iou": ".4f"}
"""Of the log: the fields of `StepReport`, and their formats."""


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
        self._path.touch()
        lines = csv.reader(self._path.read_text(encoding="utf-8").splitlines())
        # A killed run may leave part of a row.
        rows = [row for row in lines if len(row) == len(_COLUMNS) and row[0].isdigit()]
        with self._path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [_COLUMNS, *(row for row in rows if int(row[0]) <= finished)]
            )

    def add(self, report: StepReport) -> None:
        figures = {name: value for name, value in asdict(report).items() if value is not None}
        row = [f"{value:{_COLUMNS[name]}}" for name, value in figures.items()]
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([*row, *[""] * (len(_COLUMNS) - len(row))])
        for name, value in figures.items():
            if name != "step":
                self._writer.add_scalar(name, value, report.step)

    def close(self) -> None:
        self._writer.close()


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


def validation_iou(
    record: ModelRecord, data: LabelledImages, network: SegmentationNetwork
) -> float:
    """Mean IoU in 0..1 over the classes of a split, with the code that serves the network."""
    device = next(network.parameters()).device
    # A copy, because the segmenter converts its network to the precision of inference.
    segmenter = Segmenter(deepcopy(network), record, device=device, settings=Settings())
    with predictor_of(segmenter) as predictor:
        return measure(data, predictor, lambda _finished: None).mean_iou


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
        mean_iou = None
        if validate and state.step % options.validate_every == 0:
            mean_iou = validate(state.result())
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
