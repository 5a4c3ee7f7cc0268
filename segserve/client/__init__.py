"""Clients of a running server. This package does not import torch.

`SegmentationClient` is synchronous, `AsyncSegmentationClient` is asynchronous. Both return a
`Segmentation`. `segserve.local.LocalSegmenter` returns the same type without a server.
"""

from ..schema.response import ClassRow
from .client import AsyncSegmentationClient, SegmentationClient
from .request import ImageInput
from .response import (
    AuthenticationError,
    ClientError,
    MalformedResponseError,
    ResponseError,
    TimedOutError,
    UnknownModelError,
    UnreachableError,
)
from .segmentation import Segmentation

__all__ = [
    "AsyncSegmentationClient",
    "AuthenticationError",
    "ClassRow",
    "ClientError",
    "ImageInput",
    "MalformedResponseError",
    "ResponseError",
    "Segmentation",
    "SegmentationClient",
    "TimedOutError",
    "UnknownModelError",
    "UnreachableError",
]
