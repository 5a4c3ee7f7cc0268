"""The Open Inference Protocol v2 over gRPC: the same translation as over REST."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from .. import __version__
from ..engines import BadTokenError
from ..runtime.errors import BadRequestError
from .app import Gateway
from .open_inference import (
    InferRequest,
    has_ready_worker,
    image_of_bytes,
    image_of_pixels,
    infer_native,
    model_metadata,
    tensors_of,
)
from .protocols import checked, parsed_as, status_and_message

_SERVICE = "inference.GRPCInferenceService"
_MOST_CALLS = 64  # each holds its message in memory

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
Method = Callable[[Message, grpc.aio.ServicerContext], Awaitable[Message]]


def _message_classes() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package="segserve.v2")
    kinds = descriptor_pb2.FieldDescriptorProto
    for line in _MESSAGES.strip().splitlines():
        name, *fields = line.split()
        message = file.message_type.add(name=name)
        for number, declared in enumerate(fields, start=1):
            field_name, _, kind = declared.partition(":")
            field = message.field.add(name=field_name, number=number)
            field.label = kinds.LABEL_REPEATED if kind[-1] == "*" else kinds.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind[0].isupper():
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".segserve.v2.{kind}"
            else:
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"segserve.v2.{message.name}")
        )
        for message in file.message_type
    }


_CLASSES = _message_classes()


def serving_grpc(
    gateway: Gateway, address: str, *, max_bytes: int, drain_timeout_s: float
) -> AbstractAsyncContextManager[None]:
    """Binds HOST:PORT, and serves it within the context. Its end completes pending requests.

    Raises:
        OSError: the address cannot be used.
    """
    unlimited = -1  # responses are limited by the handler
    options = [
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_send_message_length", unlimited),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=_MOST_CALLS)
    handlers = _Service(gateway).handlers()
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


class _Service:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        methods: Mapping[str, Method] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._server,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model,
            "ModelInfer": self._infer,
        }
        return {
            name: grpc.unary_unary_rpc_method_handler(
                _with_status(method),
                request_deserializer=_CLASSES[f"{name}Request"].FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for name, method in methods.items()
        }

    async def _live(self, _: Message, context: grpc.aio.ServicerContext) -> Message:
        return _CLASSES["ServerLiveResponse"](live=True)

    async def _ready(self, _: Message, context: grpc.aio.ServicerContext) -> Message:
        return _CLASSES["ServerReadyResponse"](ready=self._gateway.obstacle is None)

    async def _server(self, _: Message, context: grpc.aio.ServicerContext) -> Message:
        return _CLASSES["ServerMetadataResponse"](name="segserve", version=__version__)

    async def _model_ready(self, request: Message, context: grpc.aio.ServicerContext) -> Message:
        described = await self._described(request, context)
        return _CLASSES["ModelReadyResponse"](ready=has_ready_worker(described))

    async def _model(self, request: Message, context: grpc.aio.ServicerContext) -> Message:
        described = await self._described(request, context)
        metadata = model_metadata(described["modelName"], described["modelVersion"])
        return _CLASSES["ModelMetadataResponse"](**metadata)

    async def _infer(self, request: Message, context: grpc.aio.ServicerContext) -> Message:
        self._gateway.check_token(_authorization(context))
        parsed, image = await asyncio.to_thread(_read, request)
        forwarded = infer_native(parsed, image, request.model_name, request.model_version or None)
        response = checked(await self._gateway.predict_for(context.peer(), forwarded))
        tensors = await asyncio.to_thread(tensors_of, response, parsed.outputs)
        outputs = [
            _CLASSES["OutputTensor"](name=output.name, datatype="UINT8", shape=tensor.shape)
            for output, tensor in zip(parsed.outputs, tensors, strict=True)
        ]
        return _CLASSES["ModelInferResponse"](
            model_name=request.model_name,
            model_version=request.model_version,
            id=request.id,
            outputs=outputs,
            raw_output_contents=[tensor.tobytes() for tensor in tensors],
        )

    async def _described(
        self, request: Message, context: grpc.aio.ServicerContext
    ) -> Mapping[str, Any]:
        self._gateway.check_token(_authorization(context))
        version = f"/{request.version}" if request.version else ""
        return await self._gateway.description(request.name + version)


def _with_status(method: Method) -> Method:
    """Converts errors to a status of gRPC."""

    async def safe(request: Message, context: grpc.aio.ServicerContext) -> Message:
        try:
            return await method(request, context)
        except Exception as error:
            status, message = status_and_message(error)
            code = _CODES.get(status, grpc.StatusCode.INVALID_ARGUMENT)
            if isinstance(error, BadTokenError):
                code = grpc.StatusCode.UNAUTHENTICATED
        await context.abort(code, message)

    return safe


def _authorization(context: grpc.aio.ServicerContext) -> str | None:
    metadata = context.invocation_metadata() or ()
    return next((str(value) for name, value in metadata if name == "authorization"), None)


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
