"""Compares the throughput of `segserve segment` with the server's own throughput: `python -m
bench.segment`.

The baseline is the server's throughput: eight clients send prepared requests and discard the
responses. The command also reads, checks, encodes and writes files. Rounds of both alternate on the
same images, so that a drift of the machine's speed affects both equally. Each figure is the median
of the rounds.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import typer

from bench.images import write_photographs
from bench.serving.load import send_all
from bench.serving.peers.ours import gateway_to, ready_server
from segserve.archive import build_archive
from segserve.resources import resource

CLIENTS = 8


def main(model: str = "embedded", images: int = 300, rounds: int = 3) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_photographs(folder / "in", images)
        archive = build_archive(resource(f"model/{model}"), folder)
        with ready_server(archive, folder / ".run" / "serve") as server:
            gateway = gateway_to(server)
            send_all(gateway, paths[:CLIENTS], clients=CLIENTS)  # warm-up
            measured = [
                (
                    send_all(gateway, paths, clients=CLIENTS).wall_s,
                    *_command_s(folder, f"out{number}"),
                )
                for number in range(rounds)
            ]
    bare, own, whole = (
        statistics.median(images / seconds for seconds in of_rounds)
        for of_rounds in zip(*measured, strict=True)
    )
    ratio = statistics.median(bare_s / own_s for bare_s, own_s, _ in measured)
    print(f"{images} images, {CLIENTS} in flight, {rounds} rounds")
    print(f"bare loop of ready requests:        {bare:.1f} images/s")
    print(f"segserve segment:                   {own:.1f} images/s; ratio {ratio:.2f}")
    print(f"segserve segment with its start-up: {whole:.1f} images/s")


def _command_s(folder: Path, output: str) -> tuple[float, float]:
    """The command's seconds as it reports them, and from its start to its end, including
    imports.
    """
    command = [sys.executable, "-m", "segserve", "segment", "in", "--output", output, "--json"]
    began_s = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    whole_s = time.perf_counter() - began_s
    return json.loads(done.stdout.splitlines()[-1])["summary"]["seconds"], whole_s


if __name__ == "__main__":
    typer.run(main)
