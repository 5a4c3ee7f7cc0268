"""The local engine as a process: lost workers, full queues, its end, broken archives."""

import asyncio
import json
import os
import signal
import socket
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import requests

from segserve.engines import ServerError, local
from segserve.engines.store import read_archive
from segserve.engines.worker import Received
from segserve.gateway.background import Server
from segserve.runtime.errors import UnavailableError
from tests.packed import BROKEN, pack

CONTROLLED = """
import os, time

class Controlled:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        command = bytes(data[0]["body"])
        if command == b"die":
            os._exit(1)
        if command == b"fail":
            raise ValueError("a failure of the handler")
        if command.startswith(b"variable"):
            return [repr(os.environ.get(command.decode().split()[1]))]
        if command.startswith(b"sleep"):
            time.sleep(float(command.split()[1]))
        return [f"{os.getpid()} {len(data)}".encode()] * len(data)
"""
FAILS_AT_ITS_SECOND_LOAD = """
import os, time

class Flaky:
    def initialize(self, context):
        for name in ("first", "second"):
            try:
                os.mkdir(os.path.join(FOLDER, name))
            except FileExistsError:
                continue
            if name == "second":
                time.sleep(1)
                raise ValueError("no memory left")
            break

    def handle(self, data, context):
        return data
"""
READY_S = 120
LIMIT_S = 30


def archive(folder: Path, name: str = "echo", source: str = CONTROLLED, **settings: int) -> Path:
    """An archive whose model-config.yaml has these settings."""
    path = pack(folder, name, source)
    whole = folder / f"{name}.mar"
    config = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 1, "maxBatchDelay": 1} | settings
    with zipfile.ZipFile(path) as packed, zipfile.ZipFile(whole, "w") as target:
        for member in packed.namelist():
            if member != "model-config.yaml":
                target.writestr(member, packed.read(member))
        target.writestr(
            "model-config.yaml", "".join(f"{key}: {value}\n" for key, value in config.items())
        )
    return whole


def post(server: Server, body: str = "", model: str = "echo") -> requests.Response:
    return requests.post(
        f"{server.inference_url}/predictions/{model}",
        data=body.encode(),
        headers={"Authorization": f"Bearer {server.inference_token}"},
        timeout=60,
    )


