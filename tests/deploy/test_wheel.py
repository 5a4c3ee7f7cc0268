"""The wheel in environments outside the checkout: the client alone, and with the extras `serve` and
`onnx`.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from tests.conftest import PROJECT

MOST_BYTES = 150e6
MOST_BYTES_WITH_ONNX = 400e6
CAT = 8
# Nothing may be downloaded after the installation.
OFFLINE = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
NEEDS_SERVE = "segserve: this needs {}, not installed: pip install 'segserve[serve]'"
TORCH = NEEDS_SERVE.format("torch")
ARCHIVER = NEEDS_SERVE.format("model_archiver")
TRAIN = "segserve: this needs jinja2, not installed: pip install 'segserve[train]'"
ONNX = "segserve: this needs openvino, not installed: pip install 'segserve[onnx]'"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, PROJECT)
    [path] = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def client(wheel, tmp_path_factory) -> Path:
    """`pip install segserve`: the wheel, and links to the packages that it requires."""
    return with_links(installed(wheel, tmp_path_factory.mktemp("client")), required_by(wheel))


@pytest.fixture(scope="module")
def without_torch(wheel, tmp_path_factory) -> Path:
    """`pip install 'segserve[onnx]'`: the wheel, and links to the packages that it requires."""
    environment = installed(wheel, tmp_path_factory.mktemp("onnx"))
    return with_links(environment, required_by(wheel, "onnx"))


def with_links(environment: Path, packages: list[Distribution]) -> Path:
    for package in packages:
        for name in {file.parts[0] for file in package.files or () if file.parts[0] != ".."}:
            link = packages_of(environment) / name
            if not link.exists():
                link.symlink_to(package.locate_file(name))
    return environment


@pytest.fixture(scope="module")
def server(wheel, tmp_path_factory) -> Path:
    """`pip install 'segserve[serve]'`: the wheel, beside the packages of this environment."""
    environment = installed(wheel, tmp_path_factory.mktemp("serve"))
    path = packages_of(environment) / "packages.pth"
    path.write_text(sysconfig.get_path("purelib") + "\n")
    return environment


@pytest.fixture
def cat(photographs, tmp_path) -> Path:
    path = tmp_path / "cat.png"
    path.write_bytes(photographs["chelsea"])
    return path


def pip(*arguments: object) -> None:
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    subprocess.run([sys.executable, "-m", "pip", *map(str, arguments), *quiet], check=True)


def installed(wheel: Path, environment: Path) -> Path:
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    return environment


def packages_of(environment: Path) -> Path:
    [path] = environment.glob("lib/python*/site-packages")
    return path


def required_by(wheel: Path, extra: str = "") -> list[Distribution]:
    """The packages that the client needs, or those of an extra, and those that they need."""
    found: dict[str, Distribution] = {}

    def add(requirements: list[str] | None, extras: set[str]) -> None:
        for requirement in map(Requirement, requirements or ()):
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in extras):
                continue
            if requirement.name == "segserve":
                add(lines, requirement.extras)
            elif requirement.name not in found:
                package = distribution(requirement.name)
                found[requirement.name] = package
                add(package.requires, {"", *requirement.extras})

    with zipfile.ZipFile(wheel) as packed:
        [name] = [name for name in packed.namelist() if name.endswith("/METADATA")]
        metadata = packed.read(name).decode()
    lines = re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)
    add(lines, {"", extra})
    return list(found.values())


def segserve(environment: Path, *arguments: object, folder: Path) -> subprocess.CompletedProcess:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "JAVA_HOME") if name in os.environ}
    return subprocess.run(
        [environment / "bin" / "segserve", *map(str, arguments)],
        cwd=folder,
        env={**kept, **OFFLINE},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def bytes_of(packages: Iterator[Distribution] | list[Distribution]) -> int:
    files = (package.locate_file(file) for package in packages for file in package.files or ())
    return sum(path.stat().st_size for path in map(Path, files) if path.is_file())


def test_client_is_small(wheel, client):
    own = PathDistribution.discover(name="segserve", path=[str(packages_of(client))])
    assert bytes_of(required_by(wheel)) + bytes_of(own) < MOST_BYTES


@pytest.mark.parametrize(
    ("command", "message"),
    [
        pytest.param(["serve"], ARCHIVER, id="serve"),
        pytest.param(["archive"], ARCHIVER, id="archive"),
        pytest.param(["demo"], ARCHIVER, id="demo"),
        pytest.param(["fetch", "resnet50"], TORCH, id="fetch"),
        pytest.param(["segment", "--local", "cat.png"], ONNX, id="segment-local"),
        pytest.param(["profile", "cat.png"], ONNX, id="profile"),
        pytest.param(["train", "new", "--data", "."], TRAIN, id="train"),
        pytest.param(["evaluate", "embedded", "--data", "."], TRAIN, id="evaluate"),
        pytest.param(["keygen", "key"], NEEDS_SERVE.format("cryptography"), id="keygen"),
        pytest.param(
            ["page"],
            "segserve: this needs gradio, not installed: pip install 'segserve[page]'",
            id="page",
        ),
    ],
)
def test_client_without_an_extra_says_in_one_line_which_to_install(client, cat, command, message):
    done = segserve(client, *command, folder=cat.parent)
    assert (done.returncode, done.stderr.strip()) == (1, message)


def test_extra_onnx_is_small_and_brings_no_torch(wheel, without_torch):
    packages = required_by(wheel, "onnx")
    assert "torch" not in {package.name for package in packages}
    own = PathDistribution.discover(name="segserve", path=[str(packages_of(without_torch))])
    assert bytes_of(packages) + bytes_of(own) < MOST_BYTES_WITH_ONNX


def test_extra_onnx_segments_without_a_server(without_torch, cat, tmp_path):
    done = segserve(without_torch, "segment", "--local", "--json", "cat.png", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["classes"][0]["label"] == "cat"


@pytest.mark.parametrize("extra", ["server", "without_torch"])
def test_server_of_the_wheel_serves_the_client_of_the_wheel(extra, client, cat, tmp_path, request):
    server = request.getfixturevalue(extra)
    started = segserve(server, "serve", folder=tmp_path)
    assert started.returncode == 0, started.stderr
    try:
        done = segserve(client, "segment", "cat.png", folder=tmp_path)
        assert done.returncode == 0, done.stderr
    finally:
        stopped = segserve(server, "stop", folder=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped" in stopped.stdout
    with Image.open(tmp_path / "segmented" / "cat.png") as mask:
        assert (np.asarray(mask) == CAT).mean() > 0.2


def test_embedded_model_of_the_wheel_segments_without_a_server(server, cat, tmp_path):
    done = segserve(server, "segment", "--local", "--json", "cat.png", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["classes"][0]["label"] == "cat"
