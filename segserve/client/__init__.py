"""A client of a running server. Importing it imports no torch.

`SegmentationClient` waits for its answers, `AsyncSegmentationClient` awaits them; both give a `Segmentation`, and so
does `segserve.local.LocalSegmenter`, which needs no server.
"""

from .aio import AsyncSegmentationClient
from .errors import (
    ClientError,
    MalformedAnswerError,
    RefusedError,
    TimedOutError,
    TokenRefusedError,
    UnknownModelError,
    UnreachableError,
)
from .images import ImageInput
from .segmentation import Segmentation
from .share import ClassShare
from .sync import SegmentationClient

__all__ = [
    "AsyncSegmentationClient",
    "ClassShare",
    "ClientError",
    "ImageInput",
    "MalformedAnswerError",
    "RefusedError",
    "Segmentation",
    "SegmentationClient",
    "TimedOutError",
    "TokenRefusedError",
    "UnknownModelError",
    "UnreachableError",
]
