"""The life of a TorchServe, with real ones and small throw-away archives whose handlers only
echo.
"""

import json
import os
import re
import shutil
import signal
import sys
import time

import psutil
import pytest
import requests

from segserve.engines import ServerError
from segserve.engines.torchserve_process import TorchServe
from tests.packed import BROKEN, pack

ECHO = """
import json, os

class Echo:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [json.dumps({"environment": sorted(os.environ), "python": os.sys.executable}) for _
        in data]
"""

SECRETS = {
    "MY_TOKEN": "t",
    "db_password": "p",
    "AWS_SECRET_ACCESS_KEY": "k",
    "GOOGLE_CREDENTIALS": "c",
}


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("archives"), "echo", ECHO)


@pytest.fixture(scope="module")
def server(echo, tmp_path_factory):
    with pytest.MonkeyPatch.context() as environment:
        for name, value in SECRETS.items():
            environment.setenv(name, value)
        environment.setenv("LOG_LOCATION", str(tmp_path_factory.mktemp("elsewhere")))
        environment.setenv("TS_CONFIG_FILE", "/absent")
        server = TorchServe.start([echo], tmp_path_factory.mktemp("run"))
    with server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def neighbour(server, echo, tmp_path_factory):
    """A second server that is configured with the first one's ports, may register models, and has
    an unusual folder name.
    """
    run_dir = tmp_path_factory.mktemp("run") / "Käfer, \\ [2]" / ("deep" * 20)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SEGSERVE_PORT", server.inference_url.rpartition(":")[2])
        environment.setenv("SEGSERVE_MANAGEMENT_PORT", server.management_url.rpartition(":")[2])
        overrides = {"enable_model_api": "true", "disable_token_authorization": "true"}
        neighbour = TorchServe.start([echo], run_dir, overrides=overrides)
    with neighbour:
        neighbour.wait_ready()
        yield neighbour


def predict(server, token):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.post(
        f"{server.inference_url}/predictions/echo", data=b"x", headers=headers, timeout=30
    )


def register(server, url):
    return requests.post(f"{server.management_url}/models", params={"url": url}, timeout=30)


def tree_of(server):
    leader = psutil.Process(server.pid)
    return [leader, *leader.children(recursive=True)]


