"""The benchmark's own parts: figures, rounds, load, report. No peer is started."""

import base64
import io
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from bench import __main__ as command
from bench import random_weights
from bench.images import mixed_photographs, mixed_workload
from bench.serving import session
from bench.serving.figures import Run, headlines, ratio, rows
from bench.serving.load import Gateway, HttpPeer, send_requests
from bench.serving.peer import BenchError, Opened, Workload
from bench.serving.peers.steps import STEPS
from bench.serving.report import BEGIN, END, Report, draw, write_between_marks
from bench.serving.session import Outcome, measure, measured_rounds
from segserve.runtime.network import load_network
from segserve.runtime.record import read_record


def run_of(*latencies_ms: float, failures: int = 0) -> Run:
    """One client's run: the wall's clock is the sum of its latencies."""
    latencies_s = tuple(latency / 1000 for latency in latencies_ms)
    return Run(latencies_s, sum(latencies_s) or 1.0, failures, "status 500" if failures else "")


def round_of(limit_ms: float, ours_ms: float, clients: int = 8) -> dict[tuple[str, int], Run]:
    return {("limit", clients): run_of(limit_ms), ("ours, png", clients): run_of(ours_ms)}


# Figures.


@pytest.mark.parametrize(
    ("latencies_ms", "expected_ms"),
    [
        pytest.param(range(1, 101), 99, id="one of a hundred is slower"),
        pytest.param(range(1, 202), 199, id="two of two hundred and one are slower"),
        pytest.param([5, 1, 3], 5, id="the slowest of a few"),
    ],
)
def test_p99_of_a_run_is_the_nearest_rank(latencies_ms, expected_ms):
    assert run_of(*latencies_ms).p99_ms() == pytest.approx(expected_ms)


def test_run_without_a_response_has_no_latency():
    run = Run((), 2.0, 3, "status 503")
    assert run.images_a_second() == 0
    assert math.isnan(run.median_ms())
    assert math.isnan(run.p99_ms())


def test_ratio_of_a_drifting_machine_is_the_median_of_the_rounds_ratios():
    rounds = [round_of(10, 20), round_of(100, 200), round_of(1000, 9000)]
    assert ratio(rounds, Run.median_ms, ("ours, png", 8), ("limit", 8)) == pytest.approx(2)


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param([{("ours, png", 8): run_of(1)}], id="not measured"),
        pytest.param(
            [{("ours, png", 8): run_of(1), ("limit", 8): run_of(failures=1)}],
            id="none completed",
        ),
    ],
)
def test_ratio_to_a_peer_without_figures_is_nan(rounds):
    assert math.isnan(ratio(rounds, Run.images_a_second, ("ours, png", 8), ("limit", 8)))


def test_rows_have_the_ratio_of_our_throughput():
    found = {row.peer: row for row in rows([round_of(10, 20), round_of(10, 40), round_of(10, 20)])}
    assert found["limit"].ours_to_it == pytest.approx(0.5)
    assert found["limit"].images_a_second == pytest.approx(100)
    assert found["ours, png"].ours_to_it == pytest.approx(1)
    assert found["ours, png"].responded == 3


def test_headlines_compare_p99_with_a_queue_at_the_limits_speed():
    found = dict(headlines([round_of(10, 100)]))
    assert found["8 clients: p99 of ours to 8 x the limit's median"] == pytest.approx(100 / 80)
    assert not [
        title for title in found if title.startswith(("one client", "images a second of ours"))
    ]


# Rounds.


class Recorder:
    def __init__(self, name: str, log: list[tuple[str, int]]) -> None:
        self._name, self._log = name, log

    def warm_up(self) -> None:
        self._log.append((self._name, 0))

    def run(self, clients: int) -> Run:
        self._log.append((self._name, clients))
        return run_of(1)


def test_rounds_alternate_in_direction_and_keep_their_order():
    log: list[tuple[str, int]] = []
    peers = {name: Recorder(name, log) for name in ("a", "b")}
    rounds = list(measured_rounds(peers, [1, 8], 2))
    forth = [("a", 1), ("b", 1), ("a", 8), ("b", 8)]
    assert log == [*forth, *reversed(forth)]
    assert [list(each) for each in rounds] == [forth, forth]


# Load.


