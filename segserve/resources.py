"""Files of the project that are not Python modules of this package: beside it in a checkout, in its
folder `files` in an installed wheel.
"""

from importlib.util import find_spec
from pathlib import Path

_PACKAGE = Path(__file__).parent
_INSTALLED = _PACKAGE / "files"
_ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent


def require_packages(*names: str) -> None:
    """Checks that packages are installed, without importing them, which may take seconds.

    Raises:
        ModuleNotFoundError: the first that is missing; the command line names its extra.
    """
    for name in names:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def resource(name: str) -> Path:
    """The path of `handler.py`, of `config.properties`, or of something below `model/`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = _ROOT / name
    if not path.exists():
        raise FileNotFoundError(f"{name}: not found in {_ROOT}")
    return path
