"""Asynchronous HTTP transport based on httpx. Tasks share persistent connections."""

from .. import __version__
from .failures import reason_of, timed_out, unreachable
from .reply import HttpResponse
from .request import Target, http_headers

try:
    import httpx
except ImportError as error:
    raise ImportError(
        f"{error}; the client to await needs: pip install 'segserve[async]'"
    ) from error


class AsyncHttpTransport:
    def __init__(self, target: Target) -> None:
        self._target = target
        self._endpoint = target.endpoint
        headers = {"User-Agent": f"segserve/{__version__}"}
        if target.authorization:
            headers["Authorization"] = target.authorization
        host = target.own_host
        self._client = httpx.AsyncClient(
            headers=headers,
            mounts={f"all://[{host}]" if ":" in host else f"all://{host}": None}
            if host
            else None,  # no proxy
            timeout=httpx.Timeout(target.timeout_s, connect=target.connect_timeout_s, pool=None),
            limits=httpx.Limits(
                max_connections=target.pool_size, max_keepalive_connections=target.pool_size
            ),
        )

    async def send(self, image_file: bytes, accept: str, fields: dict[str, str]) -> HttpResponse:
        try:
            response = await self._client.post(
                self._endpoint, content=image_file, headers=http_headers(accept, fields)
            )
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise timed_out(self._target) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise unreachable(self._target, reason_of(error)) from error
        headers = {name.lower(): value for name, value in response.headers.items()}
        return HttpResponse(response.status_code, response.reason_phrase, response.content, headers)

    async def close(self) -> None:
        await self._client.aclose()
