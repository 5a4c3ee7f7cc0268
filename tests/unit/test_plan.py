"""What goes through the network: sizes, tiles and cost, as geometry."""

from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve.runtime.inference.plan import SCALES, TileAxis, TiledScale, costs, plan_inference
from segserve.runtime.record import ResizeRule
from segserve.schema.request import Mode, Tta

EMBEDDED = ResizeRule(size_px=448, multiple_of=32)

rules = st.builds(
    ResizeRule,
    side=st.sampled_from(["longer", "shorter"]),
    size_px=st.integers(1, 600),
    multiple_of=st.sampled_from([1, 8, 14, 32]),
    max_px=st.integers(32, 2048),
)
lengths_px = st.integers(1, 5000)
modes, ttas = st.sampled_from(get_args(Mode)), st.sampled_from(get_args(Tta))


def whole(height_px: int, width_px: int) -> TiledScale:
    return TiledScale(TileAxis(height_px, height_px), TileAxis(width_px, width_px))


def is_whole(tiled: TiledScale) -> bool:
    return tiled.size_hw == tiled.tile_hw and list(tiled.origins_yx) == [(0, 0)]


@given(rules, lengths_px, lengths_px)
def test_plan_inference_without_options_is_one_pass_of_the_rule(rule, height_px, width_px):
    plan = plan_inference(rule, height_px, width_px)
    assert plan.scales == (whole(*rule.size_for(height_px, width_px)),)
    assert (plan.mirrored, plan.cost) == (False, 1)


@given(rules, lengths_px, lengths_px, modes, ttas)
def test_plan_inference_any_request_tiles_every_scale_without_gaps(
    rule, height_px, width_px, mode, tta
):
    for tiled in plan_inference(rule, height_px, width_px, mode=mode, tta=tta).scales:
        for axis in (tiled.rows, tiled.columns):
            origins_px = axis.origins_px
            assert (origins_px[0], origins_px[-1] + axis.tile_px) == (0, axis.length_px)
            assert len(origins_px) == axis.tiles
            overlaps_px = [left + axis.tile_px - right for left, right in pairwise(origins_px)]
            assert all(3 * overlap_px >= axis.tile_px for overlap_px in overlaps_px)
            assert all(left < right for left, right in pairwise(origins_px))


@given(rules, lengths_px, lengths_px, ttas)
def test_plan_inference_tiles_lie_on_the_grid_of_the_largest_stride(rule, height_px, width_px, tta):
    for tiled in plan_inference(rule, height_px, width_px, mode="slide", tta=tta).scales:
        if not is_whole(tiled):
            lengths = (
                *tiled.size_hw,
                *tiled.tile_hw,
                *tiled.rows.origins_px,
                *tiled.columns.origins_px,
            )
            assert all(length_px % 32 == 0 for length_px in lengths)
            assert all(length_px % rule.multiple_of == 0 for length_px in lengths)


@given(rules, lengths_px, lengths_px, modes, ttas)
def test_plan_inference_cost_is_the_share_of_pixels_through_the_network(
    rule, height_px, width_px, mode, tta
):
    plan = plan_inference(rule, height_px, width_px, mode=mode, tta=tta)
    tiles_hw = [tiled.tile_hw for tiled in plan.scales for _ in tiled.origins_yx]
    pixels = sum(height * width for height, width in tiles_hw) * (1 + plan.mirrored)
    rows_px, columns_px = rule.size_for(height_px, width_px)
    assert plan.cost == pytest.approx(pixels / (rows_px * columns_px))
    assert plan.cost == costs(rule, height_px, width_px)[mode, tta]
    assert plan.mirrored == (tta != "none")


