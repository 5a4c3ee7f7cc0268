"""The container's command, run as it is: from its start to its end, and what keeps it from
starting.
"""

import re
import signal
import socket
import time

import psutil
import pytest
import requests
import torch

from segserve.signing import SigningKey
from tests.packed import BROKEN, pack

from .served import ECHO, Command, Load, free_ports, running

TOKEN = "a-token-of-some-length"  # noqa: S105
SECONDS_TO_FAIL = 60  # far more than it takes, as machines that test are busy


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    return tmp_path_factory.mktemp("archives")


@pytest.fixture(scope="module")
def echo(archives):
    return pack(archives, "echo", ECHO)


@pytest.fixture
def variables(echo, tmp_path):
    """What a command needs to run here beside others."""
    (tmp_path / "token").write_text(TOKEN)
    ports = dict(zip(("PORT", "METRICS_PORT", "MANAGEMENT_PORT"), free_ports(3), strict=True))
    place = {
        "ARCHIVE": echo,
        "TOKEN_FILE": tmp_path / "token",
        "HOST": "127.0.0.1",
        "RUN_DIR": tmp_path / "run",
    }
    return {**place, **ports}


def test_command_stopped_under_load_completes_its_requests_and_ends_with_0(variables, tmp_path):
    url = f"http://127.0.0.1:{variables['PORT']}"
    with running(tmp_path, **variables) as command:
        command.wait_ready(url)
        assert requests.get(f"http://127.0.0.1:{variables['METRICS_PORT']}/metrics", timeout=30).ok
        with Load(f"{url}/predictions/echo", TOKEN, clients=6) as load:
            load.wait_for("completed", 20)
            command.process.send_signal(signal.SIGTERM)
            load.join()
        assert command.process.wait(60) == 0
    assert set(load.outcomes) == {"completed", "rejected"}, load.outcomes
    assert load.outcomes["rejected"] == 6
    lines = command.lines()
    assert lines[-1]["message"] == "stopped; every request has its response"
    reported = [
        line
        for line in lines
        if line["logger"] == "segserve.gateway" and line.get("path") == "/predictions/echo"
    ]
    assert len(reported) == load.outcomes["completed"]
    assert {(line["status"], line["request_bytes"]) for line in reported} == {(200, 1)}
    assert TOKEN not in str(lines)


def test_command_being_stopped_closes_connections_after_their_responses(variables, tmp_path):
    url = f"http://127.0.0.1:{variables['PORT']}"
    with running(tmp_path, **variables, DRAIN_DELAY_S=4) as command:
        command.wait_ready(url)
        with requests.Session() as session:
            send = {"data": b"x", "headers": {"Authorization": f"Bearer {TOKEN}"}, "timeout": 30}
            assert "close" not in session.post(f"{url}/predictions/echo", **send).headers.get(
                "Connection", ""
            )
            command.process.send_signal(signal.SIGTERM)
            while requests.get(f"{url}/ping", timeout=30).ok:
                time.sleep(0.05)
            response = session.post(f"{url}/predictions/echo", **send)
        assert (response.status_code, response.headers.get("Connection")) == (200, "close")
        assert command.process.wait(60) == 0


def test_command_with_a_request_that_never_ends_is_stopped_in_time_and_says_what_it_lost(
    variables, archives, tmp_path
):
    url = f"http://127.0.0.1:{variables['PORT']}"
    slow = pack(archives, "slow", ECHO.replace("time.sleep(0.1)", "time.sleep(60)"))
    with running(tmp_path, **{**variables, "ARCHIVE": slow}, DRAIN_TIMEOUT_S=8) as command:
        command.wait_ready(url)
        with Load(f"{url}/predictions/slow", TOKEN, clients=1) as load:
            time.sleep(1)
            command.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert command.process.wait(60) == 0
            assert time.monotonic() - began < 8 + 7  # the chart allows 15 more than the timeout
            load.join()
    assert "completed" not in load.outcomes
    assert "and are lost" in command.lines()[-1]["message"]


