"""PASCAL VOC layout: images, label PNGs and split lists."""

import numpy as np
import pytest
from PIL import Image

from segserve.training.data import DataError, VocFolder

from .voc import write_pair, write_split, write_squares


@pytest.fixture
def squares(tmp_path):
    return write_squares(tmp_path / "data", images=4)


def test_voc_folder_split_is_a_name_or_a_path(squares, tmp_path):
    (tmp_path / "some.txt").write_text("square1\nsquare3\n")
    assert VocFolder(squares, "train").names == [f"square{index}" for index in range(4)]
    assert VocFolder(squares, str(tmp_path / "some.txt")).names == ["square1", "square3"]


def test_voc_folder_names_may_hold_spaces_dots_folders_and_follow_a_byte_order_mark(tmp_path):
    names = ["IMG 1", "b.2", "sub/c"]
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        write_pair(tmp_path, name, np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), np.uint8))
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfIMG 1 \r\nb.2\r\n\r\nsub/c")
    data = VocFolder(tmp_path, "train")
    assert data.names == names
    assert all(data.pair(name)[1].all() for name in names)


@pytest.mark.parametrize("suffix", ["jpeg", "png", "webp", "bmp", "tif", "tiff", "JPG", "PNG"])
def test_voc_folder_reads_images_of_any_suffix(squares, suffix):
    path = squares / "images" / "square2.jpg"
    with Image.open(path) as picture:
        picture.save(squares / "images" / f"square2.{suffix}", lossless=True)
    path.unlink()
    image_rgb, labels = VocFolder(squares, "train").pair("square2")
    assert image_rgb.shape == (*labels.shape, 3)
    assert image_rgb[labels == 1].mean(axis=0) == pytest.approx([220, 40, 40], abs=10)


def test_voc_folder_reads_the_original_layout(squares):
    (squares / "images").rename(squares / "JPEGImages")
    (squares / "labels").rename(squares / "SegmentationClass")
    (squares / "ImageSets" / "Segmentation").mkdir(parents=True)
    (squares / "train.txt").rename(squares / "ImageSets" / "Segmentation" / "train.txt")
    data = VocFolder(squares, "train")
    assert data.names[-1] == "square3"
    assert set(np.unique(data.labels("square3"))) == {0, 2}
    assert data.paths("square3")[0] == squares / "JPEGImages" / "square3.jpg"


def test_voc_folder_missing_split_raises_and_names_those_there(squares):
    with pytest.raises(
        DataError, match=r"test\.txt: there is no such split list; lists in that folder: train$"
    ):
        VocFolder(squares, "test")


@pytest.mark.parametrize(
    "content", [b"", b"\n \n", b"\xef\xbb\xbf\r\n"], ids=["nothing", "blanks", "mark"]
)
def test_voc_folder_empty_split_raises(squares, content):
    (squares / "train.txt").write_bytes(content)
    with pytest.raises(
        DataError, match=r"train\.txt: the split is empty; write one image name per"
    ):
        VocFolder(squares, "train")


def test_voc_folder_split_that_is_no_text_raises(squares):
    (squares / "train.txt").write_bytes(b"square0\n\xff\xfe")
    with pytest.raises(
        DataError, match=r"train\.txt: is no UTF-8 text \(invalid start byte, byte 8\)"
    ):
        VocFolder(squares, "train")


def test_voc_folder_of_another_layout_raises(tmp_path):
    with pytest.raises(
        DataError, match=r"expected images/ and labels/ or JPEGImages/ and SegmentationClass/ in it"
    ):
        VocFolder(tmp_path, "train")


def test_pair_label_map_of_other_size_raises_and_names_both_files(tmp_path):
    write_pair(tmp_path, "a", np.zeros((12, 10, 3), np.uint8), np.zeros((10, 12), np.uint8))
    write_split(tmp_path, "train", ["a"])
    with pytest.raises(
        DataError, match=r"labels/a\.png: .* 12 x 10 pixels, but .*images/a\.jpg has 10 x 12$"
    ):
        VocFolder(tmp_path, "train").pair("a")


def test_pair_image_is_upright_as_when_it_is_served(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_pair(
        tmp_path, "a", np.zeros((12, 10, 3), np.uint8), np.zeros((10, 12), np.uint8), exif=exif
    )
    write_split(tmp_path, "train", ["a"])
    assert VocFolder(tmp_path, "train").pair("a")[0].shape == (10, 12, 3)
