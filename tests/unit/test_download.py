"""A download resumes, verifies the whole, and appears only when it is whole."""

import errno
import fcntl
import hashlib
import io
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


def part_of(target):
    return target.with_name("file.bin.part")


def kept(target, content):
    """As an earlier, interrupted download leaves it."""
    target.parent.mkdir()
    part_of(target).write_bytes(content)


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


def test_download_dropped_again_and_again_keeps_the_part_and_the_next_one_goes_on(target):
    with served(CONTENT, drops=[6 * BLOCK + 1] * 5) as server:
        with pytest.raises(
            FetchError, match=r"508479 more expected.*; 0\.5 MB are kept for the next try$"
        ):
            fetch(server, target)
        assert part_of(target).read_bytes() == CONTENT[: 30 * BLOCK]
        assert not target.exists()
        fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={30 * BLOCK}-"


def test_download_dropped_before_a_byte_arrives_is_not_tried_again(target):
    with (
        served(CONTENT, drops=[0] * 5) as server,
        pytest.raises(FetchError, match="1000000 more expected"),
    ):
        fetch(server, target)
    assert server.ranges == [None]


def test_download_part_of_an_earlier_process_is_gone_on_with(target):
    kept(target, CONTENT[:999_999])
    with served(CONTENT) as server:
        reports = fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["bytes=999999-"]
    assert reports[0] == (999_999, 1_000_000)


def test_download_part_that_is_whole_is_verified_and_named(target):
    kept(target, CONTENT)
    with served(CONTENT) as server:
        fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_download_server_without_ranges_starts_again(target):
    kept(target, CONTENT[:400_000])
    with served(CONTENT, has_ranges=False) as server:
        fetch(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"another", id="start"),
        pytest.param(b"x" * 9**7, id="longer"),
    ],
)
def test_download_of_another_hash_is_deleted_and_both_hashes_are_reported(target, part):
    kept(target, part)
    other = hashlib.sha256(b"other").hexdigest()
    with (
        served(CONTENT) as server,
        pytest.raises(FetchError, match=f"SHA-256 is .*, the record says {other}"),
    ):
        fetch(server, target, sha256=other)
    assert list(target.parent.iterdir()) == []


def test_download_damaged_part_is_deleted_and_the_next_one_succeeds(target):
    kept(target, b"damaged")
    with served(CONTENT) as server:
        with pytest.raises(FetchError, match="SHA-256 is"):
            fetch(server, target)
        fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_download_larger_than_the_limit_is_not_heard_out(target):
    with served(CONTENT) as server, pytest.raises(FetchError, match="sends more than 999999 bytes"):
        fetch(server, target, max_bytes=999_999)
    assert part_of(target).stat().st_size == 0


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


class FullDisk(io.FileIO):
    """Takes 300,000 bytes, and of the write that passes them a part."""

    def write(self, block):
        room = 300_000 - self.tell()
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device", self.name)
        return super().write(block[:room])


def test_download_full_disk_says_so_and_keeps_what_fitted(target, monkeypatch):
    with served(CONTENT) as server:
        monkeypatch.setattr(
            type(target), "open", lambda path, mode, buffering: FullDisk(path, mode)
        )
        with pytest.raises(
            FetchError, match=r"file\.bin\.part: No space left on device; 0\.3 MB are kept"
        ):
            fetch(server, target)
        monkeypatch.undo()
        assert part_of(target).read_bytes() == CONTENT[:300_000]
        fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_download_beside_another_of_the_same_file_is_rejected(target):
    kept(target, b"")
    with part_of(target).open("ab") as other, served(CONTENT) as server:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(FetchError, match="another process is downloading it"):
            fetch(server, target)
    assert server.ranges == []


def test_download_silent_server_times_out(target, monkeypatch):
    monkeypatch.setattr(fetch_module, "_TIMEOUT_S", (1, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file.bin"
        with pytest.raises(FetchError, match="timed out"):
            download(url, target, sha256=SHA256, max_bytes=9, report=lambda *_: None)
