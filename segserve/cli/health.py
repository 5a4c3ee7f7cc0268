"""The command `segserve doctor`."""

from typing import Annotated

import typer

from ..doctor import Level, as_json, as_lines, examine, status_of
from .app import USE, app

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
