"""The requests of the page. The server is looked up for every request, so that it may restart."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import requests

from ..client import ClientError, SegmentationClient
from ..client.request import SegmentOptions
from ..engines import ServerError
from ..engines.processes import get_directly
from ..gateway.background import Endpoint, find_endpoint
from ..runtime.errors import SegserveError
from ..runtime.record import BACKGROUND
from .view import PageResponse, Problem, as_response, in_plain_words, take_sample

_TIMEOUT_S = 5
_RETRIES = 1  # the user waits, and can press the button again


@dataclass(frozen=True)
class Catalogue:
    """The choices of the page. `labels` are those of `model` without background, if known."""

    models: tuple[str, ...]
    model: str
    labels: tuple[str, ...] = ()


def _requested(url: str, token: str | None) -> Any:  # noqa: ANN401 - any JSON
    headers = {"Authorization": f"Bearer {token}"} if token else None
    response = get_directly(url, headers=headers, timeout_s=_TIMEOUT_S)
    response.raise_for_status()
    return response.json()


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
        self,
        picture: Path,
        *,
        model: str | None = None,
        encoding: str | None = None,
        **options: Unpack[SegmentOptions],
    ) -> PageResponse | Problem:
        """Segments an image file, for the viewer. `encoding` is one of `ENCODINGS`, to measure with
        a second request.
        """
        try:
            endpoint = self.endpoint(model)
            image_file = picture.read_bytes()
            with SegmentationClient(
                endpoint.url, token=endpoint.token, model=endpoint.model, retries=_RETRIES
            ) as client:
                began = time.perf_counter()
                segmentation = client.segment(image_file, **options)
                seconds = time.perf_counter() - began
                sample = take_sample(client, image_file, encoding, **options) if encoding else None
            is_found = any(row.id != BACKGROUND for row in segmentation.classes)
            return as_response(
                segmentation,
                picture.name,
                seconds=seconds,
                known=() if is_found else self.catalogue(model).labels,
                sample=sample,
            )
        except (ClientError, SegserveError, ServerError, OSError, ValueError) as error:
            return in_plain_words(error)
