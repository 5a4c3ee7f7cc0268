"""The commands `segserve keygen` and `sign`."""

from pathlib import Path
from typing import Annotated

import typer

from .app import MAKE, app, errors_in_one_line, print_plain
from .trust import sign_archive


@app.command(rich_help_panel=MAKE)
def keygen(
    name: Annotated[
        Path, typer.Argument(help="NAME.key, to keep secret, and NAME.pub are written")
    ],
) -> None:
    """Generate a key pair for signing archives."""
    from ..signing import SigningKey

    with errors_in_one_line():
        secret, public = SigningKey.generate().write(name)
        print_plain(f"{secret}  signs: segserve sign ARCHIVE {secret}")
        print_plain(
            f"{public}  is for those who serve: segserve serve --archive ARCHIVE --trust {public}"
        )


@app.command(rich_help_panel=MAKE)
def sign(
    archive: Annotated[Path, typer.Argument(help="an archive (.mar)")],
    key: Annotated[
        Path,
        typer.Argument(help="a secret key of `segserve keygen`, or of minisign without a password"),
    ],
) -> None:
    """Sign an archive. The signature is written next to it, in minisign's format."""
    with errors_in_one_line():
        sign_archive(archive, key)
