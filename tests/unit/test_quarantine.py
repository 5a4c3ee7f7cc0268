"""Images that end the process which decodes them: real processes, really ended."""

import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from segserve.runtime.decode import quarantine as quarantine_module
from segserve.runtime.decode.image import decode_image
from segserve.runtime.decode.quarantine import Quarantine
from segserve.runtime.errors import CorruptImageError
from segserve.runtime.settings import PixelLimits
from tests.conftest import PROJECT
from tests.hostile.poison import POISON, write_poisoned_start

from .images import encoded, noise

GOOD = encoded(noise(20, 30))
LIMITS = PixelLimits(600, 600)

DECODE = """
import sys
from pathlib import Path
from segserve.runtime.errors import SegserveError
from segserve.runtime.settings import PixelLimits
from segserve.runtime.decode.quarantine import Quarantine
LIMITS = PixelLimits(10**6, 10**6)
quarantine = Quarantine(Path(sys.argv[1]))
for name in sys.argv[2:]:
    try:
        content = Path(name).read_bytes()
        decoded = quarantine.decode(content, limits=LIMITS, needed=None, alpha="white")
        print(decoded.rgb.shape)
    except SegserveError as error:
        print(error.status, error)
"""


@pytest.fixture
def images(tmp_path) -> dict[str, Path]:
    paths = {"good": tmp_path / "good.png", "poison": tmp_path / "poison.png"}
    paths["good"].write_bytes(GOOD)
    paths["poison"].write_bytes(POISON)
    return paths


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "quarantine").mkdir()
    return tmp_path / "quarantine"


@pytest.fixture
def decoded(folder, tmp_path):
    """What a process with a decoder that crashes at the poison gets of images; a negative status
    where it crashed.
    """
    (tmp_path / "start").mkdir()
    start = write_poisoned_start(tmp_path / "start")
    environment = {**os.environ, "PYTHONPATH": f"{start}{os.pathsep}{PROJECT}"}

    def run(*paths: Path) -> tuple[int, list[str]]:
        command = [sys.executable, "-c", DECODE, str(folder), *map(str, paths)]
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        return ended.returncode, ended.stdout.splitlines()

    return run


def marks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if len(path.name) == 64)


def test_quarantine_decodes_as_decode_image_and_leaves_no_mark(folder):
    quarantine = Quarantine(folder)
    for _ in range(2):
        assert np.array_equal(
            quarantine.decode(GOOD, limits=LIMITS, needed=None, alpha="white").rgb,
            decode_image(GOOD, max_pixels=600),
        )
    quarantine.sweep()
    assert marks(folder) == []


def test_quarantine_image_that_ends_the_process_is_rejected_by_the_next_ones(
    decoded, images, folder
):
    assert decoded(images["poison"]) == (-signal.SIGSEGV, [])
    rejected = (
        "422 this image crashes its decoder; save it again with another program and send that"
    )
    for _ in range(2):
        assert decoded(images["poison"], images["good"]) == (0, [rejected, "(20, 30, 3)"])
    assert marks(folder) == [sha256(POISON).hexdigest()]


def test_quarantine_rejected_image_is_not_tried_again(folder, monkeypatch):
    (folder / sha256(GOOD).hexdigest()).write_text("it ended")
    monkeypatch.setattr(quarantine_module.sys, "executable", "/nowhere")
    with pytest.raises(CorruptImageError, match="crashes its decoder"):
        Quarantine(folder).decode(GOOD, limits=LIMITS, needed=None, alpha="white")


def test_quarantine_rejection_ends_after_a_day(folder):
    mark = folder / sha256(GOOD).hexdigest()
    mark.write_text("it ended")
    os.utime(mark, (time.time() - 25 * 3600,) * 2)
    assert Quarantine(folder).decode(GOOD, limits=LIMITS, needed=None, alpha="white").rgb.shape == (
        20,
        30,
        3,
    )
    assert marks(folder) == []


