"""The gateway, over real sockets, in front of a small server that returns what it receives, as
TorchServe would.
"""

import asyncio
import contextlib
import gzip
import json
import socket
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from segserve.engines import ServerError
from segserve.engines.torchserve import TorchServeEngine
from segserve.gateway.__main__ import check_health
from segserve.gateway.admission import TokenFile
from segserve.gateway.app import Gateway
from segserve.gateway.http_server import bind, serving
from segserve.gateway.openapi import openapi
from segserve.gateway.settings import GatewaySettings

TOKEN, MANAGEMENT_TOKEN = "inference-token-of-users", "management-token-of-users"
BEARER, MANAGEMENT_BEARER = (f"Bearer {token}" for token in (TOKEN, MANAGEMENT_TOKEN))
PROMETHEUS_S = {
    "Accept": "application/openmetrics-text",
    "Accept-Encoding": "gzip",
}  # neither can be extended
SLOW_S = 0.4
LONG_BYTES = 16_000_000  # more than the kernel buffers of a response that is not read
REJECTIONS = {  # errors of TorchServe itself, and of the handler for an image that is too large
    "full": (
        503,
        {"code": 503, "type": "ServiceUnavailableException", "message": "no worker to serve"},
    ),
    "died": (507, {"code": 507, "type": "InternalServerException", "message": "Worker died."}),
    "died-too": (500, {"code": 500, "type": "InternalServerException", "message": "Worker died."}),
    "fault": (
        500,
        {"error": {"code": "internal_error", "message": "the server failed at this image"}},
    ),
    "form": (
        500,
        {
            "code": 500,
            "type": "ErrorDataDecoderException",
            "message": "java.lang.NullPointerException",
        },
    ),
    "path": (403, {"code": 403, "type": "IllegalArgumentException", "message": "invalid hex byte"}),
    "java": (
        500,
        {"code": 500, "type": "IOException", "message": "/run/FUp_123: No space left on device"},
    ),
    "unknown": (
        404,
        {"code": 404, "type": "ModelNotFoundException", "message": "Model not found: unknown"},
    ),
    "no-memory": (
        507,
        {"error": {"code": "out_of_memory", "message": "no memory left for this image"}},
    ),
}


async def respond(request: Request) -> Response:
    path = request.url.path
    if path.endswith("/slow"):
        await asyncio.sleep(SLOW_S)
    if path.endswith("/long"):
        return Response(bytes(LONG_BYTES))
    if path.endswith("/large"):
        return Response(status_code=413)
    if path == "/metrics":
        accepted = f"{request.headers['accept']}, {request.headers['accept-encoding']}"
        return PlainTextResponse(f"# requested as {accepted}\ntheirs_total 7\n")
    if (name := path.rpartition("/")[2]) in REJECTIONS:
        status, document = REJECTIONS[name]
        return JSONResponse(document, status)
    query = request.url.query
    received = {
        "method": request.method,
        "path": request.scope["raw_path"].decode() + (f"?{query}" if query else ""),
        "headers": dict(request.headers),
        "bytes": len(await request.body()),
    }
    return JSONResponse(received, 201, {"Server-Timing": "decode;dur=1.0"})


async def echo(scope, receive, send):
    response = await respond(Request(scope, receive))
    await response(scope, receive, send)


class Opened:
    """A gateway that serves, and a client for it."""

    def __init__(self, gateway: Gateway, ports: list[int], client: httpx.AsyncClient) -> None:
        self.gateway = gateway
        self.inference, self.metrics, self.management = (
            f"http://127.0.0.1:{port}" for port in ports
        )
        self._client = client

    async def post(
        self,
        url: str,
        method: str = "POST",
        authorization: str | None = BEARER,
        headers=None,
        data=None,
    ):
        headers = {**(headers or {}), **({"Authorization": authorization} if authorization else {})}
        response = await self._client.request(method, url, headers=headers, content=data)
        is_json = response.headers.get("content-type", "") == "application/json"
        return (
            response.status_code,
            response.json() if is_json else response.content,
            response.headers,
        )


