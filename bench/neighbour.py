"""Measures the latency of one image while other processes use the CPU: `python -m bench.neighbour`.

A separate process segments a photograph repeatedly, for every number of threads and every OpenMP
wait policy, while 0, 1 and 2 other processes compute continuously. The output has the medians in
ms, and their ratios to the idle machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segserve.demo import sample_photograph
from segserve.resources import resource

WAITING = {
    "as libgomp has it": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
}
NEIGHBOURS = (0, 1, 2)
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded", help="a name in model/, or a folder")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, os.cpu_count() or 1])
    arguments = parser.parse_args()
    folder = Path(arguments.model)
    folder = folder if folder.is_dir() else resource(f"model/{arguments.model}")
    print(f"| threads | waiting | {' | '.join(f'{count} neighbours' for count in NEIGHBOURS)} |")
    print("|---:|---|" + "---:|" * len(NEIGHBOURS))
    for threads in arguments.threads:
        for name, environment in WAITING.items() if threads > 1 else [("-", {})]:
            cells, quiet_ms = [], 0.0
            for count in NEIGHBOURS:
                with neighbours(count):
                    median_ms = statistics.median(
                        measure(folder, threads, environment, arguments.rounds)
                    )
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


def measure(folder: Path, threads: int, environment: dict[str, str], rounds: int) -> list[float]:
    """The latency of each segmentation in milliseconds, after 5 warm-up runs."""
    photograph = sample_photograph("chelsea.png")
    command = [
        sys.executable,
        "-c",
        MEASURE,
        str(folder),
        str(photograph),
        str(threads),
        str(rounds),
    ]
    finished = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True
    )
    times_ms: list[float] = json.loads(finished.stdout.splitlines()[-1])
    return times_ms


if __name__ == "__main__":
    main()