def code(response: requests.Response) -> str:
    return response.json()["error"]["code"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    archives = [
        archive(folder, responseTimeout=2, jobQueueSize=2),
        archive(folder, "other", batchSize=4, maxBatchDelay=500),
    ]
    with Server.start(archives, folder / "run", engine="local") as server:
        server.wait_ready(READY_S)
        yield server


def test_two_archives_have_a_worker_each(server):
    assert server.models == ("echo", "other")
    first, second = post(server).text.split()[0], post(server, model="other").text.split()[0]
    children = {child.pid for child in psutil.Process(server.pid).children(recursive=True)}
    assert first != second
    assert {int(first), int(second)} <= children


def test_requests_that_wait_together_are_one_batch(server):
    with ThreadPoolExecutor(4) as threads:
        responses = list(threads.map(lambda _: post(server, model="other"), range(4)))
    assert {response.text.split()[1] for response in responses} == {"4"}


@pytest.mark.parametrize("command", ["die", "sleep 30"], ids=["death", "timeout"])
def test_lost_worker_is_replaced_and_its_request_is_503(server, command):
    before = post(server).text
    response = post(server, command)
    assert (response.status_code, code(response)) == (503, "unavailable")
    assert response.headers["Retry-After"] == "2"
    after = post(server)
    assert after.status_code == 200
    assert after.text != before


def test_worker_that_is_killed_while_idle_is_replaced_before_the_next_request(server):
    pid = int(post(server).text.split()[0])
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    response = post(server)
    assert response.status_code == 200
    assert int(response.text.split()[0]) != pid


def test_handler_that_raises_is_500_and_its_worker_stays(server):
    before = post(server).text
    response = post(server, "fail")
    assert (response.status_code, code(response)) == (500, "internal_error")
    assert post(server).text == before
    logged = [json.loads(line) for line in server.log_path.read_text().splitlines()]
    [failure] = [line for line in logged if "a failure of the handler" in line.get("exception", "")]
    assert (failure["level"], failure["logger"]) == ("error", "segserve.engines.worker")


def test_full_queue_is_503_with_retry_after(server):
    with ThreadPoolExecutor(8) as threads:
        responses = list(threads.map(lambda _: post(server, "sleep 0.4"), range(8)))
    rejected = [response for response in responses if response.status_code == 503]
    assert 1 <= len(rejected) <= 6
    assert {code(response) for response in rejected} == {"overloaded"}
    assert {response.headers["Retry-After"] for response in rejected} == {"2"}
    assert sum(response.status_code == 200 for response in responses) == 8 - len(rejected)


def test_server_listens_on_the_loopback_interface_only(server):
    processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    addresses = {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def test_sigterm_completes_pending_requests_and_ends_every_process(tmp_path):
    with Server.start([archive(tmp_path)], tmp_path / "run", engine="local") as server:
        server.wait_ready(READY_S)
        leader = psutil.Process(server.pid)
        processes = [leader, *leader.children(recursive=True)]
        responses: list[requests.Response] = []
        pending = threading.Thread(target=lambda: responses.append(post(server, "sleep 2")))
        pending.start()
        time.sleep(0.7)
        leader.send_signal(signal.SIGTERM)
        pending.join()
        assert [response.status_code for response in responses] == [200]
        with suppress(psutil.NoSuchProcess):
            deadline_s = time.monotonic() + 20
            while leader.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
        _, alive = psutil.wait_procs(processes[1:], timeout=20)
        assert alive == []


def test_archive_that_cannot_be_loaded_is_one_clear_line(tmp_path):
    broken = archive(tmp_path, "broken", BROKEN)
    with (
        Server.start([broken], tmp_path / "run", engine="local") as server,
        pytest.raises(
            ServerError,
            match="the server ended: the model 'broken' failed to load: the weights are of another",
        ),
    ):
        server.wait_ready(READY_S)
    assert Server.running(tmp_path / "run") is None


@pytest.mark.parametrize("size", ["0", "-1", "many", ""])
def test_job_queue_size_that_is_not_positive_is_one_clear_line(tmp_path, size):
    config = {"job_queue_size": size}
    with pytest.raises(ServerError, match=f"^job_queue_size must be .* got '{size}'$"):
        local.LocalEngine([archive(tmp_path)], tmp_path / "run", config=config, trusted=None)


def test_worker_has_the_variables_that_are_named_and_no_gpu_if_the_device_is_cpu(
    tmp_path, monkeypatch
):
    named = {"SEGSERVE_WORKER_ENV": "MY_MODE", "MY_MODE": "fast", "SEGSERVE_DEVICE": "cpu"}
    for name, value in {**named, "CUDA_VISIBLE_DEVICES": "0", "MY_PASSWORD": "s3cret"}.items():
        monkeypatch.setenv(name, value)
    with Server.start([archive(tmp_path)], tmp_path / "run", engine="local") as server:
        server.wait_ready(READY_S)
        names = ("MY_MODE", "CUDA_VISIBLE_DEVICES", "MY_PASSWORD")
        values = [post(server, f"variable {name}").text for name in names]
    assert values == ["'fast'", "''", "None"]


def test_running_server_is_found_again(server):
    found = Server.running(server.run_dir)
    assert found is not None
    assert (found.pid, found.models, found.not_ready_reason()) == (server.pid, server.models, None)


def test_start_reads_the_config_that_the_environment_names(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path / "other.properties"
    config.write_text(
        f"inference_address=http://127.0.0.1:{port}\nmetrics_address=http://127.0.0.1:8082\n"
    )
    monkeypatch.setenv("SEGSERVE_CONFIG", str(config))
    with Server.start([archive(tmp_path)], tmp_path / "run", engine="local") as server:
        assert server.inference_url == f"http://127.0.0.1:{port}"


def test_worker_whose_first_load_fails_after_the_start_is_loaded_again(tmp_path):
    source = FAILS_AT_ITS_SECOND_LOAD.replace("FOLDER", repr(str(tmp_path)))
    packed = archive(tmp_path, "flaky", source, minWorkers=2, maxWorkers=2)
    with Server.start([packed], tmp_path / "run", engine="local") as server:
        server.wait_ready(READY_S)
        deadline_s = time.monotonic() + LIMIT_S
        while worker_states(server, "flaky") != ["READY", "READY"]:
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
        assert "flaky, worker " in server.log_path.read_text()


def worker_states(server: Server, model: str) -> list[str]:
    headers = {"Authorization": f"Bearer {server.inference_token}"}
    response = requests.get(f"{server.inference_url}/models/{model}", headers=headers, timeout=60)
    return [worker["status"] for worker in response.json()[0]["workers"]]


@asynccontextmanager
async def running_worker(path: Path):
    """The queue of a worker that this process manages."""
    failure = asyncio.get_running_loop().create_future()
    queue = local.ModelQueue(8)
    worker = local.LocalWorker(read_archive(path), 0, queue, failure)
    task = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(READY_S):
            yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(worker.close)


def request(body: bytes = b"") -> Received:
    return Received({"body": body}, {})


@contextmanager
def suspended(process: psutil.Process):
    """Kills it after a limit, so that a test which waits for it fails and ends."""
    process.suspend()
    killer = threading.Timer(LIMIT_S, process.kill)
    killer.start()
    try:
        yield
    finally:
        killer.cancel()


async def worker_process(queue: local.ModelQueue) -> psutil.Process:
    return psutil.Process(int((await queue.put(request())).body.split()[0]))


def test_worker_that_the_machine_cannot_start_is_started_later(tmp_path, monkeypatch, caplog):
    def full_disk(**_):
        monkeypatch.undo()
        raise OSError(28, "No space left on device")

    async def lose_it_while_the_disk_is_full() -> None:
        async with running_worker(archive(tmp_path)) as queue:
            process = await worker_process(queue)
            monkeypatch.setattr(local, "TemporaryDirectory", full_disk)
            with pytest.raises(UnavailableError):
                await queue.put(request(b"die"))
            async with asyncio.timeout(LIMIT_S):
                assert await worker_process(queue) != process

    asyncio.run(lose_it_while_the_disk_is_full())
    assert "echo, worker 0: [Errno 28] No space left on device" in caplog.text


def test_response_timeout_covers_a_request_that_the_worker_does_not_read(tmp_path):
    async def stop_it_and_send() -> float:
        async with running_worker(archive(tmp_path, responseTimeout=1)) as queue:
            process = await worker_process(queue)
            with suspended(process):
                began_s = time.monotonic()
                with pytest.raises(UnavailableError):
                    await queue.put(request(bytes(5_000_000)))
            assert await worker_process(queue) != process
            return time.monotonic() - began_s

    assert asyncio.run(stop_it_and_send()) < LIMIT_S / 2


def test_close_ends_a_worker_that_does_not_read_its_request(tmp_path):
    async def stop_it_and_close() -> float:
        async with AsyncExitStack() as stack:
            worker = running_worker(archive(tmp_path, responseTimeout=60))
            queue = await stack.enter_async_context(worker)
            process = await worker_process(queue)
            with suspended(process):
                pending = asyncio.create_task(queue.put(request(bytes(5_000_000))))
                await asyncio.sleep(0.5)
                began_s = time.monotonic()
                await stack.aclose()
                pending.cancel()
                return time.monotonic() - began_s

    assert asyncio.run(stop_it_and_close()) < LIMIT_S / 2