@pytest.fixture
def tokens(tmp_path):
    files = []
    for name, token in (("inference", TOKEN), ("management", MANAGEMENT_TOKEN)):
        (tmp_path / name).write_text(token)
        files.append(TokenFile(tmp_path / name))
    return files


def engine_at(url: str) -> TorchServeEngine:
    server = SimpleNamespace(
        models=("net",),
        log_path=None,
        settings={"max_request_size": "1000"},
        inference_url=url,
        management_url=url,
        metrics_url=url,
        inference_token="inner",  # noqa: S106
        management_token="inner-management",  # noqa: S106
    )
    return TorchServeEngine(server)


@asynccontextmanager
async def opened(tokens, *, ready=True, backend=None, **limits):
    token, management_token = tokens
    gateway = Gateway(
        token=token,
        management_token=management_token,
        settings=GatewaySettings(client_header="X-Real-IP", **limits),
        max_request_bytes=1000,
    )
    back = bind("127.0.0.1", 0, "BACK")
    url = backend or f"http://127.0.0.1:{back.getsockname()[1]}"
    fronts = [bind("127.0.0.1", 0, "FRONT") for _ in range(3)]
    ports = [front.getsockname()[1] for front in fronts]
    apps = [gateway.inference_app(), gateway.metrics_app(), gateway.management_app()]
    async with (
        serving({back: echo}, drain_timeout_s=5, late_request_s=0),
        httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=None)) as client,
        serving(dict(zip(fronts, apps, strict=True)), drain_timeout_s=5, late_request_s=0),
    ):
        if ready:
            gateway.open(engine_at(url))
        yield Opened(gateway, ports, client)


def response_to(tokens, path="/predictions/net", port="inference", limits=None, **kwargs):
    """One request to a gateway that is ready."""

    async def run():
        async with opened(tokens, **(limits or {})) as served:
            return await served.post(f"{getattr(served, port)}{path}", **kwargs)

    return asyncio.run(run())


def test_prediction_reaches_torchserve_unchanged_with_its_own_token(tokens):
    headers = {"X-Segment-Mask": "png", "traceparent": "00-1-2-03"}
    status, received, back = response_to(
        tokens, path="/predictions/net/1.0?a=1&b=2", headers=headers, data=b"image"
    )
    assert (status, received["method"], received["path"], received["bytes"]) == (
        201,
        "POST",
        "/predictions/net/1.0?a=1&b=2",
        5,
    )
    assert received["headers"]["authorization"] == "Bearer inner"
    assert received["headers"]["content-length"] == "5"
    assert (received["headers"]["x-segment-mask"], received["headers"]["traceparent"]) == (
        "png",
        "00-1-2-03",
    )
    assert back["Server-Timing"] == "decode;dur=1.0"
    assert (back["Server"], back["X-Content-Type-Options"]) == ("segserve", "nosniff")


@pytest.mark.parametrize(
    ("query", "headers", "expected"),
    [
        ("mask=rle&classes=cat,dog", {}, {"mask": "rle", "classes": "cat,dog"}),
        ("mask=rle&tta=flip", {"X-Segment-Mask": "png"}, {"mask": "png", "tta": "flip"}),
        ("classes=cat&classes=dog", {}, {"classes": "cat,dog"}),
        ("mask=", {}, {"mask": ""}),
        ("MASK=rle", {}, {"mask": "rle"}),
    ],
    ids=["query", "header-before-query", "repeated", "empty", "capitals"],
)
def test_options_in_the_query_reach_the_engine_as_headers(tokens, query, headers, expected):
    status, received, _ = response_to(
        tokens, path=f"/predictions/net?{query}", headers=headers, data=b"x"
    )
    options = {
        name.removeprefix("x-segment-"): value
        for name, value in received["headers"].items()
        if name.startswith("x-segment-")
    }
    assert (status, options) == (201, expected)


