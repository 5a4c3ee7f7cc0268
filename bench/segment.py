"""Compares the throughput of `segserve segment` with the server's own throughput: `python -m
bench.segment`.

The baseline is the server's throughput: eight threads send prepared requests and discard the
responses. The command also reads, checks, encodes and writes files. Rounds of both alternate on the
same images, so that a drift of the machine's speed affects both equally. Each figure is the median
of the rounds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import requests

from bench.images import photographs
from segserve.archive import build_archive
from segserve.gateway.background import Server
from segserve.resources import resource

CLIENTS = 8


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = _write_images(folder / "in", arguments.images)
        archive = build_archive(resource(f"model/{arguments.model}"), folder)
        with Server.start([archive], folder / ".run" / "serve") as server:
            server.wait_ready()
            _bare_s(server, paths[:CLIENTS])  # warm-up
            rounds = [
                (_bare_s(server, paths), *_command_s(folder, f"out{n}"))
                for n in range(arguments.rounds)
            ]
    _report(rounds, len(paths))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def _write_images(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{number:04}.jpg" for number in range(count)]
    for path, content in zip(paths, islice(cycle(photographs()), count), strict=True):
        path.write_bytes(content)
    return paths


def _bare_s(server: Server, paths: Sequence[Path]) -> float:
    """The baseline: the server's seconds for all images, with eight requests in flight."""
    contents = [path.read_bytes() for path in paths]
    url = f"{server.inference_url}/predictions/{server.models[0]}"
    headers = {"Authorization": f"Bearer {server.inference_token}", "X-Segment-Mask": "png"}
    own = threading.local()

    def send(content: bytes) -> None:
        if not hasattr(own, "session"):
            own.session = requests.Session()
        own.session.post(url, content, headers=headers, timeout=120).raise_for_status()

    began_s = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(send, contents))
    return time.perf_counter() - began_s


def _command_s(folder: Path, output: str) -> tuple[float, float]:
    """The command's seconds as it reports them, and from its start to its end, including
    imports.
    """
    command = [sys.executable, "-m", "segserve", "segment", "in", "--output", output, "--json"]
    began_s = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    whole_s = time.perf_counter() - began_s
    return json.loads(done.stdout.splitlines()[-1])["summary"]["seconds"], whole_s


def _report(rounds: Sequence[tuple[float, float, float]], images: int) -> None:
    bare, own, whole = (
        statistics.median(images / round_s[place] for round_s in rounds) for place in range(3)
    )
    ratio = statistics.median(bare_s / own_s for bare_s, own_s, _ in rounds)
    print(f"{images} images, {CLIENTS} in flight, {len(rounds)} rounds")
    print(f"bare loop of ready requests:        {bare:.1f} images/s")
    print(f"segserve segment:                   {own:.1f} images/s; ratio {ratio:.2f}")
    print(f"segserve segment with its start-up: {whole:.1f} images/s")


if __name__ == "__main__":
    main()
