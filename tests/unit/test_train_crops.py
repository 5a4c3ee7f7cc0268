"""The balance of rare classes: repeated images, and objects pasted into crops."""

import numpy as np
import pytest
import torch

from segserve.training.data import VocFolder
from segserve.training.train.crops import ObjectPaste, rare_classes, repeat_factors

from .voc import write_pair, write_split

PRESENCE = np.zeros(
    (100, 4), dtype=bool
)  # background everywhere, 1 in 25 images, 2 in one, 3 in none
PRESENCE[:, 0] = True
PRESENCE[:25, 1] = True
PRESENCE[0, 2] = True


def test_repeat_factors_are_those_of_the_rarest_class():
    factors = repeat_factors(PRESENCE, threshold=0.04)
    assert factors[0] == pytest.approx(2.0)  # sqrt(0.04 / 0.01)
    assert (factors[1:] == 1).all()
    assert repeat_factors(PRESENCE, threshold=0.49)[5] == pytest.approx(1.4)  # sqrt(0.49 / 0.25)


def test_repeat_factors_without_threshold_are_one():
    assert (repeat_factors(PRESENCE, threshold=0.0) == 1).all()


def test_rare_classes_are_present_and_below_the_threshold():
    assert rare_classes(PRESENCE, 0.04) == [2]
    assert rare_classes(PRESENCE, 0.26) == [1, 2]
    assert rare_classes(PRESENCE, 0.0) == []


@pytest.fixture(scope="module")
def with_object(tmp_path_factory):
    """One picture: a red disc, 20 x 12 pixels, of class 2 on green, and a blue square of class
    1.
    """
    folder = tmp_path_factory.mktemp("object")
    image, labels = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
    image[:] = (0, 200, 0)
    image[5:17, 10:30], labels[5:17, 10:30] = (220, 0, 0), 2
    image[25:35, 40:50], labels[25:35, 40:50] = (0, 0, 220), 1
    write_pair(folder, "a", image, labels)
    write_split(folder, "train", ["a"])
    return VocFolder(folder, "train")


def paste(data, probability, crop_px=64):
    presence = np.array([[True, True, True]])
    crop = torch.full((3, crop_px, crop_px), 77, dtype=torch.uint8)
    labels = torch.zeros((crop_px, crop_px), dtype=torch.uint8)
    return ObjectPaste(data, presence, [2], probability)(crop, labels)


def test_object_paste_pixels_and_labels_agree(with_object):
    areas = set()
    for seed in range(12):
        torch.manual_seed(seed)
        crop, labels = paste(with_object, probability=0.999999)
        assert set(labels.unique().tolist()) == {0, 2}
        pasted = labels == 2
        assert (crop[:, ~pasted] == 77).all()
        assert (crop[0][pasted] > 120).float().mean() > 0.9  # red, but for the JPEG's fringe
        rows, columns = pasted.any(1).sum(), pasted.any(0).sum()
        assert rows / columns == pytest.approx(12 / 20, abs=0.06)
        assert 0.3 * 64 - 1 <= columns <= 64
        areas.add(int(pasted.sum()))
    assert len(areas) > 6


def test_object_paste_probability_decides_how_often(with_object):
    torch.manual_seed(0)
    pasted = sum(bool((paste(with_object, probability=0.3)[1] == 2).any()) for _ in range(200))
    assert 40 <= pasted <= 80
    assert not any((paste(with_object, probability=0.0)[1] == 2).any() for _ in range(20))


def test_object_paste_leaves_what_it_was_given(with_object):
    torch.manual_seed(0)
    presence = np.array([[True, True, True]])
    crop, labels = torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(32, 32, dtype=torch.uint8)
    ObjectPaste(with_object, presence, [2], 0.999999)(crop, labels)
    assert not crop.any()
    assert not labels.any()


def test_object_paste_without_rare_classes_draws_nothing(with_object):
    torch.manual_seed(0)
    crop, labels = torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(32, 32, dtype=torch.uint8)
    ObjectPaste(with_object, np.array([[True]]), [], 0.9)(crop, labels)
    after = torch.rand(())
    torch.manual_seed(0)
    assert torch.rand(()) == after
