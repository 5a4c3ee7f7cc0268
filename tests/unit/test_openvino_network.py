"""The network compiled by OpenVINO, and what serves where it cannot be compiled."""

import logging
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from segserve.runtime.acceleration import openvino_model
from segserve.runtime.acceleration.verified import OpenVinoNetwork, cpu_network
from segserve.runtime.inference.segmenter import Segmenter, has_bf16
from segserve.runtime.network import build_network
from segserve.runtime.settings import Settings
from tests.conftest import PROJECT
from tests.unit.networks import ARCHITECTURES, randomised
from tests.unit.tiny import tiny_network, tiny_record


@pytest.fixture
def threads():
    """The threads of torch, as they were before the test."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@torch.inference_mode()
def test_compiled_network_of_any_architecture_gives_the_same_logits_at_any_size(architecture):
    network = randomised(build_network(architecture, num_classes=5))
    result = cpu_network(network, torch.float32)
    assert isinstance(result, OpenVinoNetwork)
    for height_px, width_px in ((96, 128), (160, 64), (33, 50)):
        image = torch.randn(2, 3, height_px, width_px)
        torch.testing.assert_close(result(image), network(image), rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="this processor has no bf16")
@torch.inference_mode()
def test_compiled_network_in_bf16_gives_the_labels_of_float32():
    network = tiny_network(tiny_record())
    image = torch.randn(1, 3, 256, 256)
    labels = cpu_network(network, torch.bfloat16)(image.bfloat16()).argmax(dim=1)
    assert (labels == network(image).argmax(dim=1)).float().mean() > 0.98


def test_compiled_network_gives_the_same_bits_on_every_number_of_threads(threads):
    torch.set_num_threads(3)
    network = cpu_network(tiny_network(tiny_record()), torch.float32)
    image = torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))

    def logits(count: int) -> torch.Tensor:
        torch.set_num_threads(count)
        with torch.inference_mode():
            return network(image)

    expected = logits(1)
    for count in (2, 3):
        torch.testing.assert_close(logits(count), expected, rtol=0, atol=0)


def test_compiled_network_gives_concurrent_callers_their_own_logits(threads):
    network = cpu_network(tiny_network(tiny_record()), torch.float32)
    images = [torch.full((1, 3, 64, 32 * size), size / 8) for size in range(1, 9)]

    def logits(image: torch.Tensor) -> torch.Tensor:
        torch.set_num_threads(1)
        with torch.inference_mode():
            return network(image)

    alone = [logits(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            torch.testing.assert_close(list(pool.map(logits, images)), alone, rtol=0, atol=0)


def test_compiled_network_leaves_the_network_as_it_was():
    network = tiny_network(tiny_record())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    cpu_network(network, torch.float32)
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no malloc_trim")
@torch.inference_mode()
def test_compiled_network_returns_freed_memory_once_for_each_new_shape(monkeypatch):
    network = OpenVinoNetwork(tiny_network(tiny_record()), torch.float32)
    trimmed = []
    library = SimpleNamespace(malloc_trim=trimmed.append)
    monkeypatch.setattr(openvino_model.ctypes, "CDLL", lambda _: library)
    openvino_model._release_buffers.cache_clear()
    for side_px in (64, 96, 64, 96, 96):
        network(torch.zeros(1, 3, 64, side_px))
    assert trimmed == [0, 0]


def test_compiling_opens_no_connection(monkeypatch):
    """OpenVINO's `convert_model` reports its use to a server of its makers."""

    def note_connection(*_: object) -> None:
        pytest.fail("a connection was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, note_connection)
    assert isinstance(cpu_network(tiny_network(tiny_record()), torch.float32), OpenVinoNetwork)


SIGNAL_AFTER_TWO_NETWORKS = """
import gc
import signal

import torch
from torch import nn

from segserve.runtime.acceleration import openvino_model
from segserve.runtime.acceleration.verified import OpenVinoNetwork

received = []
signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
network = nn.Conv2d(3, 5, 8, stride=8).eval().requires_grad_(False)
first, second = (OpenVinoNetwork(network, torch.float32) for _ in range(2))
del first
gc.collect()
del second
gc.collect()
signal.raise_signal(signal.SIGUSR1)
assert received
"""


def test_signal_after_two_networks_are_gone_is_handled():
    """The stack of signal handlers was freed memory, and the process ended with SIGSEGV."""
    command = [sys.executable, "-c", SIGNAL_AFTER_TWO_NETWORKS]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 16, stride=16)

    def forward(self, x):
        return self.conv(x)


class OfOneSize(Patches):
    """Its output has the size of the image that it was traced with."""

    def forward(self, x):
        height_px, width_px = (int(side) // 16 for side in x.shape[2:])
        return super().forward(x)[:, :, :height_px, :width_px]


@pytest.mark.parametrize(
    ("network", "missing", "reason"),
    [
        pytest.param(OfOneSize(), (), "depends on the size of the image", id="of one size"),
        pytest.param(Patches(), ("openvino.frontend",), "ModuleNotFoundError", id="not installed"),
    ],
)
def test_network_that_cannot_be_compiled_stays_as_it_is_with_one_warning(
    network, missing, reason, caplog, monkeypatch
):
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    with caplog.at_level(logging.WARNING):
        assert cpu_network(network.eval(), torch.float32) is network
    [record] = caplog.records
    assert record.message.startswith("the network runs without OpenVINO, which is slower: ")
    assert reason in record.message


def test_segmenter_that_may_not_fuse_gives_the_labels_of_one_that_does(tiny_model):
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    plain, quick = (
        Segmenter.load(tiny_model, settings=Settings(precision="fp32", fuse=fuse))
        for fuse in (False, True)
    )
    assert (plain.segment(image).label_map == quick.segment(image).label_map).mean() > 0.999
