"""Sends requests: an open loop at a fixed rate, or a closed loop of some clients.

The requests are a mix: photographs of mixed sizes, responses in all encodings, and 1 % invalid
requests.
"""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

import httpx

from segserve.schema.request import MaskEncoding, MediaType

_TIMEOUT_S = 120.0
_CLIENTS = 8  # of the closed loop
BAD_SHARE = 0.01

_RESPONSES = [
    {"Accept": MediaType.JSON.value, "X-Segment-Mask": encoding}
    for encoding in get_args(MaskEncoding)
]
_RESPONSES += [
    {"Accept": media_type.value} for media_type in MediaType if media_type is not MediaType.JSON
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


def send(
    url: str, token: str, images: Sequence[Path], seconds: float, *, rate: float | None
) -> list[Outcome]:
    """Sends requests to a URL for some seconds.

    Args:
        rate: requests per second. None for a closed loop: each client sends its next request after
            the response.
    """
    return asyncio.run(_sent(url, token, images, seconds, rate))


async def _sent(
    url: str, token: str, images: Sequence[Path], seconds: float, rate: float | None
) -> list[Outcome]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(limits=limits, timeout=_TIMEOUT_S, headers=headers) as client:
        sender = _Sender(client, url, mixed_requests(images, seed=0))
        await (sender.closed_loop(seconds) if rate is None else sender.at_rate(rate, seconds))
    return sender.outcomes


class _Sender:
    def __init__(self, client: httpx.AsyncClient, url: str, requests: Iterator[Request]) -> None:
        self._client, self._url, self._requests = client, url, requests
        self._began_s = time.perf_counter()
        self.outcomes: list[Outcome] = []

    @property
    def _since_s(self) -> float:
        return time.perf_counter() - self._began_s

    async def at_rate(self, rate: float, seconds: float) -> None:
        async with asyncio.TaskGroup() as pending:
            for number in range(int(rate * seconds)):
                await asyncio.sleep(max(0.0, number / rate - self._since_s))
                pending.create_task(self._send())

    async def closed_loop(self, seconds: float) -> None:
        async def client() -> None:
            while self._since_s < seconds:
                await self._send()

        await asyncio.gather(*(client() for _ in range(_CLIENTS)))

    async def _send(self) -> None:
        request, sent_s = next(self._requests), self._since_s
        status, says_when = 0, False
        with suppress(httpx.TransportError):
            response = await self._client.post(
                self._url, content=request.body, headers=request.headers
            )
            status, says_when = response.status_code, "Retry-After" in response.headers
        self.outcomes.append(
            Outcome(sent_s, self._since_s - sent_s, status, says_when, request.good)
        )
