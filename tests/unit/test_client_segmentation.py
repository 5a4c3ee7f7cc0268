"""The conversions of a segmentation to other formats."""

import base64
import contextlib
import io
import json

import numpy as np
import pytest
import supervision
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from segserve.client import Segmentation
from segserve.client.response import HttpResponse, read_segmentation
from segserve.runtime.decode.image import decode_image
from segserve.runtime.encode.overlay import bright

from .canned import IMAGE_RGB, LABEL_MAP, as_file, response_document
from .tiny import CLASSES

IMAGE = as_file(IMAGE_RGB)
LARGE_MAP = np.kron(LABEL_MAP, np.ones((40, 40), np.uint8))  # large enough for names
LARGE_RGB = np.kron(IMAGE_RGB, np.ones((40, 40, 1), np.uint8))


def segmentation_of(label_map: np.ndarray, image_file: bytes, **changes) -> Segmentation:
    return read_segmentation(
        HttpResponse(200, "OK", json.dumps(response_document(label_map, **changes)).encode()),
        image_file,
    )


@pytest.fixture
def segmentation() -> Segmentation:
    return segmentation_of(LABEL_MAP, IMAGE)


def test_segmentation_repr_summarises_the_classes(segmentation):
    assert (
        repr(segmentation)
        == "<Segmentation 6 x 4 by tiny 1.0: background 70.8%, dog 25.0%, cat 4.2%>"
    )


def test_segmentation_is_read_only(segmentation):
    with pytest.raises(ValueError, match="read-only"):
        segmentation.label_map[0, 0] = 1


def test_to_image_has_ids_as_pixels_and_the_classes_colours(segmentation):
    picture = segmentation.to_image()
    assert (picture.mode, picture.size) == ("P", (6, 4))
    assert np.array_equal(np.asarray(picture), LABEL_MAP)
    colors = np.array([color for _, color in CLASSES], np.uint8)
    assert np.array_equal(np.asarray(picture.convert("RGB")), colors[LABEL_MAP])


@pytest.mark.parametrize(
    "label_or_id", ["dog", 2, np.uint8(2)], ids=["label", "id", "number of NumPy"]
)
def test_mask_of_a_class_present_is_its_mask(segmentation, label_or_id):
    mask = segmentation.mask_of(label_or_id)
    assert mask.dtype == bool
    assert np.array_equal(mask, LABEL_MAP == 2)


@pytest.mark.parametrize("label_or_id", ["bird", 3], ids=["label", "id"])
def test_mask_of_an_absent_class_names_the_classes_present(segmentation, label_or_id):
    with pytest.raises(
        KeyError, match=r"the image has no .*it has: 'background' \(0\), 'dog' \(2\), 'cat' \(1\)"
    ):
        segmentation.mask_of(label_or_id)


def test_confidence_map_is_that_of_the_response():
    values = np.arange(24, dtype=np.uint8).reshape(4, 6)
    picture = {"encoding": "png", "data": base64.b64encode(as_file(values)).decode()}
    segmentation = segmentation_of(LABEL_MAP, IMAGE, confidence=picture)
    assert np.array_equal(segmentation.confidence_map, values)


def test_overlay_colours_classes_and_keeps_background():
    segmentation = segmentation_of(LABEL_MAP, IMAGE)
    drawn = np.asarray(segmentation.overlay(opacity=1.0))
    assert np.array_equal(drawn[LABEL_MAP == 0], IMAGE_RGB[LABEL_MAP == 0])
    assert (abs(drawn[LABEL_MAP == 2].astype(int) - bright(CLASSES[2][1])) <= 1).all()
    assert np.array_equal(np.asarray(segmentation.overlay(opacity=0)), IMAGE_RGB)


def test_overlay_has_the_names_of_the_classes():
    drawn = np.asarray(segmentation_of(LARGE_MAP, as_file(LARGE_RGB)).overlay(opacity=0))
    changed = (drawn != LARGE_RGB).any(axis=-1)
    for class_id in set(np.unique(LARGE_MAP)) - {0}:
        assert changed[class_id == LARGE_MAP].any()


@pytest.mark.parametrize("opacity", [-0.1, 1.1], ids=["below", "above"])
def test_overlay_opacity_out_of_bounds_raises(segmentation, opacity):
    with pytest.raises(ValueError, match="opacity is a share from 0 to 1"):
        segmentation.overlay(opacity=opacity)


@pytest.mark.parametrize("orientation", range(1, 9), ids=str)
def test_overlay_of_a_rotated_photograph_matches_its_label_map(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image_file = as_file(IMAGE_RGB, exif=exif)
    upright = decode_image(image_file, max_pixels=1000)
    label_map = LABEL_MAP if upright.shape[:2] == LABEL_MAP.shape else LABEL_MAP.T
    segmentation = segmentation_of(np.ascontiguousarray(label_map), image_file)
    assert np.array_equal(np.asarray(segmentation.image), upright)
    assert segmentation.overlay().size == label_map.T.shape


def test_notebook_displays_the_overlay(segmentation):
    with Image.open(io.BytesIO(segmentation._repr_png_())) as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(segmentation.overlay()))


def test_polygons_reproduce_the_mask(segmentation):
    for class_id, outlines in segmentation.polygons().items():
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(outlines, *LABEL_MAP.shape)))
        assert np.array_equal(drawn == 1, class_id == LABEL_MAP)


def test_to_coco_loaded_by_pycocotools_reproduces_the_masks(segmentation, tmp_path):
    document = {
        "images": [{"id": 7, "width": 6, "height": 4}],
        "categories": [
            {"id": class_id, "name": label} for class_id, (label, _) in enumerate(CLASSES)
        ],
        "annotations": [],
    }
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    truth.write_text(json.dumps(document))
    results.write_text(json.dumps(segmentation.to_coco(image_id=7)))
    with contextlib.redirect_stdout(None):
        loaded = COCO(str(truth)).loadRes(str(results))
    annotations = loaded.loadAnns(loaded.getAnnIds(imgIds=[7]))
    assert [annotation["category_id"] for annotation in annotations] == [2, 1]
    for annotation in annotations:
        assert np.array_equal(
            loaded.annToMask(annotation) == 1, annotation["category_id"] == LABEL_MAP
        )


def test_to_coco_annotations_are_complete():
    dog, cat = segmentation_of(LABEL_MAP, IMAGE).to_coco(image_id="x", first_id=5)
    assert (dog["id"], dog["image_id"], dog["area"], dog["bbox"], dog["iscrowd"], dog["score"]) == (
        5, "x", 6, [2, 1, 3, 2], 0, 0.9
    )  # fmt: skip
    assert cat["id"] == 6


def test_to_coco_replaces_class_ids_by_category_ids(segmentation):
    assert [
        entry["category_id"] for entry in segmentation.to_coco(image_id=1, category_ids={2: 18})
    ] == [18]


def test_to_detections_has_the_mask_of_every_class(segmentation):
    detections = segmentation.to_detections()
    assert isinstance(detections, supervision.Detections)
    assert detections.class_id.tolist() == [2, 1]
    assert detections.data["class_name"].tolist() == ["dog", "cat"]
    assert detections.xyxy.tolist() == [[2, 1, 5, 3], [0, 0, 1, 1]]
    assert np.array_equal(detections.mask, np.array([2, 1])[:, None, None] == LABEL_MAP)


def test_detections_of_background_only_are_empty():
    segmentation = segmentation_of(np.zeros((4, 6), np.uint8), IMAGE)
    detections = segmentation.to_detections()
    assert len(detections) == 0
