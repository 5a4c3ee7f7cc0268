"""What the commands that segment images share: the options of a request as flags."""

from typing import Annotated

import typer

from ..runtime.passes import Mode, Tta

_PANEL = "Options of a request"

ModeFlag = Annotated[Mode | None, typer.Option(help="whole, or in tiles", rich_help_panel=_PANEL)]
TtaFlag = Annotated[Tta | None, typer.Option(help="test-time augmentation", rich_help_panel=_PANEL)]
ClassesFlag = Annotated[
    str | None, typer.Option(help="keep only these, by name or id: cat,dog", rich_help_panel=_PANEL)
]
ThresholdFlag = Annotated[
    float | None, typer.Option(min=0, max=1, help="less certain pixels become background", rich_help_panel=_PANEL)
]


def given_options(**options: object) -> dict[str, object]:
    """Those that were given; the server's own defaults hold for the others."""
    return {name: value for name, value in options.items() if value is not None}
