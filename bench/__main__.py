"""Compares the served model with a plain loop over the same network and the same images, in one run.

Rounds of both alternate, so that a machine whose speed drifts favours neither; each figure is the median of the
rounds, each ratio the median of the rounds' ratios. Absolute figures of a shared machine mean little.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import get_args

import torch

from bench.images import photographs
from bench.memory import peak_worker_bytes
from segserve.archive import build_archive
from segserve.client import SegmentationClient
from segserve.resources import resource
from segserve.runtime.image import decode_image
from segserve.runtime.options import MaskEncoding
from segserve.runtime.segmenter import Segmenter
from segserve.server.process import TorchServe

CLIENTS = 8
LATENCY_REQUESTS = 50
MAX_PIXELS = 2**24


@dataclass(frozen=True)
class Round:
    """Images a second: the network alone, the plain loop from file to label map, and eight clients' requests."""

    network: float
    plain: float
    served: float


def main() -> None:
    arguments = _arguments()
    images = photographs()
    segmenter = Segmenter.load(resource(f"model/{arguments.model}"))
    with tempfile.TemporaryDirectory() as folder:
        archive = build_archive(resource(f"model/{arguments.model}"), Path(folder))
        with TorchServe.start([archive], Path(folder) / "run") as server:
            server.wait_ready()
            with SegmentationClient(server.inference_url, token=server.inference_token, model=archive.stem) as client:

                def send(image: bytes) -> None:
                    client.answer(image, mask=arguments.mask)

                latency_ms, plain_ms = _latencies_ms(segmenter, send, images)
                rounds = [_round(segmenter, send, images, arguments.images) for _ in range(arguments.rounds)]
            _report(latency_ms, plain_ms, rounds, peak_worker_bytes(server.pid), arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--mask", default="png", choices=get_args(MaskEncoding))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=80, help="images of each kind in a round")
    return parser.parse_args()


def _latencies_ms(
    segmenter: Segmenter, send: Callable[[bytes], None], images: Sequence[bytes]
) -> tuple[list[float], list[float]]:
    """Milliseconds of sequential requests, and of the plain loop on the same images, in turn."""
    served, plain = [], []
    for image in islice(cycle(images), LATENCY_REQUESTS):
        served.append(1000 * _seconds(lambda image=image: send(image)))
        plain.append(1000 * _seconds(lambda image=image: _label_map(segmenter, image)))
    return served, plain


def _round(segmenter: Segmenter, send: Callable[[bytes], None], images: Sequence[bytes], count: int) -> Round:
    queue = list(islice(cycle(images), count))
    with torch.inference_mode():
        ready = [segmenter.preprocess(decode_image(image, max_pixels=MAX_PIXELS)) for image in images]
        network_s = _seconds(lambda: [segmenter.infer(inputs) for inputs in islice(cycle(ready), count)])
    plain_s = _seconds(lambda: [_label_map(segmenter, image) for image in queue])
    with ThreadPoolExecutor(CLIENTS) as pool:
        served_s = _seconds(lambda: list(pool.map(send, queue)))
    return Round(count / network_s, count / plain_s, count / served_s)


def _label_map(segmenter: Segmenter, image: bytes) -> object:
    return segmenter.segment(decode_image(image, max_pixels=MAX_PIXELS)).label_map


def _seconds(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def _report(
    latency_ms: list[float], plain_ms: list[float], rounds: list[Round], peak_bytes: int, arguments: argparse.Namespace
) -> None:
    served, plain, network = (
        statistics.median(getattr(item, name) for item in rounds) for name in ("served", "plain", "network")
    )
    to_plain = statistics.median(item.served / item.plain for item in rounds)
    to_network = statistics.median(item.served / item.network for item in rounds)
    one_ms, loop_ms = statistics.median(latency_ms), statistics.median(plain_ms)
    print(
        f"model {arguments.model}, mask={arguments.mask}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    print(f"one client, {len(latency_ms)} sequential requests: median {one_ms:.1f} ms a request")
    print(f"plain loop, the same images in turn with them:  median {loop_ms:.1f} ms; ratio {one_ms / loop_ms:.2f}")
    print(f"network alone, ready tensors:                   {network:.1f} images/s")
    print(f"plain loop, from file to label map:             {plain:.1f} images/s")
    print(f"{CLIENTS} clients at once:                              {served:.1f} images/s")
    print(f"{CLIENTS} clients to plain loop: {to_plain:.2f}; to the network alone: {to_network:.2f}")
    print(f"peak memory of the worker: {peak_bytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
