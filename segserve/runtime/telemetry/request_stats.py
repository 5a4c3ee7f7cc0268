"""Timings and statistics of one request, for metrics and traces."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

from ...schema.request import MediaType
from ..inference.labels import Quality
from ..request import SegmentRequest


class Interval(NamedTuple):
    """A time interval of one stage, in seconds of `time.perf_counter`."""

    stage: str
    began_s: float
    ended_s: float


@dataclass
class Timings:
    """The time intervals of a request's stages, in order, and descriptions by stage."""

    intervals: list[Interval] = field(default_factory=list)
    descriptions: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures the time inside the context. Extends the last interval of the same stage."""
        began_s = perf_counter()
        if self.intervals and self.intervals[-1].stage == name:
            began_s = self.intervals.pop().began_s
        try:
            yield
        finally:
            self.intervals.append(Interval(name, began_s, perf_counter()))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage, in the order in which the stages began."""
        totals: dict[str, float] = {}
        for stage, began_s, ended_s in self.intervals:
            totals[stage] = totals.get(stage, 0.0) + ended_s - began_s
        return totals


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
