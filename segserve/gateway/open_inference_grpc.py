"""The Open Inference Protocol v2 over gRPC: the same translation as over REST."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from .. import __version__
from ..engines import BadTokenError, unknown_model
from ..runtime.errors import BadRequestError
from .app import CLIENT_LEFT, Gateway
from .open_inference import (
    InferRequest,
    check_values,
    has_ready_worker,
    image_of_bytes,
    image_of_pixels,
    infer_native,
    model_metadata,
    tensors_of,
)
from .protocols import checked, parsed_as, status_and_message

_SERVICE = "inference.GRPCInferenceService"
_QUIET_METHODS = ("ServerLive", "ServerReady")  # called every few seconds, so not logged

# The messages of the protocol, and their fields in the order of their numbers, which begin at 1.
# `*` marks a repeated field. A map is sent as repeated pairs.
_MESSAGES = """
ServerLiveRequest
ServerLiveResponse live:bool
ServerReadyRequest
ServerReadyResponse ready:bool
ModelReadyRequest name:string version:string
ModelReadyResponse ready:bool
ServerMetadataRequest
ServerMetadataResponse name:string version:string extensions:string*
ModelMetadataRequest name:string version:string
TensorMetadata name:string datatype:string shape:int64*
ModelMetadataResponse name:string versions:string* platform:string inputs:TensorMetadata* outputs:TensorMetadata*
InferParameter bool_param:bool int64_param:int64 string_param:string double_param:double uint64_param:uint64
Parameter key:string value:InferParameter
Contents bools:bool* ints:int32* int64s:int64* uints:uint32* uint64s:uint64* floats:float* doubles:double* bytes:bytes*
InputTensor name:string datatype:string shape:int64* parameters:Parameter* contents:Contents
RequestedOutput name:string parameters:Parameter*
ModelInferRequest model_name:string model_version:string id:string parameters:Parameter* inputs:InputTensor* outputs:RequestedOutput* raw_input_contents:bytes*
OutputTensor name:string datatype:string shape:int64* parameters:Parameter* contents:Contents
ModelInferResponse model_name:string model_version:string id:string parameters:Parameter* outputs:OutputTensor* raw_output_contents:bytes*
"""  # noqa: E501 - a message on one line

_CODES = {
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

Message = Any
Fields = Mapping[str, Any]
Messages = AsyncIterator[Message]
Method = Callable[[Gateway, Messages, grpc.aio.ServicerContext], Awaitable[Fields]]


def _message_classes() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package="segserve.v2")
    for line in _MESSAGES.strip().splitlines():
        name, *fields = line.split()
        message = file.message_type.add(name=name)
        for number, declared in enumerate(fields, start=1):
            field_name, _, kind = declared.partition(":")
            field = message.field.add(name=field_name, number=number)
            field.label = field.LABEL_REPEATED if kind[-1] == "*" else field.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind[0].isupper():
                field.type, field.type_name = field.TYPE_MESSAGE, f".segserve.v2.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    classes = message_factory.GetMessageClassesForFiles([pool.Add(file).name], pool)
    return {name.rpartition(".")[2]: message for name, message in classes.items()}


_CLASSES = _message_classes()


def serving_grpc(
    gateway: Gateway, address: str, *, max_bytes: int, drain_timeout_s: float
) -> AbstractAsyncContextManager[None]:
    """Binds HOST:PORT, and serves it within the context. Its end completes pending requests.

    Raises:
        OSError: the address cannot be used.
    """
    options = [
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_send_message_length", -1),  # responses are limited by the handler
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options)
    handlers = {name: _handler(gateway, name, method) for name, method in _METHODS.items()}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_SERVICE, handlers)])
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"SEGSERVE_GRPC_PORT: {address} cannot be used: {error}") from error

    @asynccontextmanager
    async def serving() -> AsyncIterator[None]:
        await server.start()
        try:
            yield
        finally:
            await server.stop(drain_timeout_s)

    return serving()


def _handler(gateway: Gateway, name: str, method: Method) -> grpc.RpcMethodHandler:
    """Converts the fields of a response to a message, and errors to a status of gRPC. Records the
    call with the HTTP status that the same request would have over REST.

    The call is handled as a stream of one message, so that the token is checked, and the request
    has a slot, before its message is read.
    """

    async def call(requests: Messages, context: grpc.aio.ServicerContext) -> Message:
        began_s, status = time.perf_counter(), CLIENT_LEFT
        gateway.in_flight += 1
        try:
            response = _CLASSES[f"{name}Response"](**await method(gateway, requests, context))
            status = 200
            return response
        except Exception as error:
            status, message = status_and_message(error)
            code = _CODES.get(status, grpc.StatusCode.INVALID_ARGUMENT)
            if isinstance(error, BadTokenError):
                code = grpc.StatusCode.UNAUTHENTICATED
        except asyncio.CancelledError:
            gateway.lost += gateway.closing
            raise
        finally:
            gateway.in_flight -= 1
            if name not in _QUIET_METHODS:
                gateway.record(
                    "POST",
                    f"/{_SERVICE}/{name}",
                    status,
                    time.perf_counter() - began_s,
                    is_prediction=method is _infer,
                    client=_address(context),
                )
        await context.abort(code, message)

    return grpc.stream_unary_rpc_method_handler(
        call,
        request_deserializer=_CLASSES[f"{name}Request"].FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )


async def _live(*_: object) -> Fields:
    return {"live": True}


async def _ready(gateway: Gateway, *_: object) -> Fields:
    return {"ready": gateway.not_ready_reason is None}


async def _server(*_: object) -> Fields:
    return {"name": "segserve", "version": __version__}


async def _model_ready(
    gateway: Gateway, requests: Messages, context: grpc.aio.ServicerContext
) -> Fields:
    return {"ready": has_ready_worker(await _described(gateway, requests, context))}


async def _model(gateway: Gateway, requests: Messages, context: grpc.aio.ServicerContext) -> Fields:
    described = await _described(gateway, requests, context)
    return model_metadata(described["modelName"], described["modelVersion"])


async def _described(
    gateway: Gateway, requests: Messages, context: grpc.aio.ServicerContext
) -> Fields:
    _check_token(gateway, context)
    request = await _message(requests)
    if not request.name or "/" in request.name + request.version:
        raise unknown_model(request.name)
    version = f"/{request.version}" if request.version else ""
    return await gateway.description(request.name + version)


async def _infer(gateway: Gateway, requests: Messages, context: grpc.aio.ServicerContext) -> Fields:
    _check_token(gateway, context)
    async with gateway.slot(_client(gateway, context)):
        request = await _message(requests)
        parsed, image = await asyncio.to_thread(_read, request)
        model, version = request.model_name, request.model_version
        forwarded = infer_native(parsed, image, model, version or None)
        response = checked(await gateway.predict(forwarded))
        tensors = await asyncio.to_thread(tensors_of, response, parsed.outputs)
    return {
        "model_name": model,
        "model_version": version,
        "id": request.id,
        "outputs": [
            {"name": output.name, "datatype": "UINT8", "shape": tensor.shape}
            for output, tensor in zip(parsed.outputs, tensors, strict=True)
        ],
        "raw_output_contents": [tensor.tobytes() for tensor in tensors],
    }


_METHODS: Mapping[str, Method] = {
    "ServerLive": _live,
    "ServerReady": _ready,
    "ServerMetadata": _server,
    "ModelReady": _model_ready,
    "ModelMetadata": _model,
    "ModelInfer": _infer,
}


async def _message(requests: Messages) -> Message:
    async for request in requests:
        return request
    raise BadRequestError("the call has no message")


def _check_token(gateway: Gateway, context: grpc.aio.ServicerContext) -> None:
    metadata = dict(context.invocation_metadata() or ())
    gateway.check_token(metadata.get("authorization"))


def _client(gateway: Gateway, context: grpc.aio.ServicerContext) -> str:
    """The client by the proxy's header, else by its address, as over REST."""
    header = gateway.settings.client_header
    metadata = dict(context.invocation_metadata() or ())
    return (metadata.get(header.lower()) if header else None) or _address(context)


