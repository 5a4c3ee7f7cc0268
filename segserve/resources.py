"""Files that are not Python modules of this package: beside it in a checkout, inside it in an installed wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def resource(name: str) -> Path:
    """Where `handler.py`, `deeplabv3.py`, `config.properties` or a path below `model/` lies.

    Raises:
        FileNotFoundError: the installation does not hold it.
    """
    for place in (_PACKAGE.parent / name, _PACKAGE / "archived" / name):
        if place.exists():
            return place
    raise FileNotFoundError(f"{name}: not part of this installation")
