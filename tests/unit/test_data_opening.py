"""Opening data sets of all layouts."""

import numpy as np
import pytest

from segserve.runtime.record import ClassInfo
from segserve.training.data import DataError, VocFolder, open_data
from segserve.training.data.coco import CocoInstances, CocoPanoptic

from .coco import DOG, SIDE_PX, annotation, square, write_coco, write_segments
from .voc import write_squares

CLASSES = [ClassInfo(label=label, color=(0, 0, 0)) for label in ("background", "cat", "dog")]


def test_open_data_folder_of_split_lists_is_voc(tmp_path):
    data = open_data(write_squares(tmp_path, images=2), "train", CLASSES)
    assert isinstance(data, VocFolder)
    assert len(data.names) == 2


def test_open_data_instances_by_split_take_the_class_of_their_name(tmp_path):
    write_coco(tmp_path, [annotation(square(0, 0, 9), DOG)])
    data = open_data(tmp_path, "train", CLASSES)
    assert isinstance(data, CocoInstances)
    assert set(np.unique(data.pair("img1.jpg")[1])) == {0, 2}


def test_open_data_images_may_lie_in_one_folder(tmp_path):
    write_coco(tmp_path, [])
    (tmp_path / "train").rename(tmp_path / "images")
    assert open_data(tmp_path, "train", CLASSES).image("img1.jpg").shape == (SIDE_PX, SIDE_PX, 3)


def test_open_data_file_and_images_by_path(tmp_path):
    path = write_coco(tmp_path, []).rename(tmp_path / "own.json")
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    data = open_data(path, None, CLASSES, images=tmp_path / "elsewhere")
    assert data.image("img1.jpg").shape == (SIDE_PX, SIDE_PX, 3)


def test_open_data_file_alone_has_its_images_beside_it(tmp_path):
    path = write_coco(tmp_path, []).rename(tmp_path / "train" / "_annotations.coco.json")
    assert open_data(path, None, CLASSES).image("img1.jpg").shape == (SIDE_PX, SIDE_PX, 3)


def test_open_data_split_may_be_the_path_of_a_json(tmp_path):
    path = write_coco(tmp_path, []).rename(tmp_path / "train" / "own.json")
    assert open_data(tmp_path, str(path), CLASSES).image("img1.jpg").shape == (SIDE_PX, SIDE_PX, 3)


def test_open_data_file_and_the_json_of_another_split_opens_the_other(tmp_path):
    path = write_coco(tmp_path, [])
    other = write_coco(tmp_path, [], count=2, name="instances_dev")
    data = open_data(path, str(other), CLASSES, images=tmp_path / "train")
    assert (data.source, data.split, data.names) == (other, "dev", ["img1.jpg", "img2.jpg"])


@pytest.mark.parametrize("split", ["dev", "train", "lists/dev.txt"])
def test_open_data_file_and_the_name_of_a_split_raise_and_say_what_to_do(tmp_path, split):
    path = write_coco(tmp_path, [])
    with pytest.raises(
        DataError,
        match=rf"instances_train\.json: is the file of one split, so it has no split {split}: give "
        "the JSON file of that split instead of its name, or the folder above annotations/ as",
    ):
        open_data(path, split, CLASSES)


def test_open_data_without_a_split_opens_the_default_split_of_a_folder(tmp_path):
    data = open_data(write_squares(tmp_path, images=1), None, CLASSES, default_split="train")
    assert data.split == "train"


def test_open_data_categories_of_a_class_file_come_first(tmp_path):
    write_coco(tmp_path, [annotation(square(0, 0, 9), DOG)])
    data = open_data(tmp_path, "train", CLASSES, categories={"dog": 255})
    assert set(np.unique(data.labels("img1.jpg"))) == {0, 255}


def test_open_data_panoptic_is_recognised_by_its_name(tmp_path):
    write_segments(
        tmp_path / "annotations" / "panoptic_train" / "img1.png", np.full((SIDE_PX, SIDE_PX), 4)
    )
    entry = {
        "image_id": 1,
        "file_name": "img1.png",
        "segments_info": [{"id": 4, "category_id": DOG}],
    }
    write_coco(tmp_path, [entry], name="panoptic_train")
    data = open_data(tmp_path, "train", CLASSES)
    assert isinstance(data, CocoPanoptic)
    assert (data.labels("img1.jpg") == 2).all()


def test_open_data_missing_folder_raises(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: there is no such folder or file"):
        open_data(tmp_path / "nowhere", "train", CLASSES)


def test_open_data_instances_without_images_raise(tmp_path):
    write_coco(tmp_path, [])
    (tmp_path / "train").rename(tmp_path / "pictures")
    with pytest.raises(
        DataError,
        match=r"expected the images in .*train or .*images; name their folder \(--images\)",
    ):
        open_data(tmp_path, "train", CLASSES)


def test_open_data_images_of_a_voc_folder_raise(tmp_path):
    with pytest.raises(
        DataError, match=r"--images is for COCO JSON, and there is none for the split train"
    ):
        open_data(write_squares(tmp_path, images=1), "train", CLASSES, images=tmp_path)


def test_open_data_split_without_json_raises_and_names_those_there(tmp_path):
    write_coco(tmp_path, [])
    with pytest.raises(
        DataError,
        match=r"expected instances_val\.json or panoptic_val\.json; there are instances_train\.json$",  # noqa: E501
    ):
        open_data(tmp_path, "val", CLASSES)
