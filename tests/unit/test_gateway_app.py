"""The door, over real sockets, before a small server in TorchServe's place that tells what reaches
it.
"""

import asyncio
import gzip
import socket
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from segserve.engines.errors import ServerError
from segserve.gateway import health
from segserve.gateway.app import Door
from segserve.gateway.limits import Limits
from segserve.gateway.listening import bind, listening
from segserve.gateway.tokens import TokenFile
from segserve.gateway.upstream import Place, TorchServePlaces

TOKEN, MANAGEMENT_TOKEN = "inference-token-of-users", "management-token-of-users"
BEARER, MANAGEMENT_BEARER = (f"Bearer {token}" for token in (TOKEN, MANAGEMENT_TOKEN))
PROMETHEUS_S = {
    "Accept": "application/openmetrics-text",
    "Accept-Encoding": "gzip",
}  # nothing can follow either
SLOW_S = 0.4
LONG_BYTES = 16_000_000  # more than the kernel keeps of an answer that nobody reads
REFUSALS = {  # of TorchServe itself, and of the handler for an image that it has no memory for
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


async def echo(request: web.Request) -> web.Response:
    if request.path.endswith("/slow"):
        await asyncio.sleep(SLOW_S)
    if request.path.endswith("/long"):
        return web.Response(body=bytes(LONG_BYTES))
    if request.path.endswith("/large"):
        return web.Response(status=413)
    if request.path == "/metrics":
        return web.Response(
            text=(
                f"# asked for {request.headers['Accept']}, "
                f"{request.headers['Accept-Encoding']}\ntheirs_total 7\n"
            )
        )
    if (name := request.path.rpartition("/")[2]) in REFUSALS:
        status, document = REFUSALS[name]
        return web.json_response(document, status=status)
    told = {
        "method": request.method,
        "path": request.raw_path,
        "headers": {name.lower(): value for name, value in request.headers.items()},
        "bytes": len(await request.read()),
    }
    return web.json_response(told, status=201, headers={"Server-Timing": "decode;dur=1.0"})


class Opened:
    """A door that stands open, and a way to ask at it."""

    def __init__(self, door: Door, ports: list[int], session: aiohttp.ClientSession) -> None:
        self.door = door
        self.inference, self.metrics, self.management = (
            f"http://127.0.0.1:{port}" for port in ports
        )
        self._session = session

    async def ask(
        self,
        url: str,
        method: str = "POST",
        authorization: str | None = BEARER,
        headers=None,
        **kwargs,
    ):
        headers = {**(headers or {}), **({"Authorization": authorization} if authorization else {})}
        async with self._session.request(method, url, headers=headers, **kwargs) as answer:
            content = await answer.read()
            is_json = answer.content_type == "application/json"
            return answer.status, await answer.json() if is_json else content, answer.headers


@pytest.fixture
def tokens(tmp_path):
    files = []
    for name, token in (("inference", TOKEN), ("management", MANAGEMENT_TOKEN)):
        (tmp_path / name).write_text(token)
        files.append(TokenFile(tmp_path / name))
    return files


@asynccontextmanager
async def opened(tokens, *, ready=True, backend=None, **limits):
    door = Door(*tokens, Limits(request_bytes=1000, client_header="X-Real-IP", **limits))
    behind = web.Application()
    behind.router.add_route("*", "/{tail:.*}", echo)
    back = bind("127.0.0.1", 0, "BACK")
    url = backend or f"http://127.0.0.1:{back.getsockname()[1]}"
    fronts = [bind("127.0.0.1", 0, "FRONT") for _ in range(3)]
    apps = [door.inference_app(), door.metrics_app(), door.management_app()]
    async with (
        listening([(behind, back)], drain_timeout_s=5, late_request_s=0),
        door,
        aiohttp.ClientSession() as session,
        listening(list(zip(apps, fronts, strict=True)), drain_timeout_s=5, late_request_s=0),
    ):
        if ready:
            door.open(
                TorchServePlaces(
                    Place(url, "inner"), Place(url, "inner-management"), Place(url, None)
                )
            )
        yield Opened(door, [front.getsockname()[1] for front in fronts], session)


def asked(tokens, path="/predictions/net", port="inference", limits=None, **kwargs):
    """One question at a door that is open."""

    async def run():
        async with opened(tokens, **(limits or {})) as door:
            return await door.ask(f"{getattr(door, port)}{path}", **kwargs)

    return asyncio.run(run())


def test_prediction_reaches_torchserve_as_it_came_with_its_own_token(tokens):
    headers = {"X-Segment-Mask": "png", "traceparent": "00-1-2-03"}
    status, told, back = asked(
        tokens, path="/predictions/net/1.0?a=1&b=2", headers=headers, data=b"image"
    )
    assert (status, told["method"], told["path"], told["bytes"]) == (
        201,
        "POST",
        "/predictions/net/1.0?a=1&b=2",
        5,
    )
    assert told["headers"]["authorization"] == "Bearer inner"
    assert told["headers"]["content-length"] == "5"
    assert (told["headers"]["x-segment-mask"], told["headers"]["traceparent"]) == (
        "png",
        "00-1-2-03",
    )
    assert back["Server-Timing"] == "decode;dur=1.0"
    assert (back["Server"], back["X-Content-Type-Options"]) == ("segserve", "nosniff")


def test_prediction_in_pieces_reaches_torchserve_whole(tokens):
    async def pieces():
        for _ in range(3):
            yield b"piece"

    status, told, _ = asked(tokens, data=pieces())
    assert (status, told["bytes"]) == (201, 15)


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
def test_request_without_the_token_is_refused_in_torchserve_s_words(
    tokens, path, port, authorization
):
    status, told, _ = asked(tokens, path=path, port=port, method="GET", authorization=authorization)
    assert (status, told["type"]) == (400, "InvalidKeyException")


@pytest.mark.parametrize(
    ("method", "path", "port", "status"),
    [
        pytest.param("GET", "/nowhere", "inference", 404, id="unknown-path"),
        pytest.param("GET", "/metrics", "inference", 404, id="metrics-at-the-door-of-predictions"),
        pytest.param(
            "DELETE", "/models/net", "inference", 405, id="model-removed-at-the-door-of-predictions"
        ),
        pytest.param("POST", "/models", "metrics", 404, id="management-at-the-door-of-metrics"),
    ],
)
def test_request_that_the_door_does_not_know_is_refused(tokens, method, path, port, status):
    assert asked(tokens, path=path, port=port, method=method)[0] == status


def test_model_is_described_at_the_door_of_predictions(tokens):
    status, told, _ = asked(tokens, path="/models/net?customized=true", method="GET")
    assert (status, told["path"]) == (201, "/models/net?customized=true")
    assert told["headers"]["authorization"] == "Bearer inner-management"


def test_management_with_its_token_is_passed_on(tokens):
    status, told, _ = asked(
        tokens,
        path="/models/net?min_worker=2",
        port="management",
        method="PUT",
        authorization=MANAGEMENT_BEARER,
    )
    assert (status, told["method"], told["path"]) == (201, "PUT", "/models/net?min_worker=2")


def test_management_without_a_token_file_has_no_door(tokens):
    assert Door(tokens[0], None, Limits(request_bytes=1)).management_app() is None


async def samples(opened):
    """What its metrics say, by name and labels, after the answers that were read."""
    status, text, headers = await opened.ask(f"{opened.metrics}/metrics", "GET", None)
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


def answered(told):
    """Predictions that the door has counted, by status."""
    return {
        key[1]: value
        for key, value in told.items()
        if key[0] == "segserve_gateway_requests_total" and value
    }


def test_metrics_need_no_token_and_are_torchserve_s_with_the_door_s_own(tokens):
    async def run():
        async with opened(tokens) as door:
            status, text, _ = await door.ask(
                f"{door.metrics}/metrics", "GET", None, headers=PROMETHEUS_S
            )
            return status, text.decode(), await samples(door)

    status, text, told = asyncio.run(run())
    assert status == 200
    assert text.startswith(
        "# asked for text/plain, identity\ntheirs_total 7\n# HELP segserve_gateway_"
    )
    assert (told["theirs_total",], told["segserve_gateway_ready",]) == (7, 1)
    assert not [key for key in told if key[0].endswith("_created")]


def test_metrics_of_the_door_are_told_where_torchserve_does_not_answer(tokens, silent_url):
    async def run():
        async with opened(tokens, ready=False) as door:
            await door.ask(f"{door.inference}/predictions/net", data=b"x")
            loading = await samples(door)
            door.door.open(TorchServePlaces(*[Place(silent_url, None)] * 3))
            await door.ask(f"{door.inference}/predictions/net", data=b"x")
            return loading, await samples(door)

    loading, away = asyncio.run(run())
    assert (answered(loading), loading["segserve_gateway_ready",]) == ({"503": 1}, 0)
    assert (answered(away), away["segserve_gateway_ready",]) == ({"503": 2}, 1)


def test_metrics_of_the_door_are_told_where_torchserve_hangs(tokens, monkeypatch):
    monkeypatch.setattr("segserve.gateway.upstream._METRICS_TIMEOUT_S", 0.2)

    async def run():
        with socket.create_server(("127.0.0.1", 0)) as hangs:
            async with opened(tokens, backend=f"http://127.0.0.1:{hangs.getsockname()[1]}") as door:
                return await samples(door)

    assert asyncio.run(run())["segserve_gateway_ready",] == 1


def test_metrics_count_predictions_by_status_and_nothing_else(tokens):
    async def run():
        async with opened(tokens) as door:
            before = await samples(door)
            url = f"{door.inference}/predictions"
            await door.ask(f"{url}/net", data=b"x")
            await door.ask(f"{url}/net", authorization=None, data=b"x")
            await door.ask(f"{url}/net", data=b"x" * 1001)
            await door.ask(f"{url}/unknown", data=b"x")
            await door.ask(f"{url}/full", data=b"x")
            await door.ask(f"{url}/died", data=b"x")
            for path in ("/models", "/ping", "/nowhere"):
                await door.ask(f"{door.inference}{path}", "GET")
            await door.ask(f"{door.management}/predictions/net", authorization=MANAGEMENT_BEARER)
            return before, await samples(door)

    before, after = asyncio.run(run())
    assert answered(before) == {}
    assert before["segserve_gateway_requests_total", "503"] == 0  # from the start, for rates
    assert answered(after) == {"201": 1, "400": 1, "413": 1, "404": 1, "503": 2}


def test_metrics_tell_of_requests_that_wait_for_their_turn_and_how_long(tokens):
    async def run():
        async with opened(tokens, client_in_flight=1, client_waiting=2) as door:
            url = f"{door.inference}/predictions/slow"
            asking = [asyncio.create_task(door.ask(url, data=b"x")) for _ in range(5)]
            await asyncio.sleep(SLOW_S / 4)
            during = await samples(door)
            await asyncio.gather(*asking)
            return during, await samples(door)

    during, after = asyncio.run(run())
    assert (during["segserve_gateway_waiting",], after["segserve_gateway_waiting",]) == (2, 0)
    assert (answered(during), answered(after)) == ({"503": 2}, {"503": 2, "201": 3})
    assert during["segserve_gateway_wait_seconds_count",] == 1
    assert after["segserve_gateway_wait_seconds_count",] == 3  # who is refused waits for nothing
    assert after["segserve_gateway_wait_seconds_bucket", "0.1"] == 1
    assert 2.5 * SLOW_S < after["segserve_gateway_wait_seconds_sum",] < 5 * SLOW_S


def test_metrics_of_two_doors_are_their_own(tokens):
    async def run():
        async with opened(tokens) as one, opened(tokens) as other:
            await one.ask(f"{one.inference}/predictions/net", data=b"x")
            return answered(await samples(one)), answered(await samples(other))

    assert asyncio.run(run()) == ({"201": 1}, {})


@pytest.mark.parametrize(
    ("path", "data"),
    [
        pytest.param("/predictions/net", b"x" * 1001, id="by-its-length"),
        pytest.param("/predictions/large", b"x", id="by-torchserve"),
    ],
)
def test_request_above_the_limit_is_told_so_in_json(tokens, path, data):
    status, told, _ = asked(tokens, path=path, data=data)
    assert (status, told["error"]["code"]) == (413, "image_too_large")
    assert "1000" in told["error"]["message"]


async def endless(pause_s: float):
    while True:
        yield b"x" * 400
        await asyncio.sleep(pause_s)


@pytest.mark.parametrize(
    ("pause_s", "status", "code"),
    [
        pytest.param(0.0, 413, "image_too_large", id="by-its-size"),
        pytest.param(1.0, 408, "request_timeout", id="by-its-time"),
    ],
)
def test_request_that_never_ends_is_ended(tokens, pause_s, status, code):
    answer = asked(tokens, data=endless(pause_s), limits={"request_s": 0.5})
    assert (answer[0], answer[1]["error"]["code"]) == (status, code)


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
def test_refusal_that_passes_says_when_to_come_again(tokens, path, status, code, retry_after):
    answered, told, headers = asked(tokens, path=f"/predictions/{path}", data=b"x")
    assert (answered, told["error"]["code"], headers.get("Retry-After")) == (
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
def test_what_java_throws_is_told_in_our_words(tokens, caplog, path, status, code):
    answered, told, _ = asked(tokens, path=f"/predictions/{path}", data=b"x")
    assert (answered, told["error"]["code"]) == (status, code)
    thrown = REFUSALS[path][1]
    assert thrown["type"] not in str(told)
    assert thrown["message"] not in str(told)
    assert thrown["message"] in caplog.text


def test_refusal_of_torchserve_by_the_contract_stays_what_it_is(tokens):
    assert asked(tokens, path="/predictions/unknown", data=b"x")[:2] == REFUSALS["unknown"]


def test_compressed_body_reaches_torchserve_as_it_came(tokens):
    body = gzip.compress(bytes(5000))
    answer = asked(tokens, data=body, headers={"Content-Encoding": "gzip"})
    assert answer[0] == 201
    assert (answer[1]["bytes"], answer[1]["headers"]["content-encoding"]) == (len(body), "gzip")


def test_refusal_of_the_management_api_stays_what_it_is(tokens):
    answer = asked(
        tokens,
        path="/models/died-too",
        port="management",
        authorization=MANAGEMENT_BEARER,
        data=b"x",
    )
    assert (answer[0], answer[1]["message"]) == (500, "Worker died.")


def test_client_with_many_requests_holds_up_nobody_else(tokens):
    async def run():
        async with opened(tokens, client_in_flight=2, client_waiting=100) as door:
            url, done = f"{door.inference}/predictions/slow", []

            async def ask(client):
                await door.ask(url, data=b"x", headers={"X-Real-IP": client})
                done.append(client)

            heavy = [asyncio.create_task(ask("heavy")) for _ in range(6)]
            await asyncio.sleep(SLOW_S / 4)
            await ask("light")
            before_it = done.count("heavy")
            await asyncio.gather(*heavy)
        return before_it

    assert asyncio.run(run()) == 2


def test_client_with_too_many_requests_is_refused_alone(tokens):
    async def run():
        async with opened(tokens, client_in_flight=1, client_waiting=2) as door:
            url = f"{door.inference}/predictions/slow"
            asking = [door.ask(url, data=b"x", headers={"X-Real-IP": "heavy"}) for _ in range(5)]
            light = door.ask(url, data=b"x", headers={"X-Real-IP": "light"})
            return await asyncio.gather(*asking, light)

    *heavy, light = asyncio.run(run())
    refused = [answer for answer in heavy if answer[0] != 201]
    assert [(answer[0], answer[1]["error"]["code"]) for answer in refused] == [
        (503, "overloaded")
    ] * 2
    assert {answer[2]["Retry-After"] for answer in refused} == {"2"}
    assert light[0] == 201


def test_client_with_many_descriptions_has_no_more_of_the_queue_than_with_images(tokens):
    async def run():
        async with opened(tokens, client_in_flight=1, client_waiting=2) as door:
            asking = [
                door.ask(f"{door.inference}/models/slow?customized=true", "GET") for _ in range(5)
            ]
            return await asyncio.gather(*asking)

    assert sorted(answer[0] for answer in asyncio.run(run())) == [201, 201, 201, 503, 503]


def never_read(url):
    """A connection that has asked for a long answer and reads no more than its beginning."""
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


def test_answers_that_a_client_does_not_read_take_its_turns_and_are_broken_off(tokens):
    async def run():
        async with opened(tokens, client_in_flight=1, client_waiting=0, request_s=1) as door:
            with await asyncio.to_thread(never_read, door.inference) as connection:
                beside = await door.ask(f"{door.inference}/predictions/net", data=b"x")
                await asyncio.sleep(1.5)
                after = await door.ask(f"{door.inference}/predictions/net", data=b"x")
                return beside, after, await asyncio.to_thread(read_to_its_end, connection)

    beside, after, read_bytes = asyncio.run(run())
    assert (beside[0], beside[1]["error"]["code"]) == (503, "overloaded")
    assert after[0] == 201
    assert read_bytes < LONG_BYTES


def test_client_that_left_while_it_waited_costs_no_computing(tokens, caplog):
    async def run():
        async with opened(tokens, client_in_flight=1) as door:
            url = f"{door.inference}/predictions/slow"
            asking = [asyncio.create_task(door.ask(url, data=b"x")) for _ in range(3)]
            await asyncio.sleep(SLOW_S / 4)
            for waits in asking[1:]:
                waits.cancel()
            await asking[0]
            began_s = asyncio.get_running_loop().time()
            await door.ask(f"{door.inference}/predictions/net", data=b"x")
            return asyncio.get_running_loop().time() - began_s, answered(await samples(door))

    with caplog.at_level("INFO", "segserve.gateway"):
        took_s, counted = asyncio.run(run())
    assert took_s < SLOW_S
    assert counted == {"201": 2, "499": 2}
    assert [record.fields["status"] for record in caplog.records] == [201, 499, 499, 201]


def test_torchserve_that_does_not_answer_is_503_with_a_time_to_come_back(tokens, silent_url):
    async def run():
        async with opened(tokens, backend=silent_url) as door:
            return await door.ask(f"{door.inference}/predictions/net", data=b"x")

    status, told, headers = asyncio.run(run())
    assert (status, told["error"]["code"], headers["Retry-After"]) == (503, "unavailable", "2")


def test_ping_before_the_model_is_loaded_and_while_a_worker_is_missing_is_503(tokens):
    async def run():
        async with opened(tokens, ready=False) as door:
            loading = await door.ask(f"{door.inference}/ping", "GET", None)
            early = await door.ask(f"{door.inference}/predictions/net", data=b"x")
            door.door.open(TorchServePlaces(*[Place("http://127.0.0.1:1", None)] * 3))
            ready = await door.ask(f"{door.inference}/ping", "GET", None)
            door.door.obstacle = "its workers are UNLOADING"
            missing = await door.ask(f"{door.inference}/ping", "GET", None)
        return loading, early, ready, missing

    loading, early, ready, missing = asyncio.run(run())
    assert [answer[0] for answer in (loading, early, ready, missing)] == [503, 503, 200, 503]
    assert "the model is being loaded" in loading[1]["error"]["message"]
    assert early[2]["Retry-After"] == "2"
    assert "its workers are UNLOADING" in missing[1]["error"]["message"]


def test_health_check_passes_where_a_worker_is_ready_and_nowhere_else(tokens, monkeypatch, capsys):
    async def run():
        async with opened(tokens) as door:
            monkeypatch.setenv("SEGSERVE_PORT", door.inference.rpartition(":")[2])
            ready = await asyncio.to_thread(health.main)
            door.door.obstacle = "its workers are UNLOADING"
            missing = await asyncio.to_thread(health.main)
        return ready, missing, await asyncio.to_thread(health.main)

    assert asyncio.run(run()) == (0, 1, 1)
    ready, missing, gone = capsys.readouterr().out.splitlines()
    assert "Healthy" in ready
    assert "its workers are UNLOADING" in missing
    assert "refused" in gone


def test_door_that_closes_answers_what_was_asked_and_takes_nothing_new(tokens):
    async def run():
        async with opened(tokens) as door:
            url = f"{door.inference}/predictions/slow"
            in_flight = [asyncio.create_task(door.ask(url, data=b"x")) for _ in range(8)]
            await asyncio.sleep(SLOW_S / 4)
            door.door.closing = True
        return await asyncio.gather(*in_flight), door.inference

    answers, url = asyncio.run(run())
    assert [answer[0] for answer in answers] == [201] * 8
    assert all(answer[2]["Connection"] == "close" for answer in answers)
    host, port = url.removeprefix("http://").split(":")
    with pytest.raises(ConnectionRefusedError, match="refused"):
        socket.create_connection((host, int(port)), timeout=5)


def test_bind_of_a_taken_port_names_the_variable():
    with (
        bind("127.0.0.1", 0, "SEGSERVE_PORT") as taken,
        pytest.raises(
            ServerError,
            match=r"127\.0\.0\.1:\d+: Address already in use; .* with SEGSERVE_METRICS_PORT",
        ),
    ):
        bind("127.0.0.1", taken.getsockname()[1], "SEGSERVE_METRICS_PORT")
