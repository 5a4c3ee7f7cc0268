"""A download goes on where it broke off, is verified, and appears only when it is whole."""

import hashlib
import socket

import numpy as np
import pytest

from segserve import fetch as fetch_module
from segserve.fetch import download
from segserve.runtime.errors import FetchError

from ..file_server import served

CONTENT = np.random.default_rng(0).bytes(1_000_000)
BLOCK = 2**14  # what is written at a time
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new folder" / "file.bin"


def fetch(server, target, **changes):
    reports = []
    arguments = {
        "sha256": SHA256,
        "max_bytes": 2_000_000,
        "report": lambda *counts: reports.append(counts),
    }
    download(f"{server.url}/file.bin", target, **{**arguments, **changes})
    return reports


def test_download_whole_file_arrives_and_its_progress_is_reported(target):
    with served(CONTENT) as server:
        reports = fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]
    assert (reports[0], reports[-1]) == ((0, 1_000_000), (1_000_000, 1_000_000))
    assert sorted(reports) == reports


def test_download_connection_dropped_twice_goes_on_by_itself(target):
    with served(CONTENT, drops=[20 * BLOCK, 10 * BLOCK]) as server:
        fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={20 * BLOCK}-", f"bytes={30 * BLOCK}-"]


def test_download_dropped_again_and_again_leaves_nothing(target):
    with (
        served(CONTENT, drops=[6 * BLOCK + 1] * 5) as server,
        pytest.raises(FetchError, match="508479 more expected"),
    ):
        fetch(server, target)
    assert list(target.parent.iterdir()) == []


def test_download_dropped_before_a_byte_arrives_is_not_tried_again(target):
    with (
        served(CONTENT, drops=[0] * 5) as server,
        pytest.raises(FetchError, match="1000000 more expected"),
    ):
        fetch(server, target)
    assert server.ranges == [None]


def test_download_dropped_by_a_server_without_ranges_is_rejected(target):
    with (
        served(CONTENT, has_ranges=False, drops=[4 * BLOCK]) as server,
        pytest.raises(FetchError, match="the server returned 200 OK"),
    ):
        fetch(server, target)
    assert list(target.parent.iterdir()) == []


def test_download_of_another_hash_is_deleted_and_both_hashes_are_reported(target):
    other = hashlib.sha256(b"other").hexdigest()
    with (
        served(CONTENT) as server,
        pytest.raises(FetchError, match=f"SHA-256 is {SHA256}, the record says {other}"),
    ):
        fetch(server, target, sha256=other)
    assert list(target.parent.iterdir()) == []


def test_download_larger_than_the_limit_is_stopped(target):
    with served(CONTENT) as server, pytest.raises(FetchError, match="sends more than 999999 bytes"):
        fetch(server, target, max_bytes=999_999)
    assert list(target.parent.iterdir()) == []


def test_download_missing_on_the_server_says_the_status(target):
    with (
        served(CONTENT, path="/other.bin") as server,
        pytest.raises(FetchError, match=r"file\.bin: .* 404 Not Found$"),
    ):
        fetch(server, target)


def test_download_unreachable_server_says_why(silent_url, target):
    with pytest.raises(FetchError, match=r"/file\.bin: .*Connection refused$"):
        download(
            f"{silent_url}/file.bin", target, sha256=SHA256, max_bytes=9, report=lambda *_: None
        )


def test_download_silent_server_times_out(target, monkeypatch):
    monkeypatch.setattr(fetch_module, "_TIMEOUT_S", (1, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file.bin"
        with pytest.raises(FetchError, match="timed out"):
            download(url, target, sha256=SHA256, max_bytes=9, report=lambda *_: None)
