"""The flags that name keys, to sign archives with and to trust them by."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import print_plain

if TYPE_CHECKING:
    from ..signing import TrustedKeys

TrustFlag = Annotated[
    Path | None,
    typer.Option(
        envvar="SEGSERVE_TRUST", metavar="PUBLIC_KEY", help="take no archive but those signed by a key of this file"
    ),
]
SignFlag = Annotated[Path | None, typer.Option(metavar="KEY", help="sign it with the secret key of this file")]


def sign_archive(archive: Path, key: Path) -> None:
    """Signs it and prints where the signature stands; errors as in `SigningKey`."""
    from ..signing import SigningKey

    print_plain(str(SigningKey.read(key).sign(archive)))


def trusted_keys(file: Path | None) -> "TrustedKeys | None":
    """Those that the flag names.

    Raises:
        SignatureError: the file holds none.
    """
    from ..signing import TrustedKeys

    return None if file is None else TrustedKeys.read(file)
