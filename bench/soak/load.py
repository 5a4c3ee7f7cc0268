"""Sends requests: an open loop at a fixed rate, or a closed loop of some clients.

The requests are a mix: photographs of mixed sizes, responses in all encodings, and 1 % invalid
requests.
"""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, get_args

import httpx

from segserve.schema.request import MaskEncoding, MediaType

_TIMEOUT_S = 120.0
_CLIENTS = 8  # of the closed loop
BAD_SHARE = 0.01

_RESPONSES = [
    *({"Accept": MediaType.JSON, "X-Segment-Mask": mask} for mask in get_args(MaskEncoding)),
    *({"Accept": media_type} for media_type in MediaType if media_type is not MediaType.JSON),
]


class Outcome(NamedTuple):
    """The outcome of a request, valid (`good`) or not, that was sent so long after the start.

    Attributes:
        latency_s: seconds until the response was complete or the connection failed.
        status: HTTP status; 0 without a response.
        says_when: whether the response has the header `Retry-After`.
    """

    sent_s: float
    latency_s: float
    status: int
    says_when: bool
    good: bool


class Request(NamedTuple):
    body: bytes
    headers: dict[str, str]
    good: bool


def mixed_requests(images: Sequence[Path], seed: int) -> Iterator[Request]:
    """An endless sequence of requests. It depends only on the images and the seed."""
    chance = random.Random(seed)  # noqa: S311 - not for security
    files = [path.read_bytes() for path in images]
    while True:
        body, headers = chance.choice(files), chance.choice(_RESPONSES)
        if chance.random() >= BAD_SHARE:
            yield Request(body, headers, good=True)
            continue
        bad_headers = {**headers, "X-Segment-Threshold": "high"}
        bad = [(body[: len(body) // 2], headers), (b"no image", headers), (body, bad_headers)]
        yield Request(*chance.choice(bad), good=False)


async def send(
    url: str, token: str, images: Sequence[Path], seconds: float, *, rate: float | None
) -> list[Outcome]:
    """Sends requests for some seconds: `rate` per second, or, if it is None, each client its next
    one after the response.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    headers = {"Authorization": f"Bearer {token}"}
    requests, outcomes = mixed_requests(images, seed=0), list[Outcome]()
    began_s = time.perf_counter()

    def since_s() -> float:
        return time.perf_counter() - began_s

    async def send_next() -> None:
        request, sent_s = next(requests), since_s()
        status, says_when = 0, False
        with suppress(httpx.TransportError):
            response = await client.post(url, content=request.body, headers=request.headers)
            status, says_when = response.status_code, "Retry-After" in response.headers
        outcomes.append(Outcome(sent_s, since_s() - sent_s, status, says_when, request.good))

    async def keep_sending() -> None:
        while since_s() < seconds:
            await send_next()

    async with (
        httpx.AsyncClient(limits=limits, timeout=_TIMEOUT_S, headers=headers) as client,
        asyncio.TaskGroup() as pending,
    ):
        if rate is None:
            for _ in range(_CLIENTS):
                pending.create_task(keep_sending())
        else:
            for number in range(int(rate * seconds)):
                await asyncio.sleep(max(0.0, number / rate - since_s()))
                pending.create_task(send_next())
    return outcomes