def test_option_in_the_query_cannot_add_a_header(tokens):
    path = "/predictions/net?mask=png%0d%0aX-Segment-Tta:%20flip"
    status, received, _ = response_to(tokens, path=path, data=b"x")
    assert (status, received["error"]["code"]) == (400, "bad_request")


def test_openapi_document_needs_no_token(tokens):
    status, document, _ = response_to(
        tokens, path="/openapi.json", method="GET", authorization=None
    )
    assert (status, document) == (200, openapi())


def test_prediction_in_pieces_reaches_torchserve_whole(tokens):
    async def pieces():
        for _ in range(3):
            yield b"piece"

    status, received, _ = response_to(tokens, data=pieces())
    assert (status, received["bytes"]) == (201, 15)


@pytest.mark.parametrize(
    ("path", "port", "authorization"),
    [
        pytest.param("/predictions/net", "inference", None, id="prediction-without-token"),
        pytest.param(
            "/predictions/net", "inference", MANAGEMENT_BEARER, id="prediction-with-the-other-token"
        ),
        pytest.param("/models", "inference", None, id="models-without-token"),
        pytest.param("/models", "management", None, id="management-without-token"),
        pytest.param("/models", "management", BEARER, id="management-with-the-other-token"),
    ],
)
def test_request_without_the_token_is_rejected_in_torchserve_s_format(
    tokens, path, port, authorization
):
    status, received, _ = response_to(
        tokens, path=path, port=port, method="GET", authorization=authorization
    )
    assert (status, received["type"]) == (400, "InvalidKeyException")


@pytest.mark.parametrize(
    ("method", "path", "port", "status"),
    [
        pytest.param("GET", "/nowhere", "inference", 404, id="unknown-path"),
        pytest.param("GET", "/metrics", "inference", 404, id="metrics-on-the-port-of-predictions"),
        pytest.param(
            "DELETE", "/models/net", "inference", 405, id="model-removed-on-the-port-of-predictions"
        ),
        pytest.param("POST", "/models", "metrics", 404, id="management-on-the-port-of-metrics"),
    ],
)
def test_request_with_unknown_path_or_method_is_rejected(tokens, method, path, port, status):
    assert response_to(tokens, path=path, port=port, method=method)[0] == status


def test_model_is_described_on_the_port_of_predictions(tokens):
    status, received, _ = response_to(tokens, path="/models/net?customized=true", method="GET")
    assert (status, received["path"]) == (201, "/models/net?customized=true")
    assert received["headers"]["authorization"] == "Bearer inner-management"


def test_management_with_its_token_is_passed_on(tokens):
    status, received, _ = response_to(
        tokens,
        path="/models/net?min_worker=2",
        port="management",
        method="PUT",
        authorization=MANAGEMENT_BEARER,
    )
    assert (status, received["method"], received["path"]) == (
        201,
        "PUT",
        "/models/net?min_worker=2",
    )


def test_management_without_a_token_file_has_no_application(tokens):
    assert (
        Gateway(
            token=tokens[0], management_token=None, settings=GatewaySettings(), max_request_bytes=1
        ).management_app()
        is None
    )


async def samples(opened):
    """The metrics by name and labels."""
    status, text, headers = await opened.post(f"{opened.metrics}/metrics", "GET", None)
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = text_string_to_metric_families(text.decode())
    return {
        (
            sample.name,
            *(value for label, value in sample.labels.items() if label != "Hostname"),
        ): sample.value
        for family in families
        for sample in family.samples
    }


def counted_statuses(metrics):
    """Predictions that the gateway has counted, by status."""
    return {
        key[1]: value
        for key, value in metrics.items()
        if key[0] == "segserve_gateway_requests_total" and value
    }


