"""Result paths, the settings of a target, and the errors before a run starts."""

import json
import os
from pathlib import Path

import pytest

from segserve.bulk.batch import RESERVED
from segserve.bulk.results import LOG_FILE, OPTIONS_FILE, Format, Layout, RunLog, claim
from segserve.bulk.sources import Source, find_sources
from segserve.bulk.storage import BulkError, Storage

from .pictures import write_images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(layout: Layout, *arguments: str, force: bool = False) -> None:
    sources = find_sources(arguments, results=Storage(str(layout.folder)))
    layout.check(sources, arguments, force=force)


@pytest.mark.parametrize(
    ("file_format", "expected"),
    [
        (Format.PNG, "out/deep/a.png"),
        (Format.NPY, "out/deep/a.npy"),
        (Format.JSON, "out/deep/a.json"),
        (Format.COCO, "out/deep/a.coco.json"),
    ],
    ids=str,
)
def test_files_keep_the_structure_below_the_folder(tmp_path, file_format, expected):
    layout = Layout(tmp_path / "out", file_format, overlay=True)
    result, overlay = layout.files(Source("in/deep/a.jpg", "deep/a.jpg"))
    assert result == str(tmp_path / expected)
    assert overlay == str(tmp_path / "out/deep/a-overlay.jpg")


def test_missing_names_the_files_that_are_not_there(tmp_path):
    layout, source = Layout(tmp_path, overlay=True), Source("in/a.jpg", "a.jpg")
    Path(layout.result(source)).touch()
    assert layout.missing(source) == [str(tmp_path / "a-overlay.jpg")]


@pytest.mark.parametrize(
    "arguments",
    [("in",), ("in/a.jpg", "other/a.jpg"), ("in/a.jpg", "other")],
    ids=["two suffixes", "two folders", "file and folder"],
)
def test_check_with_two_images_of_one_result_names_both(folder, arguments):
    write_images(folder, "in/a.jpg", "in/a.png", "other/a.jpg")
    with pytest.raises(
        BulkError, match=r"/a\.(jpg|png) would become out/a\.png, which is another image or its"
    ):
        check(Layout(Path("out")), *arguments)


def test_check_with_result_that_is_an_image_raises(folder):
    [image] = write_images(folder, "in/a.png")
    with pytest.raises(BulkError, match=r"in/a\.png would become .*in/a\.png, which is"):
        check(Layout(image.parent), "in/a.png")


def test_check_with_results_among_the_images_raises(folder):
    write_images(folder, "in/a.jpg")
    with pytest.raises(
        BulkError, match="/in: the next run would take results in this folder for images"
    ):
        check(Layout(folder / "in"), "in")
    check(Layout(folder / "in", Format.NPY), "in")


def test_check_keeps_the_name_of_the_data_set_free(folder):
    write_images(folder, "segmentation.jpg", "in/deep/segmentation.jpg")
    for argument in ("segmentation.jpg", "in"):
        check(Layout(folder / "out"), argument)
        with pytest.raises(BulkError, match=r"would become .*segmentation\.coco\.json"):
            check(Layout(folder / "out", Format.COCO), argument)


def test_check_with_a_result_of_another_image_names_both(folder):
    images = write_images(folder, "a/cat.png", "b/cat.png")
    layout = Layout(folder / "out")
    [result] = write_images(folder, "out/cat.png")
    check(layout, "b/cat.png")  # a result of an earlier version, without a record
    RunLog(layout.folder).add_result(Source("a/cat.png", "cat.png"), str(result))
    check(layout, "a/cat.png")
    (folder / "link").symlink_to(folder / "a")
    check(layout, "link/cat.png")
    with pytest.raises(
        BulkError,
        match=rf"b/cat\.png would become .*out/cat\.png, which .* of {images[0]}; .*--force",
    ):
        check(layout, "b/cat.png")
    check(layout, "b/cat.png", force=True)
    check(Layout(folder / "out", Format.NPY), "b/cat.png")
    result.unlink()
    check(layout, "b/cat.png")


def test_claim_creates_the_folder_and_writes_the_settings(tmp_path):
    out = tmp_path / "a" / "b"
    claim(Storage(str(out)), {"model": "tiny", "mode": None, "tta": "flip"})
    claim(Storage(str(out)), {"model": "tiny", "tta": "flip"})
    assert json.loads((out / OPTIONS_FILE).read_text()) == {"model": "tiny", "tta": "flip"}
    assert [path.name for path in out.iterdir()] == [OPTIONS_FILE]


def test_claim_with_other_options_raises_and_keeps_the_file(tmp_path):
    claim(Storage(str(tmp_path)), {"model": "tiny", "mode": "slide"})
    with pytest.raises(BulkError, match=r"results of other options \(mode, threshold\); name"):
        claim(Storage(str(tmp_path)), {"model": "tiny", "threshold": 0.5})
    claim(Storage(str(tmp_path)), {"model": "tiny", "mode": "slide"})


def test_claim_with_a_damaged_file_says_what_to_do(tmp_path):
    (tmp_path / OPTIONS_FILE).write_text("{")
    with pytest.raises(BulkError, match="is damaged; remove it"):
        claim(Storage(str(tmp_path)), {})


