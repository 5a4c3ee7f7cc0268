"""The process that sends requests: an open loop at a fixed rate, or a closed loop of some clients.

It reads its order as JSON from standard input, and writes the outcome of every request as JSON to
standard output. The requests are a mix: photographs of mixed sizes, responses in all encodings, and
1 % invalid requests.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, get_args

import httpx

from bench.serving.load import sent_by
from segserve.schema.request import MaskEncoding, MediaType

_TIMEOUT_S = 120.0
BAD_SHARE = 0.01

_RESPONSES = [
    {"Accept": MediaType.JSON.value, "X-Segment-Mask": encoding}
    for encoding in get_args(MaskEncoding)
]
_RESPONSES += [
    {"Accept": media_type.value} for media_type in MediaType if media_type is not MediaType.JSON
]


@dataclass(frozen=True)
class Order:
    """The requests of one run.

    Attributes:
        images: paths of image files.
        seconds: duration of the run.
        rate: requests per second. None for a closed loop: each client sends its next request after
            the response.
        clients: number of clients of the closed loop.
        seed: seed of the mix of requests.
    """

    url: str
    token: str
    images: tuple[str, ...]
    seconds: float
    rate: float | None
    clients: int = 8
    seed: int = 0


class Outcome(NamedTuple):
    """The outcome of a request.

    Attributes:
        sent_s: time of sending, in seconds since the start of the run.
        latency_s: seconds until the response was complete or the connection failed.
        status: HTTP status; 0 without a response.
        says_when: whether the response has the header `Retry-After`.
        good: whether the request was valid.
    """

    sent_s: float
    latency_s: float
    status: int
    says_when: bool
    good: bool


def send(order: Order) -> list[Outcome]:
    """Sends the requests from a separate process.

    Raises:
        BenchError: the process failed. No response of a server causes this.
    """
    return [Outcome(*fields) for fields in sent_by("bench.soak.load", asdict(order))]


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


class _Sender:
    def __init__(self, order: Order, client: httpx.AsyncClient) -> None:
        self._order = order
        self._client = client
        self._requests: Iterator[Request] = mixed_requests(
            [Path(path) for path in order.images], order.seed
        )
        self._began_s = time.perf_counter()
        self.outcomes: list[Outcome] = []

    @property
    def _since_s(self) -> float:
        return time.perf_counter() - self._began_s

    async def at_rate(self, rate: float) -> None:
        async with asyncio.TaskGroup() as pending:
            for number in range(int(rate * self._order.seconds)):
                await asyncio.sleep(max(0.0, number / rate - self._since_s))
                pending.create_task(self._send())

    async def closed_loop(self) -> None:
        async def client() -> None:
            while self._since_s < self._order.seconds:
                await self._send()

        await asyncio.gather(*(client() for _ in range(self._order.clients)))

    async def _send(self) -> None:
        request, sent_s = next(self._requests), self._since_s
        status, says_when = 0, False
        try:
            response = await self._client.post(
                self._order.url, content=request.body, headers=request.headers
            )
            status, says_when = response.status_code, "Retry-After" in response.headers
        except httpx.TransportError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        self.outcomes.append(
            Outcome(sent_s, self._since_s - sent_s, status, says_when, request.good)
        )


async def _sent(order: Order) -> Sequence[Outcome]:
    client = httpx.AsyncClient(
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        timeout=_TIMEOUT_S,
        headers={"Authorization": f"Bearer {order.token}"},
    )
    async with client:
        sender = _Sender(order, client)
        await (sender.closed_loop() if order.rate is None else sender.at_rate(order.rate))
    return sender.outcomes


def main() -> None:
    order = Order(**json.load(sys.stdin))
    json.dump(asyncio.run(_sent(order)), sys.stdout)


if __name__ == "__main__":
    main()
