"""What the viewer is given of a segmentation."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from segserve.client.response import HttpResponse, read_segmentation
from segserve.page.server import as_response, data_url, steps_ms

from .canned import IMAGE_RGB, LABEL_MAP, as_file, response_document


@pytest.fixture
def segmentation():
    headers = {"server-timing": "decode;dur=1.5, inference;dur=40.25"}
    return read_segmentation(
        HttpResponse(200, "OK", json.dumps(response_document()).encode(), headers),
        as_file(IMAGE_RGB),
    )


def picture_of(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))


def test_as_response_ids_are_the_label_map_as_grey_values(segmentation):
    ids = picture_of(as_response(segmentation, "a.png", total_ms=100.0)["ids"])
    assert ids.mode == "L"
    assert np.array_equal(np.asarray(ids), LABEL_MAP)


def test_as_response_labels_are_the_label_map_in_the_palette(segmentation):
    labels = picture_of(as_response(segmentation, "a.png", total_ms=100.0)["labels"])
    assert labels.mode == "P"
    assert np.array_equal(np.asarray(labels), LABEL_MAP)
    assert bytes(labels.getpalette()) == segmentation.palette


def test_as_response_picture_is_upright_and_of_the_label_maps_size(segmentation):
    reply = as_response(segmentation, "a.png", total_ms=100.0)
    assert picture_of(reply["picture"]).size == (reply["width"], reply["height"]) == (6, 4)


def test_as_response_names_files_after_the_picture(segmentation):
    reply = as_response(segmentation, "my cat.final.jpeg", total_ms=100.0)
    assert reply["stem"] == "my cat.final"
    assert reply["coco"]["images"] == [
        {"id": 1, "file_name": "my cat.final.jpeg", "width": 6, "height": 4}
    ]


def test_as_response_coco_holds_the_masks(segmentation):
    [dog, _] = as_response(segmentation, "a.png", total_ms=100.0)["coco"]["annotations"]
    assert np.array_equal(coco_mask.decode(dog["segmentation"]), LABEL_MAP == 2)


def test_as_response_classes_are_those_of_the_segmentation_in_its_order(segmentation):
    classes = as_response(segmentation, "a.png", total_ms=100.0)["classes"]
    assert [(entry["label"], entry["pixels"]) for entry in classes] == [
        ("background", 17),
        ("dog", 6),
        ("cat", 1),
    ]


def test_as_response_can_be_sent_as_json(segmentation):
    assert (
        json.loads(json.dumps(as_response(segmentation, "a.png", total_ms=100.0)))["model"]
        == "tiny 1.0"
    )


def test_steps_are_the_stages_in_plain_words_and_the_total():
    assert steps_ms({"decode": 1.5, "inference": 40.0, "magic": 0.5}, 50.0) == {
        "reading the picture": 1.5,
        "the network": 40.0,
        "magic": 0.5,
        "in all": 50.0,
    }


def test_data_url_gives_the_bytes_back():
    assert data_url(b"\x00\xff", "image/png") == "data:image/png;base64,AP8="
