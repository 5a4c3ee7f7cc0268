"""A data set whose labels are a tiny model's predictions with known noise, to test evaluation."""

from pathlib import Path

import numpy as np
import torch

from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.record import InputRule, ResizeRule
from segserve.runtime.settings import Settings
from segserve.training.data import IGNORED, VocFolder
from segserve.training.measure import NO_OPTIONS, Predictor

from .tiny import tiny_record
from .voc import write_pair, write_split

SIDE_PX = 64
COLORS = np.array(
    [(230, 20, 20), (20, 230, 20), (20, 20, 230)], np.uint8
)  # what the network below calls 0, 1 and 2


class StrongestChannel(torch.nn.Module):
    """A network whose class is the strongest of red, green and blue."""

    def forward(self, inputs):
        return inputs


def color_segmenter() -> Segmenter:
    rule = InputRule(resize=ResizeRule(size_px=SIDE_PX), mean=(0.5,) * 3, std=(0.5,) * 3)
    return Segmenter(
        StrongestChannel(),
        tiny_record(input=rule),
        device=torch.device("cpu"),
        settings=Settings(precision="fp32"),
    )


def color_predictor(at_once: int = 2) -> Predictor:
    """The same in plain NumPy, and without a segmenter."""
    return Predictor(
        tiny_record(),
        lambda _, image_rgb: image_rgb.argmax(axis=2).astype(np.uint8),
        at_once=at_once,
        options=NO_OPTIONS,
    )


def predictions(seed: int) -> np.ndarray:
    """Blocks of 16 pixels, which stay separate in a JPEG."""
    blocks = np.random.default_rng(seed).integers(0, 3, (4, 4)).astype(np.uint8)
    return blocks.repeat(16, axis=0).repeat(16, axis=1)


def truths(seed: int) -> np.ndarray:
    """The predictions with noise in half of the pixels, a tenth ignored, and no class 2 in odd
    images.
    """
    rng = np.random.default_rng(1000 + seed)
    labels = np.where(
        rng.random((SIDE_PX, SIDE_PX)) < 0.5,
        predictions(seed),
        rng.integers(0, 3, (SIDE_PX, SIDE_PX)),
    )
    labels[(labels == 2) & bool(seed % 2)] = 1
    labels[rng.random(labels.shape) < 0.1] = IGNORED
    return labels.astype(np.uint8)


def write_images(folder: Path, truth_by_name: dict[str, np.ndarray]) -> VocFolder:
    """A split `dev` of these names. The prediction for the image of index i is `predictions(i)`."""
    for seed, (name, truth) in enumerate(truth_by_name.items()):
        write_pair(folder, name, COLORS[predictions(seed)], truth)
    write_split(folder, "dev", list(truth_by_name))
    return VocFolder(folder, "dev")


def write_noisy(folder: Path, images: int = 5) -> VocFolder:
    return write_images(folder, {f"p{seed}": truths(seed) for seed in range(images)})
