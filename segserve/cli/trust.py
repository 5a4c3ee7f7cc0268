"""The flags for the keys that sign archives and verify them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import print_plain

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
