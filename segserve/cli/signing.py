"""The commands `segserve keygen` and `sign`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import MAKE, app, errors_in_one_line, print_plain

if TYPE_CHECKING:
    from ..signing import TrustedKeys

TrustFlag = Annotated[
    Path | None,
    typer.Option(
        envvar="SEGSERVE_TRUST",
        metavar="PUBLIC_KEY",
        help="take no archive but those signed by a key of this file",
    ),
]
SignFlag = Annotated[
    Path | None, typer.Option(metavar="KEY", help="sign it with the secret key of this file")
]


def sign_archive(archive: Path, key: Path) -> None:
    """Signs an archive and prints the signature's path. Raises as `SigningKey`."""
    from ..signing import SigningKey

    print_plain(str(SigningKey.read(key).sign(archive)))


def trusted_keys(file: Path | None) -> "TrustedKeys | None":
    """The keys in the flag's file; None without the flag.

    Raises:
        SignatureError: the file contains no key.
    """
    from ..signing import TrustedKeys

    return None if file is None else TrustedKeys.read(file)


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