def test_quarantine_good_image_in_a_killed_process_is_no_longer_suspect(decoded, images, folder):
    """The decoder of this process and of its trial is sound: to them the poison is a good image."""
    assert decoded(images["poison"])[0] == -signal.SIGSEGV
    quarantine = Quarantine(folder)
    assert marks(folder) == [sha256(POISON).hexdigest()]
    assert quarantine.decode(POISON, limits=LIMITS, needed=None, alpha="white").rgb.shape == (
        7,
        13,
        3,
    )
    assert marks(folder) == []


def test_quarantine_suspect_image_that_cannot_be_checked_is_rejected(folder, monkeypatch):
    quarantine = Quarantine(folder)
    (folder / sha256(GOOD).hexdigest()).touch()
    monkeypatch.setattr(quarantine_module.sys, "executable", "/nowhere")
    with pytest.raises(CorruptImageError, match="crashes its decoder"):
        quarantine.decode(GOOD, limits=LIMITS, needed=None, alpha="white")


def test_quarantine_suspect_image_that_is_broken_has_that_error(folder):
    quarantine = Quarantine(folder)
    torn = GOOD[: len(GOOD) // 2]
    (folder / sha256(torn).hexdigest()).touch()
    with pytest.raises(CorruptImageError, match="ends too early"):
        quarantine.decode(torn, limits=LIMITS, needed=None, alpha="white")
    assert marks(folder) == []


def test_quarantine_of_a_process_that_lives_marks_nothing(folder):
    working, other = Quarantine(folder), Quarantine(folder)
    with working._notes.noted(sha256(GOOD).digest()):
        other.sweep()
        Quarantine(folder)
    assert marks(folder) == []


def test_quarantine_sweep_marks_the_image_of_a_worker_that_died(decoded, images, folder):
    quarantine = Quarantine(folder)
    decoded(images["poison"])
    assert marks(folder) == []
    quarantine.sweep()
    assert marks(folder) == [sha256(POISON).hexdigest()]


def test_quarantine_note_takes_less_than_a_tenth_of_a_millisecond(folder):
    notes, digest = Quarantine(folder)._notes, sha256(GOOD).digest()
    began_s = time.process_time()
    for _ in range(1000):
        with notes.noted(digest):
            pass
    assert time.process_time() - began_s < 0.1


def test_quarantine_in_temporary_folder_is_shared_and_private(tmp_path, monkeypatch):
    monkeypatch.setattr(quarantine_module.tempfile, "tempdir", str(tmp_path))
    first, second = Quarantine.in_temporary_folder(), Quarantine.in_temporary_folder()
    assert first._folder == second._folder
    assert first._folder.stat().st_mode & 0o777 == 0o700


def test_quarantine_in_a_folder_that_others_can_write_to_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(quarantine_module.tempfile, "tempdir", str(tmp_path))
    open_to_all = tmp_path / f"segserve-{os.getuid()}-quarantine"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    assert Quarantine.in_temporary_folder()._folder != open_to_all


def test_quarantine_without_a_temporary_folder_is_none(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(quarantine_module.tempfile, "tempdir", str(tmp_path / "gone"))
    assert Quarantine.in_temporary_folder() is None
    assert "cannot be remembered" in caplog.text


@pytest.mark.parametrize("taken", ["file", "link to nowhere", "link to a folder"])
def test_quarantine_whose_name_is_taken_has_a_folder_of_its_own(tmp_path, monkeypatch, taken):
    monkeypatch.setattr(quarantine_module.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "other").mkdir()
    name = tmp_path / f"segserve-{os.getuid()}-quarantine"
    name.write_text("") if taken == "file" else name.symlink_to(
        tmp_path / ("other" if "folder" in taken else "gone")
    )
    assert Quarantine.in_temporary_folder() is not None
    [own] = tmp_path.glob("segserve-quarantine-*")
    assert own.stat().st_mode & 0o777 == 0o700
    assert not list((tmp_path / "other").iterdir())