def test_claim_with_a_data_set_of_another_program_keeps_it(tmp_path):
    (tmp_path / "segmentation.coco.json").write_text("{}")
    with pytest.raises(BulkError, match="was not made here"):
        claim(Storage(str(tmp_path)), {})


@pytest.mark.parametrize(
    "name", ["file", "file/below", "/proc/segserve"], ids=["file", "below a file", "read-only"]
)
def test_claim_of_a_folder_that_is_not_writable_raises(folder, name):
    (folder / "file").write_text("")
    with pytest.raises(BulkError, match="cannot be written to"):
        claim(Storage(str(folder / name)), {})


def test_run_log_returns_the_failures_that_were_added(tmp_path):
    log, odd = RunLog(tmp_path), os.fsdecode(b"in/\xff\n.jpg")
    assert log.failures() == {}
    log.add_failure(Source("in/a.jpg", "a.jpg"), "image_corrupt", "the image\u2028is broken")
    log.add_failure(Source(odd, odd), "file", "cannot be read")
    assert log.failures() == {
        os.path.abspath("in/a.jpg"): ("image_corrupt", "the image\u2028is broken"),
        os.path.abspath(odd): ("file", "cannot be read"),
    }


def test_run_log_returns_the_last_image_of_each_result(tmp_path):
    log, odd = RunLog(tmp_path), os.fsdecode(b"s3://in/\xff.jpg")
    log.add_result(Source("in/a.jpg", "a.jpg"), str(tmp_path / "a.png"))
    log.add_result(Source("other/a.jpg", "a.jpg"), str(tmp_path / "a.png"))
    log.add_result(Source(odd, "b.jpg"), str(tmp_path / "deep" / "b.png"))
    assert log.images() == {"a.png": os.path.abspath("other/a.jpg"), "deep/b.png": odd}


def test_run_log_that_forgets_failures_keeps_the_images(tmp_path):
    log = RunLog(tmp_path)
    log.forget_failures()
    log.add_result(Source("/in/a.jpg", "a.jpg"), str(tmp_path / "a.png"))
    log.add_failure(Source("/in/b.jpg", "b.jpg"), "file", "cannot be read")
    log.forget_failures()
    assert (log.failures(), log.images()) == ({}, {"a.png": "/in/a.jpg"})


def test_run_log_with_a_partial_line_returns_the_others(tmp_path):
    log = RunLog(tmp_path)
    log.add_failure(Source("/in/a.jpg", "a.jpg"), "file", "cannot be read")
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write('{"image": "/in/b.jpg", "co')
    assert log.failures() == {"/in/a.jpg": ("file", "cannot be read")}


MANIFEST = {"archive_sha256": "0" * 64, "format": "png", "classes": None}


@pytest.fixture
def storage(tmp_path):
    return Storage.at(str(tmp_path / "out"))


def claim_target(storage: Storage, manifest: dict, *, overwrite: bool = False) -> None:
    """Claims the target of a batch job."""
    claim(
        storage,
        manifest,
        file="job.json",
        reserved=RESERVED,
        overwrite=overwrite,
    )


def test_claim_target_twice_for_the_same_job_is_fine(storage):
    for _ in range(2):
        claim_target(storage, MANIFEST)
    assert json.loads(storage.read("job.json")) == {
        "archive_sha256": "0" * 64,
        "format": "png",
    }


def test_claim_target_of_another_job_raises_and_names_the_difference(storage):
    claim_target(storage, MANIFEST)
    with pytest.raises(
        BulkError,
        match=r"\(classes\); name another folder",
    ):
        claim_target(storage, {**MANIFEST, "classes": "cat"}, overwrite=False)


def test_claim_target_to_overwrite_removes_what_a_job_made_and_nothing_else(storage, tmp_path):
    claim_target(storage, MANIFEST)
    for name in (
        "labels/a.png",
        "table/part-000-0000000.parquet",
        "summary.json",
        ".listings/000.parquet",
        "mine.txt",
    ):
        storage.write(name, b"")
    claim_target(storage, {**MANIFEST, "classes": "cat"}, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["job.json", "mine.txt"]


@pytest.mark.parametrize("overwrite", [False, True], ids=["careful", "overwrite"])
def test_claim_target_of_another_program_raises_even_with_overwrite(storage, overwrite):
    storage.write("labels/precious.png", b"")
    with pytest.raises(BulkError, match="/labels was not made here"):
        claim_target(storage, MANIFEST, overwrite=overwrite)
    assert storage.exists("labels/precious.png")


def test_claim_target_with_a_damaged_manifest_raises(storage):
    storage.write("job.json", b"{")
    with pytest.raises(BulkError, match=r"job.json is damaged"):
        claim_target(storage, MANIFEST, overwrite=True)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that is not writable")
def test_claim_target_that_is_not_writable_raises():
    with pytest.raises(BulkError, match="/proc/self/out: "):
        claim_target(Storage.at("/proc/self/out"), MANIFEST)
