"""The quality signals of an image, against the definitions they come from."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segserve.runtime.inference.labels import LabelRule, choose_labels, measure_quality


@given(
    st.integers(1, 25),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([0.1, 1.0, 30.0]),
    st.integers(0, 99),
)
def test_measure_quality_any_logits_agree_with_the_definitions(
    classes, height, width, spread, seed
):
    logits = torch.randn(classes, height, width, generator=torch.manual_seed(seed)) * spread
    quality = measure_quality(logits)
    probabilities = logits.double().softmax(dim=0)
    entropy = torch.special.entr(probabilities).sum(dim=0).mean().item() / math.log(max(2, classes))
    counts = torch.bincount(logits.argmax(dim=0).flatten(), minlength=classes)
    assert quality.shares == pytest.approx((counts / (height * width)).tolist())
    assert quality.confidence == pytest.approx(probabilities.amax(dim=0).mean().item(), abs=1e-5)
    assert quality.entropy == pytest.approx(entropy, abs=1e-5)
    assert 0 <= quality.entropy <= 1


def test_measure_quality_leaves_the_logits_as_they_are():
    logits = torch.randn(3, 4, 5, generator=torch.manual_seed(0))
    before = logits.clone()
    measure_quality(logits)
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("logits", "confidence", "entropy"),
    [(torch.zeros(4, 2, 2), 0.25, 1.0), (torch.tensor([80.0, 0, 0, 0]).view(4, 1, 1), 1.0, 0.0)],
    ids=["no idea", "certain"],
)
def test_measure_quality_extremes_are_the_ends_of_the_scale(logits, confidence, entropy):
    quality = measure_quality(logits)
    assert (quality.confidence, quality.entropy) == pytest.approx((confidence, entropy), abs=1e-6)


def test_is_background_only_a_single_cell_of_another_class_is_enough():
    logits = torch.zeros(3, 30, 30)
    logits[0] = 1
    assert measure_quality(logits).is_background_only
    logits[2, 7, 7] = 2
    assert not measure_quality(logits).is_background_only


def test_choose_labels_quality_is_that_of_the_network_whatever_the_rule():
    logits = torch.randn(3, 8, 8, generator=torch.manual_seed(1))
    everything = choose_labels(logits, 20, 30)
    nothing = choose_labels(logits, 20, 30, LabelRule(kept=frozenset(), threshold=1.0))
    assert [summary.id for summary in nothing.classes] == [0]
    assert everything.quality == nothing.quality == measure_quality(logits)
