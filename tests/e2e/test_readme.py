"""README's code runs as it stands there, and gives what it says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from segserve.archive import build_archive
from segserve.server.process import TorchServe
from tests.conftest import EMBEDDED, PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")


def block(language: str, containing: str) -> str:
    """The only code block of that language which holds that text."""
    [code] = [code for code in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in code]
    return code


@pytest.fixture(scope="module")
def shell(tmp_path_factory, photographs):
    """Runs a command where README's reader would: a server is up, TOKEN is set, cat.png lies in the folder."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "cat.png").write_bytes(photographs["chelsea"])
    with TorchServe.start([build_archive(EMBEDDED, folder)], folder / "run") as server:
        server.wait_ready()

        def run(*command: str) -> str:
            command = [part.replace("http://127.0.0.1:8080", server.inference_url) for part in command]
            environment = {**os.environ, "TOKEN": server.inference_token}
            return subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=True
            ).stdout

        yield run


def test_readme_curl_gives_the_answer_that_readme_shows(shell):
    answer = json.loads(shell("bash", "-c", block("sh", "curl")))
    shown = json.loads(block("json", '"model"'))
    assert answer.keys() == shown.keys()
    assert (answer["model"], answer["width"], answer["height"]) == (shown["model"], shown["width"], shown["height"])
    # Another processor rounds otherwise: a small class at the border may come or go, the large ones stay.
    for entry in shown["classes"]:
        if entry["fraction"] > 0.05:
            [same] = [other for other in answer["classes"] if other["id"] == entry["id"]]
            assert same["label"] == entry["label"]
            assert same["fraction"] == pytest.approx(entry["fraction"], abs=0.02)


def test_readme_python_prints_the_pixels_of_the_cat(shell):
    assert re.search(r"'cat': \d{5,}", shell(sys.executable, "-c", block("python", "SegmentationClient")))


def test_readme_make_targets_are_in_the_makefile():
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"`?make (\w+)", README)) - {"and"}
    assert named
    assert {target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


def test_readme_links_lead_to_files():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not Path(PROJECT / link).exists()] == []
