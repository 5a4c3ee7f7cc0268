"""Every engine shows every declared metric, under the same names and labels, and counts the
requests.
"""

import re
import time
from collections.abc import Callable

import pytest
import requests

from segserve.gateway.background import Server
from segserve.runtime.metrics import ENGINE, GPU_MEMORY_BYTES, OWN, Kind
from tests.contract.conftest import Api
from tests.contract.images import encoded, picture
from tests.samples import sample_names

Labels = dict[str, str]
Samples = list[tuple[str, Labels, float]]

_SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
_DECLARED = [metric for metric in (*OWN, *ENGINE) if metric is not GPU_MEMORY_BYTES]


def samples_of(server: Server) -> Samples:
    text = requests.get(f"{server.metrics_url}/metrics", timeout=30).text
    return [
        (name, dict(re.findall(r'(\w+)="(.*?)"', labels)), float(value))
        for name, labels, value in _SAMPLE.findall(text)
    ]


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum over series of that name with these labels, of the shipped model alone."""
    wanted = {"model_name": "deeplabv3", **labels}.items()
    return sum(
        value for sampled, given, value in samples if sampled == name and wanted <= given.items()
    )


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


@pytest.fixture(scope="module")
def shown(api: Api, server: Server) -> dict[str, set[str]]:
    """Names of labels by the name of each sample, once the machine's figures are there too."""
    api.post(data=encoded(picture()))
    api.post(data=b"text")
    wait_for(
        lambda: any(name == "CPUUtilization" for name, *_ in samples_of(server)), timeout_s=90
    )  # once a minute
    return {name: set(labels) - {"le"} for name, labels, _ in samples_of(server)}


@pytest.mark.parametrize("metric", _DECLARED, ids=lambda metric: metric.name)
def test_metrics_shows_every_declared_metric(shown, metric):
    if metric.name == "Requests5XX" and metric.name not in shown:
        pytest.skip("TorchServe shows it once something has failed")
    for name in sample_names(metric):
        assert shown[name] == {*metric.labels, metric.host_label}


def test_metrics_count_what_was_requested(api: Api, server: Server):
    before = samples_of(server)
    image = encoded(picture(1000, 500))
    response = api.post(data=image, headers={"X-Segment-Mask": "rle"})
    api.post(data=b"text", headers={"Accept": "image/png"})

    def counted(name: str, **labels: str) -> float:
        return total(samples_of(server), name, **labels) - total(before, name, **labels)

    wait_for(lambda: counted("segserve_request_seconds_count") == 2, timeout_s=30)
    assert counted("segserve_requests_total", status="200", encoding="rle", error="none") == 1
    assert (
        counted(
            "segserve_requests_total", status="415", encoding="image/png", error="image_unsupported"
        )
        == 1
    )
    assert counted("ts_inference_requests_total") == 2
    assert counted("segserve_stage_seconds_count", stage="decode") == 2
    assert counted("segserve_stage_seconds_count", stage="inference") == 1
    assert counted("segserve_image_megapixels_sum") == pytest.approx(0.5)
    assert counted("segserve_image_bytes_total") == len(image) + len(b"text")
    assert counted("segserve_answer_bytes_total") > len(response.content)
    assert counted("segserve_batch_size_sum") == 2
    assert (
        counted("segserve_confidence_ratio_count") == counted("segserve_entropy_ratio_count") == 1
    )
    assert counted("segserve_class_coverage_total") == pytest.approx(1)


def test_metrics_histograms_have_the_same_buckets(server: Server):
    bounds: dict[str, set[str]] = {}
    for name, labels, _ in samples_of(server):
        if name.endswith("_bucket") and not name.startswith("segserve_gateway_"):
            bounds.setdefault(name, set()).add(str(float(labels["le"])))
    assert bounds.keys() == {
        sample_names(metric)[0] for metric in OWN if metric.kind is Kind.HISTOGRAM
    }
    assert len({frozenset(each) for each in bounds.values()}) == 1


def test_metrics_of_memory_are_those_of_the_worker(server: Server):
    assert 2**28 < total(samples_of(server), "segserve_memory_bytes") < 2**34
    assert total(samples_of(server), "segserve_worker_starts_total") >= 1
