"""The command line as a user runs it, from a folder of their own."""

import re
import shlex
import socket
import subprocess
import sys
import time

import pytest
from PIL import Image

from tests.conftest import PROJECT
from tests.packed import pack

ECHO = """
class Echo:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return ["echo" for _ in data]
"""


def segserve(*arguments: str, folder) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "segserve", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )


def test_demo_prints_the_classes_and_saves_pictures(tmp_path):
    result = segserve("demo", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"cat\W+\d+\.\d%", result.stdout)
    assert re.search(r"person\W+\d+\.\d%", result.stdout)
    for name in (
        "chelsea-labels.png",
        "chelsea-overlay.jpg",
        "astronaut-labels.png",
        "astronaut-overlay.jpg",
    ):
        with Image.open(tmp_path / "build" / "demo" / name) as picture:
            assert picture.size in ((451, 300), (512, 512))


def test_serve_prints_a_curl_that_works_and_stop_ends_it(tmp_path):
    result = segserve("serve", folder=tmp_path)
    try:
        assert result.returncode == 0, result.stderr
        curl = next(line for line in result.stdout.splitlines() if line.strip().startswith("curl"))
        (tmp_path / "photo.jpg").write_bytes(
            (PROJECT / "docs" / "chelsea-overlay.jpg").read_bytes()
        )
        command = shlex.split(curl.replace("PHOTO.jpg", "photo.jpg"))
        response = subprocess.run(
            [*command, "-s"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
        )
        assert response.stdout.startswith('{"model":{"name":"deeplabv3"')
        assert "`segserve stop`" in result.stdout
        began_s = time.monotonic()
        second = segserve("serve", folder=tmp_path)
        assert time.monotonic() - began_s < 10
        assert second.returncode == 1
        assert re.search(r"already runs at http://.*: `segserve stop` ends it", second.stderr)
    finally:
        stopped = segserve("stop", folder=tmp_path)
    assert stopped.stdout.strip() == "stopped"
    assert segserve("stop", folder=tmp_path).stdout.strip() == "no server is running"


def test_serve_says_first_that_its_port_is_in_use(tmp_path, monkeypatch):
    archive = pack(tmp_path, "echo", ECHO)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("SEGSERVE_PORT", str(port))
        arguments = ("serve", "--engine", "local", "--archive", str(archive))
        result = segserve(*arguments, folder=tmp_path)
        segserve("stop", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    first, second, *_ = result.stdout.splitlines()
    assert first.startswith(f"port {port} is in use, so the server takes another; SEGSERVE_PORT ")
    assert second.startswith("the server is starting at http://127.0.0.1:")
    assert f":{port}" not in second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("archive", "nosuchmodel"),
            "'nosuchmodel': no model folder, and no name of a model: embedded, ",
        ),
        (
            ("fetch", "nosuchmodel"),
            "'nosuchmodel': no model folder, and no name of a model: embedded, ",
        ),
        (("archive", "--output", "file"), "segserve: file: File exists"),
        (("evaluate", "embedded", "--data", "nowhere"), "there is no such folder or file"),
    ],
    ids=["unknown model", "unknown model to fetch", "file in the place", "missing data"],
)
def test_command_that_fails_says_why_in_one_line(tmp_path, arguments, message):
    (tmp_path / "file").touch()
    result = segserve(*arguments, folder=tmp_path)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert message in line
