"""The options of a request as flags, for all commands that segment images."""

from typing import Annotated

import typer

from ..schema.request import Mode, Tta

_PANEL = "Options of a request"

ModeFlag = Annotated[Mode | None, typer.Option(help="whole, or in tiles", rich_help_panel=_PANEL)]
TtaFlag = Annotated[Tta | None, typer.Option(help="test-time augmentation", rich_help_panel=_PANEL)]
ClassesFlag = Annotated[
    str | None, typer.Option(help="keep only these, by name or id: cat,dog", rich_help_panel=_PANEL)
]
ThresholdFlag = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="less certain pixels become background", rich_help_panel=_PANEL
    ),
]


def given_options(**options: object) -> dict[str, object]:
    """The options that are not None. The server's defaults apply to the others."""
    return {name: value for name, value in options.items() if value is not None}
