"""Where the time of one image goes: by stage, as a server's `Server-Timing` reports it, and by
operator of PyTorch.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch.profiler import profile

from .local import LocalSegmenter

_WARM_UP = 2


@dataclass(frozen=True)
class Operator:
    """What an operator took of one image, in milliseconds, without the operators that it called."""

    name: str
    calls: int
    self_ms: float


@dataclass(frozen=True)
class ImageProfile:
    """Milliseconds of one image.

    Attributes:
        total_ms: median from the file's bytes to the response's.
        stages_ms: median of every stage of `Server-Timing`, in their order.
        operators: those of the network and around it, the costliest first; those of a GPU by what
            they took there.
    """

    total_ms: float
    stages_ms: Mapping[str, float]
    operators: tuple[Operator, ...]


def profile_image(
    segmenter: LocalSegmenter,
    image: bytes,
    *,
    repeat: int = 20,
    trace: Path | None = None,
    mode: str | None = None,
    tta: str | None = None,
) -> ImageProfile:
    """Segments an image `repeat` times by the clock, and once more under PyTorch's profiler, which
    slows it down.

    Args:
        image: the content of an image file.
        trace: where the profiler's trace goes, as JSON that https://ui.perfetto.dev and
            chrome://tracing show.

    Raises:
        ResponseError: the image or the options are rejected.
        OSError: the trace cannot be written.
    """

    def segment() -> Mapping[str, float]:
        return segmenter.segment(image, mode=mode, tta=tta).timings_ms

    for _ in range(_WARM_UP):
        segment()
    totals_s, stages_ms = [], []
    for _ in range(repeat):
        began_s = perf_counter()
        stages_ms.append(segment())
        totals_s.append(perf_counter() - began_s)
    with profile() as profiler:
        segment()
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    return ImageProfile(
        1000 * statistics.median(totals_s),
        {stage: statistics.median(run[stage] for run in stages_ms) for stage in stages_ms[0]},
        _operators(profiler),
    )


def _operators(profiler: profile) -> tuple[Operator, ...]:
    on_gpu = torch.cuda.is_available()
    operators = [
        Operator(
            event.key,
            event.count,
            (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000,
        )
        for event in profiler.key_averages()
    ]
    return tuple(sorted(operators, key=lambda operator: -operator.self_ms))
