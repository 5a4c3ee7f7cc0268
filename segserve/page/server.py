"""The requests of the page, and the data that the viewer draws from the responses. The server is
looked up for every request, so that it may restart.
"""

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

import requests

from ..bulk.results import as_coco
from ..bulk.sources import Source
from ..client import (
    AuthenticationError,
    ClientError,
    ResponseError,
    Segmentation,
    SegmentationClient,
    UnreachableError,
)
from ..client.request import SegmentOptions
from ..engines import ServerError
from ..engines.processes import get_directly
from ..gateway.background import Endpoint, find_endpoint
from ..runtime.encode.mask import LabelMap, encode_grey_png, encode_jpeg, encode_png
from ..runtime.encode.overlay import widest_place
from ..runtime.errors import SegserveError
from ..runtime.record import BACKGROUND

_TIMEOUT_S = 5
_RETRIES = 1  # the user waits, and can press the button again


class Problem(TypedDict):
    """What the viewer shows for an error."""

    title: str
    detail: str


class PageResponse(TypedDict):
    """What the viewer shows for a segmentation.

    Attributes:
        picture: data URL of the image, JPEG: upright, with the label map's size.
        ids: data URL of a grey PNG: pixel value = class id. A browser decodes a PNG only to
            colours, and two classes may have the same colour.
        labels: data URL of the label map as indexed PNG, for download.
        coco: a COCO data set of this image, for download.
        classes: rows of the response's table, each with `at`: the pixel (x, y) for its name; None
            for the background, whose name is not written.
        steps_ms: the time of each stage by its name; the last entry is the total, measured by the
            page.
    """

    stem: str
    width: int
    height: int
    model: str
    picture: str
    ids: str
    labels: str
    coco: dict[str, object]
    classes: list[dict[str, object]]
    steps_ms: dict[str, float]


@dataclass(frozen=True)
class Catalogue:
    """The choices of the page. `labels` are those of `model` without background, if known."""

    models: tuple[str, ...]
    model: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class PageServer:
    """The server of the page: by default that of `segserve serve`, with its token."""

    url: str | None = None
    token: str | None = field(default=None, repr=False)

    def endpoint(self, model: str | None = None) -> Endpoint:
        return find_endpoint(self.url, token=self.token, model=model)

    def catalogue(self, model: str | None = None) -> Catalogue:
        """Reads models and classes. Without a response from a server of this machine, the catalogue
        contains only the endpoint's model.
        """
        endpoint = self.endpoint(model)
        alone = Catalogue((endpoint.model,), endpoint.model)
        if endpoint.running is None:
            return alone
        listed, token = f"{endpoint.running.inference_url}/models", endpoint.token
        try:
            models = tuple(entry["modelName"] for entry in _requested(listed, token)["models"])
            named = endpoint.model if endpoint.model in models else models[0]
            [described] = _requested(f"{listed}/{named}?customized=true", token)
            labels = tuple(info["label"] for info in described["customizedMetadata"]["classes"])
        except (requests.RequestException, ValueError, LookupError, TypeError):
            return alone
        return Catalogue(models, named, labels[1:])

    def send(
        self, picture: Path, *, model: str | None = None, **options: Unpack[SegmentOptions]
    ) -> PageResponse | Problem:
        """Segments an image file, for the viewer."""
        try:
            endpoint = self.endpoint(model)
            image_file = picture.read_bytes()
            with SegmentationClient(
                endpoint.url, token=endpoint.token, model=endpoint.model, retries=_RETRIES
            ) as client:
                began_s = time.perf_counter()
                segmentation = client.segment(image_file, **options)
                total_ms = 1000 * (time.perf_counter() - began_s)
            return as_response(segmentation, picture.name, total_ms=total_ms)
        except (ClientError, SegserveError, ServerError, OSError, ValueError) as error:
            return as_problem(error)


def _requested(url: str, token: str | None) -> Any:  # noqa: ANN401 - any JSON
    headers = {"Authorization": f"Bearer {token}"} if token else None
    response = get_directly(url, headers=headers, timeout_s=_TIMEOUT_S)
    response.raise_for_status()
    return response.json()


def as_response(segmentation: Segmentation, name: str, *, total_ms: float) -> PageResponse:
    """The viewer's data for the image file `name`. Raises SegserveError if the file cannot be
    decoded on this machine.
    """
    height_px, width_px = segmentation.label_map.shape
    return {
        "stem": Path(name).stem,
        "width": width_px,
        "height": height_px,
        "model": f"{segmentation.model} {segmentation.model_version}",
        "picture": data_url(encode_jpeg(segmentation.image), "image/jpeg"),
        "ids": data_url(encode_grey_png(segmentation.label_map), "image/png"),
        "labels": data_url(encode_png(segmentation.label_map, segmentation.palette), "image/png"),
        "coco": as_coco(segmentation, Source(name, name)),
        "classes": [
            row.as_document() | {"at": _name_place(segmentation.label_map, row.id)}
            for row in segmentation.classes
        ],
        "steps_ms": steps_ms(segmentation.timings_ms, total_ms),
    }


def _name_place(label_map: LabelMap, class_id: int) -> tuple[int, int] | None:
    return None if class_id == BACKGROUND else widest_place(label_map == class_id)


_STAGES = {
    "decode": "reading the picture",
    "preprocess": "scaling it",
    "inference": "the network",
    "encode": "writing the response",
}


def steps_ms(timings_ms: Mapping[str, float], total_ms: float) -> dict[str, float]:
    """The stages of `Server-Timing` in plain words, and the total."""
    return {_STAGES.get(stage, stage): ms for stage, ms in timings_ms.items()} | {
        "in all": total_ms
    }


def data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


# For the browser's script, by the image's source.
IN_BROWSER: dict[str, Problem] = {
    "camera": {
        "title": "The camera cannot be used",
        "detail": "Allow it for this page in the browser's address bar, close other programs that "
        "may be using it, or upload a picture.",
    },
    "clipboard": {
        "title": "There is no picture from the clipboard",
        "detail": "Copy a picture, not its file's name or address, and press Ctrl+V (Command+V on "
        "a Mac), which needs no permission, or upload it.",
    },
    "drop": {"title": "This file is no picture", "detail": "Choose another file."},
}


def as_problem(error: Exception) -> Problem:
    """Converts an error to a problem. Messages of OSError name files of this machine, and are left
    out.
    """
    match error:
        case UnreachableError():
            advice = "Start one with `segserve serve`, then try again."
            return _problem("No server responds", advice)
        case AuthenticationError():
            advice = "Start the page again with --token or $SEGSERVE_TOKEN."
            return _problem("The server rejects the token", advice)
        case ResponseError():
            return _problem("The server cannot segment this picture", error.message)
        case FileNotFoundError():
            advice = "Drop it again: pictures are kept for an hour."
            return _problem("The picture is no longer here", advice)
        case _:
            return _problem("This did not work", "" if isinstance(error, OSError) else str(error))


def _problem(title: str, message: str) -> Problem:
    detail = f"{message[:1].upper()}{message[1:].rstrip('.')}." if message else ""
    return {"title": title, "detail": detail}
