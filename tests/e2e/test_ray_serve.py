"""Ray Serve as a user runs it: started by the command, used, disturbed and stopped, with a tiny
model.
"""

import json
import pickle
import re
import subprocess
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest
import requests
import yaml

from segserve.archive import build_archive
from segserve.client import ResponseError, SegmentationClient
from segserve.engines import ServerError
from segserve.local import LocalSegmenter
from tests.contract.images import encoded, picture
from tests.documents import blocks
from tests.unit.tiny import write_tiny_model

from . import user

pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'segserve[ray]'")

from ray.serve.generated import serve_pb2, serve_pb2_grpc

from segserve.gateway.background import Server

IMAGE = encoded(picture())
CONFIG = {
    "batchSize": 2,
    "maxBatchDelay": 1,
    "jobQueueSize": 8,
    "handler": {"threads": 1, "precision": "fp32"},
}
BLOCKS = blocks("docs/ray.md", "sh")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder, name="deeplabv3")
    (folder / "model-config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    """Where the user works: an archive in build/ and a picture."""
    folder = tmp_path_factory.mktemp("user")
    build_archive(model, folder / "build")
    (folder / "cat.png").write_bytes(IMAGE)
    return folder


def run(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """A line of the documentation, with this interpreter's `segserve`."""
    return user.run("bash", "-c", command, folder=folder, timeout_s=400, **variables)


@pytest.fixture(scope="module")
def started(folder) -> subprocess.CompletedProcess:
    result = run(BLOCKS[0], folder, SEGSERVE_CLIENT_IN_FLIGHT="100")  # one client can fill a queue
    yield result
    run("segserve stop", folder)


@pytest.fixture(scope="module")
def server(started, folder) -> Server:
    assert started.returncode == 0, started.stderr
    server = Server.running(folder / ".run" / "serve")
    assert server is not None
    return server


@pytest.fixture
def send(server):
    def send(
        path: str = "/predictions/deeplabv3", image: bytes = IMAGE, **headers: str
    ) -> requests.Response:
        authorization = {"Authorization": f"Bearer {server.inference_token}"}
        return requests.post(
            server.inference_url + path,
            data=image,
            headers={**authorization, **headers},
            timeout=120,
        )

    return send


def tmp_dir_of(server: Server) -> Path:
    """The folder of Ray's files, from the environment of its processes."""
    children = psutil.Process(server.pid).children(recursive=True)
    [token_file] = {child.environ().get("RAY_AUTH_TOKEN_PATH", "") for child in children} - {""}
    return Path(token_file).parent


def replicas(server: Server) -> list[psutil.Process]:
    children = psutil.Process(server.pid).children(recursive=True)
    return [
        child
        for child in children
        if child.name().startswith("ray::ServeReplica") and is_of_model(child)
    ]


def is_of_model(process: psutil.Process) -> bool:
    return "deeplabv3" in " ".join(process.cmdline())


def test_serve_prints_a_curl_that_works(server, started, folder):
    line = next(line for line in started.stdout.splitlines() if line.strip().startswith("curl"))
    response = run(f"{line.replace('PHOTO.jpg', 'cat.png')} -s", folder)
    assert json.loads(response.stdout)["mask"]["encoding"] == "png"


def test_documentation_s_curl_takes_options_from_the_query(server, folder):
    command = BLOCKS[1].replace("http://127.0.0.1:8080", server.inference_url)
    response = json.loads(run(command, folder, TOKEN=server.inference_token).stdout)
    assert response["mask"]["encoding"] == "rle"
    assert {entry["label"] for entry in response["classes"]} <= {"background", "cat"}


def test_predictions_headers_go_before_the_query(send):
    response = send("/predictions/deeplabv3?mask=rle&tta=flip", **{"X-Segment-Mask": "none"})
    assert "mask" not in response.json()
    assert 'desc="2.0 passes"' in response.headers["Server-Timing"]


def test_predictions_unknown_option_in_the_query_is_400(send):
    response = send("/predictions/deeplabv3?colour=red")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_option")


@pytest.mark.parametrize("mask", ["dense", "rle", "png", "polygons", "none"])
def test_predictions_response_is_the_archive_s_byte_for_byte(send, folder, mask):
    local = LocalSegmenter(folder / "build" / "deeplabv3.mar", device="cpu")
    assert send(**{"X-Segment-Mask": mask}).content == local.segment_raw(IMAGE, mask=mask)


def test_other_commands_find_the_server(server, folder):
    segmented = run("segserve segment cat.png --output out && ls out", folder)
    assert segmented.returncode == 0, segmented.stderr
    assert "cat.png" in segmented.stdout
    assert "a worker is READY" in run("segserve doctor", folder).stdout


def test_serve_where_one_runs_rejects_in_one_line(server, folder):
    result = run(BLOCKS[0], folder)
    assert result.returncode == 1
    assert re.search(r"a server already runs at http://.*: `segserve stop` ends it", result.stderr)
    assert result.stderr.strip().count("\n") == 0


def test_serve_listens_on_this_machine_only(server):
    listening = [
        connection.laddr.ip
        for process in [
            psutil.Process(server.pid),
            *psutil.Process(server.pid).children(recursive=True),
        ]
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and not process.name().startswith("ray::ServeReplica")
    ]
    assert listening
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


class Touch:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_port_of_a_replica_takes_nothing_without_the_token_of_the_run(server, tmp_path):
    children = psutil.Process(server.pid).children(recursive=True)
    connections = [
        connection for process in children for connection in process.net_connections("tcp")
    ]
    ports = {
        each.laddr.port
        for each in connections
        if each.status == psutil.CONN_LISTEN and each.laddr.ip == "::"
    }
    request = serve_pb2.ASGIRequest(pickled_request_metadata=pickle.dumps(Touch(tmp_path / "ran")))
    assert ports
    for port in ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.RpcError) as rejected:
                serve_pb2_grpc.ASGIServiceStub(channel).HandleRequest(request, timeout=30)
            assert rejected.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert not (tmp_path / "ran").exists()


