"""Servers in the background, as `segserve serve` starts them: each engine behind its gateway."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests

from segserve.engines import EngineName, ServerError
from segserve.gateway.background import Server
from segserve.signing import SignatureError, SigningKey
from tests.conftest import PROJECT
from tests.packed import BROKEN, pack

ECHO = """
import json, os

class Echo:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [json.dumps({"own": sorted(os.environ), "python": os.sys.executable}) for _ in data]
"""
SECRETS = {"MY_TOKEN": "hunter2", "db_password": "hunter2", "DATABASE_URL": "hunter2"}


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("archives"), "echo", ECHO)


@pytest.fixture(scope="module", params=list(EngineName))
def server(request, echo, tmp_path_factory):
    if request.param == "ray":
        pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'segserve[ray]'")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in SECRETS.items():
            environment.setenv(name, value)
        run_dir = tmp_path_factory.mktemp(request.param) / "run, with a comma"
        server = Server.start([echo], run_dir, engine=request.param)
    with server:
        server.wait_ready(300)
        yield server


def predict(server: Server, token: str | None) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"{server.inference_url}/predictions/echo"
    return requests.post(url, data=b"x", headers=headers, timeout=30)


def processes(server: Server) -> list[psutil.Process]:
    leader = psutil.Process(server.pid)
    return [leader, *leader.children(recursive=True)]


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [
        process
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def test_prediction_with_the_token_is_made_by_this_python(server):
    response = predict(server, server.inference_token)
    assert response.status_code == 200
    assert response.json()["python"] == sys.executable


@pytest.mark.parametrize("token", [None, "wrong"])
def test_prediction_without_the_token_is_rejected(server, token):
    response = predict(server, token)
    assert (response.status_code, response.json()["type"]) == (400, "InvalidKeyException")


def test_management_api_is_not_reachable(server):
    headers = {"Authorization": f"Bearer {server.inference_token}"}
    for method, path in (("POST", "/models?url=echo.mar"), ("DELETE", "/models/echo")):
        response = requests.request(
            method, f"{server.inference_url}{path}", headers=headers, timeout=30
        )
        assert response.status_code == 405
    [described] = requests.get(
        f"{server.inference_url}/models/echo", headers=headers, timeout=30
    ).json()
    assert described["modelName"] == "echo"


def test_secrets_of_the_environment_reach_no_process(server):
    assert not {*SECRETS} & {*predict(server, server.inference_token).json()["own"]}
    for process in processes(server):
        assert "hunter2" not in str(process.environ())


def test_token_is_in_one_private_file(server):
    token = server.inference_token
    assert (server.run_dir / "token").stat().st_mode & 0o777 == 0o600
    assert server.log_path.stat().st_mode & 0o077 == 0
    for path in (server.log_path, server.run_dir / "server.json"):
        assert token not in path.read_text()
    assert not [process for process in processes(server) if token in " ".join(process.cmdline())]


def test_metrics_need_no_token_and_count_predictions(server):
    predict(server, server.inference_token)
    text = requests.get(f"{server.metrics_url}/metrics", timeout=30).text
    assert re.search(r'^ts_inference_requests_total\{[^}]*model_name="echo"', text, re.MULTILINE)
    assert re.search(r'^segserve_gateway_requests_total\{[^}]*status="200"', text, re.MULTILINE)


def test_start_where_a_server_runs_is_rejected(server, echo):
    message = rf"a server already runs from .* \(process {server.pid}\); stop it first"
    with pytest.raises(ServerError, match=message):
        Server.start([echo], server.run_dir)


def test_second_server_gets_other_ports_and_stops_from_another_process(server, echo, tmp_path):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SEGSERVE_PORT", server.inference_url.rpartition(":")[2])
        second = Server.start([echo], tmp_path / "run", engine="local")
    second.wait_ready()
    started = processes(second)
    assert second.inference_url != server.inference_url
    code = (
        "import sys; from pathlib import Path; from segserve.gateway.background import Server; "
        "Server.running(Path(sys.argv[1])).stop()"
    )
    subprocess.run([sys.executable, "-c", code, str(second.run_dir)], cwd=PROJECT, check=True)
    assert running(started) == []
    assert Server.running(second.run_dir) is None
    assert not {"server.json", "token"} & {path.name for path in second.run_dir.iterdir()}
    second.stop()


@pytest.mark.parametrize("engine", ["torchserve", "local"])
def test_server_whose_gateway_is_killed_is_reported_and_stop_ends_the_rest(echo, tmp_path, engine):
    with Server.start([echo], tmp_path / "run", engine=engine) as server:
        server.wait_ready()
        started = processes(server)
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match="the server ended: signal 9 killed it; the log is "):
            server.wait_ready()
    wait_ended(started)


def test_start_ends_what_a_killed_gateway_has_left(echo, tmp_path):
    killed = Server.start([echo], tmp_path / "run")
    killed.wait_ready()
    left = [process for process in processes(killed) if process.pid != killed.pid]
    gateway = psutil.Process(killed.pid)
    gateway.kill()
    wait_ended([gateway])  # the kernel ends a process a moment after the signal
    assert running(left)
    with Server.start([echo], tmp_path / "run") as server:
        wait_ended(left)
        server.wait_ready()
        assert predict(server, server.inference_token).status_code == 200


def wait_ended(processes: list[psutil.Process]) -> None:
    deadline_s = time.monotonic() + 20
    while running(processes):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


@pytest.mark.parametrize("engine", list(EngineName))
def test_broken_handler_ends_the_server_with_its_error(tmp_path, engine):
    broken = pack(tmp_path, "broken", BROKEN)
    with (
        Server.start([broken], tmp_path / "run", engine=engine) as server,
        pytest.raises(
            ServerError,
            match=r"the server ended: .*'broken' failed to load: .*weights are of another",
        ),
    ):
        server.wait_ready(300)


def test_config_without_authorization_needs_no_token(echo, tmp_path):
    config = tmp_path / "config.properties"
    config.write_text("disable_token_authorization=true\nmax_request_size=1000\n")
    with Server.start([echo], tmp_path / "run", engine="local", config=config) as server:
        server.wait_ready()
        assert server.inference_token is None
        assert predict(server, None).status_code == 200
        response = requests.post(
            f"{server.inference_url}/predictions/echo", data=b"x" * 1001, timeout=30
        )
        assert (response.status_code, response.json()["error"]["code"]) == (413, "image_too_large")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_request_siz=1\n", "no setting 'max_request_siz'"),
        ("inference_address=https://127.0.0.1:8443\n", "must be http://HOST:PORT"),
    ],
    ids=["unknown-key", "tls"],
)
def test_config_that_cannot_be_used_is_rejected_at_once(echo, tmp_path, text, message):
    config = tmp_path / "config.properties"
    config.write_text(text)
    with pytest.raises(ServerError, match=message):
        Server.start([echo], tmp_path / "run", config=config)


def test_archive_that_is_not_signed_is_rejected_at_once(echo, tmp_path):
    _, public = SigningKey.generate().write(tmp_path / "signer")
    with pytest.raises(SignatureError, match="there is no signature"):
        Server.start([echo], tmp_path / "run", trust=public)


@pytest.mark.parametrize("engine", list(EngineName))
def test_archive_that_is_signed_is_served(echo, tmp_path, engine):
    key = SigningKey.generate()
    _, public = key.write(tmp_path / "signer")
    archive = Path(shutil.copy(echo, tmp_path / "signed.mar"))
    key.sign(archive)
    with Server.start([archive], tmp_path / "run", engine=engine, trust=public) as server:
        server.wait_ready(300)
        assert predict(server, server.inference_token).status_code == 200


def test_log_is_json_lines_and_has_each_request(server):
    predict(server, server.inference_token)
    lines = [
        json.loads(line)
        for line in server.log_path.read_text().splitlines()
        if line.startswith("{")
    ]
    last = [line for line in lines if line.get("path") == "/predictions/echo"][-1]
    assert {"time", "level", "logger", "message", "status", "duration_ms"} <= last.keys()
