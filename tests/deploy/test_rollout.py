"""A new version beside the old one, as docs/operations.md has it: its very commands, under load,
with nothing lost.
"""

import re
import subprocess

import pytest

from tests.conftest import PROJECT
from tests.packed import pack

from .served import ECHO, Load, free_ports, running

TOKEN, MANAGEMENT_TOKEN = "a-token-of-some-length", "another-token-of-some-length"


def commands(heading: str) -> str:
    """The shell of a section of the page."""
    page = (PROJECT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = page.split(f"\n### {heading}\n")[1].split("\n## ")[0].split("\n### ")[0]
    return "\n".join(re.findall(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server with version 1.0 of a model, and version 2.0 in its folder of models; yields what
    the commands need.
    """
    folder = tmp_path_factory.mktemp("rollout")
    models = folder / "models"
    models.mkdir()
    archive = pack(folder, "echo", ECHO, version="1.0")
    pack(folder, "echo", ECHO, version="2.0").rename(models / "echo-2.0.mar")
    (folder / "token").write_text(TOKEN)
    (folder / "management-token").write_text(MANAGEMENT_TOKEN)
    port, metrics_port, management_port = free_ports(3)
    ports = {"PORT": port, "METRICS_PORT": metrics_port, "MANAGEMENT_PORT": management_port}
    secrets = {"TOKEN_FILE": folder / "token", "MANAGEMENT_TOKEN_FILE": folder / "management-token"}
    place = {
        "ARCHIVE": archive,
        "MODELS_DIR": models,
        "HOST": "127.0.0.1",
        "RUN_DIR": folder / "run",
    }
    with running(folder, **ports, **secrets, **place) as command:
        command.wait_ready(f"http://127.0.0.1:{port}")
        yield {
            "SERVER": f"http://127.0.0.1:{port}",
            "MANAGEMENT": f"http://127.0.0.1:{management_port}",
            "TOKEN": TOKEN,
            "MANAGEMENT_TOKEN": MANAGEMENT_TOKEN,
            "MODEL": "echo",
            "ARCHIVE_URL": f"file://{models}/echo-2.0.mar",
            "OLD": "1.0",
            "NEW": "2.0",
        }


def run(heading: str, variables: dict[str, str]) -> str:
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", **variables}
    script = commands(heading)
    assert script
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rollout_and_rollback_under_load_lose_no_request(served):
    url = f"{served['SERVER']}/predictions/echo"
    with Load(url, TOKEN, clients=4, outcome_of=lambda response: response.text) as load:
        load.wait_for("1.0", 10)
        run("Two versions in parallel", served)
        assert "2.0" not in load.outcomes
        run("Shift", served)
        load.wait_for("2.0", 10)
        run("Roll back", served)
        before = load.outcomes["1.0"]
        load.wait_for("1.0", before + 10)
        run("Shift", served)
        before = load.outcomes["2.0"]
        load.wait_for("2.0", before + 10)
        run("Take the old version away", served)
        before = load.outcomes["2.0"]
        load.wait_for("2.0", before + 10)
    assert set(load.outcomes) == {"1.0", "2.0"}, load.outcomes


def test_rollout_from_outside_the_models_folder_is_rejected(served):
    with pytest.raises(AssertionError, match="does not match any allowed URL"):
        run("Two versions in parallel", {**served, "ARCHIVE_URL": "file:///etc/echo-2.0.mar"})
