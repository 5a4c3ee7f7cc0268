"""The archive: reproducible, complete, self-contained, all or nothing."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from segserve import archive as archive_module
from segserve.archive import build_archive
from segserve.resources import resource
from segserve.runtime.errors import ModelError
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.record import RECORD_FILE, read_record, sha256_of
from segserve.runtime.settings import CONFIG_FILE, Settings, read_config

from .images import smooth

PROJECT = Path(__file__).parents[2]
SITE_PACKAGES = sysconfig.get_paths()["purelib"]


@pytest.fixture(scope="module")
def archive(tiny_model, tmp_path_factory):
    return build_archive(tiny_model, tmp_path_factory.mktemp("built"))


@pytest.fixture
def copied_model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "store" / "model")


def isolated(code: str, *arguments: object, path: list[str], cwd: Path) -> str:
    """What Python prints that sees only the standard library and `path`: no site, so no .pth file
    either.
    """
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path[:0] = {path!r}\n{code}",
        *map(str, arguments),
    ]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


# Reproducible


def test_build_archive_twice_gives_the_same_bytes(tiny_model, archive, tmp_path, monkeypatch):
    """From another folder, with other rights, times, locale and temporary folder, over an older
    archive.
    """
    model = shutil.copytree(tiny_model, tmp_path / "elsewhere" / "another name")
    for path in model.iterdir():
        path.chmod(0o600)
        os.utime(path, (10**9, 10**9))
    output = tmp_path / "output"
    output.mkdir()
    (output / archive.name).write_bytes(b"older")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    before = os.umask(0o077)
    try:
        again = build_archive(model.relative_to(tmp_path), Path("output"))
    finally:
        os.umask(before)
    assert sha256_of(again) == sha256_of(archive)
    assert [path.name for path in output.iterdir()] == [archive.name]


def test_build_archive_entries_are_sorted_stored_and_timeless(archive):
    with zipfile.ZipFile(archive) as content:
        entries = content.infolist()
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
    assert {entry.external_attr >> 16 for entry in entries} == {0o644}


# Complete


def test_build_archive_holds_exactly_what_a_worker_needs(archive):
    packages = {
        str(path.relative_to(PROJECT))
        for package in ("runtime", "schema")
        for path in (PROJECT / "segserve" / package).rglob("*.py")
    }
    assert "segserve/runtime/inference/segmenter.py" in packages
    assert "segserve/schema/response.py" in packages
    with zipfile.ZipFile(archive) as content:
        assert set(content.namelist()) == packages | {
            "MAR-INF/MANIFEST.json",
            "deeplabv3.py",
            "handler.py",
            "model-config.yaml",
            "model.yaml",
            "segserve/__init__.py",
            "weights.safetensors",
        }


def test_build_archive_manifest_names_what_torchserve_loads(archive):
    with zipfile.ZipFile(archive) as content:
        manifest = json.loads(content.read("MAR-INF/MANIFEST.json"))
        names = content.namelist()
    model = manifest["model"]
    assert (model["modelName"], model["modelVersion"]) == ("tiny", "1.0")
    assert {
        model["handler"],
        model["modelFile"],
        model["serializedFile"],
        model["configFile"],
    } <= set(names)
    assert manifest["createdOn"] == "01/01/1980 00:00:00"


def test_build_archive_files_are_those_of_the_model_and_the_project(archive, tiny_model):
    originals = {
        "handler.py": PROJECT / "handler.py",
        "deeplabv3.py": PROJECT / "deeplabv3.py",
        "segserve/runtime/decode/image.py": PROJECT / "segserve/runtime/decode/image.py",
        "model-config.yaml": resource("model/model-config.yaml"),
        "model.yaml": tiny_model / "model.yaml",
        "weights.safetensors": tiny_model / "weights.safetensors",
    }
    with zipfile.ZipFile(archive) as content:
        for name, original in originals.items():
            assert content.read(name) == original.read_bytes(), name


def test_build_archive_takes_the_card_of_the_model(copied_model, tmp_path):
    (copied_model / "README.md").write_text("# a card")
    (copied_model / "NOTES.md").write_text("not carried")
    with zipfile.ZipFile(build_archive(copied_model, tmp_path)) as content:
        assert content.read("README.md") == b"# a card"
        assert "NOTES.md" not in content.namelist()


@pytest.mark.parametrize("place", ["model", "beside"])
def test_build_archive_takes_the_nearest_settings(copied_model, tmp_path, place):
    (copied_model.parent / CONFIG_FILE).write_text("batchSize: 3\n")
    if place == "model":
        (copied_model / CONFIG_FILE).write_text("batchSize: 2\n")
    with zipfile.ZipFile(build_archive(copied_model, tmp_path)) as content:
        config = read_config(yaml.safe_load(content.read(CONFIG_FILE)))
    assert config.batchSize == (2 if place == "model" else 3)


# Self-contained


def test_archive_loads_without_the_repository_and_gives_the_same_map(archive, tiny_model, tmp_path):
    unpacked, image, labels = tmp_path / "unpacked", tmp_path / "image.npy", tmp_path / "labels.npy"
    with zipfile.ZipFile(archive) as content:
        content.extractall(unpacked)
    np.save(image, smooth(40, 60))
    code = """
