"""Graphs in place of a network: which are recorded, kept and shared, and what happens where they
fail.

What stands for CUDA here records as it does: every graph has one piece of memory for its input and
    one for its output,
and a concurrent replay would get the other's. On a GPU, `torch.cuda` itself records.
"""

import logging
import threading
import time
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from segserve.runtime.acceleration.cuda import GraphedNetwork
from segserve.runtime.inference import segmenter as segmenter_module
from segserve.runtime.inference.failover import load_with_failover
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.settings import Acceleration, Settings

from .images import smooth
from .tiny import tiny_network, tiny_record

LOST = torch.AcceleratorError("CUDA error: unspecified launch failure")


class Twice:
    """A network, and how often it was at work itself."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls, self.error = 0, error

    def __call__(self, inputs):
        self.calls += 1
        if self.error is not None:
            raise self.error
        return 2 * inputs


class StaticMemory:
    """Records and replays on the CPU."""

    def __init__(
        self, *, error: Exception | None = None, off_by: float = 0.0, takes_s: float = 0.0
    ) -> None:
        self.error, self.off_by, self.takes_s = error, off_by, takes_s
        self.recorded: list[tuple[Hashable, int]] = []
        self.replayed: list[int] = []
        self.stream_keys = threading.local()

    def stream_key(self) -> Hashable:
        return getattr(self.stream_keys, "number", 0)

    def record(self, network, inputs):
        self.recorded.append((self.stream_key(), len(inputs)))
        if self.error is not None:
            raise self.error
        given, gave = torch.empty_like(inputs), torch.empty_like(inputs)

        def replay(inputs):
            self.replayed.append(len(inputs))
            given.copy_(inputs)
            time.sleep(self.takes_s)
            gave.copy_(2 * given + self.off_by)
            time.sleep(self.takes_s)
            return gave.clone()

        return replay


def send(network: GraphedNetwork, *sizes: int) -> None:
    """Runs inputs of so many rows one after the other, each with other values, and checks what
    it gets.
    """
    for size in sizes:
        inputs = torch.randn(size, 3)
        assert torch.equal(network(inputs), 2 * inputs)


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_graphed_network_records_a_shape_when_it_comes_again_and_replays_it_from_then_on():
    network, recorder = Twice(), StaticMemory()
    graphed = GraphedNetwork(network, recorder)
    send(graphed, 4)
    assert (network.calls, recorder.recorded) == (1, [])
    send(graphed, 4)
    assert recorder.recorded == [(0, 4)]
    calls = network.calls
    send(graphed, 4, 4, 5, 4)
    assert network.calls == calls + 1  # for the one that was new
    assert recorder.recorded == [(0, 4)]


def test_graphed_network_lets_the_graph_go_that_was_used_longest_ago():
    recorder = StaticMemory()
    graphed = GraphedNetwork(Twice(), recorder, most=2)
    send(graphed, 1, 1, 2, 2, 1, 3, 3)  # 2 goes
    send(graphed, 1, 3)
    assert recorder.recorded == [(0, 1), (0, 2), (0, 3)]
    send(graphed, 2)
    assert recorder.recorded[3:] == [(0, 2)]


def test_graphed_network_has_graphs_for_every_stream():
    recorder = StaticMemory()
    graphed = GraphedNetwork(Twice(), recorder, most=1)
    for stream_key in (0, 0, 1, 0, 1):
        recorder.stream_keys.number = stream_key
        send(graphed, 4)
    assert recorder.recorded == [(0, 4), (1, 4)]


def test_graphed_network_in_threads_of_one_stream_gives_each_its_own():
    recorder = StaticMemory(takes_s=0.002)
    graphed = GraphedNetwork(Twice(), recorder)
    send(graphed, 4)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: send(graphed, 4), range(40)))
    assert recorder.recorded == [(0, 4)]
    assert len(recorder.replayed) == 41  # once for comparison


def test_graphed_network_gives_what_later_replays_do_not_change():
    graphed = GraphedNetwork(Twice(), StaticMemory())
    send(graphed, 4, 4)
    first = graphed(torch.ones(4, 3))
    send(graphed, 4)
    assert torch.equal(first, torch.full((4, 3), 2.0))


@pytest.mark.parametrize(
    ("recorder", "why"),
    [
        (
            StaticMemory(error=RuntimeError("operation not permitted\n when capturing")),
            "RuntimeError: operation not",
        ),
        (
            StaticMemory(error=torch.OutOfMemoryError("CUDA out of memory.")),
            "OutOfMemoryError: CUDA out of memory.",
        ),
        (StaticMemory(error=LOST), "AcceleratorError: CUDA error: unspecified launch failure"),
        (StaticMemory(off_by=1), "ValueError: its logits differ by up to 1, of"),
        (StaticMemory(off_by=float("nan")), "ValueError: its logits differ by up to nan, of"),
    ],
    ids=["capture fails", "no memory", "CUDA fails in a capture", "other logits", "no numbers"],
)
def test_graphed_network_whose_graphs_fail_does_without_from_then_on_and_warns_once(
    recorder, why, caplog
):
    network = Twice()
    graphed = GraphedNetwork(network, recorder)
    send(graphed, 4, 4, 4, 5, 5)
    assert recorder.recorded == [(0, 4)]
    (warning,) = warnings(caplog)
    assert warning.startswith(f"the network runs without CUDA graphs, which is slower: {why}")


def test_graphed_network_without_memory_for_the_image_itself_warns_of_the_graphs_and_raises(caplog):
    network, full = Twice(), torch.OutOfMemoryError("CUDA out of memory.")
    graphed = GraphedNetwork(network, StaticMemory(error=full))
    send(graphed, 4)
    network.error = full
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        graphed(torch.ones(4, 3))
    assert len(warnings(caplog)) == 1
    network.error = None
    send(graphed, 4)


def test_graphed_network_on_a_broken_device_raises_and_warns_of_nothing_itself(caplog):
    network = Twice()
    graphed = GraphedNetwork(network, StaticMemory(error=LOST))
    send(graphed, 4)
    network.error = LOST
    with pytest.raises(torch.AcceleratorError, match="unspecified launch failure"):
        graphed(torch.ones(4, 3))
    assert warnings(caplog) == []


class Recorded(StaticMemory):
    """Any network, recorded on the CPU."""

    def record(self, network, inputs):
        self.recorded.append((self.stream_key(), len(inputs)))
        given, gave = torch.empty_like(inputs), torch.empty_like(network(inputs))

        def replay(inputs):
            gave.copy_(network(given.copy_(inputs)))
            return gave.clone()

        return replay


@pytest.mark.parametrize(
    "options", [{}, {"mode": "slide", "tta": "flip"}], ids=["whole", "in tiles"]
)
def test_segmenter_through_graphs_gives_the_labels_that_it_gives_without(options):
    network, recorder = tiny_network(tiny_record()), Recorded()
    settings, cpu = Settings(precision="fp32"), torch.device("cpu")
    plain, graphed = (
        Segmenter(network, tiny_record(), device=cpu, settings=settings) for _ in range(2)
    )
    graphed._network = GraphedNetwork(network, recorder)
    images = [smooth(120, 160), smooth(120, 160)[::-1].copy(), smooth(160, 120)]
    for image in (*images, *images):
        expected = plain.segment(image, **options)
        got = graphed.segment(image, **options)
        assert np.array_equal(got.label_map, expected.label_map)
        assert got.classes == expected.classes
    assert recorder.recorded


@pytest.mark.parametrize("is_on", [False, True], ids=["default", "on"])
def test_graphs_and_streams_on_a_gpu_are_used_only_if_the_settings_say_so(monkeypatch, is_on):
    """Nothing here computes on a GPU: the two classes are replaced."""
    monkeypatch.setattr(segmenter_module, "CudaStreams", lambda device: f"streams of {device}")
    monkeypatch.setattr(segmenter_module, "CudaRecorder", lambda device: f"recorder of {device}")
    given = {"acceleration": {"cuda_graphs": True, "cuda_streams": True}} if is_on else {}
    settings, gpu, network = Settings.model_validate(given), torch.device("cuda", 0), Twice()
    streams = segmenter_module._streams(gpu, settings)
    graphed = segmenter_module._with_graphs(network, gpu, settings)
    assert streams == ("streams of cuda:0" if is_on else None)
    assert isinstance(graphed, GraphedNetwork) == is_on
    assert (graphed is network) != is_on


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
    assert sum(map(len, graphed._graphs_by_stream.values())) > 1
    assert warnings(caplog) == []
