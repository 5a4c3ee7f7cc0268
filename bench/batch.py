"""Measures the throughput of `segserve batch` relative to the network alone, or its memory: `python
-m bench.batch`.

The baseline runs only the network on prepared tensors of the same photographs, in one process per
worker, with one thread each. The job reads, decodes, resizes, computes, encodes and writes the
images. Its time excludes the start of Ray and of the workers, because this start is short compared
to a long job. The time with this start is reported too.

`--memory` measures the largest resident set of driver, Ray and workers together instead. It
compares two jobs; the second has four times the images.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path

import psutil
import torch

from bench.images import photographs
from bench.serving.workload import MAX_PIXELS
from segserve.archive import build_archive
from segserve.resources import resource
from segserve.runtime.decode.image import decode_image
from segserve.runtime.inference.segmenter import Segmenter


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_archive(resource(f"model/{arguments.model}"), folder)
        archive = next(folder.glob("*.mar"))
        counts = (
            (arguments.images, 4 * arguments.images) if arguments.memory else (arguments.images,)
        )
        jobs = [_job(folder, archive, count, arguments.workers) for count in counts]
    if arguments.memory:
        _report_memory(counts, [peak_bytes for *_, peak_bytes in jobs])
    else:
        [(seconds, whole_s, _)] = jobs
        bare_s = _bare_s(arguments.model, arguments.images, arguments.workers)
        _report_speed(arguments, seconds, whole_s, bare_s)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.batch", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument(
        "--memory", action="store_true", help="compare N images with 4 N; N of 1000 takes long"
    )
    return parser.parse_args()


def _job(folder: Path, archive: Path, count: int, workers: int) -> tuple[float, float, int]:
    """The seconds of the work and of the whole command, and the largest resident set of all
    processes in bytes.
    """
    source = folder / f"in{count}"
    source.mkdir()
    for number, content in enumerate(islice(cycle(photographs()), count)):
        (source / f"{number:06}.jpg").write_bytes(content)
    command = [
        sys.executable,
        "-m",
        "segserve",
        "batch",
        str(source),
        str(folder / f"out{count}"),
        "--json",
    ]
    command += ["--archive", str(archive), "--workers", str(workers)]
    began_s = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watch = _MemoryWatch(process.pid)
        stdout, _ = process.communicate()
    if process.returncode:
        sys.exit(f"segserve batch failed with status {process.returncode}")
    return json.loads(stdout)["seconds"], time.perf_counter() - began_s, watch.peak_bytes


class _MemoryWatch:
    """Samples the memory of a process tree every second. An upper bound: shared pages count
    repeatedly.
    """

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        threading.Thread(target=self._watch, args=(psutil.Process(pid),), daemon=True).start()

    def _watch(self, process: psutil.Process) -> None:
        with suppress(psutil.NoSuchProcess):
            while True:
                self.peak_bytes = max(self.peak_bytes, _resident_bytes(process))
                time.sleep(1)


def _resident_bytes(root: psutil.Process) -> int:
    total = 0
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def _bare_s(model: str, count: int, workers: int) -> float:
    """The baseline: the seconds of the slowest process for its share of the images."""
    context = multiprocessing.get_context("spawn")
    shares = [count // workers + (number < count % workers) for number in range(workers)]
    with context.Pool(workers) as pool:
        return max(pool.starmap(_network_s, [(model, share) for share in shares], chunksize=1))


def _network_s(model: str, count: int) -> float:
    torch.set_num_threads(1)
    segmenter = Segmenter.load(resource(f"model/{model}"))
    with torch.inference_mode():
        ready = [
            segmenter.preprocess(decode_image(image, max_pixels=MAX_PIXELS))
            for image in photographs()
        ]
        for inputs in ready:
            segmenter.infer(inputs)
        began_s = time.perf_counter()
        for inputs in islice(cycle(ready), count):
            segmenter.infer(inputs)
        return time.perf_counter() - began_s


def _report_speed(
    arguments: argparse.Namespace, seconds: float, whole_s: float, bare_s: float
) -> None:
    images = arguments.images
    print(
        f"model {arguments.model}, {images} images, {arguments.workers} workers, torch "
        f"{torch.__version__}"
    )
    print(f"bare loop of the network: {images / bare_s:.1f} images/s")
    print(
        f"segserve batch:           {images / seconds:.1f} images/s; ratio {bare_s / seconds:.2f}"
    )
    print(f"with the start of Ray:    {images / whole_s:.1f} images/s ({whole_s:.0f} s)")


def _report_memory(counts: Sequence[int], peaks_bytes: Sequence[int]) -> None:
    for count, peak_bytes in zip(counts, peaks_bytes, strict=True):
        print(f"{count} images: {peak_bytes / 1e9:.3f} GB at most, all processes together")
    print(f"growth: {peaks_bytes[1] / peaks_bytes[0] - 1:+.1%}")


if __name__ == "__main__":
    main()