def test_temporary_folder_is_closed_to_other_users(server):
    assert tmp_dir_of(server).stat().st_mode & 0o077 == 0


def test_token_file_is_private_and_no_token_is_in_the_log(server):
    assert (server.run_dir / "token").stat().st_mode & 0o077 == 0
    for text in (server.log_path.read_text(), (server.run_dir / "server.json").read_text()):
        assert server.inference_token not in text


def test_metrics_count_what_was_requested(server, send):
    def count() -> float:
        text = requests.get(f"{server.metrics_url}/metrics", timeout=30).text
        reported = re.search(
            r'ts_inference_requests_total\{.*model_name="deeplabv3".*"default"\} ([\d.]+)', text
        )
        return float(reported[1]) if reported else 0.0

    before = count()
    send()
    assert count() == before + 1


def test_predictions_full_queue_is_503_with_retry_after_and_the_client_waits(server, send):
    image = encoded(picture(1600, 1200), "JPEG")
    with ThreadPoolExecutor(24) as threads:
        responses = list(threads.map(lambda _: send(image=image), range(48)))
    rejected = [response for response in responses if response.status_code == 503]
    assert {response.status_code for response in responses} == {200, 503}
    assert {response.headers["Retry-After"] for response in rejected} == {"2"}
    assert {response.json()["error"]["code"] for response in rejected} == {"overloaded"}
    with (
        SegmentationClient(
            server.inference_url, token=server.inference_token, retries=40
        ) as client,
        ThreadPoolExecutor(12) as threads,
    ):
        assert len(list(threads.map(client.segment, [image] * 24))) == 24


def test_predictions_while_a_replica_is_killed_fail_no_more_than_those_it_had(server):
    in_flight = 4
    [replica] = replicas(server)

    def requested(client: SegmentationClient) -> str:
        try:
            return client.segment(IMAGE).model
        except ResponseError as error:
            return error.code

    def stream(retries: int, count: int) -> Counter[str]:
        with (
            SegmentationClient(
                server.inference_url, token=server.inference_token, retries=retries
            ) as client,
            ThreadPoolExecutor(in_flight) as threads,
        ):
            sending = [threads.submit(requested, client) for _ in range(count)]
            sending[0].result()
            replicas(server)[0].kill()
            return Counter(future.result() for future in sending)

    outcomes = stream(retries=0, count=60)
    assert outcomes.keys() <= {"deeplabv3", "unavailable"}
    assert outcomes["unavailable"] <= in_flight
    assert stream(retries=10, count=60) == {"deeplabv3": 60}
    assert not replica.is_running() or replica.status() == psutil.STATUS_ZOMBIE


def test_stop_leaves_no_process_and_no_tokens_behind(server, folder):
    tmp_dir = tmp_dir_of(server)
    processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    assert run(BLOCKS[2], folder).stdout.strip() == "stopped"
    assert [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert not tmp_dir.exists()
    assert not {"server.json", "token"} & {path.name for path in server.run_dir.iterdir()}
    assert run("segserve stop", folder).stdout.strip() == "no server is running"


def test_wait_ready_of_weights_that_are_not_the_record_s_says_so_and_ends(model, tmp_path):
    whole, archive = build_archive(model, tmp_path), tmp_path / "broken.mar"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(archive, "w") as target:
        for name in source.namelist():
            target.writestr(name, b"other" if name == "weights.safetensors" else source.read(name))
    began_s = time.monotonic()
    with Server.start([archive], tmp_path / "run", engine="ray") as server:
        with pytest.raises(
            ServerError,
            match=r"the server ended: .* cannot serve this archive: weights.safetensors: SHA-256",
        ):
            server.wait_ready(timeout_s=400)
        assert time.monotonic() - began_s < 300
    assert Server.running(tmp_path / "run") is None
