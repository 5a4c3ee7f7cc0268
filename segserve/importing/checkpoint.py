"""Reads checkpoints: state dicts, wrapped and prefixed as training programs save them, and the
folders that segmentation_models_pytorch and Hugging Face write. No code from a file is run.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..runtime.errors import ModelError

State = dict[str, Tensor]

# Keys under which training programs save the state dict; the first that is present is taken.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "weights")
_AVERAGES = ("model_ema", "ema", "ema_state_dict", "ema_model")
_PACKAGING = ("_orig_mod", "module")  # of torch.compile and of data parallelism

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_MAX_DEPTH = 4


@dataclass(frozen=True)
class LoadedCheckpoint:
    """The tensors of a checkpoint, and what its folder says about them.

    Attributes:
        config: the folder's `config.json`; empty for a plain file.
        preprocessing: the folder's `preprocessor_config.json`; empty if there is none.
        notes: what was removed to find the tensors, one line each.
    """

    path: Path
    state: State
    config: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    notes: tuple[str, ...]


def load_checkpoint(path: Path) -> LoadedCheckpoint:
    """Reads a checkpoint file, or a folder that `save_pretrained` wrote.

    Raises:
        ModelError: the file or folder holds no state dict that can be read without running code.
    """
    file: Path | None = path
    if path.is_dir():
        file = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    if file is None:
        raise ModelError(f"{path}: expected one of {', '.join(_WEIGHTS)} in the folder")
    state, notes = _unwrapped(_read(file), file.name)
    config, preprocessing = _json(path / "config.json"), _json(path / "preprocessor_config.json")
    return LoadedCheckpoint(path, state, config, preprocessing, tuple(notes))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path}: expected a JSON object")
    return document


def _read(path: Path) -> object:
    """The content of a file; tensors stay on the disk until they are used."""
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except OSError:
        raise
    except SafetensorError as error:
        raise ModelError(f"{path.name}: is not a safetensors file: {error}") from error
    except Exception as error:  # a damaged pickle raises whatever it comes upon
        raise ModelError(f"{path.name}: {_unreadable(path)}") from error


def _unreadable(path: Path) -> str:
    """Why PyTorch does not load a file without running code, in one sentence."""
    save = "in the program that made it: torch.save(model.state_dict(), 'weights.pth')"
    if not zipfile.is_zipfile(path):
        if path.read_bytes().startswith(b"\x80\x02"):  # the format before PyTorch 1.6
            return f"holds more than tensors, and would run code when it is loaded; {save}"
        return "is damaged, or not a file that torch.save wrote"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "is damaged; copy it again"
    if any("/code/" in name for name in names):
        return f"is a TorchScript file, which is a program; {save}"
    if not any(name.endswith("data.pkl") for name in names):
        return "is a ZIP file, but not one that torch.save wrote"
    return f"holds a whole model, which is code, not its weights; {save}"


def _unwrapped(content: object, name: str) -> tuple[State, list[str]]:
    """The state dict in the content, and notes on the keys that it was found under."""
    notes: list[str] = []
    for _ in range(_MAX_DEPTH):
        if not isinstance(content, Mapping):
            break
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        inner = next(
            (key for key in (*_WRAPPERS, *_AVERAGES) if isinstance(content.get(key), Mapping)), None
        )
        if inner is None:
            if not tensors:
                break
            return _without_packaging(tensors, notes), notes
        notes.append(f"weights found under {inner!r}")
        if other := next((key for key in _AVERAGES if key in content and key != inner), None):
            notes.append(f"the file also holds {other!r}, a moving average, which is not used")
        content = content[inner]
    keys = ", ".join(list(map(str, content))[:8]) if isinstance(content, Mapping) else "no keys"
    raise ModelError(
        f"{name}: found no state dict in it ({keys}): save model.state_dict() with torch.save"
    )


def _without_packaging(state: State, notes: list[str]) -> State:
    """The tensors without the names that wrappers add to each of theirs."""
    paths = {name: name.split(".") for name in state}
    renamed = {
        ".".join(part for part in paths[name] if part not in _PACKAGING): tensor
        for name, tensor in state.items()
    }
    if len(renamed) < len(state):  # the names mean something here
        return state
    removed = [part for part in _PACKAGING if any(part in path for path in paths.values())]
    notes += [f"prefix {part!r} removed" for part in removed]
    return renamed
