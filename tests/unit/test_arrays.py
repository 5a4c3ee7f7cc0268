"""What follows the network gives the same on NumPy's arrays as on PyTorch's tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segserve.runtime.inference.labels import LabelRule, choose_labels
from segserve.runtime.inference.logits import average_scales, blend_tiles
from segserve.runtime.inference.plan import plan_inference
from segserve.runtime.record import ResizeRule

RULES = [
    LabelRule(keep_confidence=True),
    LabelRule(kept=frozenset({0, 2}), keep_confidence=True),
    LabelRule(threshold=0.6, keep_confidence=True),
]


def logits_of(seed: int, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spread = rng.normal(-4, 3, (shape[0], *[1] * (len(shape) - 1)))
    return (rng.normal(0, 2, shape) + spread).astype(np.float32)


@pytest.mark.parametrize("rule", RULES, ids=["all", "kept", "threshold"])
@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(1, 80),
    st.integers(1, 200),
    st.sampled_from([1.0, 1.7]),
)
def test_choose_labels_is_the_same_on_both(rule, seed, h, w, height_px, temperature):
    logits = logits_of(seed, 7, h, w)
    ours, expected = (
        choose_labels(each, height_px, 150, rule, temperature=temperature)
        for each in (logits, torch.from_numpy(logits))
    )
    assert (ours.label_map == expected.label_map).mean() > 0.999  # sums round differently
    differences = ours.confidence_map.astype(int) - expected.confidence_map
    assert np.abs(differences).max() <= 1
    assert ours.quality.shares == expected.quality.shares
    assert ours.quality.entropy == pytest.approx(expected.quality.entropy, abs=1e-5)
    assert [area.id for area in ours.classes] == [area.id for area in expected.classes]
    for area, other in zip(ours.classes, expected.classes, strict=True):
        assert area.confidence == pytest.approx(other.confidence, abs=1e-3)
        assert (ours.label_map == area.id).sum() == area.pixels


def test_choose_labels_counts_every_pixel_of_an_image_of_one_row():
    [area] = choose_labels(np.ones((1, 1, 3), np.float32), 1, 10**6).classes
    assert (area.pixels, area.box_xyxy) == (10**6, (0, 0, 10**6, 1))


def test_average_scales_is_the_same_on_both():
    scales = [logits_of(seed, 5, side, side + 3) for seed, side in enumerate((40, 30, 17))]
    torch.testing.assert_close(
        torch.from_numpy(average_scales(scales)),
        average_scales([torch.from_numpy(scale) for scale in scales]),
        atol=1e-4,
        rtol=1e-4,
    )


def test_blend_tiles_is_the_same_on_both():
    rule = ResizeRule(size_px=128, multiple_of=16)
    [tiled] = plan_inference(rule, 400, 300, mode="slide").scales
    tiles = logits_of(1, tiled.rows.tiles * tiled.columns.tiles, 5, 8, 8)
    torch.testing.assert_close(
        torch.from_numpy(blend_tiles(tiles, tiled)), blend_tiles(torch.from_numpy(tiles), tiled)
    )
