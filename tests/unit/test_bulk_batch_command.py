"""Wrong arguments of `segserve batch`: one line, status 1, and nothing is written. Ray is not
started, and nothing slow is imported.
"""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from segserve.archive import build_archive
from segserve.bulk.run import InterruptedRunError
from segserve.bulk.table import Summary
from segserve.cli import app

from .pictures import environment, segserve, write_images


@pytest.fixture(scope="module")
def archive(tiny_model, tmp_path_factory):
    return build_archive(tiny_model, tmp_path_factory.mktemp("archive"))


@pytest.fixture
def folder(tmp_path, archive):
    write_images(tmp_path, "in/a.png", "in/b.png", "twins/a.png", "twins/a.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "no.mar").write_bytes(b"no archive")
    (tmp_path / "tiny.mar").symlink_to(archive)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("in", "out", "--archive", "no.mar"), "no.mar: expected an archive (.mar)"),
        (("in", "out", "--archive", "absent.mar"), "absent.mar: expected an archive (.mar)"),
        (("in", "out", "--archive", "in"), "in: expected an archive (.mar)"),
        (("in", "out", "--archive", "tiny.mar", "--classes", "dgo"), "got 'dgo'; the classes are"),
        (("absent", "out", "--archive", "tiny.mar"), "absent: there is no such file or folder"),
        (("empty", "out", "--archive", "tiny.mar"), "empty: holds no images"),
        (("none.txt", "out", "--archive", "tiny.mar"), "none.txt: holds no images"),
        (("twins", "out", "--archive", "tiny.mar"), "another image becomes the same label map, a"),
        (("in", "in", "--archive", "tiny.mar"), "lies within the target"),
        (("in", "nostore://x", "--archive", "tiny.mar"), "Protocol not known: nostore"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_batch_with_a_wrong_argument_says_why_in_one_line(folder, arguments, message):
    done = segserve("batch", *arguments, folder=folder)
    assert done.returncode == 1
    [line] = done.stderr.decode().splitlines()
    assert line.startswith("segserve: ")
    assert message in line
    assert (folder / "out").exists() == (
        arguments[0] == "twins"
    )  # nothing is claimed for what is no source
    assert not list(folder.rglob("labels"))
    assert not list(folder.rglob("table"))


def test_batch_into_results_of_another_job_exits_1(folder):
    (folder / "out").mkdir()
    (folder / "out" / "job.json").write_text('{"archive_sha256": "0000"}')
    done = segserve("batch", "in", "out", "--archive", "tiny.mar", folder=folder)
    assert done.returncode == 1
    assert "holds results of other options (archive_sha256, column, " in done.stderr.decode()


def test_batch_at_an_address_without_a_cluster_exits_1(folder):
    done = segserve(
        "batch", "in", "out", "--archive", "tiny.mar", "--address", "127.0.0.1:1", folder=folder
    )
    assert done.returncode == 1
    [line] = done.stderr.decode().splitlines()
    assert line.startswith("segserve: 127.0.0.1:1: cannot be joined: ")


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ((), "interrupted; the same command goes on where it stopped"),
        (("--overwrite",), "interrupted; the same command without --overwrite goes on where it"),
    ],
    ids=["plain", "overwrite"],
)
def test_batch_that_is_interrupted_names_the_command_that_resumes(monkeypatch, flags, hint):
    def interrupted(*_: object, **__: object) -> None:
        raise InterruptedRunError(2)

    monkeypatch.setattr("segserve.bulk.batch.run_batch", interrupted)
    done = CliRunner().invoke(app, ["batch", "in", "out", "--archive", "tiny.mar", *flags])
    assert done.exit_code == 130
    assert hint in done.stderr


def test_batch_names_the_files_that_are_no_images(monkeypatch):
    summary = Summary(images=1, segmented=1, failed=0, left=0, left_out={".mov": 2})
    monkeypatch.setattr("segserve.bulk.batch.run_batch", lambda *_, **__: summary)
    done = CliRunner().invoke(app, ["batch", "in", "out", "--archive", "tiny.mar"])
    assert done.exit_code == 0
    end = "1 segmented; results in out (0.0 s); left out, as they are not images: 2 .mov"
    assert done.stdout.splitlines()[-1] == end


_IMPORTED = """
import json, sys
from segserve.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    slow = {"torch", "torchvision", "ray", "pyarrow"} & sys.modules.keys()
    print(json.dumps({"status": end.code, "slow": sorted(slow)}))
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("batch", "in", "out"), 2),
        (("batch", "in", "out", "--archive", "tiny.mar", "--format", "jpeg"), 2),
        (("batch", "in", "out", "--archive", "no.mar"), 1),
        (("batch", "in", "out", "--archive", "tiny.mar", "--classes", "dgo"), 1),
        (("batch", "absent", "out", "--archive", "tiny.mar"), 1),
        (("batch", "in", "in", "--archive", "tiny.mar"), 1),
        (("batch", "in", "out", "--archive", "tiny.mar", "--address", "127.0.0.1:1"), 1),
        (("batch", "in", "claimed", "--archive", "tiny.mar"), 1),
        (("segment", "absent.jpg", "--local"), 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_argument_is_reported_before_slow_imports(folder, arguments, status):
    (folder / "claimed").mkdir()
    (folder / "claimed" / "job.json").write_text('{"archive_sha256": "0000"}')
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTED, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert json.loads(done.stdout) == {"status": status, "slow": []}, done.stderr
