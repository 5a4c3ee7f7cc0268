"""The mix of requests: photographs of mixed sizes, responses in all encodings, and 1 % invalid
requests.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from segserve.schema.request import MaskEncoding, MediaType

BAD_SHARE = 0.01

_RESPONSES = [
    {"Accept": MediaType.JSON.value, "X-Segment-Mask": encoding}
    for encoding in get_args(MaskEncoding)
]
_RESPONSES += [
    {"Accept": media_type.value} for media_type in MediaType if media_type is not MediaType.JSON
]


@dataclass(frozen=True)
class Request:
    """A body with its headers. `good` is whether the request is valid."""

    body: bytes
    headers: dict[str, str]
    good: bool


def mixed_requests(images: Sequence[Path], seed: int) -> Iterator[Request]:
    """An endless sequence of requests. It depends only on the images and the seed."""
    chance = random.Random(seed)  # noqa: S311 - not for security
    files = [path.read_bytes() for path in images]
    while True:
        body, headers = chance.choice(files), chance.choice(_RESPONSES)
        if chance.random() < BAD_SHARE:
            yield _bad(body, headers, chance.randrange(3))
        else:
            yield Request(body, headers, good=True)


def _bad(body: bytes, headers: dict[str, str], kind: int) -> Request:
    match kind:
        case 0:
            return Request(body[: len(body) // 2], headers, good=False)
        case 1:
            return Request(b"no image at all", headers, good=False)
        case _:
            return Request(body, {**headers, "X-Segment-Threshold": "high"}, good=False)
