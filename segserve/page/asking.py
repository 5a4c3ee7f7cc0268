"""Sends the page's requests. It looks up the server for every request, so that the server may
restart.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

from ..client import ClientError, SegmentationClient
from ..client.request import SegmentOptions
from ..engines.endpoint import Endpoint, find_endpoint
from ..engines.errors import ServerError
from ..runtime.errors import SegserveError
from .catalogue import Catalogue, read_catalogue
from .encodings import take_sample
from .view import Answer, as_answer
from .words import Problem, in_plain_words

_RETRIES = 1  # the user waits, and can press the button again


@dataclass(frozen=True)
class Server:
    """The server of the page. If `url` or `token` is None, the value of the server of `segserve
    serve` applies.
    """

    url: str | None = None
    token: str | None = field(default=None, repr=False)

    def endpoint(self, model: str | None = None) -> Endpoint:
        return find_endpoint(self.url, token=self.token, model=model)

    def catalogue(self, model: str | None = None) -> Catalogue:
        return read_catalogue(self.endpoint(model))

    def ask(
        self,
        picture: Path,
        *,
        model: str | None = None,
        encoding: str | None = None,
        **options: Unpack[SegmentOptions],
    ) -> Answer | Problem:
        """Segments an image file. Returns the result for the viewer, or the problem that occurred.

        Args:
            encoding: one of `ENCODINGS`, to measure with a second request.
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
            return as_answer(segmentation, picture.name, seconds=seconds, sample=sample)
        except (ClientError, SegserveError, ServerError, OSError, ValueError) as error:
            return in_plain_words(error)