def running(processes):
    return [
        process
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def test_start_with_archive_serves_with_this_python(server):
    response = predict(server, server.inference_token)
    assert response.status_code == 200
    assert response.json()["python"] == sys.executable


def test_start_writes_everything_into_the_run_folder(server):
    names = {path.name for path in server.run_dir.iterdir()}
    assert {"server.log", "key_file.json", "config.properties", "model-store"} <= names
    assert "logs" not in names  # which would grow
    assert (server.run_dir / "key_file.json").stat().st_mode & 0o077 == 0


def test_start_with_secrets_in_environment_hides_them_from_the_worker(server):
    names = predict(server, server.inference_token).json()["environment"]
    assert "PATH" in names
    assert not set(SECRETS) & set(names)


@pytest.mark.parametrize(
    "token", [pytest.param(None, id="none"), pytest.param("wrong", id="wrong")]
)
def test_predict_without_the_token_is_rejected(server, token):
    response = predict(server, token)
    assert response.status_code == 400
    assert "Token" in response.json()["message"]


def test_predict_with_the_management_token_is_rejected(server):
    assert predict(server, server.management_token).status_code == 400


def test_token_renewed_by_its_api_is_the_one_that_is_read(server):
    old = server.inference_token
    key = json.loads((server.run_dir / "key_file.json").read_text())["API"]["key"]
    url = f"{server.management_url}/token?type=inference"
    requests.get(url, headers={"Authorization": f"Bearer {key}"}, timeout=30).raise_for_status()
    assert server.inference_token != old
    assert predict(server, old).status_code == 400
    assert predict(server, server.inference_token).status_code == 200


def test_metrics_are_served_to_prometheus_without_a_token(server):
    predict(server, server.inference_token)
    text = requests.get(f"{server.metrics_url}/metrics", timeout=30).text
    assert 'ts_inference_requests_total{model_name="echo"' in text


def test_register_with_model_api_off_is_rejected(server):
    headers = {"Authorization": f"Bearer {server.management_token}"}
    response = requests.post(
        f"{server.management_url}/models?url=echo.mar", headers=headers, timeout=30
    )
    assert response.status_code == 405


def test_start_with_taken_ports_runs_parallel_on_others(server, neighbour):
    for attribute in ("inference_url", "management_url", "metrics_url"):
        assert getattr(server, attribute) != getattr(neighbour, attribute)
    assert neighbour.inference_token is None
    assert (
        predict(neighbour, None).status_code
        == predict(server, server.inference_token).status_code
        == 200
    )


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://127.0.0.1:1/echo.mar", id="http"),
        pytest.param("https://example.org/echo.mar", id="https"),
        pytest.param("file:///tmp/echo.mar", id="file-elsewhere"),
        pytest.param("{store}/../echo.mar", id="dots"),
        pytest.param("{store}/x/../../echo.mar", id="folder-and-dots"),
        pytest.param("{store}/echo.mar?/../../x.mar", id="dots-behind-a-question-mark"),
        pytest.param("{store}/echo.war", id="other-file"),
        pytest.param("FILE:///tmp/echo.mar", id="scheme-in-capitals"),
        pytest.param("{store}/%2e%2e%2foutside.mar", id="encoded-dots-and-slash"),
        pytest.param("{store}/%2E%2E/outside.mar", id="encoded-dots"),
        pytest.param("{store}/..%2Foutside.mar", id="encoded-slash"),
        pytest.param("{store}/%252e%252e%252foutside.mar", id="encoded-twice"),
        pytest.param("http://127.0.0.1:1/{store}/echo.mar", id="store-within-another-url"),
    ],
)
def test_register_with_url_outside_the_store_is_rejected(neighbour, echo, url):
    """TorchServe itself looks for dots alone, and then loads what `%2e%2e%2f` names (CVE-2024-35198
    and its like).
    """
    shutil.copy(echo, neighbour.run_dir / "outside.mar")
    response = register(neighbour, url.format(store=f"file://{neighbour.run_dir}/model-store"))
    assert response.status_code == 404
    assert re.search(
        r"does not match any allowed URL\(s\)|Relative path is not allowed",
        response.json()["message"],
    )


def test_register_with_url_inside_the_store_is_allowed(neighbour):
    response = register(neighbour, f"file://{neighbour.run_dir}/model-store/echo.mar")
    assert "allowed URL" not in response.json()["message"]


def test_ctrl_c_in_the_terminal_does_not_reach_torchserve(neighbour):
    assert os.getpgid(neighbour.pid) == neighbour.pid != os.getpgrp()
    assert os.getsid(neighbour.pid) == os.getsid(0)


def test_stop_leaves_no_process_behind(neighbour):
    processes = tree_of(neighbour)
    assert len(processes) >= 2
    began = time.monotonic()
    neighbour.stop()
    assert time.monotonic() - began < 30
    assert running(processes) == []
    assert not (neighbour.run_dir / "key_file.json").exists()
    neighbour.stop()


def test_wait_ready_with_broken_handler_fails_at_once_with_its_error(tmp_path):
    began = time.monotonic()
    with TorchServe.start([pack(tmp_path, "broken", BROKEN)], tmp_path) as server:
        with pytest.raises(
            ServerError,
            match="model 'broken' failed to load: ValueError: the weights are of another",
        ):
            server.wait_ready(timeout_s=400)
        assert time.monotonic() - began < 300  # far less than the timeout, even on a busy machine
        processes = tree_of(server)
    assert running(processes) == []


def test_wait_ready_with_killed_server_fails_at_once_and_stop_ends_the_orphans(echo, tmp_path):
    with TorchServe.start([echo], tmp_path) as server:
        server.wait_ready()
        processes = tree_of(server)
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match="TorchServe ended: signal 9 killed it; the log is "):
            server.wait_ready()
    assert running(processes) == []


def test_wait_ready_with_setting_java_rejects_says_why(echo, tmp_path):
    with (
        TorchServe.start([echo], tmp_path, overrides={"max_request_size": "64 MiB"}) as server,
        pytest.raises(
            ServerError, match='TorchServe ended: Invalid configuration: For input string: "64 MiB"'
        ),
    ):
        server.wait_ready()
