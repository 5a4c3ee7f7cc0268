"""Measures the latency of one image while other processes use the CPU: `python -m bench.neighbour`.

    python -m bench.neighbour             one process, by number of threads and wait policy
    python -m bench.neighbour --server    requests to a server: one client, and 8 clients

A photograph is segmented repeatedly, while 0, 1 and 2 other processes compute continuously. The
output has the medians in ms, and their ratios to the idle machine.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

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
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
}
NEIGHBOURS = (0, 1, 2)
CLIENTS = 8
MEASURE = """
import json, sys, time, torch
from pathlib import Path
from segserve.runtime.decode.image import decode_image
from segserve.runtime.inference.segmenter import Segmenter
model, photograph, threads, rounds = sys.argv[1:]
torch.set_num_threads(int(threads))
segmenter = Segmenter.load(Path(model))
image_rgb = decode_image(Path(photograph).read_bytes(), max_pixels=2**24)
times_ms = []
for _ in range(int(rounds) + 5):
    began_s = time.perf_counter()
    segmenter.segment(image_rgb)
    times_ms.append(1000 * (time.perf_counter() - began_s))
print(json.dumps(times_ms[5:]))
"""


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
            cells, quiet_ms = [], 0.0
            for count in NEIGHBOURS:
                with neighbours(count):
                    median_ms = statistics.median(measure(folder, threads, environment, rounds))
                quiet_ms = quiet_ms or median_ms
                cells.append(f"{median_ms:.0f} ms ({median_ms / quiet_ms:.1f} x)")
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
    """Prints, for each number of neighbours: the median of one client in ms; images a second and
    the 99th percentile in ms of 8 clients. `requests` of one client; 4 times as many of 8.
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


def measure(folder: Path, threads: int, environment: dict[str, str], rounds: int) -> list[float]:
    """The latency of each segmentation in milliseconds, after 5 warm-up runs."""
    photograph = sample_photograph("chelsea.png")
    arguments = map(str, (folder, photograph, threads, rounds))
    command = [sys.executable, "-c", MEASURE, *arguments]
    finished = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True
    )
    times_ms: list[float] = json.loads(finished.stdout.splitlines()[-1])
    return times_ms


if __name__ == "__main__":
    typer.run(main)
