"""Requests in other protocols, over HTTP and gRPC: what limits them, and how they end."""

import asyncio
import base64
import io
import socket
from contextlib import asynccontextmanager, nullcontext
from types import SimpleNamespace

import grpc
import httpx
import numpy as np
import pytest

from segserve.engines import EngineResponse
from segserve.gateway.admission import TokenFile
from segserve.gateway.app import Gateway
from segserve.gateway.http_server import bind, serving
from segserve.gateway.open_inference_grpc import _CLASSES, serving_grpc
from segserve.gateway.serve import _left_together
from segserve.gateway.settings import GatewaySettings

TOKEN = "a-token-of-some-length"  # noqa: S105
BEARER = (("authorization", f"Bearer {TOKEN}"),)
SERVICE = "/inference.GRPCInferenceService"
MAX_BYTES = 2**20
LONG_SIDE_PX = 4000  # a response of 16 MB, which is more than the kernel buffers


class SlowEngine:
    """Responds with an empty label map, after `delay_s`, and counts the requests."""

    models = ("net",)

    def __init__(self, delay_s: float = 0, side_px: int = 4) -> None:
        self.delay_s, self.side_px, self.predictions = delay_s, side_px, 0

    async def predict(self, request) -> EngineResponse:
        self.predictions += 1
        await asyncio.sleep(self.delay_s)
        file = io.BytesIO()
        np.save(file, np.zeros((self.side_px, self.side_px), np.uint8))
        return EngineResponse(200, [(b"content-type", b"application/x-npy")], file.getvalue())

    async def describe(self, request) -> EngineResponse:
        return EngineResponse(200, [], b'{"models": []}')  # TorchServe's response to /models/


@asynccontextmanager
async def opened(tmp_path, engine, **limits):
    """A gateway that serves HTTP and gRPC, and clients for both."""
    (tmp_path / "token").write_text(TOKEN)
    gateway = Gateway(
        engine=engine,
        token=TokenFile(tmp_path / "token"),
        management_token=None,
        settings=GatewaySettings(**limits),
        max_request_bytes=MAX_BYTES,
    )
    listener = bind("127.0.0.1", 0, "SEGSERVE_PORT")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    http = serving({listener: gateway.inference_app()}, drain_timeout_s=3, late_request_s=0)
    rpc = serving_grpc(gateway, f"127.0.0.1:{port}", max_bytes=MAX_BYTES, drain_timeout_s=3)
    host, http_port = listener.getsockname()
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        httpx.AsyncClient(base_url=f"http://{host}:{http_port}", timeout=30) as client,
        _left_together(http, rpc),
    ):
        yield SimpleNamespace(gateway=gateway, channel=channel, client=client, port=http_port)


def call(served, name: str, message: bytes, metadata=BEARER):
    return served.channel.unary_unary(f"{SERVICE}/{name}")(message, metadata=metadata, timeout=20)


def infer_message() -> bytes:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
    message = _CLASSES["ModelInferRequest"](
        model_name="net", inputs=[tensor], raw_input_contents=[b"\3\0\0\0abc"]
    )
    return message.SerializeToString()


async def code_of(pending) -> str:
    try:
        await pending
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


def test_grpc_message_without_the_token_is_not_even_parsed(tmp_path):
    async def run():
        async with opened(tmp_path, SlowEngine()) as served:
            no_protobuf = b"\xff" * 100
            return (
                await code_of(call(served, "ModelInfer", no_protobuf, metadata=())),
                await code_of(call(served, "ModelInfer", infer_message())),
            )

    assert asyncio.run(run()) == ("UNAUTHENTICATED", "OK")


def test_grpc_client_with_many_calls_blocks_no_probe_and_gets_unavailable(tmp_path):
    async def run():
        engine = SlowEngine(delay_s=1)
        async with opened(tmp_path, engine, client_in_flight=2, client_waiting=60) as served:
            pending = [
                asyncio.ensure_future(code_of(call(served, "ModelInfer", infer_message())))
                for _ in range(70)
            ]
            await asyncio.sleep(0.5)
            probe = await code_of(call(served, "ServerLive", b"", metadata=()))
            rejected = [task.result() for task in pending if task.done()]
            for task in pending:
                task.cancel()
            return probe, rejected, engine.predictions

    probe, rejected, predictions = asyncio.run(run())
    assert probe == "OK"
    assert rejected == ["UNAVAILABLE"] * 8
    assert predictions == 2


def test_grpc_call_that_its_client_cancels_is_499_and_not_lost(tmp_path, caplog):
    async def run():
        async with opened(tmp_path, SlowEngine(delay_s=5)) as served:
            pending = call(served, "ModelInfer", infer_message())
            await asyncio.sleep(0.3)
            pending.cancel()
            await asyncio.sleep(0.3)
            return served.gateway.in_flight, served.gateway.lost

    with caplog.at_level("INFO", "segserve.gateway"):
        assert asyncio.run(run()) == (0, 0)
    assert [record.fields["status"] for record in caplog.records] == [499]


