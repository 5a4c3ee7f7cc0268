"""The soak as a command, for some seconds and with a tiny model."""

import json
import re
import subprocess
import sys

from bench.soak.load import Outcome
from bench.soak.verdict import findings
from tests.conftest import PROJECT

SECONDS = 4


def test_soak_of_a_few_seconds_writes_its_figures_and_loses_nothing(archive, tmp_path):
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- soak: begin -->\n<!-- soak: end -->\nafter\n")
    command = [
        sys.executable,
        "-m",
        "bench.soak",
        "--archive",
        archive,
        "--minutes",
        str(SECONDS / 60),
    ]
    command += ["--output", tmp_path / "out", "--document", document]
    ended = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, timeout=400, check=False
    )
    assert ended.returncode == 0 or ended.stderr.splitlines()[-1].startswith(
        "soak: not as it should be"
    ), ended.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["rate"] > found["capacity"] > 0
    outcomes = [Outcome(*fields) for fields in found["outcomes"]]
    [reported] = [
        finding for finding in findings([], outcomes, SECONDS) if finding.name == "responses"
    ]
    assert reported.holds, reported
    assert len(found["samples"]) >= SECONDS
    rows = re.findall(r"^\| (\w+) \|", document.read_text(), re.MULTILINE)
    assert rows == ["memory", "descriptors", "threads", "p99", "queue", "responses"]
