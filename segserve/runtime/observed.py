"""What one request shows of itself on its way, for metrics and traces; the answer does not depend on it."""

from dataclasses import dataclass, field

from .options import MediaType
from .quality import Quality
from .request import SegmentRequest
from .timings import Timings

UNREAD = "unread"
"""The encoding of a request that failed before it said which one it wants."""


@dataclass
class Observed:
    """Filled in as far as the request gets.

    Attributes:
        encoding: of the label map in the answer: a value of the option `mask`, or the media type where it is not JSON.
        image_bytes: of the image file.
        pixels: of the decoded image.
        error: code of the error that ended it, empty where none did.
    """

    timings: Timings = field(default_factory=Timings)
    encoding: str = UNREAD
    image_bytes: int = 0
    pixels: int = 0
    quality: Quality | None = None
    error: str = ""

    def read(self, request: SegmentRequest) -> None:
        """Takes down what the request asks for."""
        in_json = request.media_type is MediaType.JSON
        self.encoding = request.options.mask if in_json else request.media_type.value
        self.image_bytes = len(request.image)
