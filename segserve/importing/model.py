"""Makes a model folder of a checkpoint: reads it without running code, renames its tensors,
completes the record, and segments a picture before anything is written.

A checkpoint is a state dict, wrapped and prefixed as training programs save it, or a folder that
segmentation_models_pytorch or Hugging Face wrote.
"""

import argparse
import json
import pathlib
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..runtime.encode.mask import LabelMap
from ..runtime.errors import ModelError
from ..runtime.inference.segmenter import Segmenter
from ..runtime.network import build_network, check_fit, write_weights
from ..runtime.record import (
    RECORD_FILE,
    ClassInfo,
    InputRule,
    ModelRecord,
    validated,
    voc_color,
    write_record,
)
from .layouts import LoadedCheckpoint, Recognised, State, recognise

_COUNTER = "num_batches_tracked"  # files before PyTorch 0.4.1 lack it
_CHECK_HW = (96, 128)
# Keys under which training programs save the state dict; the first that is present is taken.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "weights")
_AVERAGES = ("model_ema", "ema", "ema_state_dict", "ema_model")
_PACKAGING = ("_orig_mod", "module")  # of torch.compile and of data parallelism

# What training programs save beside the tensors, under the names that pickle has for it: data
# without code. Paths of another system are read too, and numpy before version 2 had other names.
_NUMBER = np.float64(0).__reduce__()[0]
_INERT: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bhilqBHILQefd"),
    *((_NUMBER, f"numpy.{package}.multiarray.scalar") for package in ("_core", "core")),
    *(
        (kind, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for kind, name in (
            (pathlib.PurePosixPath, "PosixPath"),
            (pathlib.PureWindowsPath, "WindowsPath"),
        )
    ),
]

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_MAX_DEPTH = 4


@dataclass(frozen=True)
class Imported:
    """A model folder that was written.

    Attributes:
        notes: what the import found, removed or assumed, one line each.
        label_map: uint8 (H, W) of the image that was segmented as a check.
    """

    record: ModelRecord
    notes: tuple[str, ...]
    label_map: LabelMap