def test_command_stopped_while_it_loads_ends_with_0(variables, tmp_path):
    with running(tmp_path, **variables) as command:
        while not (tmp_path / "run" / "engine" / "server.log").exists():
            assert command.process.poll() is None, command.lines()
            time.sleep(0.05)
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(60) == 0


def test_command_whose_server_is_killed_ends_with_the_reason(variables, tmp_path):
    with running(tmp_path, **variables) as command:
        command.wait_ready(f"http://127.0.0.1:{variables['PORT']}")
        [java] = psutil.Process(command.process.pid).children()
        java.kill()
        assert command.process.wait(60) == 1
    assert "TorchServe ended: signal 9 killed it" in command.lines()[-1]["message"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"ARCHIVE": "/absent/net.mar"},
            "there is no archive /absent/net.mar",
            id="no-archive",
        ),
        pytest.param(
            {"ARCHIVE": "{folder}/damaged.mar"}, "is not a model archive", id="damaged-archive"
        ),
        pytest.param(
            {"ARCHIVE": "{folder}/broken.mar"},
            "ValueError: the weights are of another",
            id="broken-model",
        ),
        pytest.param(
            {"PROT": "80"},
            "there is no variable SEGSERVE_PROT; there are .*SEGSERVE_PORT",
            id="variable",
        ),
        pytest.param(
            {"PORT": "{taken}"},
            "Address already in use; .* and SEGSERVE_PORT",
            id="port-taken",
        ),
        pytest.param(
            {"TOKEN_FILE": "/absent/token"}, "cannot read the token in /absent/token", id="no-token"
        ),
        pytest.param(
            {"TRUST": "{folder}/signer.pub"},
            r"echo-1\.0\.mar: there is no signature echo-1\.0\.mar\.minisig",
            id="unsigned",
        ),
        pytest.param({"TRUST": "/absent.pub"}, r"No such file .*/absent\.pub", id="no-trusted-key"),
        pytest.param(
            {"TRUST": "{folder}/signer.pub", "MANAGEMENT_TOKEN_FILE": "{folder}/token"},
            "SEGSERVE_TRUST and SEGSERVE_MANAGEMENT_TOKEN_FILE are both set",
            id="trust-and-model-api",
        ),
        pytest.param(
            {"HOST": "no-such-host.invalid"},
            "cannot listen on no-such-host",
            id="host",
        ),
        pytest.param(
            {"CLIENT_HEADER": "X Real IP"}, "SEGSERVE_CLIENT_HEADER is 'X Real IP'", id="no-header"
        ),
        pytest.param({"DRAIN_DELAY_S": "inf"}, "SEGSERVE_DRAIN_DELAY_S is 'inf'", id="no-number"),
        pytest.param(
            {"RUN_DIR": "/proc/run"},
            "SEGSERVE_RUN_DIR: cannot write into /proc/run",
            id="nowhere-to-write",
        ),
        pytest.param(
            {"DEVICE": "gpu"},
            "SEGSERVE_DEVICE is gpu, and PyTorch finds no GPU",
            id="no-gpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
        ),
    ],
)
def test_command_that_cannot_serve_ends_soon_with_one_line(
    variables, archives, tmp_path, change, message
):
    (tmp_path / "damaged.mar").write_bytes(b"PK\x03\x04 no zip")
    SigningKey.generate().write(tmp_path / "signer")
    if "broken" in str(change):
        pack(tmp_path, "broken", BROKEN).rename(tmp_path / "broken.mar")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = {"folder": tmp_path, "taken": taken.getsockname()[1]}
        change = {name: value.format(**places) for name, value in change.items()}
        command = Command(tmp_path, **{**variables, **change})
        assert command.process.wait(SECONDS_TO_FAIL) == 1
    [error] = [line for line in command.lines() if line["logger"] == "segserve.gateway"]
    assert error["level"] == "error"
    assert re.search(message, error["message"]), error
    assert "\n" not in error["message"]
