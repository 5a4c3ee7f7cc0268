"""`segserve segment` with closed, full, empty or unread streams, and with repeated Ctrl-C."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .canned import LABEL_MAP, Canned, canned_server
from .pictures import IMAGE, PictureServer, command, environment, write_images


@pytest.fixture
def server():
    with canned_server(PictureServer) as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, *(f"in/{n:02}.jpg" for n in range(40)))
    (tmp_path / "cat.png").write_bytes(IMAGE)
    return tmp_path


def started(*arguments: str, folder: Path, **streams) -> subprocess.Popen:
    """As a user's shell starts it: Python holds back what it prints, unlike where PYTHONUNBUFFERED
    is set.
    """
    streams.setdefault("stdin", subprocess.DEVNULL)
    buffered = environment(PYTHONUNBUFFERED="")
    return subprocess.Popen(
        command(*arguments), cwd=folder, env=buffered, stderr=subprocess.PIPE, **streams
    )


def ended(process: subprocess.Popen) -> tuple[int, list[str]]:
    """Its status and the lines on stderr."""
    with process:
        _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr.decode().splitlines()


def label_maps(folder: Path) -> list[Path]:
    """All results, each read whole."""
    paths = sorted(folder.glob("*.png"))
    for path in paths:
        with Image.open(path) as picture:
            assert np.array_equal(np.array(picture), LABEL_MAP)
    return paths


def wait_for(condition, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def test_segment_whose_output_is_closed_stops_and_keeps_finished_results(server, folder):
    process = started(
        "segment", "in", "--json", "-o", "out", "--server", server.url, folder=folder, stdout=-1
    )
    assert process.stdout.readline().startswith(b'{"path": "in/')
    process.stdout.close()
    process.stdout = None
    status, [line] = ended(process)
    kept = len(label_maps(folder / "out"))
    assert 1 <= kept < 40
    left = f"{kept} segmented, {40 - kept} left; the same command goes on where it stopped"
    assert (status, line) == (141, f"segserve: the reader of standard output has ended; {left}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("segment", "cat.png", "--json"),
        ("segment", "-", "--format", "json"),
        ("segment", "--help"),
        ("stop",),
    ],
    ids=["lines", "one result", "help", "another command"],
)
def test_command_with_output_on_a_full_disk_says_so_in_one_line(server, folder, arguments):
    address = () if {"--help", "stop"} & {*arguments} else ("--server", server.url)
    with open("/dev/full", "wb") as full, open(folder / "cat.png", "rb") as image:
        process = started(*arguments, *address, folder=folder, stdin=image, stdout=full)
        status, [line] = ended(process)
    assert status == 1
    assert "No space left on device" in line
    assert "Errno" not in line


@pytest.mark.parametrize(
    ("descriptor", "arguments", "message"),
    [
        (0, ("-",), "standard input is empty"),
        (1, ("-",), "standard output is closed"),
        (1, ("in", "--json"), "standard output is closed"),
    ],
    ids=["input", "output", "output for lines"],
)
def test_segment_with_closed_stream_sends_nothing(server, folder, descriptor, arguments, message):
    def close() -> None:
        os.close(descriptor)

    process = started(
        "segment", *arguments, "--server", server.url, folder=folder, preexec_fn=close
    )
    status, [line] = ended(process)
    assert (status, server.received) == (1, [])
    assert message in line


def test_segment_from_empty_stdin_says_so_and_sends_nothing(server, folder):
    process = started("segment", "-", "--server", server.url, folder=folder)
    status, [line] = ended(process)
    assert (status, server.received) == (1, [])
    assert line.startswith("segserve: standard input is empty")


def test_segment_that_is_interrupted_repeatedly_prints_one_line(server, folder):
    quick = server.response
    server.script = [quick] * 12
    server.response = Canned(quick.body, pause_s=20)
    process = started("segment", "in", "-o", "out", "--server", server.url, folder=folder)
    wait_for(lambda: len(list(folder.glob("out/*.png"))) == 12)
    while process.poll() is None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        time.sleep(0.001)
    line = "segserve: interrupted; 12 segmented, 28 left; the same command goes on where it stopped"
    assert ended(process) == (130, [line])
    assert len(label_maps(folder / "out")) == 12