def test_metrics_need_no_token_and_are_torchserve_s_and_the_gateway_s(tokens):
    async def run():
        async with opened(tokens) as served:
            status, text, _ = await served.post(
                f"{served.metrics}/metrics", "GET", None, headers=PROMETHEUS_S
            )
            return status, text.decode(), await samples(served)

    status, text, received = asyncio.run(run())
    assert status == 200
    assert text.startswith(
        "# requested as text/plain, identity\ntheirs_total 7\n# HELP segserve_gateway_"
    )
    assert (received["theirs_total",], received["segserve_gateway_ready",]) == (7, 1)
    assert not [key for key in received if key[0].endswith("_created")]


def test_metrics_of_the_gateway_are_returned_if_torchserve_does_not_respond(tokens, silent_url):
    async def run():
        async with opened(tokens, ready=False) as served:
            await served.post(f"{served.inference}/predictions/net", data=b"x")
            loading = await samples(served)
            served.gateway.open(engine_at(silent_url))
            await served.post(f"{served.inference}/predictions/net", data=b"x")
            return loading, await samples(served)

    loading, away = asyncio.run(run())
    assert (counted_statuses(loading), loading["segserve_gateway_ready",]) == ({"503": 1}, 0)
    assert (counted_statuses(away), away["segserve_gateway_ready",]) == ({"503": 2}, 1)


def test_metrics_of_the_gateway_are_returned_if_torchserve_hangs(tokens, monkeypatch):
    monkeypatch.setattr("segserve.engines.torchserve._METRICS_TIMEOUT_S", 0.2)

    async def run():
        with socket.create_server(("127.0.0.1", 0)) as hangs:
            async with opened(
                tokens, backend=f"http://127.0.0.1:{hangs.getsockname()[1]}"
            ) as served:
                return await samples(served)

    assert asyncio.run(run())["segserve_gateway_ready",] == 1


def test_metrics_count_predictions_by_status_and_nothing_else(tokens):
    async def run():
        async with opened(tokens) as served:
            before = await samples(served)
            url = f"{served.inference}/predictions"
            await served.post(f"{url}/net", data=b"x")
            await served.post(f"{url}/net", authorization=None, data=b"x")
            await served.post(f"{url}/net", data=b"x" * 1001)
            await served.post(f"{url}/unknown", data=b"x")
            await served.post(f"{url}/full", data=b"x")
            await served.post(f"{url}/died", data=b"x")
            for path in ("/models", "/ping", "/nowhere"):
                await served.post(f"{served.inference}{path}", "GET")
            await served.post(
                f"{served.management}/predictions/net", authorization=MANAGEMENT_BEARER
            )
            return before, await samples(served)

    before, after = asyncio.run(run())
    assert counted_statuses(before) == {}
    assert before["segserve_gateway_requests_total", "503"] == 0  # from the start, for rates
    assert counted_statuses(after) == {"201": 1, "400": 1, "413": 1, "404": 1, "503": 2}


def test_metrics_report_waiting_requests_and_the_time_they_wait(tokens):
    async def run():
        async with opened(tokens, client_in_flight=1, client_waiting=2) as served:
            url = f"{served.inference}/predictions/slow"
            sending = [asyncio.create_task(served.post(url, data=b"x")) for _ in range(5)]
            await asyncio.sleep(SLOW_S / 4)
            during = await samples(served)
            await asyncio.gather(*sending)
            return during, await samples(served)

    during, after = asyncio.run(run())
    assert (during["segserve_gateway_waiting",], after["segserve_gateway_waiting",]) == (2, 0)
    assert (counted_statuses(during), counted_statuses(after)) == ({"503": 2}, {"503": 2, "201": 3})
    assert during["segserve_gateway_wait_seconds_count",] == 1
    assert after["segserve_gateway_wait_seconds_count",] == 3  # rejected requests do not wait
    assert after["segserve_gateway_wait_seconds_bucket", "0.1"] == 1
    assert 2.5 * SLOW_S < after["segserve_gateway_wait_seconds_sum",] < 5 * SLOW_S


