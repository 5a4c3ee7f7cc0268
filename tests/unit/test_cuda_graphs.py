"""Graphs in place of a network: which are recorded and shared, and what happens where they fail.

What replaces CUDA here records as it does: every graph has one piece of memory for its input and
one for its output, and a concurrent replay would get the other's. On a GPU, `torch.cuda` records.
"""

import logging
import threading
import time
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from segserve.runtime.acceleration import cuda
from segserve.runtime.acceleration.cuda import GraphedNetwork
from segserve.runtime.inference import segmenter as segmenter_module
from segserve.runtime.inference.segmenter import Segmenter, load_with_failover
from segserve.runtime.settings import Acceleration, Settings

from .images import smooth
from .tiny import tiny_network, tiny_record

LOST = torch.AcceleratorError("CUDA error: unspecified launch failure")


class Twice:
    """A network, and how often it was at work itself."""

    def __init__(self) -> None:
        self.calls, self.error = 0, None

    def __call__(self, inputs):
        self.calls += 1
        if self.error is not None:
            raise self.error
        return 2 * inputs


class StaticMemory:
    """Records and replays any network on the CPU."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.off_by = self.takes_s = 0.0
        self.recorded: list[tuple[Hashable, int]] = []
        self.replayed: list[int] = []
        self.streams = threading.local()

    def stream_key(self, _inputs) -> Hashable:
        return getattr(self.streams, "number", 0)

    def record(self, network, inputs):
        self.recorded.append((self.stream_key(inputs), len(inputs)))
        if self.error is not None:
            raise self.error
        given, gave = torch.empty_like(inputs), torch.empty_like(network(inputs))

        def replay(inputs):
            self.replayed.append(len(inputs))
            given.copy_(inputs)
            time.sleep(self.takes_s)
            gave.copy_(network(given) + self.off_by)
            time.sleep(self.takes_s)
            return gave.clone()

        return replay


@pytest.fixture
def recorder(monkeypatch) -> StaticMemory:
    recorder = StaticMemory()
    monkeypatch.setattr(cuda, "_recorded", recorder.record)
    monkeypatch.setattr(cuda, "_stream_key", recorder.stream_key)
    return recorder


def send(network: GraphedNetwork, *sizes: int) -> None:
    """Runs inputs of so many rows one after the other, each with other values, and checks what
    it gets.
    """
    for size in sizes:
        inputs = torch.randn(size, 3)
        assert torch.equal(network(inputs), 2 * inputs)


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_graphed_network_records_the_first_shapes_once_and_replays_them(recorder, monkeypatch):
    monkeypatch.setattr(cuda, "_GRAPHS", 2)
    send(GraphedNetwork(Twice()), 4, 4, 5, 6, 4, 6, 5)
    assert recorder.recorded == [(0, 4), (0, 5)]
    assert recorder.replayed == [4, 4, 4, 5, 5, 4, 5]  # once more for the comparison


def test_graphed_network_has_graphs_for_every_stream(recorder):
    graphed = GraphedNetwork(Twice())
    for stream_key in (0, 0, 1, 0, 1):
        recorder.streams.number = stream_key
        send(graphed, 4)
    assert recorder.recorded == [(0, 4), (1, 4)]


def test_graphed_network_in_threads_of_one_stream_gives_each_its_own(recorder):
    recorder.takes_s = 0.002
    graphed = GraphedNetwork(Twice())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: send(graphed, 4), range(40)))
    assert recorder.recorded == [(0, 4)]
    assert len(recorder.replayed) == 41  # once for comparison


def test_graphed_network_gives_what_later_replays_do_not_change(recorder):
    graphed = GraphedNetwork(Twice())
    first = graphed(torch.ones(4, 3))
    send(graphed, 4)
    assert torch.equal(first, torch.full((4, 3), 2.0))


@pytest.mark.parametrize(
    ("error", "off_by", "why"),
    [
        (
            RuntimeError("operation not permitted\n when capturing"),
            0,
            "RuntimeError: operation not",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), 0, "OutOfMemoryError: CUDA out of memory."),
        (LOST, 0, "AcceleratorError: CUDA error: unspecified launch failure"),
        (None, 1, "ValueError: its logits differ by"),
        (None, float("nan"), "ValueError: its logits differ by nan"),
    ],
    ids=["capture fails", "no memory", "CUDA fails in a capture", "other logits", "no numbers"],
)
def test_graphed_network_whose_graphs_fail_does_without_from_then_on_and_warns_once(
    recorder, error, off_by, why, caplog
):
    recorder.error, recorder.off_by = error, off_by
    send(GraphedNetwork(Twice()), 4, 4, 5, 5)
    assert recorder.recorded == [(0, 4)]
    (warning,) = warnings(caplog)
    assert warning.startswith(f"the network runs without CUDA graphs, which is slower: {why}")


def test_graphed_network_without_memory_for_the_image_itself_raises_and_works_later(
    recorder, caplog
):
    network, full = Twice(), torch.OutOfMemoryError("CUDA out of memory.")
    recorder.error = network.error = full
    graphed = GraphedNetwork(network)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        graphed(torch.ones(4, 3))
    assert len(warnings(caplog)) == 1
    network.error = None
    send(graphed, 4)


@pytest.mark.parametrize(
    "options", [{}, {"mode": "slide", "tta": "flip"}], ids=["whole", "in tiles"]
)
def test_segmenter_through_graphs_gives_the_labels_that_it_gives_without(recorder, options):
    network = tiny_network(tiny_record())
    settings, cpu = Settings(precision="fp32"), torch.device("cpu")
    plain, graphed = (
        Segmenter(network, tiny_record(), device=cpu, settings=settings) for _ in range(2)
    )
    graphed._network = GraphedNetwork(network)
    images = [smooth(120, 160), smooth(120, 160)[::-1].copy(), smooth(160, 120)]
    for image in (*images, *images):
        expected = plain.segment(image, **options)
        got = graphed.segment(image, **options)
        assert np.array_equal(got.label_map, expected.label_map)
        assert got.classes == expected.classes
    assert recorder.recorded


@pytest.mark.parametrize("is_on", [False, True], ids=["default", "on"])
def test_graphs_and_streams_on_a_gpu_are_used_only_if_the_settings_say_so(monkeypatch, is_on):
    """Nothing here computes on a GPU: the tensors stay on the CPU."""
    gpu, network = torch.device("cuda", 0), tiny_network(tiny_record())
    monkeypatch.setattr(segmenter_module, "CudaStreams", lambda device: f"streams of {device}")
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_args, **_options: module)
    monkeypatch.setattr(torch, "tensor", lambda values, device: torch.Tensor(values))
    given = {"acceleration": {"cuda_graphs": True, "cuda_streams": True}} if is_on else {}
    settings = Settings.model_validate({"precision": "fp32", **given})
    segmenter = Segmenter(network, tiny_record(), device=gpu, settings=settings)
    assert segmenter._streams == ("streams of cuda:0" if is_on else None)
    assert isinstance(segmenter._network, GraphedNetwork) == is_on


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_segmenter_on_a_gpu_through_graphs_from_many_threads_gives_the_labels_of_the_cpu(
    tiny_model, precision, caplog
):
    acceleration = Acceleration(cuda_graphs=True, cuda_streams=True)
    settings = Settings(precision=precision, acceleration=acceleration)
    segmenter = load_with_failover(tiny_model, device=torch.device("cuda", 0), settings=settings)
    cpu = Segmenter.load(tiny_model, settings=Settings(precision="fp32"))
    images = [
        smooth(120, 160),
        smooth(120, 160)[::-1].copy(),
        smooth(160, 120),
        smooth(64, 64),
    ] * 16
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: segmenter.segment(image).label_map, images))
    for image, label_map in zip(images, found, strict=True):
        assert (label_map == cpu.segment(image).label_map).mean() > (
            0.99 if precision == "fp32" else 0.95
        )
    assert segmenter.device.type == "cuda"
    graphed = segmenter._segmenter._network
    assert isinstance(graphed, GraphedNetwork)
    assert len(graphed._graphs) > 1
    assert warnings(caplog) == []
