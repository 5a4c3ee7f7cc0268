"""The commands `segserve doctor` and `segserve profile`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..doctor import Level, as_json, as_lines, examine, status_of
from ..schema.request import Mode, Tta
from .app import (
    MAKE,
    USE,
    app,
    console,
    errors_in_one_line,
    figures_table,
    model_folder,
    model_names,
    print_plain,
)

if TYPE_CHECKING:
    from ..profile import ImageProfile

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
    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "99"
    )  # silences the profiler; read when PyTorch is imported
    from ..local import LocalSegmenter
    from ..profile import profile_image

    with errors_in_one_line(), console.status("segmenting"):
        segmenter = LocalSegmenter(model if Path(model).is_file() else model_folder(model))
        profiled = profile_image(
            segmenter, image.read_bytes(), repeat=repeat, trace=trace, mode=mode, tta=tta
        )
    console.print(_stages(profiled))
    if top:
        console.print(_operators(profiled, top))
    if trace is not None:
        print_plain(f"trace in {trace}: open it at https://ui.perfetto.dev")


def _stages(profiled: "ImageProfile") -> Table:
    table = figures_table("stage", "ms", "share", box=None)
    rest_ms = profiled.total_ms - sum(profiled.stages_ms.values())
    for stage, ms in {
        **profiled.stages_ms,
        "around them": max(0.0, rest_ms),
        "total": profiled.total_ms,
    }.items():
        table.add_row(stage, f"{ms:.2f}", f"{ms / profiled.total_ms:.0%}")
    return table


def _operators(profiled: "ImageProfile", top: int) -> Table:
    table = figures_table("operator, under the profiler", "calls", "ms", "share", box=None)
    total_ms = sum(operator.self_ms for operator in profiled.operators) or 1.0
    for operator in profiled.operators[:top]:
        share = operator.self_ms / total_ms
        table.add_row(operator.name, str(operator.calls), f"{operator.self_ms:.2f}", f"{share:.0%}")
    return table
