"""The asynchronous client, based on asyncio."""

import asyncio
from types import TracebackType
from typing import Literal, Protocol, Self, Unpack

from tenacity import AsyncRetrying

from .images import ImageInput, as_image_file
from .reading import read_segmentation
from .reply import HttpResponse, raise_for_error
from .request import JSON, ClassNames, ResponseOptions, Target, as_fields
from .retry import policy
from .segmentation import Segmentation


class AsyncTransport(Protocol):
    """Sends requests asynchronously; see `Transport`."""

    async def send(
        self, image_file: bytes, accept: str, fields: dict[str, str]
    ) -> HttpResponse: ...

    async def close(self) -> None: ...


class AsyncSegmentationClient:
    """The asynchronous `SegmentationClient`, with the same arguments and errors.

    Use it with `async with` and `await client.segment(...)`. HTTP needs `pip install
    'segserve[async]'`; gRPC needs `pip install 'segserve[grpc]'`.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        model: str = "deeplabv3",
        version: str | None = None,
        timeout_s: float = 120.0,
        connect_timeout_s: float = 5.0,
        retries: int = 3,
        pool_size: int = 8,
        transport: Literal["http", "grpc"] = "http",
    ) -> None:
        self._policy = policy(retries)
        target = Target(url, model, version, token, timeout_s, connect_timeout_s, pool_size)
        self._transport = _open_transport(transport, target)

    async def segment(
        self,
        image: ImageInput,
        *,
        mode: str | None = None,
        tta: str | None = None,
        classes: ClassNames | None = None,
        threshold: float | None = None,
        confidence: bool = False,
    ) -> Segmentation:
        """Segments an image; see `SegmentationClient.segment`."""
        fields = as_fields(
            mask="png",
            mode=mode,
            tta=tta,
            classes=classes,
            threshold=threshold,
            confidence=confidence,
        )
        image_file = await asyncio.to_thread(as_image_file, image)  # may read or encode a file
        return read_segmentation(await self._ask(image_file, JSON, fields), image_file)

    async def segment_raw(
        self, image: ImageInput, accept: str = JSON, **options: Unpack[ResponseOptions]
    ) -> bytes:
        """Returns the response body unchanged; see `SegmentationClient.segment_raw`."""
        fields = as_fields(**options)
        image_file = await asyncio.to_thread(as_image_file, image)
        return (await self._ask(image_file, accept, fields)).body

    async def _ask(self, image_file: bytes, accept: str, fields: dict[str, str]) -> HttpResponse:
        return await AsyncRetrying(**self._policy)(self._once, image_file, accept, fields)

    async def _once(self, image_file: bytes, accept: str, fields: dict[str, str]) -> HttpResponse:
        response = await self._transport.send(image_file, accept, fields)
        raise_for_error(response)
        return response

    async def close(self) -> None:
        """Closes the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()


def _open_transport(name: str, target: Target) -> AsyncTransport:
    if name == "http":
        from .http_aio import AsyncHttpTransport

        return AsyncHttpTransport(target)
    if name == "grpc":
        from .rpc import AsyncGrpcTransport

        return AsyncGrpcTransport(target)
    raise ValueError(f"expected the transport http or grpc, got {name!r}")