def import_checkpoint(
    path: Path,
    folder: Path,
    *,
    labels: Sequence[str | ClassInfo] | None,
    size_px: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    licence: str,
    architecture: Mapping[str, object],
    image_rgb: NDArray[np.uint8] | None = None,
    check: Callable[[LabelMap], None] = lambda _label_map: None,
) -> Imported:
    """Imports a checkpoint as a new model folder.

    Args:
        labels: the classes or their names, in the order of the classifier's outputs. Names get the
            colours of PASCAL VOC. A network with one output has two classes; the name of the first
            may be left out.
        size_px: longer side of the network's input. `labels`, `size_px`, `mean` and `std` may be
            None if the checkpoint's folder has them.
        architecture: fields of the architecture that replace what the checkpoint or its library
            says.
        image_rgb: uint8 (H, W, 3), segmented as a check; by default a generated image.
        check: called with the label map of that image; what it raises ends the import.

    Raises:
        ModelError: the folder is not empty, the checkpoint is not of a served
            architecture, or something is missing; nothing is written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "holds a model already" if (folder / RECORD_FILE).exists() else "is not empty"
        raise ModelError(f"{folder}: {what}; name another folder with --output")
    checkpoint = load_checkpoint(path)
    found = recognise(checkpoint, architecture)
    notes = [*checkpoint.notes, _summary(found)]
    state, num_classes = _two_classes(found.state), max(2, found.num_classes)
    if found.num_classes == 1:
        notes.append("one output: the class is where its sigmoid is above 0.5, the rest background")
    record = validated(
        {
            "name": folder.resolve().name,
            "version": "1.0",
            "summary": f"DeepLabV3 on {found.architecture.backbone}, imported from {found.library}",
            "licence": licence,
            "source": f"{path.name}, {found.library}",
            "architecture": found.architecture,
            "input": _input_rule(found, size_px, mean, std),
            "classes": _classes(found, labels, num_classes),
        },
        ModelRecord,
        RECORD_FILE,
    )
    state = _fitting(state, record)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".import-") as name:
        written = Path(name) / "model"
        written.mkdir()
        record = record.model_copy(update={"weights": write_weights(state, written)})
        del state, found, checkpoint
        write_record(record, written)
        if image_rgb is None:
            image_rgb = np.random.default_rng(0).integers(0, 256, (*_CHECK_HW, 3), dtype=np.uint8)
        label_map = Segmenter.load(written).segment(image_rgb).label_map
        check(label_map)
        written.rename(folder)  # an empty folder is replaced
    return Imported(record, tuple(notes), label_map)


def _summary(found: Recognised) -> str:
    own = found.architecture
    rates = ", ".join(map(str, own.aspp_rates)) or "none"
    return (
        f"{found.library}: {own.head} on {own.backbone}, output stride {own.output_stride}, atrous "
        f"rates {rates}, {found.num_classes} outputs"
    )


def _two_classes(state: State) -> State:
    """The state dict of a network with one output as one with two: sigmoid(x) = softmax(0, x)."""
    for classifier in ("head.classifier", "head.4", "head.1"):
        weight, bias = f"{classifier}.weight", f"{classifier}.bias"
        if bias in state and state[weight].ndim == 4:
            if len(state[bias]) > 1:
                return state
            return state | {
                name: torch.cat([torch.zeros_like(state[name]), state[name]])
                for name in (weight, bias)
            }
    return state


def _fitting(state: State, record: ModelRecord) -> State:
    """The state dict with contiguous tensors of their own and complete counters. Raises ModelError
    if it does not fit the architecture.
    """
    with torch.device("meta"):  # names and shapes only
        network = build_network(record.architecture, len(record.classes))
    expected = network.state_dict()
    counters = {
        name: torch.tensor(0) for name in expected if name.endswith(_COUNTER) and name not in state
    }
    # Classifiers have layers that no head reads.
    kept = {name: values for name, values in state.items() if name in expected} | counters
    check_fit(kept, network)
    seen: set[int] = set()
    return {name: _own_copy(values, seen) for name, values in kept.items()}


def _own_copy(values: Tensor, seen: set[int]) -> Tensor:
    """The tensor, or a copy if it is not contiguous or shares memory with an earlier one. A copy of
    each would double the memory.
    """
    pointer = values.data_ptr()
    if values.is_contiguous() and pointer not in seen:
        seen.add(pointer)
        return values
    return values.clone(memory_format=torch.contiguous_format)


def _input_rule(
    found: Recognised,
    size_px: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> InputRule:
    flags = {"--size-px": size_px, "--mean": mean, "--std": std}
    missing = [flag for flag, value in flags.items() if value is None]
    known = found.rule
    if known is None and missing:
        raise ModelError(
            "the checkpoint does not say how images become its input: give "
            f"{', '.join(missing)}, as in training (often --mean 0.485,0.456,0.406 and --std "
            "0.229,0.224,0.225)"
        )
    fields = known.model_dump(exclude_unset=True) if known else {}
    if size_px is not None:
        fields["resize"] = {"size_px": size_px, "multiple_of": found.size_multiple}
    fields |= {name: value for name, value in (("mean", mean), ("std", std)) if value is not None}
    return validated(fields, InputRule, "input")


def _classes(
    found: Recognised, labels: Sequence[str | ClassInfo] | None, num_classes: int
) -> tuple[ClassInfo, ...]:
    labels = labels or found.labels
    if labels is None:
        raise ModelError(
            f"the checkpoint does not name its {found.num_classes} classes: give --classes"
        )
    if found.num_classes == 1 and len(labels) == 1:
        labels = ("background", *labels)
    if len(labels) != num_classes:
        raise ModelError(
            f"--classes names {len(labels)} classes, the checkpoint has {num_classes}"
            + (" (the background and one more)" if found.num_classes == 1 else "")
        )
    return tuple(
        given if isinstance(given, ClassInfo) else ClassInfo(label=given, color=voc_color(class_id))
        for class_id, given in enumerate(labels)
    )


# Reading


def load_checkpoint(path: Path) -> LoadedCheckpoint:
    """Reads a checkpoint file, or a folder that `save_pretrained` wrote. Raises ModelError if it
    holds no state dict that can be read without running code.
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
    """Tensors stay on the disk until they are used."""
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with (
            warnings.catch_warnings(action="ignore"),  # the error below says what to do
            torch.serialization.safe_globals(_INERT),
        ):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except OSError:
        raise
    except SafetensorError as error:
        raise ModelError(f"{path.name}: is not a safetensors file: {error}") from error
    except Exception as error:  # a damaged pickle raises whatever it comes upon
        raise ModelError(
            f"{path.name}: is damaged, or holds more than tensors, which would run code; save it "
            "with torch.save(model.state_dict(), 'weights.pth')"
        ) from error


def _unwrapped(content: object, name: str) -> tuple[State, list[str]]:
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
