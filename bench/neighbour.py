"""Measures the latency of one image while other processes use the CPU: `python -m bench.neighbour`.

    python -m bench.neighbour             one process, by number of threads and wait policy
    python -m bench.neighbour --server    requests to a server: one client, and 8 clients

A photograph is segmented repeatedly, while 0, 1 and 2 other processes compute continuously.
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from timeit import repeat
from typing import Annotated
from unittest.mock import patch

import typer

from bench.serving.load import send_all
from bench.serving.peers.ours import gateway_to, ready_server
from segserve.archive import build_archive
from segserve.fetch import model_named
from segserve.resources import sample_photograph

WAITING = {
    "as libgomp has it": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=2000": {"GOMP_SPINCOUNT": "2000"},
}
NEIGHBOURS = (0, 1, 2)
CLIENTS = 8
WARM_UP = 5


def main(
    model: Annotated[str, typer.Option(help="a name in model/, or a folder")] = "embedded",
    rounds: int = 40,
    server: Annotated[bool, typer.Option("--server", help="measure a server")] = False,
) -> None:
    folder = model_named(model)
    if server:
        measure_server(folder, rounds)
        return
    print(f"| threads | waiting | {' | '.join(f'{count} neighbours' for count in NEIGHBOURS)} |")
    print("|---:|---|" + "---:|" * len(NEIGHBOURS))
    for threads in (1, os.cpu_count() or 1):
        for name, environment in WAITING.items() if threads > 1 else [("-", {})]:
            cells = []
            for count in NEIGHBOURS:
                with neighbours(count):
                    cells.append(f"{measure(folder, threads, environment, rounds):.0f} ms")
            print(f"| {threads} | {name} | {' | '.join(cells)} |", flush=True)


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Runs `count` processes that compute continuously."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure_server(folder: Path, requests: int) -> None:
    """Prints the median of one client, and throughput and 99th percentile of 8 clients, which send
    4 times as many requests.
    """
    images = [sample_photograph("chelsea.png")]
    with (
        tempfile.TemporaryDirectory() as name,
        ready_server(build_archive(folder, Path(name)), Path(name) / "run") as server,
    ):
        gateway = gateway_to(server)
        send_all(gateway, images * 40, clients=CLIENTS)  # warm-up
        quiet: list[float] = []
        for count in NEIGHBOURS:
            with neighbours(count):
                one = send_all(gateway, images * requests, clients=1)
                many = send_all(gateway, images * 4 * requests, clients=CLIENTS)
            figures = [one.median_ms(), many.images_a_second(), many.p99_ms()]
            quiet = quiet or figures
            ratios = [own / alone for own, alone in zip(figures, quiet, strict=True)]
            print(
                f"{count} neighbours: one client {figures[0]:.0f} ms ({ratios[0]:.2f} x), "
                f"{CLIENTS} clients {figures[1]:.1f} images/s ({ratios[1]:.2f} x), "
                f"p99 {figures[2]:.0f} ms ({ratios[2]:.2f} x)",
                flush=True,
            )


def measure(folder: Path, threads: int, environment: dict[str, str], rounds: int) -> float:
    """The median latency in milliseconds, in a new process with these variables."""
    with (
        patch.dict(os.environ, environment),
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process,
    ):
        return process.submit(median_ms, folder, threads, rounds).result()


def median_ms(folder: Path, threads: int, rounds: int) -> float:
    import torch

    from segserve.runtime.decode.image import decode_image
    from segserve.runtime.inference.segmenter import Segmenter

    torch.set_num_threads(threads)
    segmenter = Segmenter.load(folder)
    image_rgb = decode_image(sample_photograph("chelsea.png").read_bytes(), max_pixels=2**24)
    times_s = repeat(lambda: segmenter.segment(image_rgb), number=1, repeat=rounds + WARM_UP)
    return 1000 * statistics.median(times_s[WARM_UP:])


if __name__ == "__main__":
    typer.run(main)
