"""The training loop and its batches. An interrupted run continues with the same batches."""

import csv
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.tensorboard.writer import SummaryWriter
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..recipe import Recipe
from ..runtime.errors import ModelError
from ..runtime.inference.segmenter import Segmenter
from ..runtime.network import SegmentationNetwork
from ..runtime.record import InputRule, ModelRecord, read_record
from ..runtime.settings import Settings
from .data import IGNORED, CheckedSplit, LabelledImages
from .measure import measure, predictor_of
from .state import TrainingState, World, is_main_process, process_group

LOG_FILE = "log.csv"
TENSORBOARD_FOLDER = "tensorboard"
_COLUMNS = {"step": "d", "loss": ".4f", "learning_rate": ".6g", "seconds": ".3f", "mean_iou": ".4f"}
"""Of the log: the fields of `StepReport`, and their formats."""


@dataclass(frozen=True)
class StepReport:
    """One finished step.

    Attributes:
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
    record: ModelRecord | None = None,
    begin: Callable[[int], None] = lambda _finished: None,
    validate: Validate | None = None,
    checkpoint_every: int = 50,
    validate_every: int = 500,
    workers: int = 1,
) -> SegmentationNetwork:
    """Trains the network of a model folder to the last step of the recipe, or resumes the run.

    With `torchrun`, every process computes its share of each batch. The first process reports and
    writes.

    Args:
        model: folder with the record, and with the weights if the recipe starts from the model.
        run: folder of the checkpoint, `log.csv` and the TensorBoard files.
        report: called after every step.
        record: of a model whose folder is not written yet; by default that of the folder.
        begin: called before the first step, with the number of steps that an earlier run finished.
        validate: returns the mean IoU of a network, in 0..1, and does not change the network.
        workers: processes that load data for this process.

    Returns:
        The trained network in evaluation mode.

    Raises:
        ModelError: `run` holds another run, or the batch size is not a multiple of the number of
            processes.
        FloatingPointError: the loss is not finite.
    """
    record = record or read_record(model)
    with process_group() as world:
        _check_recipe(recipe, world)
        state = TrainingState(record, recipe, model, data, world)
        state.resume(run)
        batches = _batches(record, recipe, data, state.step, world, workers)
        if not is_main_process():
            for images, labels in batches:
                state.advance(images, labels)
            return state.result().eval()
        begin(state.step)
        log = RunLog(run, state.step)
        for finished in _finished_steps(state, batches, validate, validate_every):
            log.add(finished)
            report(finished)
            if state.is_finished or state.step % checkpoint_every == 0:
                state.save(run)
        log.close()
    return state.result().eval()


def _finished_steps(
    state: TrainingState,
    batches: Iterator[tuple[Tensor, Tensor]],
    validate: Validate | None,
    validate_every: int,
) -> Iterator[StepReport]:
    began_s = time.perf_counter()
    for images, labels in batches:
        learning_rate, loss = state.learning_rate, state.advance(images, labels)
        seconds = time.perf_counter() - began_s
        mean_iou = None
        if validate and state.step % validate_every == 0:
            mean_iou = validate(state.result())
        yield StepReport(state.step, loss, learning_rate, seconds, mean_iou)
        began_s = time.perf_counter()


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


class TrainingCrops(Dataset[tuple[Tensor, Tensor]]):
    """Augmented crops: uint8 image (3, crop, crop), RGB, and uint8 label map (crop, crop).

    An item depends on its key (index, seed) alone, so that any step of a run can be repeated.
    """

    def __init__(self, data: LabelledImages, recipe: Recipe, rule: InputRule) -> None:
        self._data, self._names = data, data.names
        mean_rgb = [round(255 * mean) for mean in rule.mean]
        outside = {tv_tensors.Image: mean_rgb, tv_tensors.Mask: IGNORED}
        self._augment = v2.Compose(
            [
                v2.ScaleJitter((recipe.image_px, recipe.image_px), scale_range=recipe.scales),
                v2.RandomCrop(recipe.crop_px, pad_if_needed=True, fill=outside),
                v2.RandomHorizontalFlip(),
            ]
        )
        strength = recipe.color_jitter
        self._recolor = v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = key
        image_rgb, labels = self._data.pair(self._names[index])
        torch.manual_seed(seed)
        crop, crop_labels = self._augment(
            tv_tensors.Image(image_rgb.transpose(2, 0, 1).copy()), tv_tensors.Mask(labels)
        )
        return self._recolor(crop.as_subclass(Tensor)), crop_labels.as_subclass(Tensor)


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The (index, seed) pairs of every step from `first_step` on.

    An epoch visits every image once, shuffled. The images of a step depend on (seed, step) alone,
    so a resumed run continues with the same batches. Each of several processes gets its share of
    every batch.
    """

    def __init__(
        self, num_images: int, recipe: Recipe, first_step: int, *, rank: int = 0, processes: int = 1
    ) -> None:
        self._num_images, self._recipe, self._first_step = num_images, recipe, first_step
        self._share = slice(rank, None, processes)

    def __len__(self) -> int:
        return self._recipe.steps - self._first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size, order = self._recipe.batch_size, self._order()
        for step in range(self._first_step, self._recipe.steps):
            positions = range(step * size, (step + 1) * size)[self._share]
            yield [(int(order[position]), self._seed(position)) for position in positions]

    def _order(self) -> NDArray[np.int64]:
        """The image index of every position of the whole run, epoch by epoch."""
        positions = self._recipe.steps * self._recipe.batch_size
        seeds = [(self._recipe.seed, epoch) for epoch in range(ceil(positions / self._num_images))]
        return np.concatenate(
            [np.random.default_rng(seed).permutation(self._num_images) for seed in seeds]
        )

    def _seed(self, position: int) -> int:
        return int(np.random.SeedSequence((self._recipe.seed, position)).generate_state(1)[0])
