"""The server as the page sees it: found anew for every question, so that one which was started again is found too."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

from ..client import ClientError, SegmentationClient
from ..client.request import SegmentOptions
from ..runtime.errors import SegserveError
from ..server.endpoint import Endpoint, find_endpoint
from ..server.errors import ServerError
from .catalogue import Catalogue, read_catalogue
from .encodings import take_sample
from .view import Answer, as_answer
from .words import Problem, in_plain_words

_RETRIES = 1  # a person waits; pressing the button again is a retry as well


@dataclass(frozen=True)
class Server:
    """Where pictures are sent. What is None is that of the server which `segserve serve` left running here."""

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
        """The picture's segmentation as the viewer shows it, or what stood in the way.

        Args:
            encoding: one of `ENCODINGS`, to be measured by a second request.
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
