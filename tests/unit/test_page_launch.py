"""The page as a program meets it, without a browser and without a server behind it."""

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import requests

from segserve.page.launch import page_served
from segserve.page.server import PageServer


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))
        with page_served(PageServer("http://127.0.0.1:9")) as url:
            yield url


def test_page_has_a_policy_that_keeps_the_browser_here(url):
    response = requests.get(url, timeout=30)
    policy = response.headers["Content-Security-Policy"]
    assert response.ok
    assert "default-src 'self'" in policy
    assert "http" not in policy


def test_page_under_another_name_is_rejected(url):
    assert requests.get(url, headers={"Host": "attacker.example"}, timeout=30).status_code == 400


def test_page_listens_on_this_machine_alone(url):
    assert url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/etc/hostname", id="outside"),
        pytest.param(str(Path(__file__)), id="source"),
    ],
)
def test_page_hands_out_no_file_of_this_machine(url, path):
    assert requests.get(f"{url}gradio_api/file={path}", timeout=30).status_code == 403


def problem_with(url: str, picture: dict[str, object]) -> str | None:
    """What the page says of a picture that its script sends; None if it has no problem with it."""
    settings = requests.get(f"{url}config", timeout=30).json()
    kinds = {component["id"]: component for component in settings["components"]}
    [sending] = [each for each in settings["dependencies"] if each["api_name"] == "send"]
    values = [kinds[number]["props"].get("value") for number in sending["inputs"]]
    document = {
        "data": [picture, *values[1:]],
        "fn_index": sending["id"],
        "session_hash": uuid.uuid4().hex,
    }
    requests.post(f"{url}gradio_api/queue/join", json=document, timeout=30).raise_for_status()
    address = f"{url}gradio_api/queue/data?session_hash={document['session_hash']}"
    with requests.get(address, stream=True, timeout=30) as events:
        reported = (
            json.loads(line.removeprefix(b"data: ")) for line in events.iter_lines() if line
        )
        [response] = next(event for event in reported if event["msg"] == "process_completed")[
            "output"
        ]["data"]
    return response and response["title"]


def test_page_sends_about_what_was_dropped_onto_it_and_no_other_file_of_this_machine(url):
    [dropped] = requests.post(
        f"{url}gradio_api/upload", files={"files": ("a.png", b"x")}, timeout=30
    ).json()
    link = Path(dropped).with_name("link.png")
    link.symlink_to("/etc/hostname")
    assert problem_with(url, {"path": dropped}) == "No server responds"
    for other in ("/etc/hostname", f"{dropped}/../../../../../etc/hostname", str(link)):
        assert problem_with(url, {"path": other}) is None


def test_page_offers_no_named_endpoint(url):
    assert requests.get(f"{url}gradio_api/info", timeout=30).json()["named_endpoints"] == {}
    assert requests.get(f"{url}openapi.json", timeout=30).status_code == 404


def test_page_when_closed_leaves_no_uploads_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # restores that of the other page at the end
    with page_served(PageServer("http://127.0.0.1:9")) as url:
        picture = {"files": ("cat.png", b"a picture", "image/png")}
        [path] = requests.post(f"{url}gradio_api/upload", files=picture, timeout=30).json()
        assert Path(path).is_relative_to(tmp_path)
        assert Path(path).read_bytes() == b"a picture"
    assert list(tmp_path.iterdir()) == []


def start_command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "segserve", "page", *arguments]
    environment = {**os.environ, "TMPDIR": str(folder), "COLUMNS": "200"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGINT, 130, id="ctrl-c"),
        pytest.param(signal.SIGTERM, 143, id="sigterm"),
    ],
)
def test_command_when_ended_by_a_signal_leaves_nothing_behind(tmp_path, number, status):
    process = start_command(tmp_path)
    line = process.stdout.readline()
    assert "The page is at http://127.0.0.1:" in line
    assert list(tmp_path.glob("segserve-page-*"))
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in errors
    assert list(tmp_path.glob("segserve-page-*")) == []


def test_command_with_taken_port_ends_with_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        process = start_command(tmp_path, "--port", str(taken.getsockname()[1]))
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(errors.strip().splitlines()) == 1
    assert "port" in errors