import pathlib
import numpy, torch
torch.set_num_threads(1)
import deeplabv3, handler, segserve
from segserve.runtime.inference import segmenter
from segserve.runtime.settings import Settings
folder = pathlib.Path(sys.argv[1])
loaded = segmenter.Segmenter.load(folder, settings=Settings(precision="fp32"))
numpy.save(sys.argv[3], loaded.segment(numpy.load(sys.argv[2])).label_map)
print(deeplabv3.__file__, handler.__file__, segserve.__file__, segmenter.__file__, sep="\\n")
"""
    printed = isolated(
        code, unpacked, image, labels, path=[str(unpacked), SITE_PACKAGES], cwd=tmp_path
    )
    assert all(Path(line).is_relative_to(unpacked) for line in printed.split())
    expected = (
        Segmenter.load(tiny_model, settings=Settings(precision="fp32"))
        .segment(smooth(40, 60))
        .label_map
    )
    assert len(np.unique(expected)) > 1
    assert np.array_equal(np.load(labels), expected)


def test_runtime_imports_no_server_and_no_network_client(tmp_path):
    code = """
import pathlib
runtime = pathlib.Path(sys.argv[1])
for module in sorted(runtime.rglob("*.py")):
    if module.stem != "__init__":
        name = module.relative_to(runtime).with_suffix("")
        __import__("segserve.runtime." + str(name).replace("/", "."))
print(*sys.modules)
"""
    runtime = PROJECT / "segserve" / "runtime"
    modules = isolated(code, runtime, path=[str(PROJECT), SITE_PACKAGES], cwd=tmp_path).split()
    assert "segserve.runtime.pipeline" in modules
    assert not {"ts", "ray", "requests", "typer", "rich"} & set(modules)
    assert not [
        name
        for name in modules
        if name.startswith("segserve.")
        and not name.startswith(("segserve.runtime", "segserve.schema"))
    ]


# All or nothing


def break_weights(model: Path) -> None:
    (model / "weights.safetensors").write_bytes(b"other")


def break_record(model: Path) -> None:
    (model / RECORD_FILE).write_text("name: [", encoding="utf-8")


def forget_weights(model: Path) -> None:
    (model / "weights.safetensors").unlink()


def break_settings(model: Path) -> None:
    (model / CONFIG_FILE).write_text("batchSizes: 1")


def break_settings_yaml(model: Path) -> None:
    (model / CONFIG_FILE).write_text("batchSize: [")


@pytest.mark.parametrize(
    ("break_model", "message"),
    [
        (break_weights, "weights.safetensors: SHA-256 is"),
        (forget_weights, "weights.safetensors: the weights are missing"),
        (break_record, "model.yaml: cannot be read"),
        (break_settings, "model-config.yaml: batchSizes: unknown key"),
        (break_settings_yaml, "model-config.yaml: cannot be read"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_build_archive_bad_model_raises_and_writes_nothing(
    copied_model, tmp_path, break_model, message
):
    break_model(copied_model)
    with pytest.raises(ModelError, match=message) as caught:
        build_archive(copied_model, tmp_path / "output")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "output").exists()


def test_build_archive_failing_archiver_raises_and_keeps_the_older_archive(
    copied_model, tmp_path, monkeypatch
):
    output = tmp_path / "output"
    output.mkdir()
    (output / "tiny.mar").write_bytes(b"older")
    monkeypatch.setattr(archive_module.sys, "executable", shutil.which("false"))
    with pytest.raises(ModelError, match="torch-model-archiver failed"):
        build_archive(copied_model, output)
    assert [(path.name, path.read_bytes()) for path in output.iterdir()] == [("tiny.mar", b"older")]


def test_build_archive_empty_settings_are_the_defaults(copied_model, tmp_path):
    (copied_model / CONFIG_FILE).write_text("# nothing set\n")
    assert build_archive(copied_model, tmp_path).name == f"{read_record(copied_model).name}.mar"
