"""Compares the throughput of Ray Serve and TorchServe over HTTP: `python -m bench.engines`.

Both serve the same archive on this machine. Eight clients send requests to one server and then to
the other, in alternating rounds, so that a drift of the machine's speed affects both equally. The
ratio is the median of the rounds' ratios. The idle server computes nothing.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path

from bench.images import photographs
from segserve.archive import build_archive
from segserve.client import SegmentationClient
from segserve.engines import EngineName
from segserve.gateway.background import Server
from segserve.resources import resource

CLIENTS = 8
READY_S = 600


def main() -> None:
    arguments = _arguments()
    images = list(islice(cycle(photographs()), arguments.images))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        archive = build_archive(resource(f"model/{arguments.model}"), folder)
        clients = {
            engine: _client(engine, archive, folder / engine, stack) for engine in EngineName
        }
        for client in clients.values():
            _images_a_second(client, images[:CLIENTS])  # warm-up
        rounds = [
            {engine: _images_a_second(client, images) for engine, client in clients.items()}
            for _ in range(arguments.rounds)
        ]
    _report(rounds, arguments.images)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--images", type=int, default=200, help="in a round of each")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def _client(engine: str, archive: Path, run_dir: Path, stack: ExitStack) -> SegmentationClient:
    """Starts a server and returns its client. The stack ends both."""
    server = stack.enter_context(Server.start([archive], run_dir, engine=engine))
    server.wait_ready(READY_S)
    return stack.enter_context(
        SegmentationClient(
            server.inference_url,
            token=server.inference_token,
            model=server.models[0],
            pool_size=CLIENTS,
            timeout_s=600,
        )
    )


def _images_a_second(client: SegmentationClient, images: Sequence[bytes]) -> float:
    began_s = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as threads:
        list(threads.map(lambda image: client.segment_raw(image, mask="png"), images))
    return len(images) / (time.perf_counter() - began_s)


def _report(rounds: Sequence[Mapping[EngineName, float]], images: int) -> None:
    print(f"{images} images a round, {CLIENTS} clients, {len(rounds)} rounds")
    for engine in EngineName:
        print(f"{engine:12}{statistics.median(each[engine] for each in rounds):6.1f} images/s")
    ratio = statistics.median(each[EngineName.RAY] / each[EngineName.TORCHSERVE] for each in rounds)
    print(f"Ray Serve to TorchServe: {ratio:.2f}")


if __name__ == "__main__":
    main()
