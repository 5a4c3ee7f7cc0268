"""Intersection over union, against a plain NumPy computation."""

import numpy as np
import pytest
import torch

from segserve.data import IGNORED, VocFolder
from segserve.evaluate import Evaluation, evaluate
from segserve.runtime.record import InputRule, ResizeRule
from segserve.runtime.segmenter import Segmenter
from segserve.runtime.settings import Settings

from .tiny import tiny_record
from .voc import write_pair, write_split

SIDE_PX = 64
COLORS = np.array([(230, 20, 20), (20, 230, 20), (20, 20, 230)], np.uint8)  # what the network below calls 0, 1 and 2


class StrongestChannel(torch.nn.Module):
    """A network whose class is the strongest of red, green and blue."""

    def forward(self, inputs):
        return inputs


@pytest.fixture(scope="module")
def segmenter():
    rule = InputRule(resize=ResizeRule(size_px=SIDE_PX), mean=(0.5,) * 3, std=(0.5,) * 3)
    return Segmenter(
        StrongestChannel(), tiny_record(input=rule), device=torch.device("cpu"), settings=Settings(precision="fp32")
    )


def predictions(seed: int) -> np.ndarray:
    """Blocks of 16 pixels, which a JPEG keeps apart."""
    blocks = np.random.default_rng(seed).integers(0, 3, (4, 4)).astype(np.uint8)
    return blocks.repeat(16, axis=0).repeat(16, axis=1)


def truths(seed: int) -> np.ndarray:
    """The predictions with noise in half of the pixels, a tenth ignored, and no class 2 in odd images."""
    rng = np.random.default_rng(1000 + seed)
    labels = np.where(rng.random((SIDE_PX, SIDE_PX)) < 0.5, predictions(seed), rng.integers(0, 3, (SIDE_PX, SIDE_PX)))
    labels[(labels == 2) & bool(seed % 2)] = 1
    labels[rng.random(labels.shape) < 0.1] = IGNORED
    return labels.astype(np.uint8)


@pytest.fixture
def data(tmp_path):
    for seed in range(5):
        write_pair(tmp_path, f"p{seed}", COLORS[predictions(seed)], truths(seed))
    write_split(tmp_path, "dev", [f"p{seed}" for seed in range(5)])
    return VocFolder(tmp_path, "dev")


def test_evaluate_equals_plain_intersection_over_union(segmenter, data):
    finished = []
    result = evaluate(segmenter, data, finished.append)
    assert finished == [1, 2, 3, 4, 5]
    predicted = np.stack([predictions(seed) for seed in range(5)])
    truth = np.stack([truths(seed) for seed in range(5)])
    counted = truth != IGNORED
    expected = {
        label: ((predicted == i) & (truth == i)).sum() / (((predicted == i) | (truth == i)) & counted).sum()
        for i, label in enumerate(segmenter.record.labels)
    }
    assert result.class_iou == pytest.approx(expected)
    assert 0.2 < min(expected.values()) < max(expected.values()) < 0.9
    assert result.mean_iou() == pytest.approx(np.mean(list(expected.values())))
    assert result.pixel_accuracy == pytest.approx((predicted == truth)[counted].mean())
    assert result.images_with.tolist() == [5, 5, 3]
    assert result.covered(4) == ["background", "cat"]
    assert result.mean_iou(4) == pytest.approx((expected["background"] + expected["cat"]) / 2)


def test_evaluate_as_accuracy_rounds_what_was_measured(segmenter, data):
    result = evaluate(segmenter, data, lambda _: None)
    accuracy = result.as_accuracy("squares dev")
    assert (accuracy.dataset, accuracy.images) == ("squares dev", 5)
    assert accuracy.mean_iou == round(result.mean_iou(), 4)
    assert accuracy.class_iou == {label: round(iou, 4) for label, iou in result.class_iou.items()}


def test_evaluate_perfect_prediction_is_one_and_ignored_pixels_do_not_count(segmenter, tmp_path):
    labels = predictions(0)
    wrong = np.zeros_like(labels, dtype=bool)
    wrong[:10] = True
    labels[wrong] = IGNORED
    write_pair(tmp_path, "a", COLORS[predictions(0)], labels)
    write_split(tmp_path, "dev", ["a"])
    result = evaluate(segmenter, VocFolder(tmp_path, "dev"), lambda _: None)
    assert set(result.class_iou.values()) == {1.0}
    assert result.pixel_accuracy == 1
    assert result.confusion.sum() == labels.size - wrong.sum()


def test_evaluate_class_absent_from_the_data_has_no_iou_but_costs_the_others(segmenter, tmp_path):
    predicted = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    predicted[:16] = 2
    write_pair(tmp_path, "a", COLORS[predicted], np.zeros_like(predicted))
    write_split(tmp_path, "dev", ["a"])
    result = evaluate(segmenter, VocFolder(tmp_path, "dev"), lambda _: None)
    assert result.class_iou == {"background": 0.75}
    assert result.mean_iou() == 0.75


def test_evaluate_strange_label_raises_and_names_image_and_label(segmenter, tmp_path):
    labels = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    labels[0, 0], labels[1, 1] = 3, 254
    write_pair(tmp_path, "odd", COLORS[predictions(0)], labels)
    write_split(tmp_path, "dev", ["odd"])
    with pytest.raises(ValueError, match=r"^odd: labels \[3, 254\] are none of the model's classes"):
        evaluate(segmenter, VocFolder(tmp_path, "dev"), lambda _: None)


def test_evaluate_label_map_of_other_size_raises(segmenter, tmp_path):
    write_pair(tmp_path, "odd", COLORS[predictions(0)], np.zeros((SIDE_PX, SIDE_PX - 1), np.uint8))
    write_split(tmp_path, "dev", ["odd"])
    with pytest.raises(ValueError, match=r"^odd: expected a label map of uint8 \(64, 64\).*got uint8 \(64, 63\)"):
        evaluate(segmenter, VocFolder(tmp_path, "dev"), lambda _: None)


def test_evaluation_by_hand():
    confusion = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    result = Evaluation(("a", "b", "c"), 2, confusion, torch.tensor([2, 1, 0]))
    assert result.class_iou == pytest.approx({"a": 6 / 9, "b": 3 / 6})
    assert result.pixel_accuracy == pytest.approx(9 / 12)
    assert (result.covered(1), result.covered(2)) == (["a", "b"], ["a"])
