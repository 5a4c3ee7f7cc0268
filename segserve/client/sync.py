"""The client that waits for its answers."""

from types import TracebackType
from typing import Literal, Protocol, Self, Unpack

from tenacity import Retrying

from .images import ImageInput, as_image_file
from .reading import read_segmentation
from .reply import Reply, raise_for_refusal
from .request import JSON, AnswerOptions, ClassNames, Target, as_fields
from .retry import policy
from .segmentation import Segmentation


class Transport(Protocol):
    """How requests travel. Safe to use from several threads at once."""

    def send(self, image_file: bytes, accept: str, fields: dict[str, str]) -> Reply:
        """One request.

        Raises:
            UnreachableError: no server, or the connection broke.
            TimedOutError: no answer in time.
        """

    def close(self) -> None: ...


class SegmentationClient:
    """Sends images to one model of a server over pooled connections. Safe to use from several threads at once.

    Args:
        url: address of the inference port, such as http://127.0.0.1:8080; for gRPC, such as 127.0.0.1:7070.
        token: inference token, where the server asks for one.
        model: the name that the model is served under.
        version: of the model; by default the one that the server prefers.
        timeout_s: how long one answer may take, in seconds.
        connect_timeout_s: how long it may take to find a server at the address, in seconds.
        retries: how often a request is sent again where the connection broke, the server is overloaded (503) or out
            of memory (507).
        pool_size: connections at most; more threads than that wait for one another. Over gRPC all share one.
        transport: `grpc` for TorchServe's gRPC inference API, which needs `pip install 'segserve[grpc]'`.

    Raises:
        ValueError: an address that is none, or a number out of bounds.
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
        """The class of every pixel of an image.

        An option that is left out is not sent, and the server's own default holds.

        Args:
            mode: `whole`, or `slide` for images larger than the network's size.
            tta: test-time augmentation: `none`, `flip` or `multiscale`.
            classes: the classes to keep, by label or id; all others become background.
            threshold: a pixel whose top probability is lower becomes background, 0..1.
            confidence: whether each pixel's top probability is wanted as well.

        Raises:
            OSError: the image's file cannot be read.
            ValueError: an array or a picture that is no image.
            RefusedError: the server answered with an error; the message says what to do.
            UnreachableError: there is no server.
            TimedOutError: it did not answer in time.
            MalformedAnswerError: something else answered.
        """
        fields = as_fields(mask="png", mode=mode, tta=tta, classes=classes, threshold=threshold, confidence=confidence)
        image_file = as_image_file(image)
        return read_segmentation(self._ask(image_file, JSON, fields), image_file)

    def answer(self, image: ImageInput, accept: str = JSON, **options: Unpack[AnswerOptions]) -> bytes:
        """The answer's body as the server sends it, in any of its media types and encodings; errors as in `segment`.

        Args:
            accept: `application/json`, `image/png` (the label map), `image/jpeg` (the overlay) or `application/x-npy`.
                Over gRPC there is JSON alone.
        """
        return self._ask(as_image_file(image), accept, as_fields(**options)).body

    def _ask(self, image_file: bytes, accept: str, fields: dict[str, str]) -> Reply:
        return Retrying(**self._policy)(self._once, image_file, accept, fields)

    def _once(self, image_file: bytes, accept: str, fields: dict[str, str]) -> Reply:
        reply = self._transport.send(image_file, accept, fields)
        raise_for_refusal(reply)
        return reply

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _open_transport(name: str, target: Target) -> Transport:
    if name == "http":
        from .http import HttpTransport

        return HttpTransport(target)
    if name == "grpc":
        from .rpc import GrpcTransport

        return GrpcTransport(target)
    raise ValueError(f"expected the transport http or grpc, got {name!r}")
