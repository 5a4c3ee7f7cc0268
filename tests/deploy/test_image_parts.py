"""What the image is made with, as far as it runs without an engine: the list of packages, the list of contents."""

import json
import re
import subprocess
import sys
import tomllib

import pytest

from segserve.container.settings import Settings
from tests.conftest import PROJECT

DEPLOY = PROJECT / "deploy"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, DEPLOY / script, *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("extras", "wanted", "unwanted"),
    [
        pytest.param(
            "container",
            {"torch", "torchserve", "aiohttp"},
            {"typer", "rich", "gradio", "opencv-python-headless"},
            id="server",
        ),
        pytest.param("container,ray", {"torch", "aiohttp", "ray"}, {"typer", "gradio"}, id="server-with-ray"),
        pytest.param("page,demo", {"gradio", "typer", "scikit-image"}, {"torch", "timm", "torchserve"}, id="page"),
    ],
)
def test_requirements_are_those_of_the_extras(extras, wanted, unwanted):
    done = run("requirements.py", extras)
    assert done.returncode == 0, done.stderr
    names = {line.split(">")[0].split("=")[0].split("[")[0] for line in done.stdout.splitlines()}
    assert wanted <= names
    assert not (unwanted | {"segserve"}) & names


def test_requirements_are_all_pinned():
    pinned = {line.split("==")[0] for line in (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()}
    container = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["container"]
    assert {requirement.split(">")[0] for requirement in container} <= pinned


def test_image_is_not_called_unhealthy_while_it_may_still_load():
    [period] = re.findall(r"--start-period=(\d+)s", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    assert int(period) >= Settings.model_fields["start_timeout_s"].default


def test_sbom_lists_every_package_of_the_interpreter_once():
    done = run("sbom.py")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    purls = [component["purl"] for component in document["components"]]
    assert len(set(purls)) == len(purls)
    [numpy] = [component for component in document["components"] if component["purl"].startswith("pkg:pypi/numpy@")]
    assert {"type", "name", "version", "licenses"} <= set(numpy)


def test_build_context_holds_what_the_dockerfile_copies():
    """`.dockerignore` names what it lets in; everything that is copied from the context must be among it."""
    let_in = [line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source
        for line in (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]
    assert set(copied) - {"."} <= set(let_in)
    assert all((PROJECT / source).exists() for source in copied)
