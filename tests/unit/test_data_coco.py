"""COCO JSON: instances and panoptic annotations become label maps."""

import json
import pickle

import numpy as np
import pytest

from segserve.runtime.record import ClassInfo
from segserve.training.data import IGNORED, DataError, check_split
from segserve.training.data.coco import CocoInstances, CocoPanoptic

from .coco import (
    CAT,
    DOG,
    SIDE_PX,
    annotation,
    rle,
    square,
    square_mask,
    write_coco,
    write_segments,
)

IDS = {"cat": 1, "dog": 2}
CLASSES = [ClassInfo(label=label, color=(0, 0, 0)) for label in ("background", "cat", "dog")]


def opened(folder, annotations, *, categories=IDS, **keys):
    return CocoInstances(write_coco(folder, annotations, **keys), folder / "train", categories)


SEGMENTATIONS = {
    "polygon": square(5, 10, 20),
    "two polygons": [
        *square(5, 10, 10),
        *square(15, 10, 10),
        *square(5, 20, 10),
        *square(15, 20, 10),
    ],
    "runs": rle(square_mask(5, 10, 20), compressed=False),
    "compressed runs": rle(square_mask(5, 10, 20)),
}


@pytest.mark.parametrize("segmentation", SEGMENTATIONS.values(), ids=SEGMENTATIONS)
def test_coco_instances_draw_every_kind_of_segmentation(tmp_path, segmentation):
    image_rgb, labels = opened(tmp_path, [annotation(segmentation, DOG)]).pair("img1.jpg")
    assert image_rgb.shape == (SIDE_PX, SIDE_PX, 3)
    assert np.array_equal(labels, 2 * square_mask(5, 10, 20))
    assert labels.flags.c_contiguous


@pytest.mark.parametrize("smaller_first", [True, False], ids=["before", "after"])
def test_coco_instances_smaller_objects_lie_on_larger_ones(tmp_path, smaller_first):
    small, large = annotation(square(10, 10, 5), CAT), annotation(square(5, 5, 30), DOG)
    labels = opened(tmp_path, [small, large] if smaller_first else [large, small]).labels(
        "img1.jpg"
    )
    assert (labels[10:15, 10:15] == 1).all()
    assert (labels == 2).sum() == 30 * 30 - 5 * 5


def test_coco_instances_later_of_two_that_are_as_large_lies_above(tmp_path):
    labels = opened(
        tmp_path, [annotation(square(5, 5, 9), CAT), annotation(square(5, 5, 9), DOG)]
    ).labels("img1.jpg")
    assert set(np.unique(labels)) == {0, 2}


def test_coco_instances_crowds_are_ignored_where_nothing_else_is(tmp_path):
    crowd = annotation(rle(square_mask(0, 0, 10)), DOG, iscrowd=1)
    labels = opened(tmp_path, [annotation(square(0, 0, 30), CAT), crowd]).labels("img1.jpg")
    assert set(np.unique(labels)) == {0, 1}
    crowd = annotation(rle(square_mask(25, 25, 10)), DOG, iscrowd=1)
    labels = opened(tmp_path, [annotation(square(0, 0, 30), CAT), crowd]).labels("img1.jpg")
    assert (labels == IGNORED).sum() == 10 * 10 - 5 * 5


def test_coco_instances_ignored_category_is_255_and_one_of_no_annotation_is_no_matter(tmp_path):
    labels = opened(
        tmp_path, [annotation(square(0, 0, 10), CAT)], categories={"cat": IGNORED}
    ).labels("img1.jpg")
    assert np.array_equal(labels, 255 * square_mask(0, 0, 10))


def test_coco_instances_image_without_annotations_is_background(tmp_path):
    assert not opened(tmp_path, [annotation(square(0, 0, 10))], count=2).labels("img2.jpg").any()


def test_coco_instances_go_to_other_processes(tmp_path):
    data = opened(tmp_path, [annotation(square(5, 10, 20), DOG)])
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301 - what was just written
    assert np.array_equal(copy.labels("img1.jpg"), data.labels("img1.jpg"))


BROKEN = {
    "no outline": (annotation([]), "got no `segmentation`"),
    "null": (annotation(None), "got no `segmentation`"),
    "box": (annotation([[1, 2, 3, 4]]), "three points or more, got 4 numbers"),
    "odd": (annotation([[1, 2, 3, 4, 5, 6, 7]]), "got 7 numbers"),
    "text": (annotation([["a", "b"]]), "a polygon is no list of numbers"),
    "flat": (annotation([1, 2, 3, 4, 5, 6]), "the polygon is a flat list"),
    "ragged": (annotation([[1, [2, 3], 4]]), "a polygon is no list of numbers"),
    "far out": (
        annotation([[0, 0, 1e9, 0, 1e9, 1e9]]),
        "leads far out of the image, which has 40 x 40 pixels",
    ),
    "other size": (
        annotation({"size": [10, 40], "counts": [400]}),
        r"a mask of `size` \[40, 40\].*\[10, 40\]",
    ),
    "few runs": (annotation({"size": [40, 40], "counts": [5, 5]}), "do not add up to 40 x 40"),
    "no counts": (annotation({"size": [40, 40]}), "neither a list of whole numbers nor a text"),
}