@pytest.mark.parametrize("name", ["", "net/1.0"])
def test_grpc_name_that_no_model_has_is_not_found(tmp_path, name):
    async def run():
        async with opened(tmp_path, SlowEngine()) as served:
            message = _CLASSES["ModelMetadataRequest"](name=name).SerializeToString()
            return await code_of(call(served, "ModelMetadata", message))

    assert asyncio.run(run()) == "NOT_FOUND"


def test_grpc_tensor_of_too_many_numbers_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("segserve.gateway.open_inference._MOST_VALUES", 10)
    tensor = {"name": "image", "datatype": "UINT8", "shape": [2, 2, 3]}
    message = _CLASSES["ModelInferRequest"](
        model_name="net", inputs=[tensor | {"contents": {"uints": [0] * 12}}]
    )

    async def run():
        async with opened(tmp_path, SlowEngine()) as served:
            return await code_of(call(served, "ModelInfer", message.SerializeToString()))

    assert asyncio.run(run()) == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("path", ["/hf/net", "/v2/models/net/infer"])
def test_request_that_waits_has_not_sent_its_image(tmp_path, path):
    """The second request is rejected before its body arrives."""

    async def run():
        async with opened(
            tmp_path, SlowEngine(delay_s=2), client_in_flight=1, client_waiting=0
        ) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{BEARER[0][0]}: {BEARER[0][1]}\r\n"
            held = asyncio.ensure_future(
                served.client.post("/hf/net", content=b"image", headers=dict(BEARER))
            )
            await asyncio.sleep(0.3)
            writer.write(f"{head}Content-Length: 1000\r\n\r\n".encode())
            line = await asyncio.wait_for(reader.readline(), 1)
            writer.close()
            held.cancel()
            return line

    assert asyncio.run(run()) == b"HTTP/1.1 503 Service Unavailable\r\n"


def test_client_that_left_while_its_request_waited_costs_no_computing(tmp_path):
    async def run():
        engine = SlowEngine(delay_s=0.5)
        async with opened(tmp_path, engine, client_in_flight=1) as served:
            post = served.client.post
            first = asyncio.ensure_future(post("/hf/net", content=b"x", headers=dict(BEARER)))
            await asyncio.sleep(0.2)
            second = asyncio.ensure_future(post("/hf/net", content=b"x", headers=dict(BEARER)))
            await asyncio.sleep(0.1)
            second.cancel()
            await first
            await asyncio.sleep(0.7)
            return engine.predictions

    assert asyncio.run(run()) == 1


def test_response_of_another_protocol_that_is_not_read_holds_its_slot_and_is_aborted(tmp_path):
    body = (
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["'
        + base64.b64encode(b"image")
        + b'"]}], "parameters": {"binary_data_output": true}}'
    )

    async def run():
        engine = SlowEngine(side_px=LONG_SIDE_PX)
        limits = {"client_in_flight": 1, "client_waiting": 0, "request_timeout_s": 1}
        async with opened(tmp_path, engine, **limits) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            head = (
                f"POST /v2/models/net/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
                f"Authorization: Bearer {TOKEN}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            first = await reader.readline()
            beside = await served.client.post("/hf/net", content=b"x", headers=dict(BEARER))
            writer.transport.pause_reading()
            await asyncio.sleep(1.5)
            return first, beside.status_code, served.gateway.in_flight

    assert asyncio.run(run()) == (b"HTTP/1.1 200 OK\r\n", 503, 0)


@pytest.mark.parametrize("length", ["9" * 5000, "9" * 19])
def test_length_that_no_body_has_is_a_bad_request(tmp_path, length):
    async def run():
        async with opened(tmp_path, SlowEngine()) as served:
            headers = {**dict(BEARER), "Inference-Header-Content-Length": length}
            url = "/v2/models/net/infer"
            return (await served.client.post(url, content=b"{}", headers=headers)).status_code

    assert asyncio.run(run()) == 400


def test_huge_declared_length_is_logged(tmp_path, caplog):
    async def run():
        async with opened(tmp_path, SlowEngine()) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(
                b"POST /hf/net HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n"
            )
            line = await reader.readline()
            writer.close()
            return line

    with caplog.at_level("INFO", "segserve.gateway"):
        assert asyncio.run(run()).startswith(b"HTTP/1.1 4")
    assert all(record.fields.get("request_bytes", 0) < 2**63 for record in caplog.records)


def test_contexts_are_left_at_the_same_time():
    @asynccontextmanager
    async def slow_to_leave():
        yield
        await asyncio.sleep(0.3)

    async def run():
        async with _left_together(slow_to_leave(), slow_to_leave(), nullcontext()):
            began_s = asyncio.get_running_loop().time()
        return asyncio.get_running_loop().time() - began_s

    assert asyncio.run(run()) < 0.5