def test_metrics_of_two_gateways_are_separate(tokens):
    async def run():
        async with opened(tokens) as one, opened(tokens) as other:
            await one.post(f"{one.inference}/predictions/net", data=b"x")
            return counted_statuses(await samples(one)), counted_statuses(await samples(other))

    assert asyncio.run(run()) == ({"201": 1}, {})


@pytest.mark.parametrize(
    ("path", "data"),
    [
        pytest.param("/predictions/net", b"x" * 1001, id="by-its-length"),
        pytest.param("/predictions/large", b"x", id="by-torchserve"),
    ],
)
def test_request_above_the_limit_is_rejected_in_json(tokens, path, data):
    status, received, _ = response_to(tokens, path=path, data=data)
    assert (status, received["error"]["code"]) == (413, "image_too_large")
    assert "1000" in received["error"]["message"]


async def response_to_endless_body(url: str, pause_s: float) -> bytes:
    """Sends a body without an end, and returns what comes until the connection is closed."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /predictions/net HTTP/1.1\r\nHost: x\r\nAuthorization: {BEARER}\r\n"
    writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())

    async def send():
        while True:
            writer.write(b"190\r\n" + b"x" * 400 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(pause_s)

    sending = asyncio.create_task(send())
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := await asyncio.wait_for(reader.read(4096), 20):
            received += chunk
    sending.cancel()
    await asyncio.wait([sending])
    writer.transport.abort()
    return received


@pytest.mark.parametrize(
    ("pause_s", "status", "code"),
    [
        pytest.param(0.0, 413, "image_too_large", id="by-its-size"),
        pytest.param(1.0, 408, "request_timeout", id="by-its-time"),
    ],
)
def test_request_that_never_ends_is_ended(tokens, monkeypatch, pause_s, status, code):
    monkeypatch.setattr("segserve.gateway.http_server._LINGER_S", 0.2)

    async def run():
        async with opened(tokens, request_timeout_s=0.5) as served:
            return await response_to_endless_body(served.inference, pause_s)

    head, _, body = asyncio.run(run()).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert json.loads(body)["error"]["code"] == code


@pytest.mark.parametrize(
    ("path", "status", "code", "retry_after"),
    [
        pytest.param("full", 503, "overloaded", "2", id="torchserve-full"),
        pytest.param("died", 503, "unavailable", "2", id="torchserve-lost-its-worker"),
        pytest.param(
            "died-too", 503, "unavailable", "2", id="torchserve-lost-its-worker-at-another-moment"
        ),
        pytest.param("fault", 500, "internal_error", None, id="handler-at-fault"),
        pytest.param("no-memory", 507, "out_of_memory", None, id="handler-out-of-memory"),
    ],
)
def test_temporary_error_names_the_time_to_retry(tokens, path, status, code, retry_after):
    responded, received, headers = response_to(tokens, path=f"/predictions/{path}", data=b"x")
    assert (responded, received["error"]["code"], headers.get("Retry-After")) == (
        status,
        code,
        retry_after,
    )


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        pytest.param("form", 400, "bad_request", id="form-that-java-cannot-read"),
        pytest.param("path", 400, "bad_request", id="path-that-java-cannot-read"),
        pytest.param("java", 500, "internal_error", id="torchserve-failed"),
    ],
)
def test_exception_of_java_is_reported_in_our_words(tokens, caplog, path, status, code):
    responded, received, _ = response_to(tokens, path=f"/predictions/{path}", data=b"x")
    assert (responded, received["error"]["code"]) == (status, code)
    thrown = REJECTIONS[path][1]
    assert thrown["type"] not in str(received)
    assert thrown["message"] not in str(received)
    assert thrown["message"] in caplog.text


def test_error_of_torchserve_by_the_contract_is_unchanged(tokens):
    assert response_to(tokens, path="/predictions/unknown", data=b"x")[:2] == REJECTIONS["unknown"]


def test_compressed_body_reaches_torchserve_unchanged(tokens):
    body = gzip.compress(bytes(5000))
    reply = response_to(tokens, data=body, headers={"Content-Encoding": "gzip"})
    assert reply[0] == 201
    assert (reply[1]["bytes"], reply[1]["headers"]["content-encoding"]) == (len(body), "gzip")


def test_error_of_the_management_api_is_unchanged(tokens):
    reply = response_to(
        tokens,
        path="/models/died-too",
        port="management",
        authorization=MANAGEMENT_BEARER,
        data=b"x",
    )
    assert (reply[0], reply[1]["message"]) == (500, "Worker died.")


def test_client_with_many_requests_delays_no_other_client(tokens):
    async def run():
        async with opened(tokens, client_in_flight=2, client_waiting=100) as served:
            url, done = f"{served.inference}/predictions/slow", []

            async def post(client):
                await served.post(url, data=b"x", headers={"X-Real-IP": client})
                done.append(client)

            heavy = [asyncio.create_task(post("heavy")) for _ in range(6)]
            await asyncio.sleep(SLOW_S / 4)
            await post("light")
            before_it = done.count("heavy")
            await asyncio.gather(*heavy)
        return before_it

    assert asyncio.run(run()) == 2


def test_client_with_too_many_requests_is_rejected_alone(tokens):
    async def run():
        async with opened(tokens, client_in_flight=1, client_waiting=2) as served:
            url = f"{served.inference}/predictions/slow"
            sending = [
                served.post(url, data=b"x", headers={"X-Real-IP": "heavy"}) for _ in range(5)
            ]
            light = served.post(url, data=b"x", headers={"X-Real-IP": "light"})
            return await asyncio.gather(*sending, light)

    *heavy, light = asyncio.run(run())
    rejected = [reply for reply in heavy if reply[0] != 201]
    assert [(reply[0], reply[1]["error"]["code"]) for reply in rejected] == [
        (503, "overloaded")
    ] * 2
    assert {reply[2]["Retry-After"] for reply in rejected} == {"2"}
    assert light[0] == 201


def test_client_with_many_descriptions_has_the_same_slots_as_with_images(tokens):
    async def run():
        async with opened(tokens, client_in_flight=1, client_waiting=2) as served:
            sending = [
                served.post(f"{served.inference}/models/slow?customized=true", "GET")
                for _ in range(5)
            ]
            return await asyncio.gather(*sending)

    assert sorted(reply[0] for reply in asyncio.run(run())) == [201, 201, 201, 503, 503]


def never_read(url):
    """A connection that requests a long response and reads only its beginning."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(
        f"GET /predictions/long HTTP/1.1\r\nHost: x\r\nAuthorization: {BEARER}\r\n\r\n".encode()
    )
    assert connection.recv(12) == b"HTTP/1.1 200"
    return connection


