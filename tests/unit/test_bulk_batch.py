"""The checks of a batch job before Ray starts."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest

from segserve.archive import build_archive
from segserve.bulk import batch
from segserve.bulk.batch import Job, check_job, read_archive, run_batch
from segserve.bulk.run import InterruptedRunError
from segserve.bulk.sources import Source
from segserve.bulk.storage import BulkError
from segserve.runtime.errors import BadOptionError, ModelError

from .pictures import write_images


@pytest.fixture(scope="module")
def archive(tiny_model, tmp_path_factory):
    return build_archive(tiny_model, tmp_path_factory.mktemp("archive"))


@pytest.mark.parametrize(
    ("source", "target"),
    [("in", "in"), ("in/deep", "in"), ("in", "in/../in")],
    ids=["the same", "source within", "the same, by dots"],
)
def test_check_job_of_images_in_the_target_raises(tmp_path, archive, monkeypatch, source, target):
    write_images(tmp_path, "in/deep/a.jpg")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BulkError, match=r"a\.jpg lies within the target"):
        check_job(Job(source, target, archive))


def test_job_of_relative_paths_means_the_same_in_another_folder(tmp_path, monkeypatch):
    """A worker of a cluster runs in a folder of its own."""
    write_images(tmp_path, "in/a.jpg")
    monkeypatch.chdir(tmp_path)
    job = Job("in", "out", Path("tiny.mar"))
    sent = pickle.dumps(job)
    monkeypatch.chdir("/")
    received = pickle.loads(sent)  # noqa: S301 - the test's own
    assert received.storage.path == str(tmp_path / "out")
    assert received.archive == tmp_path / "tiny.mar"
    assert [image.location for image in received.images()] == [str(tmp_path / "in" / "a.jpg")]


def test_images_of_a_folder_are_those_outside_the_target_in_it(tmp_path, archive):
    write_images(tmp_path, "in/a.jpg", "in/out/labels/a.png")
    job = Job(str(tmp_path / "in"), str(tmp_path / "in" / "out"), archive)
    assert [image.name for image in job.images()] == ["a.jpg"]


def test_check_job_of_folders_with_similar_names_is_accepted(tmp_path, archive, monkeypatch):
    write_images(tmp_path, "in/a.jpg")
    monkeypatch.chdir(tmp_path)
    check_job(Job("in", "in-labels", archive))
    check_job(Job("in/*.jpg", "in-labels", archive))


def test_images_within_the_target_are_an_error(tmp_path, archive):
    listed = tmp_path / "list.txt"
    listed.write_text("/in/a.jpg\n")
    job = Job(str(listed), str(tmp_path / "out"), archive)
    assert list(job.images()) == [Source("/in/a.jpg", "in/a.jpg")]
    listed.write_text("out/labels/a.png")
    with pytest.raises(BulkError, match="lies within the target"):
        list(job.images())


def test_run_interrupted_after_its_archive_was_deleted_reports_the_interruption(
    tmp_path, tiny_model, monkeypatch
):
    write_images(tmp_path, "in/a.jpg")
    archive = build_archive(tiny_model, tmp_path / "build")
    job = Job(str(tmp_path / "in"), str(tmp_path / "out"), archive)

    def interrupted(*_: object) -> None:
        archive.unlink()
        raise InterruptedRunError(2)

    monkeypatch.setattr(batch, "_processed", interrupted)
    with pytest.raises(InterruptedRunError):
        run_batch(job)
    assert json.loads(job.storage.read("summary.json"))["left"] == 1


def test_run_batch_counts_the_files_that_are_no_images(tmp_path, archive, monkeypatch):
    write_images(tmp_path, "in/a.jpg", "in/b.MOV", "in/deep/c.mov", "in/notes")
    monkeypatch.setattr(batch, "_processed", lambda *_: (_ for _ in ()))
    job = Job(str(tmp_path / "in"), str(tmp_path / "out"), archive)
    for _ in range(2):
        assert run_batch(job).left_out == {".mov": 2, "without a suffix": 1}
    assert json.loads(job.storage.read("summary.json"))["left_out"][".mov"] == 2


def test_read_archive_returns_its_record(archive):
    assert read_archive(archive, {"classes": "cat"}).name == "tiny"


def test_read_archive_of_a_folder_raises(tiny_model):
    with pytest.raises(BulkError, match=r"expected an archive \(.mar\)"):
        read_archive(tiny_model, {})


def test_read_archive_of_no_archive_raises(tmp_path):
    (tmp_path / "x.mar").write_bytes(b"no zip")
    with pytest.raises(ModelError, match="expected an archive"):
        read_archive(tmp_path / "x.mar", {})


def test_read_archive_with_weights_of_another_record_raises(archive, tmp_path):
    spoilt = tmp_path / "spoilt.mar"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(spoilt, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(
                name, content[:-1] + b"\x01" if name.endswith(".safetensors") else content
            )
    with pytest.raises(ModelError, match=r"SHA-256 is \w{64}, the record says"):
        read_archive(spoilt, {})


def test_read_archive_with_a_class_that_the_model_lacks_raises(archive):
    with pytest.raises(BadOptionError, match="got 'dgo'; the classes are"):
        read_archive(archive, {"classes": "dgo"})
