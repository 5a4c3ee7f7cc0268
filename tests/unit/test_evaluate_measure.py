"""Measuring a model on a data set: images, threads and errors."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from segserve.schema.request import Options
from segserve.training.data import IGNORED, VocFolder
from segserve.training.measure import (
    measure,
    offline_model,
    predictor_of,
    segmented,
)

from .evaluated import (
    SIDE_PX,
    color_predictor,
    color_segmenter,
    predictions,
    truths,
    write_images,
    write_noisy,
)


def ignore(_finished: int) -> None:
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_noisy(tmp_path_factory.mktemp("noisy"))


def test_measure_equals_plain_intersection_over_union(data):
    finished = []
    with predictor_of(color_segmenter()) as predictor:
        result = measure(data, predictor, finished.append)
    assert finished == [1, 2, 3, 4, 5]
    predicted = np.stack([predictions(seed) for seed in range(5)])
    truth = np.stack([truths(seed) for seed in range(5)])
    counted = truth != IGNORED
    expected = {
        label: ((predicted == i) & (truth == i)).sum()
        / (((predicted == i) | (truth == i)) & counted).sum()
        for i, label in enumerate(predictor.record.labels)
    }
    assert result.class_iou == pytest.approx(expected)
    assert 0.2 < min(expected.values()) < max(expected.values()) < 0.9
    assert result.pixel_accuracy == pytest.approx((predicted == truth)[counted].mean())
    assert [row.images for row in result.classes] == [5, 5, 3]
    assert (result.images, [*result.image_mean_iou]) == (5, data.names)


def test_measure_score_of_an_image_is_the_mean_over_its_own_classes(data):
    result = measure(data, color_predictor(), ignore)
    alone = [
        measure(replace_names(data, [name]), color_predictor(), ignore).mean_iou
        for name in data.names
    ]
    assert [*result.image_mean_iou.values()] == pytest.approx(alone)


def replace_names(data, names):
    path = data.folder / f"only-{'-'.join(names)}.txt"
    path.write_text("\n".join(names))
    return VocFolder(data.folder, str(path))


def test_measure_with_more_threads_counts_the_same(data):
    one, four = (measure(data, color_predictor(at_once), ignore) for at_once in (1, 4))
    assert one.confusion == four.confusion
    assert one.class_boundary_iou == four.class_boundary_iou
    assert one.image_mean_iou == four.image_mean_iou


def test_measure_predicts_several_images_at_once(data):
    both = threading.Barrier(2, timeout=30)
    names = replace_names(data, data.names[:2])

    def label_map(name, image_rgb):
        both.wait()  # waits for the other thread
        return color_predictor().label_map(name, image_rgb)

    assert measure(names, replace(color_predictor(), label_map=label_map), ignore).images == 2


def test_measure_image_without_labelled_pixels_has_no_score(tmp_path):
    data = write_images(
        tmp_path, {"blank": np.full((SIDE_PX, SIDE_PX), IGNORED, np.uint8), "p": predictions(1)}
    )
    result = measure(data, color_predictor(), ignore)
    assert (result.images, [*result.image_mean_iou]) == (2, ["p"])
    assert result.mean_iou == 1


def test_measure_perfect_prediction_is_one_in_every_figure(tmp_path):
    labels = predictions(0)
    labels[:10] = IGNORED
    result = measure(write_images(tmp_path, {"a": labels}), color_predictor(), ignore)
    assert set(result.class_iou.values()) == set(result.class_boundary_iou.values()) == {1.0}
    assert result.pixel_accuracy == result.mean_accuracy == result.frequency_weighted_iou == 1
    assert result.pixels == np.sum(result.confusion) == labels.size - 10 * SIDE_PX


def test_measure_without_a_labelled_pixel_raises(tmp_path):
    blank = np.full((SIDE_PX, SIDE_PX), IGNORED, np.uint8)
    with pytest.raises(
        ValueError, match=r"^every pixel of the 2 images is labelled 255, to be ignored"
    ):
        measure(write_images(tmp_path, {"a": blank, "b": blank}), color_predictor(), ignore)


def test_measure_unknown_label_raises_and_names_image_and_label(tmp_path):
    labels = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    labels[0, 0], labels[1, 1] = 3, 254
    data = write_images(tmp_path, {"odd": labels})
    with pytest.raises(
        ValueError, match=r"^odd: labels \[3, 254\] are none of the model's 3 classes"
    ):
        measure(data, color_predictor(), ignore)


def test_measure_label_map_of_other_size_raises_and_names_the_image(tmp_path):
    data = write_images(tmp_path, {"odd": np.zeros((SIDE_PX, SIDE_PX - 1), np.uint8)})
    with pytest.raises(ValueError, match=r"odd\.png: the label map has 63 x 64 pixels"):
        measure(data, color_predictor(), ignore)


def test_measure_label_map_cut_short_raises_and_names_the_image(tmp_path):
    data = write_images(tmp_path, {"cut": truths(0)})
    path = tmp_path / "labels" / "cut.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cut\.png: cannot be decoded"):
        measure(data, color_predictor(), ignore)


def test_measure_stops_after_an_error(tmp_path):
    data = write_noisy(tmp_path, images=40)
    requested = []

    def label_map(name, _image_rgb):
        requested.append(name)
        time.sleep(0.05)  # 2 s for all of them: an error is noticed long before
        raise ValueError(f"{name}: rejected")

    with pytest.raises(ValueError, match=r"^p0: rejected"):
        measure(data, replace(color_predictor(at_once=1), label_map=label_map), ignore)
    assert len(requested) < len(data.names)


def test_offline_model_gives_what_the_segmenter_gives(data, tiny_model, tiny_segmenter):
    with offline_model(tiny_model) as predictor:
        image = segmented(data, predictor, "p1")
    # bf16 may turn a pixel whose two best classes are next to equal.
    assert np.mean(image.predicted == tiny_segmenter.segment(image.image_rgb).label_map) > 0.97
    assert np.array_equal(image.truth, truths(1))


def test_predictor_of_passes_the_options_on(data, tiny_segmenter):
    image_rgb, _ = data.pair("p1")
    with predictor_of(tiny_segmenter, Options(tta="flip")) as predictor:
        predicted = predictor.label_map("p1", image_rgb)
    assert np.array_equal(predicted, tiny_segmenter.segment(image_rgb, tta="flip").label_map)
    assert not np.array_equal(predicted, tiny_segmenter.segment(image_rgb).label_map)


def test_predictor_of_restores_the_threads_of_torch():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with predictor_of(color_segmenter()) as predictor:
            assert (predictor.at_once, torch.get_num_threads()) == (4, 1)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
