"""The synchronous client, based on requests, and the asynchronous one, based on httpx."""

import asyncio
from abc import ABC, abstractmethod
from typing import Self, Unpack

import requests
from requests.adapters import HTTPAdapter
from tenacity import AsyncRetrying, Retrying
from urllib3.exceptions import ReadTimeoutError

from .. import __version__
from .request import (
    DEFAULT_MODEL,
    JSON,
    ImageInput,
    ResponseOptions,
    SegmentOptions,
    Target,
    as_fields,
    as_image_file,
    http_headers,
)
from .response import (
    HttpResponse,
    raise_for_error,
    read_segmentation,
    retry_policy,
    timed_out,
    unreachable,
)
from .segmentation import Segmentation


class _BaseClient(ABC):
    """The arguments and settings that both clients share."""

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
        if pool_size < 1:
            raise ValueError(f"pool_size is the number of connections, at least 1, got {pool_size}")
        self._policy = retry_policy(retries)
        if url is None:
            from ..gateway.background import find_endpoint  # not needed if there is an address

            endpoint = find_endpoint(token=token, model=model)
            url, token, model = endpoint.url, endpoint.token, endpoint.model
        self._target = Target(url, model or DEFAULT_MODEL, version, token)
        self._timeout_s, self._connect_timeout_s = timeout_s, connect_timeout_s
        self._headers = {"User-Agent": f"segserve/{__version__}"}
        self._open(pool_size)

    @abstractmethod
    def _open(self, pool_size: int) -> None:
        """Creates the pool of connections."""


class SegmentationClient(_BaseClient):
    """Sends images to one model of a server over pooled connections. Thread-safe.

    Args:
        url: address of the server, for example http://127.0.0.1:8080; by default $SEGSERVE_URL,
            else that of the server that `segserve serve` runs in this folder.
        token: the server's token; if `url` is not given, by default that of the server in this
            folder, else $SEGSERVE_TOKEN.
        model: name of the served model; by default that of the server in this folder, else
            deeplabv3.
        version: version of the model; by default the server's default version.
        timeout_s: time limit for a response, in seconds.
        connect_timeout_s: time limit for a connection, in seconds.
        retries: maximum number of retries if the connection broke, or if the server is overloaded
            (503), out of memory (507) or lost a worker.
        pool_size: maximum number of connections. Additional threads wait.

    Raises:
        ValueError: the address is invalid, or a number is out of range.
    """

    def _open(self, pool_size: int) -> None:
        host = self._target.loopback_host
        self._proxies = {"no_proxy": host} if host else None  # adds to the environment's
        self._session = requests.Session()
        self._session.headers.update(self._headers)
        self._session.auth = self._authorize
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=pool_size, pool_block=True)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def segment(self, image: ImageInput, **options: Unpack[SegmentOptions]) -> Segmentation:
        """Segments an image.

        The server's default applies to every option that is not given or None.

        Args:
            image: a path, the bytes of an image file, a PIL image, or an array; see `ImageInput`.
            mode: `whole`, or `slide` for images larger than the network's size.
            tta: test-time augmentation: `none`, `flip` or `multiscale`.
            classes: the classes to keep, by label or id; all others become background.
            threshold: pixels whose top probability is lower become background, 0..1.
            confidence: whether to return each pixel's top probability too.
            alpha: transparent pixels are read on `white`, or in their stored colours: `ignore`.

        Returns:
            The class of every pixel, at the size of the upright image.

        Raises:
            OSError: the image file cannot be read.
            TypeError: the input is not an `ImageInput`, or there is no such option.
            ValueError: the array or the PIL image is not a supported image.
            ResponseError: the server sent an error response; the message says what to do.
            UnreachableError: there is no server.
            TimedOutError: the server did not respond in time.
            MalformedResponseError: the response is not from a segmentation server.
        """
        fields = as_fields(mask="png", **options)
        image_file = as_image_file(image)
        return read_segmentation(self._request(image_file, JSON, fields), image_file)

    def segment_raw(
        self, image: ImageInput, accept: str = JSON, **options: Unpack[ResponseOptions]
    ) -> bytes:
        """Returns the response body unchanged, in any media type and encoding. Raises as `segment`.

        Args:
            image: as in `segment`.
            accept: `application/json`, `image/png` (the label map), `image/jpeg` (the overlay) or
                `application/x-npy`.
            options: the options of `segment`, and `mask`: the mask's encoding in JSON.
        """
        fields = as_fields(**options)
        return self._request(as_image_file(image), accept, fields).body

    def _request(self, image_file: bytes, accept: str, fields: dict[str, str]) -> HttpResponse:
        return Retrying(**self._policy)(self._send, image_file, http_headers(accept, fields))

    def _send(self, image_file: bytes, headers: dict[str, str]) -> HttpResponse:
        target = self._target
        try:
            response = self._session.post(
                target.endpoint,
                data=image_file,
                headers=headers,
                timeout=(self._connect_timeout_s, self._timeout_s),
                proxies=self._proxies,
                allow_redirects=False,  # a redirected POST would arrive as a GET, without the image
            )
        except requests.ReadTimeout as error:
            raise timed_out(target.url, self._timeout_s) from error
        except requests.RequestException as error:
            if any(isinstance(argument, ReadTimeoutError) for argument in error.args):
                raise timed_out(target.url, self._timeout_s) from error  # in the response body
            raise unreachable(target.url, error) from error
        result = HttpResponse(
            response.status_code, response.reason or "", response.content, response.headers
        )
        raise_for_error(result)
        return result

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sends the token. If ~/.netrc lists the host, requests would replace a plain header."""
        if self._target.authorization:
            request.headers["Authorization"] = self._target.authorization
        return request

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncSegmentationClient(_BaseClient):
    """The asynchronous `SegmentationClient`, with the same arguments and errors.

    Use it with `async with` and `await client.segment(...)`.
    """

    def _open(self, pool_size: int) -> None:
        import httpx  # the synchronous client starts faster without it

        if self._target.authorization:
            self._headers["Authorization"] = self._target.authorization
        host = self._target.loopback_host
        no_proxy = {f"all://[{host}]" if ":" in host else f"all://{host}": None} if host else None
        self._client = httpx.AsyncClient(
            headers=self._headers,
            mounts=no_proxy,
            timeout=httpx.Timeout(self._timeout_s, connect=self._connect_timeout_s, pool=None),
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
            raise timed_out(target.url, self._timeout_s) from error
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

    async def __aexit__(self, *_: object) -> None:
        await self.close()
