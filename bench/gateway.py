"""Measures what the gateway costs: requests through it against requests to its TorchServe directly.

    python -m bench.gateway [--images 100] [--rounds 5]

Both ways lead to the same TorchServe and worker. The rounds alternate between them; the result is
the median of the rounds.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

from bench.images import photographs
from segserve.archive import build_archive
from segserve.client import SegmentationClient
from segserve.engines.torchserve.config import read_properties
from segserve.engines.torchserve.process import CONFIG_FILE, KEY_FILE
from segserve.gateway import ENGINE_FOLDER
from segserve.gateway.background import Server
from segserve.resources import resource

CLIENTS = 8


def main() -> None:
    arguments = _arguments()
    images = list(islice(cycle(photographs()), arguments.images))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = build_archive(resource("model/embedded"), folder)
        with Server.start([archive], folder / "run") as server:
            server.wait_ready(300)
            ways = {
                "direct": _direct(folder / "run" / ENGINE_FOLDER),
                "gateway": _client(server.inference_url, server.inference_token),
            }
            for client in ways.values():
                _images_a_second(client, images[:20])  # warm-up
            _report("median of one client, ms", ways, images, arguments.rounds, _median_ms)
            _report("8 clients, images/s", ways, images, arguments.rounds, _images_a_second)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100, help="images of a round")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def _direct(engine_folder: Path) -> SegmentationClient:
    """A client of the TorchServe behind the gateway, by the files in its folder."""
    url = read_properties(engine_folder / CONFIG_FILE)["inference_address"]
    tokens = json.loads((engine_folder / KEY_FILE).read_text(encoding="utf-8"))
    return _client(url, tokens["inference"]["key"])


def _client(url: str, token: str | None) -> SegmentationClient:
    return SegmentationClient(url, token=token, pool_size=CLIENTS)


def _median_ms(client: SegmentationClient, images: Sequence[bytes]) -> float:
    durations_s = []
    for image in images:
        began_s = time.perf_counter()
        client.segment_raw(image, mask="png")
        durations_s.append(time.perf_counter() - began_s)
    return 1000 * statistics.median(durations_s)


def _images_a_second(client: SegmentationClient, images: Sequence[bytes]) -> float:
    began_s = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as threads:
        list(threads.map(lambda image: client.segment_raw(image, mask="png"), images))
    return len(images) / (time.perf_counter() - began_s)


def _report(
    title: str,
    ways: dict[str, SegmentationClient],
    images: Sequence[bytes],
    rounds: int,
    measure: Callable[[SegmentationClient, Sequence[bytes]], float],
) -> None:
    results: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        order = list(ways) if number % 2 else list(reversed(ways))
        for way in order:
            results[way].append(measure(ways[way], images))
    direct, gateway = (statistics.median(results[way]) for way in ("direct", "gateway"))
    pairs = zip(results["gateway"], results["direct"], strict=True)
    ratio = statistics.median(one / other for one, other in pairs)
    print(f"{title}: direct {direct:.1f}, gateway {gateway:.1f}, ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
