"""HTTP transport based on the package requests. Threads share one session with persistent
connections.
"""

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import ReadTimeoutError

from .. import __version__
from .failures import reason_of, timed_out, unreachable
from .reply import HttpResponse
from .request import Target, http_headers


class _Authorization(AuthBase):
    """Sends the token through `auth`. If ~/.netrc lists the host, requests would replace a plain
    header.
    """

    def __init__(self, value: str | None) -> None:
        self._value = value

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._value:
            request.headers["Authorization"] = self._value
        return request


class HttpTransport:
    def __init__(self, target: Target) -> None:
        self._target = target
        self._endpoint = target.endpoint
        self._proxies = (
            {"no_proxy": target.own_host} if target.own_host else None
        )  # adds to the environment's
        self._timeout_s = (target.connect_timeout_s, target.timeout_s)
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"segserve/{__version__}"
        self._session.auth = _Authorization(target.authorization)
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=target.pool_size, pool_block=True)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def send(self, image_file: bytes, accept: str, fields: dict[str, str]) -> HttpResponse:
        try:
            response = self._session.post(
                self._endpoint,
                data=image_file,
                headers=http_headers(accept, fields),
                timeout=self._timeout_s,
                proxies=self._proxies,
                allow_redirects=False,  # a redirected POST would arrive as a GET, without the image
            )
        except requests.ReadTimeout as error:
            raise timed_out(self._target) from error
        except requests.RequestException as error:
            if any(
                isinstance(argument, ReadTimeoutError) for argument in error.args
            ):  # in the response body
                raise timed_out(self._target) from error
            raise unreachable(self._target, reason_of(error)) from error
        headers = {name.lower(): value for name, value in response.headers.items()}
        return HttpResponse(response.status_code, response.reason or "", response.content, headers)

    def close(self) -> None:
        self._session.close()
