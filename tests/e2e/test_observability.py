"""What a real TorchServe lets be seen of itself: traces at a collector, and workers that were
replaced.
"""

import re
import time

import psutil
import pytest
import requests

from segserve.archive import build_archive
from segserve.engines.torchserve_process import TorchServe
from tests.collector import running_collector
from tests.unit.images import encoded, smooth
from tests.unit.tiny import write_tiny_model

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def collector():
    with running_collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def server(collector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("observed")
    (model := folder / "tiny").mkdir()
    archive = build_archive(write_tiny_model(model), folder / "build")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # ms
        with TorchServe.start([archive], folder / "run") as server:
            server.wait_ready()
            yield server


@pytest.fixture
def send(server):
    def send(**headers: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {server.inference_token}", **headers}
        url = f"{server.inference_url}/predictions/tiny"
        return requests.post(url, data=encoded(smooth(40, 60)), headers=headers, timeout=60)

    return send


def starts(server) -> float:
    text = requests.get(f"{server.metrics_url}/metrics", timeout=30).text
    reported = re.search(r"^segserve_worker_starts_total\{.*\} ([\d.]+)$", text, re.MULTILINE)
    return float(reported[1]) if reported else 0.0


def wait_for(condition, timeout_s):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def test_request_with_a_traceparent_has_its_stages_in_that_trace(server, collector, send):
    send(traceparent=f"00-{TRACE}-{PARENT}-01").raise_for_status()
    wait_for(lambda: collector.spans, timeout_s=30)
    *stages, request = collector.spans
    assert [span.name for span in stages] == ["decode", "preprocess", "inference", "encode"]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert {span.parent_span_id for span in stages} == {request.span_id}
    assert collector.services == {"segserve"}


def test_log_holds_no_line_a_metric(server, send):
    send().raise_for_status()
    assert "[METRICS]" not in server.log_path.read_text()


def test_worker_that_is_killed_shows_as_one_more_that_was_started(server):
    wait_for(lambda: starts(server) == 1, timeout_s=30)
    (worker,) = [
        child
        for child in psutil.Process(server.pid).children(recursive=True)
        if any("model_service_worker" in argument for argument in child.cmdline())
    ]
    worker.kill()
    wait_for(lambda: starts(server) == 2, timeout_s=120)
    assert (
        "WorkerLifeCycle - Stopped Scanner" in server.log_path.read_text()
    )  # reported by the reporter of metrics
