"""A GPU that fails: while it serves, and before it could."""

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from segserve.runtime.errors import OutOfMemoryError
from segserve.runtime.inference.segmenter import FailoverSegmenter, Segmenter, load_with_failover
from segserve.runtime.pipeline import Pipeline
from segserve.runtime.settings import Settings

from .images import encoded, smooth
from .tiny import tiny_network, tiny_record

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
FP32 = Settings(precision="fp32")
IMAGE = smooth(40, 60)
LOST = torch.AcceleratorError(
    "CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later"
)
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


class Breaking(torch.nn.Module):
    """A network whose device works for some images and then always raises."""

    def __init__(self, error: Exception, *, after: int = 0, together: int = 1) -> None:
        super().__init__()
        self.network, self.error, self.after = tiny_network(tiny_record()), error, after
        self.calls = 0
        self.everybody = threading.Barrier(together, timeout=10)

    def forward(self, inputs):
        self.calls += 1
        if self.calls <= self.after:
            return self.network(inputs)
        self.everybody.wait()
        raise self.error


class Loads:
    """Loads the plain model on the CPU, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Segmenter:
        self.count += 1
        return segmenter_of(tiny_network(tiny_record()))


def segmenter_of(network: torch.nn.Module, *, called: torch.device = CPU) -> Segmenter:
    """A segmenter on the CPU, which takes itself to be on another device where that is `called`
    so.
    """
    segmenter = Segmenter(network, tiny_record(), device=CPU, settings=FP32)
    segmenter.device = called
    return segmenter


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return Loads()().segment(IMAGE).label_map


def test_segment_on_a_device_that_breaks_is_computed_by_the_cpu_then_and_later(expected, caplog):
    network, loads = Breaking(LOST, after=1), Loads()
    segmenter = FailoverSegmenter(segmenter_of(network), loads)
    for _ in range(4):
        assert np.array_equal(segmenter.segment(IMAGE).label_map, expected)
    assert (network.calls, loads.count) == (2, 1)
    assert warnings(caplog) == [
        "cpu failed: the CPU computes from now on, which is slower, until the worker restarts: "
        "AcceleratorError: "
        "CUDA error: unspecified launch failure CUDA kernel errors might be reported later"
    ]


def test_segment_in_threads_that_see_the_device_break_at_once_loads_once(expected, caplog):
    network, loads = Breaking(LOST, together=4), Loads()
    segmenter = FailoverSegmenter(segmenter_of(network), loads)
    with ThreadPoolExecutor(4) as pool:
        segmentations = list(pool.map(segmenter.segment, [IMAGE] * 4))
    assert network.calls == 4
    assert all(np.array_equal(segmentation.label_map, expected) for segmentation in segmentations)
    assert (loads.count, len(warnings(caplog))) == (1, 1)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            OutOfMemoryError,
        ),
        (torch.AcceleratorError("CUDA error: out of memory"), OutOfMemoryError),
        (RuntimeError("The size of tensor a must match"), RuntimeError),
    ],
    ids=["memory", "memory, as CUDA says it", "a fault of ours"],
)
def test_segment_that_fails_otherwise_stays_on_the_device(error, raised, caplog):
    network, loads = Breaking(error), Loads()
    segmenter = FailoverSegmenter(segmenter_of(network), loads)
    for _ in range(2):
        with pytest.raises(raised, match=r"memory|size"):
            segmenter.segment(IMAGE)
    assert (network.calls, loads.count, warnings(caplog)) == (2, 0, [])


def test_segment_where_the_cpu_has_no_memory_for_the_model_tries_again_with_the_next(expected):
    loads, chances = Loads(), iter([MemoryError, None])

    def load() -> Segmenter:
        if error := next(chances):
            raise error
        return loads()

    segmenter = FailoverSegmenter(segmenter_of(Breaking(LOST)), load)
    with pytest.raises(MemoryError):
        segmenter.segment(IMAGE)
    assert np.array_equal(segmenter.segment(IMAGE).label_map, expected)


@without_gpu
def test_pipeline_on_a_gpu_that_is_gone_uses_and_describes_the_cpu(caplog):
    gone = segmenter_of(
        tiny_network(tiny_record()), called=GPU
    )  # the upload is what fails, with torch's own error
    pipeline = Pipeline(FailoverSegmenter(gone, Loads()), FP32)
    assert json.loads(pipeline.describe().body)["device"] == "cuda:0"
    row = {"body": encoded(IMAGE)}
    assert pipeline.respond(row, {}).body == Pipeline(Loads()(), FP32).respond(row, {}).body
    assert json.loads(pipeline.describe().body)["device"] == "cpu"
    (warning,) = warnings(caplog)
    assert warning.startswith("cuda:0 failed: the CPU computes from now on")


def test_failover_segmenter_plans_as_its_segmenter():
    plain = Loads()()
    steady = FailoverSegmenter(plain, Loads())
    assert steady.record is plain.record
    assert steady.precision == plain.precision
    assert steady.plan(500, 300, mode="slide", tta="flip") == plain.plan(
        500, 300, mode="slide", tta="flip"
    )
    assert steady.needed_hw(5000, 300, tta="multiscale") == plain.needed_hw(
        5000, 300, tta="multiscale"
    )
    assert steady.costs(500, 300) == plain.costs(500, 300)


@without_gpu
def test_load_with_failover_on_a_gpu_that_is_not_there_is_on_the_cpu_with_one_warning(
    tiny_model, tiny_segmenter, caplog
):
    segmenter = load_with_failover(tiny_model, device=GPU, settings=FP32)
    assert isinstance(segmenter, Segmenter)
    assert segmenter.device == CPU
    assert np.array_equal(
        segmenter.segment(IMAGE).label_map, tiny_segmenter.segment(IMAGE).label_map
    )
    (warning,) = warnings(caplog)
    assert warning.startswith("cuda:0 failed: the CPU computes from now on")
    assert "NVIDIA" in warning or "CUDA" in warning


@pytest.mark.parametrize(
    "error", [LOST, torch.OutOfMemoryError("CUDA out of memory.")], ids=["broken", "full"]
)
def test_load_with_failover_whose_gpu_fails_at_the_first_image_is_on_the_cpu(
    tiny_model, monkeypatch, caplog, error
):
    load = Segmenter.of

    def of(network, record, *, device, settings):
        if device.type == "cuda":
            return segmenter_of(Breaking(error))  # what loads, and cannot compute
        return load(network, record, device=device, settings=settings)

    monkeypatch.setattr(Segmenter, "of", of)
    segmenter = load_with_failover(tiny_model, device=GPU, settings=FP32)
    assert isinstance(segmenter, Segmenter)
    assert segmenter.segment(IMAGE).label_map.shape == (40, 60)
    assert len(warnings(caplog)) == 1


def test_load_with_failover_on_the_cpu_is_a_plain_segmenter(tiny_model, caplog):
    assert type(load_with_failover(tiny_model, device=CPU, settings=FP32)) is Segmenter
    assert warnings(caplog) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_load_with_failover_on_a_gpu_computes_there(tiny_model, tiny_segmenter, caplog):
    segmenter = load_with_failover(tiny_model, device=GPU, settings=FP32)
    assert segmenter.device == GPU
    assert (
        segmenter.segment(IMAGE).label_map == tiny_segmenter.segment(IMAGE).label_map
    ).mean() > 0.99
    assert warnings(caplog) == []
