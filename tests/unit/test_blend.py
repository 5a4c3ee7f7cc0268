"""Tiles and scales back in one piece: weights, averages, and no seams."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segserve.runtime.inference import logits as blend
from segserve.runtime.inference.logits import average_scales, blend_tiles, blend_weights
from segserve.runtime.inference.plan import TileAxis, TiledScale, plan_inference
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.record import InputRule, ResizeRule
from segserve.runtime.settings import Settings
from segserve.runtime.telemetry import Timings

from ..conftest import EMBEDDED
from .images import noise
from .tiny import tiny_record

CPU = torch.device("cpu")
FP32 = Settings(precision="fp32")


def random_logits(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3


def view_of(height_px: int, width_px: int, size_px: int = 128) -> TiledScale:
    (tiled,) = plan_inference(
        ResizeRule(size_px=size_px, multiple_of=32), height_px, width_px, mode="slide"
    ).scales
    return tiled


def cut(logits: torch.Tensor, tiled: TiledScale, stride: int) -> torch.Tensor:
    """The tiles of logits that exist whole."""
    height, width = (length_px // stride for length_px in tiled.tile_hw)
    origins = [(top // stride, left // stride) for top, left in tiled.origins_yx]
    return torch.stack(
        [logits[:, top : top + height, left : left + width] for top, left in origins]
    )


# Weights


@given(st.integers(1, 3000), st.integers(1, 600), st.sampled_from([4, 8, 16, 32]))
def test_blend_weights_of_every_place_sum_to_one(length_px, size_px, stride):
    axis = view_of(length_px, 10, size_px).rows
    weights = torch.from_numpy(blend_weights(axis, axis.tile_px // stride))
    total = torch.zeros(axis.length_px // stride)
    for origin_px, of_tile in zip(axis.origins_px, weights, strict=True):
        total[origin_px // stride :][: len(of_tile)] += of_tile
    torch.testing.assert_close(total, torch.ones_like(total))
    assert (weights >= 0).all()


def test_blend_weights_count_the_margin_of_a_tile_for_nothing_but_at_the_image_border():
    first, middle, last = blend_weights(TileAxis(1024, 448, 3, 32), 28)
    assert (first[0], last[-1]) == (1, 1)
    assert (
        first[-2:].tolist()
        == middle[:2].tolist()
        == middle[-2:].tolist()
        == last[:2].tolist()
        == [0, 0]
    )
    assert (middle[2:-2] > 0).all()


# Tiles


@pytest.mark.parametrize("size_hw", [(320, 448), (160, 96), (96, 500), (128, 128)], ids=str)
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_blend_tiles_of_a_whole_gives_it_back(size_hw, stride):
    tiled = view_of(*size_hw)
    logits = random_logits(5, tiled.size_hw[0] // stride, tiled.size_hw[1] // stride)
    torch.testing.assert_close(
        blend_tiles(cut(logits, tiled, stride), tiled), logits, atol=1e-5, rtol=1e-5
    )


def test_blend_tiles_of_a_single_tile_is_that_tile():
    logits = random_logits(1, 3, 8, 8)
    assert torch.equal(blend_tiles(logits, view_of(128, 128)), logits[0])


class Local(torch.nn.Module):
    """A network whose logits see 1.5 strides around them, and with random weights."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, kernel_size=stride, stride=stride),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 3, kernel_size=3, padding=1),
        )

    def forward(self, inputs):
        return self.layers(inputs)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_slide_of_a_network_that_sees_less_than_the_margin_gives_the_logits_of_the_whole(stride):
    def segmenter(size_px: int) -> Segmenter:
        rule = InputRule(
            resize=ResizeRule(size_px=size_px, multiple_of=32), mean=(0.5,) * 3, std=(0.2,) * 3
        )
        return Segmenter(Local(stride), tiny_record(input=rule), device=CPU, settings=FP32)

    image, tiled, whole = noise(480, 544), segmenter(192), segmenter(544)
    plan = tiled.plan(480, 544, mode="slide")
    assert len(list(plan.scales[0].origins_yx)) == 16
    with torch.inference_mode():
        got = tiled.logits(image, plan, Timings())
        expected = whole.logits(image, whole.plan(480, 544), Timings())
    assert got.shape == (3, 480 // stride, 544 // stride)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


# Seams


def seam_ratio(logits: torch.Tensor, tiled: TiledScale) -> float:
    """Change of the probabilities from cell to cell, where tiles begin or end to count, relative to
    elsewhere.
    """
    at_borders, elsewhere = [], []
    for dim, axis in ((1, tiled.rows), (2, tiled.columns)):
        change = logits.softmax(dim=0).diff(dim=dim).abs().sum(dim=0).mean(dim=2 - dim)
        at = borders(axis, change.numel())
        at_borders.append(change[at])
        elsewhere.append(change[~at])
    return float(torch.cat(at_borders).mean() / torch.cat(elsewhere).mean())


def borders(axis: TileAxis, changes: int) -> torch.Tensor:
    """Which of the steps between cells lead into the weight of a tile or out of it."""
    at, cells = (
        torch.zeros(changes, dtype=torch.bool),
        axis.tile_px * (changes + 1) // axis.length_px,
    )
    for origin_px, weights in zip(axis.origins_px, blend.blend_weights(axis, cells), strict=True):
        counting = np.flatnonzero(weights) + origin_px * cells // axis.tile_px
        for step in (int(counting[0]) - 1, int(counting[-1])):
            if 0 <= step < changes:
                at[step] = True
    return at


def hard_edges(axis: TileAxis, cells: int) -> np.ndarray:
    """Weights without a blend: every place belongs to the tile that counts most there."""
    begins = [origin_px * cells // axis.tile_px for origin_px in axis.origins_px]
    spread = torch.zeros(axis.tiles, begins[-1] + cells)
    for row, begin, weights in zip(spread, begins, blend_weights(axis, cells), strict=True):
        row[begin : begin + cells] = torch.from_numpy(weights)
    owner = spread.argmax(dim=0)
    return torch.stack(
        [(owner[begin : begin + cells] == index).float() for index, begin in enumerate(begins)]
    ).numpy()


def test_blend_tiles_of_the_shipped_model_leave_no_visible_seams(photographs, monkeypatch):
    segmenter = Segmenter.load(EMBEDDED, settings=FP32)
    photograph = Image.open(io.BytesIO(photographs["astronaut"])).convert("RGB").resize((736, 736))
    (tiled,) = segmenter.plan(736, 736, mode="slide").scales
    image, (height_px, width_px) = np.array(photograph), tiled.tile_hw
    with torch.inference_mode():
        crops = [
            image[top : top + height_px, left : left + width_px] for top, left in tiled.origins_yx
        ]
        tiles = torch.cat([segmenter.infer(segmenter.preprocess(crop)) for crop in crops])
    blended = seam_ratio(blend_tiles(tiles, tiled), tiled)
    monkeypatch.setattr(blend, "blend_weights", hard_edges)
    hard = seam_ratio(blend_tiles(tiles, tiled), tiled)
    assert blended < 1.5
    assert hard > 2 * blended, "a test that hard edges pass would show nothing"


# Views


def test_average_scales_is_the_mean_of_probabilities():
    scales = [random_logits(4, 5, 6), random_logits(3, 4, 5, 6)[1]]
    mean = (scales[0].softmax(0) + scales[1].softmax(0)) / 2
    averaged = average_scales(scales)
    torch.testing.assert_close(averaged.softmax(0), mean)
    torch.testing.assert_close(averaged, mean.log())


def test_average_scales_of_one_is_that_one():
    logits = random_logits(4, 5, 6)
    assert torch.equal(average_scales([logits]), logits)


def test_average_scales_of_another_size_come_to_the_grid_of_the_first():
    coarse = torch.tensor([0.0, 2.0]).view(2, 1, 1).expand(2, 3, 3)
    fine = torch.tensor([2.0, 0.0]).view(2, 1, 1).expand(2, 8, 7)
    averaged = average_scales([fine, coarse])
    assert averaged.shape == (2, 8, 7)
    torch.testing.assert_close(averaged.softmax(0), torch.full((2, 8, 7), 0.5))


def test_average_scales_of_certain_votes_stays_finite():
    averaged = average_scales([torch.tensor([500.0, -500.0]).view(2, 1, 1)] * 2)
    assert averaged.isfinite().all()
    assert averaged.softmax(0).flatten().tolist() == pytest.approx([1, 0])
