"""`.ci/run` builds the image where it can, and says why where it cannot. Its `make` and its engine
only note calls.
"""

import os
import shutil
import subprocess

import pytest

from tests.conftest import PROJECT

CHECKED = ["lint", "test-all"]
ONNX = "TARGET=onnx IMAGE=segserve-onnx"
BUILT = [*CHECKED, "image", "image-test", f"image {ONNX}", f"image-test {ONNX}"]


@pytest.fixture
def ci(tmp_path):
    """Runs a copy of the script; the text of the commands it finds first is the test's."""
    checkout, tools, commands = (tmp_path / name for name in ("checkout", "shared/tools", "bin"))
    for folder in (checkout / ".ci", tools, commands):
        folder.mkdir(parents=True)
    shutil.copy(PROJECT / ".ci" / "run", checkout / ".ci")

    def run(**texts: str) -> tuple[int, list[str], str]:
        there = dict.fromkeys(("chromium", "nginx", "prometheus", "minisign"), "true")
        texts = {"make": 'echo "$@" >>made', "df": "echo 100", "docker": "false"} | there | texts
        for name, text in texts.items():
            path = (tools if name == "container" else commands) / {"container": "container.sh"}.get(
                name, name
            )
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        environment = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}"}
        command = [checkout / ".ci" / "run"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, (checkout / "made").read_text().splitlines(), done.stdout

    return run


def test_ci_where_an_engine_runs_builds_and_tests_the_image(ci):
    assert ci(podman="true")[:2] == (0, BUILT)


def test_ci_where_an_engine_can_be_made_to_run_does_so_first(ci):
    podman = '[ "$MADE_TO" = run ]'
    assert ci(podman=podman, container='[ "$1" = env ] && echo export MADE_TO=run')[:2] == (
        0,
        BUILT,
    )


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        pytest.param({"podman": "false"}, "neither docker nor podman runs here", id="no-engine"),
        pytest.param(
            {"podman": "true", "df": "echo 39"},
            "needs 40 GB of disk and 39 GB are free",
            id="no-room",
        ),
        pytest.param(
            {"podman": "true", "container": "exit 3"},
            "could not make podman run",
            id="not-prepared",
        ),
    ],
)
def test_ci_that_cannot_build_the_image_says_why_and_passes(ci, texts, reason):
    code, made, reported = ci(**texts)
    assert (code, made) == (0, CHECKED)
    [line] = [line for line in reported.splitlines() if line.startswith("skipped: the image")]
    assert reason in line


@pytest.mark.parametrize("target", BUILT)
def test_ci_fails_with_the_first_target_that_does(ci, target):
    code, made, _ = ci(podman="true", make=f'echo "$@" >>made; [ "$*" != "{target}" ]')
    assert code != 0
    assert made == BUILT[: BUILT.index(target) + 1]
