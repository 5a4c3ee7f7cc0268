"""A client of a running server."""

import base64
import binascii
from types import TracebackType
from typing import Any, Self

import requests


class RefusedError(Exception):
    """The server did not answer with a segmentation: its status, its error code and its message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code


class SegmentationClient:
    """Sends images to one model of a server over one pooled connection.

    Args:
        url: address of the inference port, such as http://127.0.0.1:8080.
        token: inference token, where the server asks for one.
        timeout_s: how long one request may take, in seconds.
    """

    def __init__(self, url: str, *, token: str | None = None, model: str = "deeplabv3", timeout_s: float = 120) -> None:
        self._endpoint = f"{url.rstrip('/')}/predictions/{model}"
        self._timeout_s = timeout_s
        self._session = requests.Session()
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def segment(
        self, image: bytes, *, mask: str = "png", mode: str | None = None, tta: str | None = None
    ) -> dict[str, Any]:
        """The JSON answer for an image file, with the label map in the encoding `mask`.

        `mode` and `tta` are sent where they are given, and the server's own otherwise.

        Raises:
            RefusedError: the server answered with an error.
            requests.RequestException: it could not be reached.
        """
        answer: dict[str, Any] = self._post(image, "application/json", mask=mask, mode=mode, tta=tta).json()
        return answer

    def label_png(self, image: bytes) -> bytes:
        """The label map as an indexed PNG; errors as in `segment`."""
        return self._post(image, "image/png").content

    def overlay_jpeg(self, image: bytes) -> bytes:
        """The picture with its classes laid over it; errors as in `segment`."""
        return self._post(image, "image/jpeg").content

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _post(self, image: bytes, accept: str, **options: str | None) -> requests.Response:
        headers = {"Accept": accept, "Content-Type": "application/octet-stream"}
        headers |= {f"X-Segment-{option.title()}": value for option, value in options.items() if value}
        response = self._session.post(self._endpoint, data=image, headers=headers, timeout=self._timeout_s)
        if not response.ok:
            raise _refusal(response)
        return response


def _refusal(response: requests.Response) -> RefusedError:
    """The handler's errors and TorchServe's own have different members; a proxy's may be no JSON at all."""
    try:
        document = response.json()
    except requests.JSONDecodeError:
        document = {}
    error = document.get("error", document) if isinstance(document, dict) else {}
    error = error if isinstance(error, dict) else {"message": error}
    code = error.get("type") or error.get("code") or "unknown"
    return RefusedError(response.status_code, str(code), str(error.get("message") or response.reason))


def decode_png_mask(answer: dict[str, Any]) -> bytes:
    """The PNG file of a JSON answer that was asked for with `mask="png"`.

    Raises:
        ValueError: the answer holds no such mask.
    """
    mask = answer.get("mask", {})
    if mask.get("encoding") != "png":
        raise ValueError(f"expected a mask encoded as png, got {mask.get('encoding')!r}")
    try:
        return base64.b64decode(mask["data"], validate=True)
    except binascii.Error as error:
        raise ValueError("the mask is not base64") from error
