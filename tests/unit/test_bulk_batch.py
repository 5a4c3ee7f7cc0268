"""The checks of a batch job before Ray starts."""

import zipfile

import pytest

from segserve.archive import build_archive
from segserve.bulk.batch import BatchRun, Job, check_job, read_archive
from segserve.bulk.errors import BulkError, InterruptedRunError
from segserve.bulk.sources import Source
from segserve.runtime.errors import BadOptionError, ModelError

from .pictures import write_images


@pytest.fixture(scope="module")
def archive(tiny_model, tmp_path_factory):
    return build_archive(tiny_model, tmp_path_factory.mktemp("archive"))


@pytest.mark.parametrize(
    ("source", "target"),
    [("in", "in"), ("in", "in/out"), ("in/deep", "in"), ("in", "in/../in/out")],
    ids=["the same", "target within", "source within", "target within, by dots"],
)
def test_check_job_of_folders_that_overlap_raises(tmp_path, archive, monkeypatch, source, target):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BulkError, match="overlap"):
        check_job(Job(source, target, archive))


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
    run = BatchRun(Job(str(tmp_path / "in"), str(tmp_path / "out"), archive))

    def interrupted(*_: object) -> None:
        archive.unlink()
        raise InterruptedRunError(2)

    monkeypatch.setattr(run, "_process", interrupted)
    with pytest.raises(InterruptedRunError):
        run.finish()
    assert run.summary is not None
    assert run.summary.left == 1


def test_read_archive_returns_its_record(archive):
    assert read_archive(archive, {"classes": "cat"}).name == "tiny"


def test_read_archive_of_a_folder_raises(tiny_model):
    with pytest.raises(BulkError, match=r"expected an archive \(.mar\), got a folder"):
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
