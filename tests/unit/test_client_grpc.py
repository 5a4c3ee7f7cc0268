"""The client over gRPC against a real gRPC server on 127.0.0.1, and its stubs."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from segserve.client import (
    AsyncSegmentationClient,
    AuthenticationError,
    ResponseError,
    SegmentationClient,
    TimedOutError,
    UnknownModelError,
    UnreachableError,
)
from segserve.client.torchserve import inference_pb2, inference_pb2_grpc
from segserve.client.torchserve.__main__ import PROTO, generate
from tests.conftest import PROJECT

from .canned import IMAGE_RGB, LABEL_MAP, answer_document, as_file

IMAGE = as_file(IMAGE_RGB)
ANSWER = json.dumps(answer_document()).encode()


class Servicer(inference_pb2_grpc.InferenceAPIsServiceServicer):
    """Answers with `body`, or with `failure`, a code and details; keeps what it was sent."""

    def __init__(self):
        self.body, self.failure, self.failures, self.pause_s = ANSWER, None, 0, 0
        self.received = []

    def Predictions(self, request, context):  # noqa: N802 - the name in the proto
        self.received.append((request, dict(context.invocation_metadata())))
        time.sleep(self.pause_s)
        if self.failure and len(self.received) <= self.failures:
            context.abort(*self.failure)
        return inference_pb2.PredictionResponse(prediction=self.body)


@pytest.fixture
def served():
    """The servicer, and the address that it answers at."""
    servicer = Servicer()
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)])
    inference_pb2_grpc.add_InferenceAPIsServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


def waited(address, **arguments):
    with SegmentationClient(address, transport="grpc", **arguments) as client:
        return client.segment(IMAGE, mode="slide", classes=["cat"])


def test_segment_at_this_machine_tells_no_proxy_its_token(served, monkeypatch):
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    servicer, address = served
    waited(address, token="made up", retries=0)  # noqa: S106
    assert len(servicer.received) == 1


def awaited(address, **arguments):
    async def run():
        async with AsyncSegmentationClient(address, transport="grpc", **arguments) as client:
            return await client.segment(IMAGE, mode="slide", classes=["cat"])

    return asyncio.run(run())


both_clients = pytest.mark.parametrize("segment", [waited, awaited], ids=["waiting", "awaited"])


@both_clients
def test_segment_gives_the_label_map_and_sends_image_options_and_token(served, segment):
    servicer, address = served
    segmentation = segment(address, token="made up", model="tiny", version="2.0")  # noqa: S106
    assert np.array_equal(segmentation.label_map, LABEL_MAP)
    [(request, metadata)] = servicer.received
    assert (request.model_name, request.model_version) == ("tiny", "2.0")
    assert dict(request.input) == {
        "data": IMAGE,
        "mask": b"png",
        "mode": b"slide",
        "classes": b'["cat"]',
    }
    assert metadata["authorization"] == "Bearer made up"


@both_clients
def test_segment_error_in_the_body_has_its_status(served, segment):
    servicer, address = served
    servicer.body = b'{"error":{"code":"image_truncated","message":"send it whole"}}'
    with pytest.raises(ResponseError, match=r"^422 image_truncated: send it whole$"):
        segment(address)
    assert len(servicer.received) == 1


@both_clients
@pytest.mark.parametrize(
    ("code", "details", "error", "message"),
    [
        (
            grpc.StatusCode.PERMISSION_DENIED,
            "Token Authorization failed.",
            AuthenticationError,
            "^400 InvalidKeyException: Token Authorization failed; `segserve serve` prints a new "
            "one$",
        ),
        (
            grpc.StatusCode.INTERNAL,
            "Model not found: x\norg.pytorch.serve.archive.model.ModelNotFoundException",
            UnknownModelError,
            "^404 ModelNotFoundException: Model not found: x; name the model that is served$",
        ),
        (grpc.StatusCode.INTERNAL, "it broke", ResponseError, "^500 internal: it broke$"),
        (
            grpc.StatusCode.UNIMPLEMENTED,
            "no such method",
            ResponseError,
            "^500 unimplemented: no such method$",
        ),
        (
            grpc.StatusCode.CANCELLED,
            "RST_STREAM",
            ResponseError,
            "cancelled: .*larger than its max_request_size",
        ),
    ],
    ids=["token", "model", "internal", "another service", "too large"],
)
def test_segment_error_of_torchserve_is_told_as_over_http(
    served, segment, code, details, error, message
):
    servicer, address = served
    servicer.failure, servicer.failures = (code, details), 9
    with pytest.raises(error, match=message):
        segment(address)
    assert len(servicer.received) == 1


@both_clients
def test_segment_unavailable_server_is_asked_again(served, segment):
    servicer, address = served
    servicer.failure, servicer.failures = (grpc.StatusCode.UNAVAILABLE, "just now"), 1
    assert np.array_equal(segment(address).label_map, LABEL_MAP)
    assert len(servicer.received) == 2


@both_clients
def test_segment_answer_too_late_is_not_asked_again(served, segment):
    servicer, address = served
    servicer.pause_s = 1.5
    with pytest.raises(TimedOutError, match=r"no response within 0.5 s"):
        segment(address, timeout_s=0.5)
    assert len(servicer.received) == 1


@both_clients
def test_segment_no_server_raises_unreachable(segment):
    with pytest.raises(
        UnreachableError, match=r"^127.0.0.1:1: no server responds there \(.*refused.*\)"
    ):
        segment("127.0.0.1:1", retries=0)


def test_segment_images_and_answers_of_many_megabytes_travel(served):
    servicer, address = served
    noise = np.random.default_rng(0).integers(0, 3, (1500, 1500), np.uint8)
    servicer.body = json.dumps(answer_document(noise, padding="x" * 5_000_000)).encode()
    with SegmentationClient(address, transport="grpc") as client:
        assert np.array_equal(client.segment(noise).label_map, noise)


def test_answer_of_another_media_type_raises(served):
    _, address = served
    with (
        SegmentationClient(address, transport="grpc") as client,
        pytest.raises(
            ValueError, match="over gRPC every answer is application/json, got accept='image/png'"
        ),
    ):
        client.segment_raw(IMAGE, "image/png")


@pytest.mark.parametrize("prefix", ["", "grpc://", "http://"], ids=["bare", "grpc", "http"])
def test_client_address_may_have_a_scheme(served, prefix):
    _, address = served
    assert waited(f"{prefix}{address}/").label_map.shape == LABEL_MAP.shape


@pytest.mark.parametrize(
    "url", ["127.0.0.1", "ftp://127.0.0.1:7070", "http://127.0.0.1:7070/path", ""], ids=str
)
def test_client_address_that_is_none_raises(url):
    with pytest.raises(ValueError, match=r"expected a gRPC address like 127.0.0.1:7070"):
        SegmentationClient(url, transport="grpc")


def test_stubs_are_those_of_the_proto_file(tmp_path):
    """Version numbers of the generator differ from machine to machine; the messages and methods do
    not.
    """
    generate(tmp_path)
    for name in ("inference_pb2.py", "inference_pb2.pyi", "inference_pb2_grpc.py"):
        fresh, kept = (
            root / PROTO.replace("inference.proto", name) for root in (tmp_path, PROJECT)
        )
        assert _without_versions(fresh.read_text()) == _without_versions(kept.read_text())


def _without_versions(stub: str) -> str:
    start = (
        stub.find("DESCRIPTOR = ")
        if "DESCRIPTOR = " in stub
        else stub.find("class InferenceAPIsServiceStub")
    )
    return stub[start:]
