"""What a client with one request waits for beside a client with forty of them."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from segserve.gateway.settings import GatewaySettings
from tests.deploy.served import ECHO, Load
from tests.packed import pack

from .served import TOKEN, Served

HEAVY = 40
WAITING = 40
REQUESTED = 5


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("echo")
    server = Served(folder, pack(folder, "echo", ECHO), CLIENT_WAITING=WAITING)
    yield server.wait_ready()
    server.stop()


def latencies_s(url: str, count: int) -> list[float]:
    """Of a light client, which sends one request after the other."""
    with requests.Session() as session:
        session.headers.update({"Authorization": f"Bearer {TOKEN}", "X-Real-IP": "light"})
        responses = [session.post(url, data=b"x", timeout=60) for _ in range(count)]
    assert {response.status_code for response in responses} == {200}
    return [response.elapsed.total_seconds() for response in responses]


def test_served_beside_a_heavy_client_serves_a_light_one_within_its_share(echo, table):
    url = f"{echo.url}/predictions/echo"
    alone_s = statistics.median(latencies_s(url, 3))
    with Load(url, TOKEN, clients=HEAVY, headers={"X-Real-IP": "heavy"}) as heavy:
        heavy.wait_for("completed", HEAVY // 2)
        before, began_s = heavy.outcomes["completed"], time.monotonic()
        beside_s = latencies_s(url, REQUESTED)
        pace_s = (time.monotonic() - began_s) / (heavy.outcomes["completed"] - before + REQUESTED)
    in_flight = GatewaySettings().client_in_flight
    table.sentences.append(
        f"A client with one request at a time waited for {1000 * alone_s:.0f} ms alone, and at the "
        "median for "
        f"{1000 * statistics.median(beside_s):.0f} ms beside a client with {HEAVY}, of which "
        f"{in_flight} are with "
        f"TorchServe at a time; behind all {HEAVY} it would have been {1000 * HEAVY * pace_s:.0f} "
        "ms."
    )
    assert set(heavy.outcomes) == {"completed"}
    assert (
        statistics.median(beside_s) < (in_flight + 2) * pace_s * 1.5
    )  # those before it, its own, and one in flight
    assert statistics.median(beside_s) < HEAVY * pace_s / 3


def test_served_beside_one_that_is_rejected_for_its_many_requests_rejects_no_other(echo):
    url = f"{echo.url}/predictions/echo"
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Real-IP": "heavy"}
    many = GatewaySettings().client_in_flight + WAITING + 10
    with ThreadPoolExecutor(many) as threads:
        sending = [
            threads.submit(requests.post, url, b"x", headers=headers, timeout=60)
            for _ in range(many)
        ]
        latencies_s(url, 2)
        responses = [requested.result() for requested in sending]
    rejected = [response for response in responses if not response.ok]
    assert rejected
    assert {(response.status_code, response.headers["Retry-After"]) for response in rejected} == {
        (503, "2")
    }
