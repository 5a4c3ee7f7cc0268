"""Measures commands of `segserve`, each in a process of its own.

    python -m bench.commands startup [--rounds 5]     how long they take from start to end
    python -m bench.commands segment [--images 300]   throughput of `segserve segment`
    python -m bench.commands batch [--images 400]     throughput of `segserve batch`

Each command of many images is compared with a bare loop: `segment` with its server's throughput,
`batch` with the network alone.
"""

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from operator import truediv
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.images import MAX_PIXELS, photographs, write_photographs
from bench.serving.load import send_all
from bench.serving.peers.ours import gateway_to, ready_server
from segserve.archive import build_archive
from segserve.resources import resource, sample_photograph
from segserve.runtime.decode.image import decode_image
from segserve.runtime.inference.segmenter import Segmenter

SEGSERVE = (sys.executable, "-m", "segserve")
CLIENTS = 8

app = typer.Typer(add_completion=False)


@app.command()
def startup(rounds: Annotated[int, typer.Option(help="of each command")] = 5) -> None:
    """Medians of commands that run in an empty folder. `serve` ends when the server is ready."""
    photograph = str(sample_photograph("chelsea.png"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for status, command in (
            (0, ("--help",)),
            (2, ("batch", "nothing")),  # wrong arguments
            (0, ("segment", photograph, "--force", "--local")),
        ):
            _report(command, [_seconds(command, folder, status) for _ in range(rounds)])
        served = []
        for _ in range(rounds):
            served.append(_seconds(("serve",), folder))
            with_server = ("segment", photograph, "--force")
            seconds = [_seconds(with_server, folder) for _ in range(rounds)]
            _seconds(("stop",), folder)
        _report(("serve",), served)
        _report(with_server, seconds)


def _run(command: tuple[str, ...], folder: Path, status: int = 0) -> str:
    """The standard output of a command of `segserve`, which must end with this status."""
    ended = subprocess.run(
        (*SEGSERVE, *command), cwd=folder, capture_output=True, text=True, check=False
    )
    if ended.returncode != status:
        sys.exit(f"{' '.join(command)}: {ended.stderr}")
    return ended.stdout


def _seconds(command: tuple[str, ...], folder: Path, status: int = 0) -> float:
    began_s = time.perf_counter()
    _run(command, folder, status)
    return time.perf_counter() - began_s


def _report(command: tuple[str, ...], seconds: list[float]) -> None:
    shown = " ".join(Path(part).name for part in command)
    print(f"{statistics.median(seconds):6.2f} s  segserve {shown}")


@app.command()
def segment(model: str = "embedded", images: int = 300, rounds: int = 3) -> None:
    """The throughput of `segserve segment`, and of eight clients that send prepared requests to the
    same server and discard the responses. Rounds of both alternate; the figures are medians.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_photographs(folder / "in", images)
        archive = build_archive(resource(f"model/{model}"), folder)
        with ready_server(archive, folder / ".run" / "serve") as server:
            gateway = gateway_to(server)
            send_all(gateway, paths[:CLIENTS], clients=CLIENTS)  # warm-up
            bare_s, own_s = [], []
            for number in range(rounds):
                bare_s.append(send_all(gateway, paths, clients=CLIENTS).wall_s)
                printed = _run(("segment", "in", "--output", f"out{number}", "--json"), folder)
                own_s.append(json.loads(printed.splitlines()[-1])["summary"]["seconds"])
    ratio = statistics.median(map(truediv, bare_s, own_s))
    print(f"{images} images, {CLIENTS} in flight, {rounds} rounds")
    print(f"bare loop of ready requests: {images / statistics.median(bare_s):.1f} images/s")
    own = images / statistics.median(own_s)
    print(f"segserve segment:            {own:.1f} images/s; ratio {ratio:.2f}")


@app.command()
def batch(model: str = "embedded", images: int = 400, workers: int = os.cpu_count() or 1) -> None:
    """The throughput of `segserve batch`, and of the network alone on prepared tensors of the same
    photographs, in one process per worker, with one thread each.

    The job's time excludes the start of Ray and of the workers, which is short compared to a long
    job.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = build_archive(resource(f"model/{model}"), folder)
        write_photographs(folder / "in", images)
        command = ["batch", "in", "out", "--json", "--archive", archive.name]
        printed = _run((*command, "--workers", str(workers)), folder)
        seconds = json.loads(printed)["seconds"]
    bare_s = _bare_s(model, images, workers)
    print(f"model {model}, {images} images, {workers} workers, torch {torch.__version__}")
    print(f"bare loop of the network: {images / bare_s:.1f} images/s")
    own = images / seconds
    print(f"segserve batch:           {own:.1f} images/s; ratio {bare_s / seconds:.2f}")


def _bare_s(model: str, count: int, workers: int) -> float:
    """The baseline: the seconds of the slowest process for its share of the images."""
    context = multiprocessing.get_context("spawn")
    shares = [count // workers + (number < count % workers) for number in range(workers)]
    with context.Pool(workers) as pool:
        return max(pool.starmap(_network_s, [(model, share) for share in shares], chunksize=1))


def _network_s(model: str, count: int) -> float:
    torch.set_num_threads(1)
    segmenter = Segmenter.load(resource(f"model/{model}"))
    images = (decode_image(image, max_pixels=MAX_PIXELS) for image in photographs())
    with torch.inference_mode():
        ready = [segmenter.preprocess(image_rgb) for image_rgb in images]
        for inputs in ready:
            segmenter.infer(inputs)
        began_s = time.perf_counter()
        for inputs in islice(cycle(ready), count):
            segmenter.infer(inputs)
        return time.perf_counter() - began_s


if __name__ == "__main__":
    app()
