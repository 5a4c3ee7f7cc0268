"""What is present: the project's own files, its models, sample photographs, packages and GPUs.
The files are beside this package in a checkout, in its folder `files` in an installed wheel.
"""

import os
from importlib.util import find_spec
from pathlib import Path

_PACKAGE = Path(__file__).parent
_INSTALLED = _PACKAGE / "files"
_ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent

# Of NVIDIA's driver, of AMD's, and of Windows's for Linux.
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def require_packages(*names: str) -> None:
    """Raises ModuleNotFoundError for the first package that is not installed, without importing
    them. The command line names its extra.
    """
    for name in names:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def resource(name: str) -> Path:
    """The path of `handler.py`, of `config.properties`, or of something below `model/`. Raises
    FileNotFoundError if there is no such file.
    """
    path = _ROOT / name
    if not path.exists():
        raise FileNotFoundError(f"{name}: not found in {_ROOT}")
    return path


def model_names(incomplete: str = "") -> list[str]:
    """The repository's models whose names start so; none if it is not installed with it."""
    try:
        records = sorted(resource("model").glob("*/model.yaml"))
    except FileNotFoundError:
        return []
    return [path.parent.name for path in records if path.parent.name.startswith(incomplete)]


def model_source(model: str) -> Path:
    """The folder of a model, with or without weights: `model` is a folder, or the name of one in
    `model/`. Raises FileNotFoundError if there is no such model.
    """
    if model and Path(model).is_dir():
        return Path(model)
    known = model_names()
    if known and model not in known:
        raise FileNotFoundError(
            f"{model!r}: no model folder, and no name of a model: {', '.join(known)}"
        )
    return resource(f"model/{model}")


PHOTOGRAPHS = {"chelsea.png": "a cat", "astronaut.png": "a person"}


def sample_photograph(name: str) -> Path:
    """The path of a photograph that scikit-image ships. Raises FileNotFoundError without it."""
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "the photographs come with scikit-image: pip install 'segserve[demo]'"
        )
    return Path(package.origin).parent / "data" / name


def fetched_models() -> Path:
    """The folder of fetched models: in $SEGSERVE_HOME, else in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("SEGSERVE_HOME") or cache / "segserve") / "models"


def count_gpus() -> int:
    """The number of GPUs that PyTorch can use. It is only imported if there is a driver."""
    if find_spec("torch") is None or not any(Path(device).exists() for device in _GPU_DEVICES):
        return 0
    import torch

    return torch.cuda.device_count()