def read_to_its_end(connection):
    """How many bytes come until the connection ends, one way or the other."""
    count = 0
    try:
        while piece := connection.recv(1 << 20):
            count += len(piece)
    except ConnectionResetError:
        pass
    return count


def test_response_that_a_client_does_not_read_holds_its_slot_and_is_aborted(tokens):
    async def run():
        async with opened(
            tokens, client_in_flight=1, client_waiting=0, request_timeout_s=1
        ) as served:
            with await asyncio.to_thread(never_read, served.inference) as connection:
                beside = await served.post(f"{served.inference}/predictions/net", data=b"x")
                await asyncio.sleep(1.5)
                after = await served.post(f"{served.inference}/predictions/net", data=b"x")
                return beside, after, await asyncio.to_thread(read_to_its_end, connection)

    beside, after, read_bytes = asyncio.run(run())
    assert (beside[0], beside[1]["error"]["code"]) == (503, "overloaded")
    assert after[0] == 201
    assert read_bytes < LONG_BYTES


def test_client_that_left_while_it_waited_costs_no_computing(tokens, caplog):
    async def run():
        async with opened(tokens, client_in_flight=1) as served:
            url = f"{served.inference}/predictions/slow"
            sending = [asyncio.create_task(served.post(url, data=b"x")) for _ in range(3)]
            await asyncio.sleep(SLOW_S / 4)
            for waits in sending[1:]:
                waits.cancel()
            await sending[0]
            began_s = asyncio.get_running_loop().time()
            await served.post(f"{served.inference}/predictions/net", data=b"x")
            return asyncio.get_running_loop().time() - began_s, counted_statuses(
                await samples(served)
            )

    with caplog.at_level("INFO", "segserve.gateway"):
        took_s, counted = asyncio.run(run())
    assert took_s < SLOW_S
    assert counted == {"201": 2, "499": 2}
    assert [record.fields["status"] for record in caplog.records] == [201, 499, 499, 201]


