"""Transports over TorchServe's gRPC inference API.

gRPC has no HTTP headers and no HTTP statuses. Options are sent as parts of the input. A handler's
error arrives as the body of a successful response. TorchServe's own errors arrive as gRPC errors.
This module converts all of them to the response that HTTP would have.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ..runtime.errors import error_classes
from .failures import timed_out, unreachable
from .reply import HttpResponse
from .request import JSON, Target, is_this_machine

try:
    import grpc

    from .torchserve.inference_pb2 import PredictionsRequest
    from .torchserve.inference_pb2_grpc import InferenceAPIsServiceStub
except ImportError as error:
    raise ImportError(f"{error}; gRPC needs: pip install 'segserve[grpc]'") from error

_STATUS = {  # HTTP status of a gRPC code, if there is one
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.PERMISSION_DENIED: 400,  # TorchServe's status over HTTP
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 413,
}
_STATUS_BY_TYPE = {"ModelNotFoundException": 404, "ModelVersionNotFoundException": 404}
_BROKEN_OFF = "the server broke the call off; is the image larger than its max_request_size?"


class GrpcTransport:
    """Sends the concurrent requests of all threads over one channel."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._channel = _open(grpc, target)
        self._stub = _stub(self._channel)

    def send(self, image_file: bytes, accept: str, fields: dict[str, str]) -> HttpResponse:
        request = _request(self._target, image_file, accept, fields)
        try:
            response = self._stub.Predictions(
                request, timeout=self._target.timeout_s, metadata=_metadata(self._target)
            )
        except grpc.RpcError as error:
            return _refusal(self._target, error)
        return _reply(response.prediction)

    def close(self) -> None:
        self._channel.close()


class AsyncGrpcTransport:
    """The asynchronous `GrpcTransport`."""

    def __init__(self, target: Target) -> None:
        import grpc.aio

        self._target = target
        self._channel = _open(grpc.aio, target)
        self._stub = _stub(self._channel)

    async def send(self, image_file: bytes, accept: str, fields: dict[str, str]) -> HttpResponse:
        request = _request(self._target, image_file, accept, fields)
        call = self._stub.Predictions(
            request, timeout=self._target.timeout_s, metadata=_metadata(self._target)
        )
        try:
            response = await call
        except grpc.RpcError as error:
            return _refusal(self._target, error)
        return _reply(response.prediction)

    async def close(self) -> None:
        await self._channel.close()


def _open(channels: Any, target: Target) -> Any:  # noqa: ANN401 - grpc has no types
    """Opens a channel of `grpc` or `grpc.aio`, for messages of any size."""
    address, is_secure = target.authority
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        (
            "grpc.enable_http_proxy",
            int(not is_this_machine(address.rpartition(":")[0].strip("[]"))),
        ),
        (
            "grpc.min_reconnect_backoff_ms",
            int(1000 * target.connect_timeout_s),
        ),  # also limits the time to connect
    ]
    if is_secure:
        return channels.secure_channel(address, grpc.ssl_channel_credentials(), options)
    return channels.insecure_channel(address, options)


def _stub(channel: Any) -> Any:  # noqa: ANN401
    return InferenceAPIsServiceStub(channel)  # type: ignore[no-untyped-call]


def _request(
    target: Target, image_file: bytes, accept: str, fields: Mapping[str, str]
) -> PredictionsRequest:
    if accept != JSON:
        raise ValueError(f"over gRPC every answer is {JSON}, got accept={accept!r:.80}")
    parts = {"data": image_file, **{name: value.encode() for name, value in fields.items()}}
    return PredictionsRequest(
        model_name=target.model, model_version=target.version or "", input=parts
    )


def _metadata(target: Target) -> Sequence[tuple[str, str]]:
    return [("authorization", target.authorization)] if target.authorization else []


def _reply(body: bytes) -> HttpResponse:
    if not body.startswith(b'{"error"'):
        return HttpResponse(200, "OK", body)
    code = orjson.loads(body)["error"]["code"]
    statuses = {kind.code: kind.status for kind in error_classes()}
    return HttpResponse(statuses.get(code, 500), "", body)


def _refusal(target: Target, error: Any) -> HttpResponse:  # noqa: ANN401
    """Converts TorchServe's own error to its HTTP form. Some messages end with a line that names
    the Java class.

    Raises:
        UnreachableError: there is no server.
        TimedOutError: the server did not respond in time.
    """
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE:
        raise unreachable(target, details) from error
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        raise timed_out(target) from error
    message, _, java_class = details.rpartition("\n")
    kind = java_class.rpartition(".")[2] if message else code.name.lower()
    if code is grpc.StatusCode.PERMISSION_DENIED:
        kind = "InvalidKeyException"
    if code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED):
        message, details = _BROKEN_OFF, ""
    status = _STATUS_BY_TYPE.get(kind) or _STATUS.get(code, 500)
    return HttpResponse(
        status, code.name, orjson.dumps({"type": kind, "message": message or details})
    )