@given(rules, lengths_px, lengths_px, modes)
def test_plan_inference_multiscale_begins_with_the_finest_scale_and_repeats_none(
    rule, height_px, width_px, mode
):
    scales = plan_inference(rule, height_px, width_px, mode=mode, tta="multiscale").scales
    assert len(set(scales)) == len(scales) <= len(SCALES)
    areas = [tiled.size_hw[0] * tiled.size_hw[1] for tiled in scales]
    assert areas == sorted(areas, reverse=True)
    (plain,) = plan_inference(rule, height_px, width_px, mode=mode).scales
    assert plain in scales


def test_plan_inference_multiscale_takes_the_scales_of_the_rule_size():
    scales = plan_inference(EMBEDDED, 448, 448, tta="multiscale").scales
    assert scales == tuple(whole(side_px, side_px) for side_px in (768, 672, 576, 448, 320, 224))


@pytest.mark.parametrize(
    "size_hw",
    [(448, 448), (300, 448), (100, 80), (1, 1)],
    ids=["same size", "wide", "small", "one pixel"],
)
@pytest.mark.parametrize("tta", get_args(Tta))
def test_plan_inference_slide_of_a_small_image_is_the_whole(size_hw, tta):
    assert plan_inference(EMBEDDED, *size_hw, mode="slide", tta=tta) == plan_inference(
        EMBEDDED, *size_hw, tta=tta
    )


@pytest.mark.parametrize(
    ("size_hw", "scale_hw", "origins"),
    [
        ((1024, 1024), (1024, 1024), ((0, 288, 576), (0, 288, 576))),
        ((300, 451), (288, 448), ((0,), (0,))),
        ((375, 500), (384, 512), ((0,), (0, 64))),
        ((3000, 20), (3008, 32), ((0, 256, 544, 832, 1120, 1408, 1696, 1984, 2272, 2560), (0,))),
    ],
    ids=["square", "a little larger", "two tiles", "thin"],
)
def test_plan_inference_slide_of_a_large_image_is_cut_at_its_resolution(size_hw, scale_hw, origins):
    (tiled,) = plan_inference(EMBEDDED, *size_hw, mode="slide").scales
    assert tiled.size_hw == scale_hw
    assert (tiled.rows.origins_px, tiled.columns.origins_px) == origins


@pytest.mark.parametrize(
    ("size_px", "multiple_of", "size_hw"),
    [(520, 37, (1500, 2000)), (448, 14, (600, 800)), (100, 14, (2240, 2240)), (520, 100, (900, 1))],
    ids=["steps above the size", "distorted", "tiles above the size", "thin"],
)
@pytest.mark.parametrize("tta", get_args(Tta))
def test_plan_inference_slide_of_steps_that_are_too_large_is_the_whole(
    size_px, multiple_of, size_hw, tta
):
    rule = ResizeRule(size_px=size_px, multiple_of=multiple_of)
    expected = plan_inference(rule, *size_hw, tta=tta)
    assert plan_inference(rule, *size_hw, mode="slide", tta=tta) == expected


def test_plan_inference_slide_of_a_multiple_that_is_not_a_power_of_two_keeps_the_shape():
    rule = ResizeRule(size_px=518, multiple_of=14)
    (tiled,) = plan_inference(rule, 1500, 2000, mode="slide").scales
    assert (tiled.size_hw, tiled.tile_hw) == ((1568, 2016), (448, 448))


def test_origins_yx_go_row_by_row():
    tiled = TiledScale(TileAxis(96, 64, 2, 32), TileAxis(128, 64, 3, 32))
    assert list(tiled.origins_yx) == [(0, 0), (0, 32), (0, 64), (32, 0), (32, 32), (32, 64)]


def test_costs_holds_every_combination_the_plain_one_at_1():
    table = costs(EMBEDDED, 1024, 1024)
    assert table == {
        ("whole", "none"): 1,
        ("whole", "flip"): 2,
        ("whole", "multiscale"): pytest.approx(
            (768**2 + 672**2 + 576**2 + 448**2 + 320**2 + 224**2) * 2 / 448**2
        ),
        ("slide", "none"): 9,
        ("slide", "flip"): 18,
        ("slide", "multiscale"): 198,
    }