class Server(ThreadingHTTPServer):
    """Returns what its path says, and records requests and the number of concurrent ones."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[tuple[str, bytes]] = []
        self.most_at_once = self._at_once = 0
        self._turn = threading.Lock()

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self._turn:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        yield
        with self._turn:
            self._at_once -= 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        with self.server.counted():
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.bodies.append((self.headers["Content-Type"], body))
            if self.path == "/slow":
                time.sleep(0.05)
        content = b"" if self.path == "/empty" else b"response"
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / f"{number}.jpg" for number in range(12)]
    for number, path in enumerate(paths):
        path.write_bytes(b"image %d" % number)
    return paths


def url(server: Server, path: str = "/ok") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def test_one_client_sends_every_image_in_order(server, images):
    run = send_requests(Gateway(url(server)), images, clients=1)
    assert [body for _, body in server.bodies] == [path.read_bytes() for path in images]
    assert len(run.latencies_s) == len(images)
    assert 0 < sum(run.latencies_s) <= run.wall_s
    assert run.failures == 0


def test_many_clients_keep_so_many_requests_pending(server, images):
    run = send_requests(Gateway(url(server, "/slow")), images * 2, clients=4)
    assert server.most_at_once == 4
    assert sorted(body for _, body in server.bodies) == sorted(
        path.read_bytes() for path in images * 2
    )
    assert run.wall_s >= 6 * 0.05


@pytest.mark.parametrize(
    ("kind", "content_type", "image_of"),
    [
        pytest.param("file", "application/octet-stream", lambda body: body, id="file"),
        pytest.param(
            "form",
            "multipart/form-data",
            lambda body: body.split(b"\r\n\r\n")[1].split(b"\r\n")[0],
            id="form",
        ),
        pytest.param(
            "json",
            "application/json",
            lambda body: base64.b64decode(json.loads(body)["picture"]),
            id="base64 in JSON",
        ),
    ],
)
def test_request_of_a_kind_carries_the_image(server, images, kind, content_type, image_of):
    send_requests(Gateway(url(server), body=kind, part="picture"), images[:1], clients=1)
    [(sent_type, body)] = server.bodies
    assert sent_type.startswith(content_type)
    assert image_of(body) == b"image 0"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        pytest.param("/broken", "status 500: response", id="status"),
        pytest.param("/empty", "an empty response", id="empty"),
    ],
)
def test_response_that_is_none_counts_as_a_failure(server, images, path, reason):
    run = send_requests(Gateway(url(server, path)), images, clients=2)
    assert run.latencies_s == ()
    assert (run.failures, run.reason) == (len(images), reason)


def test_server_that_is_gone_fails_every_request(server, images):
    address = url(server)
    server.server_close()
    run = send_requests(Gateway(address), images[:3], clients=1)
    assert run.failures == 3
    assert "ConnectionRefusedError" in run.reason


def test_no_request_begins_after_the_time_is_up(server, images):
    run = send_requests(Gateway(url(server, "/slow")), images * 100, clients=1, max_s=0.3)
    assert 1 <= len(run.latencies_s) <= 6
    assert run.wall_s < 10


# A session.


@pytest.fixture
def workload(tmp_path, images):
    return Workload(tmp_path, tuple(images), tuple(images[:2]), 10.0, ("png",), tmp_path)


@pytest.fixture
def ended(monkeypatch, server, workload):
    """Replaces the real peers; returns the list of those that were stopped."""
    stopped: list[str] = []

    def opening(name: str, peer: object):
        @contextmanager
        def opened(_workload):
            try:
                yield Opened({name: peer}, os.getpid(), 1.0)
            finally:
                stopped.append(name)

        return opened

    def absent(_workload):
        raise ModuleNotFoundError("No module named 'litserve'")

    def interrupt_second_round():
        yield run_of(1)
        raise KeyboardInterrupt

    interrupted = interrupt_second_round()
    peers = {
        "responds": HttpPeer(Gateway(url(server)), workload),
        "fails": HttpPeer(Gateway(url(server, "/broken")), workload),
        "interrupts": SimpleNamespace(warm_up=lambda: None, run=lambda _clients: next(interrupted)),
    }
    openings = {name: opening(name, peer) for name, peer in peers.items()}
    monkeypatch.setattr(session, "PEERS", {**openings, "absent": absent})
    return stopped


def test_session_measures_what_responds_and_skips_the_rest(ended, workload):
    outcome = measure(workload, ["responds", "fails", "absent"], [1, 2], 2)
    assert [list(each) for each in outcome.rounds] == [[("responds", 1), ("responds", 2)]] * 2
    assert outcome.skipped == {
        "fails": "4 of 4 images failed: status 500: response",
        "absent": "No module named 'litserve'",
    }
    assert list(outcome.starts_s) == list(outcome.peaks_bytes) == ["responds"]
    assert ended == ["fails", "responds"]


def test_interrupted_session_stops_all_and_keeps_whole_rounds(ended, workload):
    outcome = measure(workload, ["responds", "interrupts"], [1], 5)
    assert len(outcome.rounds) == 1
    assert outcome.ended_by == "interrupted"
    assert sorted(ended) == ["interrupts", "responds"]


# Reports.


@pytest.fixture
def report():
    first = {**round_of(10, 20), ("image_segmenter", 8): run_of(failures=2)}
    outcome = Outcome(
        [first, first],
        starts_s={"limit": 30.0},
        peaks_bytes={"limit": 10**9},
        skipped={"litserve": "is not installed"},
    )
    return Report({"processor": "a processor"}, {"model": "tiny"}, outcome)


def test_markdown_holds_figures_failures_and_circumstances(report):
    text = report.as_markdown()
    assert "| limit | 100.0 | 10 | 10 | 0.50 | 0 |" in text
    assert "| image_segmenter | 0.0 | - | - | - | 4 of 4 |" in text
    assert "| limit | 1.00 | 30 |" in text
    assert "| 8 clients: images a second, ours to the limit | 0.50 |" in text
    for line in (
        "- processor: a processor",
        "- skipped: litserve: is not installed",
        "- image_segmenter: status 500",
    ):
        assert line in text.splitlines()


def test_json_holds_every_round_and_no_nan(report):
    document = json.loads(
        report.as_json(), parse_constant=lambda name: pytest.fail(f"holds {name}")
    )
    assert [len(each) for each in document["rounds"]] == [3, 3]
    assert document["rounds"][0][2]["median_ms"] is None
    assert document["headlines"]["8 clients: images a second, ours to the limit"] == pytest.approx(
        0.5
    )


def test_document_between_its_marks_is_replaced(tmp_path):
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_between_marks(document, "new\n")
    write_between_marks(document, "newer\n")
    assert document.read_text() == f"before\n{BEGIN}\nnewer\n{END}\nafter\n"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("no marks\n", id="none"),
        pytest.param(BEGIN, id="no end"),
        pytest.param(BEGIN * 2 + END, id="two"),
    ],
)
def test_document_without_its_marks_is_left_alone(tmp_path, content):
    document = tmp_path / "performance.md"
    document.write_text(content)
    with pytest.raises(BenchError, match="expected a document with one line"):
        write_between_marks(document, "new")
    assert document.read_text() == content


def test_plot_of_several_client_counts_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    draw(
        rows([{**round_of(10, 20, clients=1), **round_of(10, 25, clients=8)}]),
        tmp_path / "plot.png",
    )
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


# Images, their steps and the command.


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_steps_of_a_peer_convert_an_image_file_to_a_label_png(steps, tiny_model):
    peer = steps(tiny_model, torch.device("cpu"))
    file = next(iter(mixed_photographs().values()))
    content = peer.encode(peer.predict(peer.decode(file)))
    with Image.open(io.BytesIO(file)) as photograph, Image.open(io.BytesIO(content)) as png:
        assert (png.format, png.mode, png.size) == ("PNG", "P", photograph.size)


def test_workload_is_mixed_and_always_the_same(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    one, other = (
        mixed_workload(tmp_path, 50, max_s=1, encodings=["png"], scratch=folder)
        for folder in folders
    )
    assert [path.name for path in one.requests] == [path.name for path in other.requests]
    assert len(one.requests) == 50
    assert {path.name for path in one.requests} == {
        path.name for path in (folders[0] / "images").iterdir()
    }
    assert len({path.read_bytes() for path in one.requests[:10]}) == 10
    assert {path.stem.rpartition("-")[2] for path in one.warm_up} == {"320"}
    assert len(one.warm_up) == 7


@pytest.mark.parametrize(
    ("flags", "reported"),
    [
        pytest.param(["--model", "no_such"], "'no_such': no model folder", id="model"),
        pytest.param(["--clients", "one"], "invalid int value: 'one'", id="clients"),
        pytest.param(["--peers", "no_such"], "invalid choice: 'no_such'", id="peer"),
    ],
)
def test_command_with_a_bad_flag_ends_in_one_line(monkeypatch, capsys, tmp_path, flags, reported):
    monkeypatch.setattr(sys, "argv", ["bench", "--output", str(tmp_path), *flags])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code not in (0, None)
    assert reported in f"{ended.value.code} {capsys.readouterr().err}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_script_without_a_gpu_says_so(tmp_path):
    done = subprocess.run(
        ["sh", "bench/gpu.sh", "tests", str(tmp_path)],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "bench/gpu.sh: PyTorch finds no GPU here\n")


def test_random_weights_make_a_model_folder_that_loads(tmp_path, monkeypatch):
    folder = tmp_path / "random"
    monkeypatch.setattr(sys, "argv", ["random_weights", "mobilenet_v3_large", str(folder)])
    random_weights.main()
    record = read_record(folder)
    assert record.checkpoint is None
    assert len(record.classes) == 21
    load_network(record, folder)