def _address(context: grpc.aio.ServicerContext) -> str:
    """Without the port, by which the connections of one client differ."""
    address = unquote(context.peer()).partition(":")[2]
    return address.rpartition(":")[0].strip("[]")


def _read(request: Message) -> tuple[InferRequest, bytes]:
    """The request and its encoded image. Raises BadRequestError: it is not for this model."""
    inputs = [
        {"name": each.name, "datatype": each.datatype, "shape": list(each.shape)}
        for each in request.inputs
    ]
    document = {
        "inputs": inputs,
        "outputs": [{"name": output.name} for output in request.outputs],
        "parameters": {each.key: _value(each.value) for each in request.parameters},
    }
    parsed = parsed_as(InferRequest, document)
    raw, contents = list(request.raw_input_contents), request.inputs[0].contents
    if len(raw) > 1:
        raise BadRequestError(f"raw_input_contents: expected one element, got {len(raw)}")
    check_values(len(contents.uints))
    shape = parsed.inputs[0].shape
    if parsed.inputs[0].datatype == "UINT8":
        return parsed, image_of_pixels(raw[0] if raw else list(contents.uints), shape)
    if raw:
        return parsed, image_of_bytes(raw[0], shape)
    if len(contents.bytes) != 1:
        raise BadRequestError(f"contents: expected one image, got {len(contents.bytes)}")
    return parsed, contents.bytes[0]


def _value(parameter: Message) -> object:
    for field, value in parameter.ListFields():
        return value if field.name != "bool_param" else bool(value)
    raise BadRequestError("parameters: a parameter has no value")
