"""A picture that ends the process which decodes it: on every engine, and in a batch job."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests

from segserve.archive import build_archive
from segserve.engines import EngineName
from segserve.gateway.background import Server
from tests.hostile.poison import POISON, with_poison, write_poisoned_start
from tests.unit.images import encoded, noise
from tests.unit.tiny import write_tiny_model

GOOD = encoded(noise(20, 30))
RESTART_S = 120


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    (folder / "tiny").mkdir()
    return build_archive(write_tiny_model(folder / "tiny"), folder)


@pytest.fixture(scope="module")
def poisoned_archive(archive, tmp_path_factory) -> Path:
    return with_poison(archive, tmp_path_factory.mktemp("poisoned") / archive.name)


@pytest.fixture(scope="module", params=list(EngineName))
def server(request, poisoned_archive, tmp_path_factory):
    if request.param == "ray":
        pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'segserve[ray]'")
    run_dir = tmp_path_factory.mktemp(request.param) / "run"
    with Server.start([poisoned_archive], run_dir, engine=request.param) as server:
        server.wait_ready(timeout_s=300)
        yield server


def respond(server, image: bytes) -> requests.Response:
    headers = {"Authorization": f"Bearer {server.inference_token}"}
    return requests.post(
        f"{server.inference_url}/predictions/tiny", data=image, headers=headers, timeout=120
    )


def response_when_up(server, image: bytes) -> requests.Response:
    """What a client that tries again gets in the end."""
    deadline = time.monotonic() + RESTART_S
    while (response := respond(server, image)).status_code >= 500:
        assert time.monotonic() < deadline, response.text
        time.sleep(0.5)
    return response


def workers(server) -> set[int]:
    """The processes that have a network: workers of TorchServe or the gateway, or replicas."""
    processes = psutil.Process(server.pid).children(recursive=True)
    names = {
        process.pid: f"{process.name()} {' '.join(process.cmdline())}"
        for process in processes
        if alive(process)
    }
    return {
        pid
        for pid, name in names.items()
        if re.search(r"model_service_worker|ServeReplica:\w+:tiny|spawn_main", name)
    }


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_predictions_poison_costs_one_worker_and_is_rejected_from_then_on(server):
    assert respond(server, GOOD).status_code == 200
    before = workers(server)
    assert respond(server, POISON).status_code >= 500
    rejected = response_when_up(server, POISON)
    assert (rejected.status_code, rejected.json()["error"]["code"]) == (422, "image_corrupt")
    after = workers(server)
    assert before
    assert not before & after
    for _ in range(3):
        assert respond(server, POISON).content == rejected.content
        assert respond(server, GOOD).status_code == 200
    assert workers(server) == after


def test_batch_with_poison_ends_and_names_it(archive, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(6):
        (tmp_path / "in" / f"{number}.png").write_bytes(encoded(noise(20, 30, seed=number)))
    (tmp_path / "in" / "poison.png").write_bytes(POISON)
    (tmp_path / "start").mkdir()
    start = write_poisoned_start(tmp_path / "start")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(start)}
    command = [
        sys.executable,
        "-m",
        "segserve",
        "batch",
        "in",
        "out",
        "--archive",
        str(archive),
        "--workers",
        "1",
    ]
    ended = subprocess.run(
        [*command, "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout)
    assert (summary["segmented"], summary["failures"]) == (6, {"image_corrupt": 1})
