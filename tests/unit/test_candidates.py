"""Which classes are brought to the image's size, and that leaving the others out changes no
label.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from segserve.runtime.inference.labels import LabelRule, choose_labels
from segserve.runtime.inference.logits import CandidateMap, Candidates, Upsampling

sides = st.integers(1, 7)


def photograph_logits(seed: int, classes: int, h: int, w: int) -> torch.Tensor:
    """Few classes that are likely in places, and many that hardly ever are."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (classes, h, w)) + rng.normal(-6, 4, (classes, 1, 1))
    return torch.from_numpy(logits.astype(np.float32))


@given(
    st.integers(0, 10**6), st.integers(1, 12), sides, sides, st.integers(1, 40), st.integers(1, 40)
)
def test_choose_labels_gives_the_top_class_among_all(seed, classes, h, w, height_px, width_px):
    logits = photograph_logits(seed, classes, h, w)
    full = F.interpolate(logits[None].double(), size=(height_px, width_px), mode="bilinear")[0]
    segmentation = choose_labels(logits, height_px, width_px, LabelRule(keep_confidence=True))
    second, first = full.sort(dim=0).values[-2:] if classes > 1 else (full[0] - 1, full[0])
    clear = (first - second > 1e-5).numpy()
    assert np.array_equal(segmentation.label_map[clear], full.argmax(0).numpy()[clear])
    expected = full.softmax(0).amax(0).numpy()
    assert np.abs(segmentation.confidence_map / 255 - expected).max() < 0.02


def peers_of(logits: torch.Tensor) -> Candidates:
    return CandidateMap.of(logits).candidates(slice(0, logits.shape[1] + 1))


def test_candidates_class_that_wins_only_between_grid_points_is_one():
    logits = torch.tensor([[[10.0, 0.0]], [[0.0, 10.0]], [[6.0, 6.0]], [[-9.0, -9.0]]])
    assert peers_of(logits).class_ids == [0, 1, 2]
    assert 2 in choose_labels(logits, 1, 40).label_map


def test_candidates_class_that_is_probable_but_never_first_is_one():
    logits = torch.tensor([1.0, 0.5, -9.0]).view(3, 1, 1).expand(3, 2, 2)
    assert peers_of(logits).class_ids == [0, 1]


def test_candidates_probabilities_are_those_among_all_classes():
    logits = photograph_logits(0, 21, 5, 6)
    candidates = peers_of(logits)
    assert len(candidates.class_ids) < 21
    torch.testing.assert_close(
        candidates.logits.softmax(0)[:-1], logits.softmax(0)[candidates.class_ids]
    )


def test_candidates_where_every_class_may_win_are_the_logits_themselves():
    logits = torch.zeros(3, 2, 2)
    candidates = peers_of(logits)
    assert torch.equal(candidates.logits, logits)
    assert candidates.logits.data_ptr() == logits.data_ptr()
    assert candidates.class_ids == [0, 1, 2]


@pytest.mark.parametrize(
    ("rows", "class_ids"),
    [((0, 2), [0]), ((1, 3), [0, 1]), ((2, 4), [1]), ((3, 5), [1]), ((0, 4), [0, 1])],
    ids=str,
)
def test_candidates_of_a_band_are_those_that_may_win_there(rows, class_ids):
    first_below = torch.tensor([9.0, 9.0, -9.0, -9.0]).view(1, 4, 1).expand(1, 4, 3)
    candidates = CandidateMap.of(torch.cat([first_below, -first_below])).candidates(slice(*rows))
    assert candidates.class_ids == class_ids
    assert candidates.logits.shape == (2, min(rows[1], 4) - rows[0], 3)


@pytest.mark.parametrize("columns", [64, 65], ids=["matrix", "interpolate"])
def test_choose_labels_wide_grids_give_the_same_either_way(columns):
    logits = photograph_logits(1, 6, 3, columns)
    full = F.interpolate(logits[None], size=(30, 500), mode="bilinear")[0]
    assert (choose_labels(logits, 30, 500).label_map == full.argmax(0).numpy()).mean() > 0.9999


def test_products_of_numpy_are_too_small_for_threads_of_openblas(monkeypatch):
    """Its threads would spin beside other requests."""
    multiplications = []
    matmul = np.matmul

    def counted(rows, weights, **options):
        multiplications.append(rows.shape[0] * weights.size)
        return matmul(rows, weights, **options)

    logits = np.random.default_rng(0).normal(size=(21, 30, 40)).astype(np.float32)
    strip = slice(0, 450)
    monkeypatch.setattr(np, "matmul", counted)
    expected, resized = (
        upsampling.strip(like[:, upsampling.grid_rows(strip)], strip)
        for like in (torch.from_numpy(logits), logits)
        for upsampling in [Upsampling((30, 40), (900, 1200), like)]
    )
    assert max(multiplications) <= 2**18
    assert np.allclose(resized, expected, atol=1e-5)