def test_torchserve_that_does_not_respond_is_503_with_a_time_to_retry(tokens, silent_url):
    async def run():
        async with opened(tokens, backend=silent_url) as served:
            return await served.post(f"{served.inference}/predictions/net", data=b"x")

    status, received, headers = asyncio.run(run())
    assert (status, received["error"]["code"], headers["Retry-After"]) == (503, "unavailable", "2")


def test_ping_before_the_model_is_loaded_and_while_a_worker_is_missing_is_503(tokens):
    async def run():
        async with opened(tokens, ready=False) as served:
            loading = await served.post(f"{served.inference}/ping", "GET", None)
            early = await served.post(f"{served.inference}/predictions/net", data=b"x")
            served.gateway.open(engine_at("http://127.0.0.1:1"))
            ready = await served.post(f"{served.inference}/ping", "GET", None)
            served.gateway.not_ready_reason = "its workers are UNLOADING"
            missing = await served.post(f"{served.inference}/ping", "GET", None)
        return loading, early, ready, missing

    loading, early, ready, missing = asyncio.run(run())
    assert [reply[0] for reply in (loading, early, ready, missing)] == [503, 503, 200, 503]
    assert "the model is being loaded" in loading[1]["error"]["message"]
    assert early[2]["Retry-After"] == "2"
    assert "its workers are UNLOADING" in missing[1]["error"]["message"]


def test_health_check_passes_where_a_worker_is_ready_and_nowhere_else(tokens, monkeypatch, capsys):
    async def run():
        async with opened(tokens) as served:
            monkeypatch.setenv("SEGSERVE_PORT", served.inference.rpartition(":")[2])
            ready = await asyncio.to_thread(check_health)
            served.gateway.not_ready_reason = "its workers are UNLOADING"
            missing = await asyncio.to_thread(check_health)
        return ready, missing, await asyncio.to_thread(check_health)

    assert asyncio.run(run()) == (0, 1, 1)
    ready, missing, gone = capsys.readouterr().out.splitlines()
    assert "Healthy" in ready
    assert "its workers are UNLOADING" in missing
    assert "Connection refused" in gone


def test_gateway_that_closes_completes_pending_requests_and_accepts_no_new_ones(tokens):
    async def run():
        async with opened(tokens) as served:
            url = f"{served.inference}/predictions/slow"
            in_flight = [asyncio.create_task(served.post(url, data=b"x")) for _ in range(8)]
            await asyncio.sleep(SLOW_S / 4)
            served.gateway.closing = True
        return await asyncio.gather(*in_flight), served.inference

    replies, url = asyncio.run(run())
    assert [reply[0] for reply in replies] == [201] * 8
    assert all(reply[2]["Connection"] == "close" for reply in replies)
    host, port = url.removeprefix("http://").split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


def test_bind_of_a_taken_port_names_the_variable():
    with (
        bind("127.0.0.1", 0, "SEGSERVE_PORT") as taken,
        pytest.raises(
            ServerError,
            match=r"127\.0\.0\.1:\d+: Address already in use; .* and SEGSERVE_METRICS_PORT",
        ),
    ):
        bind("127.0.0.1", taken.getsockname()[1], "SEGSERVE_METRICS_PORT")
