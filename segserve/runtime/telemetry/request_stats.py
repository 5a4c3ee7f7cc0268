"""Statistics of one request, for metrics and traces. The response does not depend on them."""

from dataclasses import dataclass, field

from ...schema.request import MediaType
from ..inference.quality import Quality
from ..request import SegmentRequest
from .timings import Timings

UNREAD = "unread"
"""The encoding of a request that failed before its encoding was known."""


@dataclass
class RequestStats:
    """Statistics of one request, filled in as far as the request gets.

    Attributes:
        encoding: of the label map in the response: a value of the option `mask`, or the media type
            if it is not JSON.
        image_bytes: size of the image file.
        pixels: number of pixels of the decoded image.
        error: code of the error that ended the request; empty if there was none.
    """

    timings: Timings = field(default_factory=Timings)
    encoding: str = UNREAD
    image_bytes: int = 0
    pixels: int = 0
    quality: Quality | None = None
    error: str = ""

    def read(self, request: SegmentRequest) -> None:
        """Records the requested encoding and the size of the image file."""
        in_json = request.media_type is MediaType.JSON
        self.encoding = request.options.mask if in_json else request.media_type.value
        self.image_bytes = len(request.image)
