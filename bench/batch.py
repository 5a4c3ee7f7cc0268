"""Measures the throughput of `segserve batch` relative to the network alone, or its memory: `python
-m bench.batch`.

The baseline runs only the network on prepared tensors of the same photographs, in one process per
worker, with one thread each. The job reads, decodes, resizes, computes, encodes and writes the
images. Its time excludes the start of Ray and of the workers, because this start is short compared
to a long job. The time with this start is reported too.

`--memory` measures the largest resident set of driver, Ray and workers together instead. It
compares two jobs; the second has four times the images.
"""

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
from typing import Annotated

import psutil
import torch
import typer

from bench.images import MAX_PIXELS, photographs, write_photographs
from segserve.archive import build_archive
from segserve.resources import resource
from segserve.runtime.decode.image import decode_image
from segserve.runtime.inference.segmenter import Segmenter


def main(
    model: str = "embedded",
    images: int = 400,
    workers: int = os.cpu_count() or 1,
    memory: Annotated[
        bool, typer.Option("--memory", help="compare N images with 4 N; N of 1000 takes long")
    ] = False,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = build_archive(resource(f"model/{model}"), folder)
        counts = (images, 4 * images) if memory else (images,)
        jobs = [_job(folder, archive, count, workers) for count in counts]
    if memory:
        _report_memory(counts, [peak_bytes for *_, peak_bytes in jobs])
        return
    [(seconds, whole_s, _)] = jobs
    bare_s = _bare_s(model, images, workers)
    print(f"model {model}, {images} images, {workers} workers, torch {torch.__version__}")
    print(f"bare loop of the network: {images / bare_s:.1f} images/s")
    print(
        f"segserve batch:           {images / seconds:.1f} images/s; ratio {bare_s / seconds:.2f}"
    )
    print(f"with the start of Ray:    {images / whole_s:.1f} images/s ({whole_s:.0f} s)")


def _job(folder: Path, archive: Path, count: int, workers: int) -> tuple[float, float, int]:
    """The seconds of the work and of the whole command, and the largest resident set of all
    processes in bytes.
    """
    source, target = folder / f"in{count}", folder / f"out{count}"
    write_photographs(source, count)
    command = [sys.executable, "-m", "segserve", "batch", str(source), str(target), "--json"]
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


def _report_memory(counts: Sequence[int], peaks_bytes: Sequence[int]) -> None:
    for count, peak_bytes in zip(counts, peaks_bytes, strict=True):
        print(f"{count} images: {peak_bytes / 1e9:.3f} GB at most, all processes together")
    print(f"growth: {peaks_bytes[1] / peaks_bytes[0] - 1:+.1%}")


if __name__ == "__main__":
    typer.run(main)