@pytest.mark.parametrize(("entry", "message"), BROKEN.values(), ids=BROKEN)
def test_coco_instances_broken_segmentation_raises_and_names_image_and_annotation(
    tmp_path, entry, message
):
    data = opened(tmp_path, [{"id": 907, **entry}])
    with pytest.raises(
        DataError, match=rf"instances_train\.json: img1\.jpg, annotation 907: .*{message}"
    ):
        data.labels("img1.jpg")


def test_coco_instances_category_in_no_class_is_named_once(tmp_path):
    data = opened(
        tmp_path,
        [annotation(square(0, 0, 9), number) for number in (CAT, DOG, 99)],
        categories={"cat": 1},
    )
    message = (
        r"^\S+instances_train\.json: in no class: dog, number 99, which has no name; name these "
        r"categories"
    )
    with pytest.raises(DataError, match=message):
        data.labels("img1.jpg")
    with pytest.raises(DataError, match=message) as caught:
        check_split(data, CLASSES)
    assert len(caught.value.problems) == 1


def test_check_split_of_coco_lists_ids_images_and_sizes(tmp_path):
    path = write_coco(
        tmp_path, [annotation(square(0, 0, 9)), annotation(square(0, 0, 9), image_id=7)], count=3
    )
    document = json.loads(path.read_text())
    document["images"][2]["id"] = 1
    document["images"][1]["height"] = 41
    path.write_text(json.dumps(document))
    (tmp_path / "train" / "img3.jpg").unlink()
    with pytest.raises(DataError, match=r"^4 problems with the data:\n") as caught:
        check_split(CocoInstances(path, tmp_path / "train", IDS), CLASSES)
    problems = "\n".join(caught.value.problems)
    assert "several images have the id 1" in problems
    assert "1 annotations are of images that it does not list" in problems
    assert "the label map has 40 x 41 pixels, but" in problems
    assert "img3.jpg: is missing" in problems


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"images": []}, "the split is empty"),
        ({"images": 3}, "images: Input should be a valid array"),
        (
            {"images": [{"id": 1, "file_name": "../a.jpg", "width": 1, "height": 1}]},
            r"images\.0: .*leads out of",
        ),
        (
            {"images": [{"id": 1, "file_name": "/a.jpg", "width": 1, "height": 1}]},
            r"images\.0: .*leads out of",
        ),
        (
            {"images": [{"id": 1, "file_name": "a.jpg", "width": 9**9, "height": 9}]},
            r"images\.0: .*the limit is",
        ),
        (
            {"images": [{"id": 1, "file_name": "a.jpg", "width": 0, "height": 9}]},
            r"images\.0\.width: .*greater than 0",
        ),
        ({"categories": [{"id": "cat", "name": "cat"}]}, r"categories\.0\.id: "),
        ({"annotations": [{"image_id": 1}]}, r"annotations\.0\.category_id: Field required"),
    ],
    ids=[
        "no image",
        "a number",
        "parent",
        "absolute",
        "too large",
        "no width",
        "category",
        "annotation",
    ],
)
def test_coco_instances_broken_document_raises_and_says_where(tmp_path, keys, message):
    with pytest.raises(DataError, match=rf"instances_train\.json: {message}"):
        CocoInstances(write_coco(tmp_path, **{"annotations": [], **keys}), tmp_path / "train", IDS)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"images": NaN}', "a,b"], ids=str)
def test_coco_instances_other_file_raises_and_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"a\.json: "):
        CocoInstances(path, tmp_path, IDS)


# Panoptic


def panoptic(folder, segments, infos):
    write_segments(folder / "annotations" / "panoptic_train" / "img1.png", segments)
    entry = {"image_id": 1, "file_name": "img1.png", "segments_info": infos}
    path = write_coco(folder, [entry], count=2, name="panoptic_train")
    return CocoPanoptic(path, folder / "train", IDS)


def test_coco_panoptic_segments_become_classes_and_void_and_crowds_are_ignored(tmp_path):
    large_id = 3 + 256 * 7 + 256**2 * 200
    segments = np.zeros((SIDE_PX, SIDE_PX), np.int64)
    segments[:10], segments[10:20], segments[20:30] = large_id, 5, 6
    infos = [{"id": large_id, "category_id": DOG}, {"id": 5, "category_id": CAT}]
    labels = panoptic(
        tmp_path, segments, [*infos, {"id": 6, "category_id": CAT, "iscrowd": 1}]
    ).labels("img1.jpg")
    assert labels.dtype == np.uint8
    assert labels[:, 0].tolist() == [2] * 10 + [1] * 10 + [255] * 20


def test_coco_panoptic_segment_without_info_raises(tmp_path):
    data = panoptic(tmp_path, np.full((SIDE_PX, SIDE_PX), 9), [])
    with pytest.raises(
        DataError, match=r"panoptic_train/img1\.png: .* does not list the segments \[9\]"
    ):
        data.labels("img1.jpg")


def test_coco_panoptic_image_without_annotation_raises(tmp_path):
    data = panoptic(tmp_path, np.zeros((SIDE_PX, SIDE_PX), np.int64), [])
    with pytest.raises(DataError, match=r"panoptic_train\.json: img2\.jpg: has no annotation"):
        data.labels("img2.jpg")
