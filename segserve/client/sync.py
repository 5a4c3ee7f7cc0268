"""The synchronous client."""

from types import TracebackType
from typing import Literal, Protocol, Self, Unpack

from tenacity import Retrying

from .images import ImageInput, as_image_file
from .reading import read_segmentation
from .reply import HttpResponse, raise_for_error
from .request import JSON, ClassNames, ResponseOptions, Target, as_fields
from .retry import policy
from .segmentation import Segmentation


class Transport(Protocol):
    """Sends requests. Thread-safe."""

    def send(self, image_file: bytes, accept: str, fields: dict[str, str]) -> HttpResponse:
        """Sends one request.

        Raises:
            UnreachableError: there is no server, or the connection broke.
            TimedOutError: the server did not respond in time.
        """

    def close(self) -> None: ...


class SegmentationClient:
    """Sends images to one model of a server over pooled connections. Thread-safe.

    Args:
        url: address of the inference port, for example http://127.0.0.1:8080, or 127.0.0.1:7070 for
            gRPC.
        token: inference token, if the server requires one.
        model: name of the served model.
        version: version of the model; by default the server's default version.
        timeout_s: time limit for a response, in seconds.
        connect_timeout_s: time limit for a connection, in seconds.
        retries: maximum number of retries if the connection broke, or if the server is overloaded
            (503), out of memory (507) or lost a worker.
        pool_size: maximum number of connections. Additional threads wait. With gRPC, all threads
            share one connection.
        transport: `http`, or `grpc` for TorchServe's gRPC inference API, which needs `pip install
            'segserve[grpc]'`.

    Raises:
        ValueError: the address is invalid, or a number is out of range.
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

    def segment(
        self,
        image: ImageInput,
        *,
        mode: str | None = None,
        tta: str | None = None,
        classes: ClassNames | None = None,
        threshold: float | None = None,
        confidence: bool = False,
    ) -> Segmentation:
        """Segments an image.

        The server's default applies to every option that is not given.

        Args:
            image: a path, the bytes of an image file, a PIL image, or an array; see `ImageInput`.
            mode: `whole`, or `slide` for images larger than the network's size.
            tta: test-time augmentation: `none`, `flip` or `multiscale`.
            classes: the classes to keep, by label or id; all others become background.
            threshold: pixels whose top probability is lower become background, 0..1.
            confidence: whether to return each pixel's top probability too.

        Returns:
            The class of every pixel, at the size of the upright image.

        Raises:
            OSError: the image file cannot be read.
            TypeError: the input is not an `ImageInput`.
            ValueError: the array or the PIL image is not a supported image.
            ResponseError: the server sent an error response; the message says what to do.
            UnreachableError: there is no server.
            TimedOutError: the server did not respond in time.
            MalformedResponseError: the response is not from a segmentation server.
        """
        fields = as_fields(
            mask="png",
            mode=mode,
            tta=tta,
            classes=classes,
            threshold=threshold,
            confidence=confidence,
        )
        image_file = as_image_file(image)
        return read_segmentation(self._ask(image_file, JSON, fields), image_file)

    def segment_raw(
        self, image: ImageInput, accept: str = JSON, **options: Unpack[ResponseOptions]
    ) -> bytes:
        """Returns the response body unchanged, in any media type and encoding. Raises as `segment`.

        Args:
            image: as in `segment`.
            accept: `application/json`, `image/png` (the label map), `image/jpeg` (the overlay) or
                `application/x-npy`. gRPC supports only JSON.
            options: the options of `segment`, and `mask`: the mask's encoding in JSON.
        """
        return self._ask(as_image_file(image), accept, as_fields(**options)).body

    def _ask(self, image_file: bytes, accept: str, fields: dict[str, str]) -> HttpResponse:
        return Retrying(**self._policy)(self._once, image_file, accept, fields)

    def _once(self, image_file: bytes, accept: str, fields: dict[str, str]) -> HttpResponse:
        response = self._transport.send(image_file, accept, fields)
        raise_for_error(response)
        return response

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def _open_transport(name: str, target: Target) -> Transport:
    if name == "http":
        from .http import HttpTransport

        return HttpTransport(target)
    if name == "grpc":
        from .rpc import GrpcTransport

        return GrpcTransport(target)
    raise ValueError(f"expected the transport http or grpc, got {name!r}")
