"""Packs a model folder with the handler, the network and the runtime into a self-contained
TorchServe archive. torch-model-archiver does the packing; its zip is then written again, so that
the same inputs give the same bytes.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import yaml

from . import runtime, schema
from .resources import require_packages, resource
from .runtime.errors import ModelError
from .runtime.files import whole_file
from .runtime.record import (
    NETWORK_FILE,
    RECORD_FILE,
    ModelRecord,
    named_weights,
    read_record,
    read_yaml,
    verified_file,
)
from .runtime.settings import CONFIG_FILE, Runtime, check_precision, read_config

MANIFEST = "MAR-INF/MANIFEST.json"
# What the handler does not need: the OpenAPI document and the command that writes it.
_NOT_PACKED = ("__pycache__",)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip can hold


def build_archive(
    model: Path, output: Path, *, load: bool = True, runtime: Runtime | None = None
) -> Path:
    """Packs a model folder into `output/NAME.mar`, NAME being the record's, and returns its path.

    Record, weights and `model-config.yaml` are checked first. The archive appears under its name
    only when it is whole.

    Args:
        load: whether to load the network too, which takes seconds. Otherwise only the SHA-256 of
            the weights is checked.
        runtime: replaces the setting of model-config.yaml. For `onnx`, a network.onnx that the
            folder does not have is made.

    Raises:
        ModelError: the model cannot be served as it is, or torch-model-archiver failed.
    """
    require_packages("model_archiver")
    record = read_record(model)
    if load:
        require_packages("torch")
        from .runtime.network import load_network

        load_network(record, model)
    else:
        verified_file(named_weights(record), model, "weights")
    config = config_of(model)
    check_precision(read_config(read_yaml(config)).handler, record)

    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output) as workspace:
        packed = _packed(record, model, config, Path(workspace), runtime)
        with whole_file(archive := output / packed.name) as file:
            _repack(packed, file)
    return archive


def _head_file() -> Path:
    """The file of `deeplabv3`, found without importing it: it imports torch."""
    spec = find_spec("deeplabv3")
    if spec is None or spec.origin is None:
        raise ModelError("deeplabv3.py is not installed")
    return Path(spec.origin)


def config_of(model: Path) -> Path:
    """A model's `model-config.yaml`: its own, else its neighbours', else the project's."""
    for path in (model / CONFIG_FILE, model.parent / CONFIG_FILE):
        if path.exists():
            return path
    return resource(f"model/{CONFIG_FILE}")


def _packed(
    record: ModelRecord, model: Path, config: Path, workspace: Path, runtime: Runtime | None
) -> Path:
    extra, scratch, export = (workspace / name for name in ("extra", "scratch", "export"))
    _stage(record, model, extra)
    if runtime == "onnx" and not (extra / NETWORK_FILE).exists():
        from .exporting import write_graph

        write_graph(model, extra)
    scratch.mkdir()
    export.mkdir()
    options = {
        "--model-name": record.name,
        "--version": record.version,
        "--handler": resource("handler.py"),
        "--model-file": _head_file(),
        "--serialized-file": model / named_weights(record).file,
        "--config-file": _config_with(config, runtime, workspace),
        "--extra-files": extra,
        "--export-path": export,
    }
    run_archiver(options, scratch)
    return export / f"{record.name}.mar"


def run_archiver(options: Mapping[str, object], scratch: Path) -> None:
    """Runs torch-model-archiver, which empties `scratch`/NAME. Raises ModelError if it fails."""
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--force"]
    command += [str(part) for option in options.items() for part in option]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = " ".join((result.stderr or result.stdout).split())[-500:]
        raise ModelError(f"torch-model-archiver failed: {reason}")


def _stage(record: ModelRecord, model: Path, extra: Path) -> None:
    """Copies the archive's other files: record, int8 ranges, ONNX, model card, runtime, schema."""
    for package in (runtime, schema):
        folder = Path(str(package.__file__)).parent
        shutil.copytree(
            folder, extra / "segserve" / folder.name, ignore=shutil.ignore_patterns(*_NOT_PACKED)
        )
    shutil.copy(Path(runtime.__file__).parents[1] / "__init__.py", extra / "segserve")
    shutil.copy(model / RECORD_FILE, extra)
    if record.int8:
        shutil.copy(model / record.int8.file, extra)
    for optional in ("README.md", NETWORK_FILE):
        if (model / optional).exists():
            shutil.copy(model / optional, extra)


def _config_with(config: Path, runtime: Runtime | None, workspace: Path) -> Path:
    """A copy of the configuration, with this runtime unless it is None."""
    copied = Path(shutil.copy(config, workspace / CONFIG_FILE))
    if runtime is not None:
        content = yaml.safe_load(copied.read_text(encoding="utf-8")) or {}
        content["handler"] = {**(content.get("handler") or {}), "runtime": runtime}
        copied.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return copied


def _repack(archive: Path, file: BinaryIO) -> None:
    """Writes the same files sorted by name, uncompressed, with fixed times and permissions."""
    with (
        zipfile.ZipFile(archive) as source,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as target,
    ):
        for name in sorted(name for name in source.namelist() if not name.endswith("/")):
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.external_attr = 0o644 << 16
            content = source.read(name)
            if name == MANIFEST:
                manifest = json.loads(content) | {"createdOn": "01/01/1980 00:00:00"}
                content = json.dumps(manifest, indent=2, sort_keys=True).encode()
            target.writestr(entry, content)
