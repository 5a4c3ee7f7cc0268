"""A running server as a predictor: every image's file goes over HTTP, as any client sends it."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from ...client import ClientError, Segmentation, SegmentationClient, UnreachableError
from ...runtime.encode.mask import LabelMap
from ...runtime.record import ModelRecord
from ...schema.request import Options
from ..data import LabelledImages
from .measure import Predictor

_REQUESTS_AT_ONCE = 4  # the server computes one while it decodes, encodes and sends others


@contextmanager
def served_model(
    url: str,
    record: ModelRecord,
    data: LabelledImages,
    options: Options,
    *,
    name: str | None = None,
    token: str | None = None,
) -> Iterator[Predictor]:
    """The model `name` of a server, by default the record's own name. Options that were not set are
    not sent.

    The inference port tells no class that an image does not hold: the record gives names and
    colours, and every answer is checked against it.
    """
    with SegmentationClient(url, token=token, model=name or record.name) as client:
        asked = options.model_dump(include={"mode", "tta"}, exclude_unset=True)

        def label_map(image_name: str, image_rgb: NDArray[np.uint8]) -> LabelMap:
            try:
                segmentation = client.segment(data.paths(image_name)[0], **asked)
                return _label_map(segmentation, image_rgb, record)
            except UnreachableError:
                raise
            except (ClientError, ValueError) as error:
                raise ValueError(f"{image_name}: {error}") from error

        yield Predictor(record, label_map, _REQUESTS_AT_ONCE, options, server=url)


def _label_map(
    segmentation: Segmentation, image_rgb: NDArray[np.uint8], record: ModelRecord
) -> LabelMap:
    """The answer's label map, uint8 (H, W), if it is of this image and by a model with the record's
    classes.
    """
    labels = dict(enumerate(record.labels))
    for share in segmentation.classes:
        if labels.get(share.id) != share.label:
            raise ValueError(
                f"the server calls class {share.id} {share.label!r:.80}, the record "
                f"{labels.get(share.id)!r}: "
                "measure with the record of the model that is served"
            )
    label_map = segmentation.label_map
    if label_map.shape != image_rgb.shape[:2]:
        expected, got = (
            "{1} x {0} pixels".format(*shape) for shape in (image_rgb.shape[:2], label_map.shape)
        )
        raise ValueError(f"expected a mask of {expected}, got {got}")
    return label_map
