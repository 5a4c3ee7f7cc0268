"""Files of the project that are not Python modules of this package. They lie beside it, in a
checkout.
"""

from pathlib import Path

_PROJECT = Path(__file__).parents[1]


def resource(name: str) -> Path:
    """Where `handler.py`, `deeplabv3.py`, `config.properties` or a path below `model/` lies.

    Raises:
        FileNotFoundError: there is none of that name, or the package was installed without its
            checkout.
    """
    path = _PROJECT / name
    if not path.exists():
        raise FileNotFoundError(
            f"{name}: not found in {_PROJECT}; install from a checkout, with pip install -e"
        )
    return path
