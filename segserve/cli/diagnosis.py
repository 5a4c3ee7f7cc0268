"""The commands `segserve doctor` and `segserve profile`."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.table import Table

from ..doctor import Level, as_json, as_lines, examine, status_of
from ..resources import model_names
from ..schema.request import Mode, Tta
from .app import (
    MAKE,
    USE,
    app,
    console,
    errors_in_one_line,
    figures_table,
    print_plain,
)

if TYPE_CHECKING:
    from torch.autograd.profiler_util import FunctionEventAvg

    from ..local import LocalSegmenter

_WARM_UP = 2
_COLOR = {
    Level.OK: typer.colors.GREEN,
    Level.WARNING: typer.colors.YELLOW,
    Level.PROBLEM: typer.colors.RED,
}


@app.command(rich_help_panel=USE)
def doctor(
    server: Annotated[
        str | None, typer.Option(help="its address; by default that of `segserve serve`")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="inference token; by default that of `segserve serve`, else $SEGSERVE_TOKEN"
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False,
) -> None:
    """Diagnose problems of a server, and say how to solve them."""
    findings = []
    for finding in examine(server, token=token):
        findings.append(finding)
        if not json:
            typer.secho(as_lines([finding]), fg=_COLOR[finding.level])
    if json:
        typer.echo(as_json(findings))
    raise typer.Exit(status_of(findings))


@app.command(rich_help_panel=MAKE)
def profile(
    image: Annotated[
        Path, typer.Argument(help="an image file", exists=True, dir_okay=False, readable=True)
    ],
    model: Annotated[
        str,
        typer.Option(
            help="an archive, a model folder, or the name of one in model/",
            autocompletion=model_names,
        ),
    ] = "embedded",
    mode: Annotated[Mode | None, typer.Option(help="as in a request")] = None,
    tta: Annotated[Tta | None, typer.Option(help="as in a request")] = None,
    repeat: Annotated[
        int, typer.Option(min=1, help="number of timed runs; the medians are shown")
    ] = 20,
    top: Annotated[int, typer.Option(min=0, help="so many operators, the costliest")] = 12,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="write PyTorch's trace to this file, for https://ui.perfetto.dev", dir_okay=False
        ),
    ] = None,
) -> None:
    """Profile the segmentation of one image: time per stage, and per operator of the network."""
    # Silences the profiler. PyTorch reads it when it is imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from ..local import LocalSegmenter

    with errors_in_one_line(), console.status("segmenting"):
        import torch.profiler  # noqa: F401 - if it is missing, before anything is segmented

        segmenter = LocalSegmenter(model)
        profiled = profile_image(
            segmenter, image.read_bytes(), repeat=repeat, trace=trace, mode=mode, tta=tta
        )
    console.print(_stage_table(profiled))
    if top:
        console.print(_operator_table(profiled, top))
    if trace is not None:
        print_plain(f"trace in {trace}: open it at https://ui.perfetto.dev")


class Operator(NamedTuple):
    """Milliseconds of an operator of PyTorch for one image, without the operators it called."""

    name: str
    calls: int
    self_ms: float


class ImageProfile(NamedTuple):
    """Milliseconds of one image: medians of the whole and of each stage of `Server-Timing`, and the
    operators, the costliest first; on a GPU by their time there.
    """

    total_ms: float
    stages_ms: dict[str, float]
    operators: list[Operator]


def profile_image(
    segmenter: "LocalSegmenter",
    image: bytes,
    *,
    repeat: int = 20,
    trace: Path | None = None,
    mode: str | None = None,
    tta: str | None = None,
) -> ImageProfile:
    """Segments an image file `repeat` times by the clock, and once more under PyTorch's profiler,
    which slows it down and writes `trace` as JSON. Raises ResponseError if the image or the options
    are rejected.
    """
    from torch.profiler import profile

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
        1000 * median(totals_s),
        {stage: median(run[stage] for run in stages_ms) for stage in stages_ms[0]},
        _operators(profiler.key_averages()),
    )


def _operators(events: "Iterable[FunctionEventAvg]") -> list[Operator]:
    import torch

    on_gpu = torch.cuda.is_available()
    operators = [
        Operator(
            str(event.key),
            event.count,
            (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000,
        )
        for event in events
    ]
    return sorted(operators, key=lambda operator: -operator.self_ms)


def _stage_table(profiled: ImageProfile) -> Table:
    table = figures_table("stage", "ms", "share", box=None)
    rest_ms = profiled.total_ms - sum(profiled.stages_ms.values())
    for stage, ms in {
        **profiled.stages_ms,
        "around them": max(0.0, rest_ms),
        "total": profiled.total_ms,
    }.items():
        table.add_row(stage, f"{ms:.2f}", f"{ms / profiled.total_ms:.0%}")
    return table


def _operator_table(profiled: ImageProfile, top: int) -> Table:
    table = figures_table("operator, under the profiler", "calls", "ms", "share", box=None)
    total_ms = sum(operator.self_ms for operator in profiled.operators) or 1.0
    for operator in profiled.operators[:top]:
        share = operator.self_ms / total_ms
        table.add_row(operator.name, str(operator.calls), f"{operator.self_ms:.2f}", f"{share:.0%}")
    return table
