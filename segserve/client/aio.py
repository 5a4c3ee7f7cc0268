"""The asynchronous client, based on asyncio and the package httpx."""

import asyncio
from types import TracebackType
from typing import Self, Unpack

from tenacity import AsyncRetrying

from .. import __version__
from .errors import timed_out, unreachable
from .request import (
    JSON,
    ImageInput,
    ResponseOptions,
    SegmentOptions,
    Target,
    as_fields,
    as_image_file,
    find_server,
    http_headers,
)
from .response import HttpResponse, raise_for_error, read_segmentation, retry_policy
from .segmentation import Segmentation


class AsyncSegmentationClient:
    """The asynchronous `SegmentationClient`, with the same arguments and errors.

    Use it with `async with` and `await client.segment(...)`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        model: str | None = None,
        version: str | None = None,
        timeout_s: float = 120.0,
        connect_timeout_s: float = 5.0,
        retries: int = 3,
        pool_size: int = 8,
    ) -> None:
        import httpx  # the synchronous client starts faster without it

        self._policy = retry_policy(retries)
        url, token, model = find_server(url, token, model)
        self._target = Target(url, model, version, token, timeout_s, connect_timeout_s, pool_size)
        headers = {"User-Agent": f"segserve/{__version__}"}
        if self._target.authorization:
            headers["Authorization"] = self._target.authorization
        host = self._target.loopback_host
        no_proxy = {f"all://[{host}]" if ":" in host else f"all://{host}": None} if host else None
        self._client = httpx.AsyncClient(
            headers=headers,
            mounts=no_proxy,
            timeout=httpx.Timeout(timeout_s, connect=connect_timeout_s, pool=None),
            limits=httpx.Limits(max_connections=pool_size, max_keepalive_connections=pool_size),
        )

    async def segment(self, image: ImageInput, **options: Unpack[SegmentOptions]) -> Segmentation:
        """Segments an image; see `SegmentationClient.segment`."""
        fields = as_fields(mask="png", **options)
        image_file = await asyncio.to_thread(as_image_file, image)  # may read or encode a file
        return read_segmentation(await self._request(image_file, JSON, fields), image_file)

    async def segment_raw(
        self, image: ImageInput, accept: str = JSON, **options: Unpack[ResponseOptions]
    ) -> bytes:
        """Returns the response body unchanged; see `SegmentationClient.segment_raw`."""
        fields = as_fields(**options)
        image_file = await asyncio.to_thread(as_image_file, image)
        return (await self._request(image_file, accept, fields)).body

    async def _request(
        self, image_file: bytes, accept: str, fields: dict[str, str]
    ) -> HttpResponse:
        retrying = AsyncRetrying(**self._policy)
        return await retrying(self._send, image_file, http_headers(accept, fields))

    async def _send(self, image_file: bytes, headers: dict[str, str]) -> HttpResponse:
        import httpx

        target = self._target
        try:
            response = await self._client.post(target.endpoint, content=image_file, headers=headers)
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise timed_out(target.url, target.timeout_s) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise unreachable(target.url, error) from error
        result = HttpResponse(
            response.status_code, response.reason_phrase, response.content, response.headers
        )
        raise_for_error(result)
        return result

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()
