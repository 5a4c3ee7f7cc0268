"""The worker converts a block to label maps, as a server returns them, and one part of the table
with one row per image.
"""

import io
import os
import resource
import signal
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image as Picture
from pyarrow import parquet
from pycocotools import mask as coco_mask

from segserve.archive import build_archive
from segserve.bulk.batch import Job
from segserve.bulk.results import LabelFormat
from segserve.bulk.sources import iter_sources
from segserve.bulk.storage import Storage
from segserve.bulk.table import SCHEMA, blocks_of, extend_listing, summarize, unfinished_blocks
from segserve.bulk.worker import BlockWorker, load_archive
from segserve.local import LocalSegmenter

from .pictures import write_images


@pytest.fixture(scope="module")
def archive(tiny_model, tmp_path_factory):
    return build_archive(tiny_model, tmp_path_factory.mktemp("archive"))


@pytest.fixture
def source(tmp_path):
    write_images(tmp_path, "in/a.png", "in/deep/b.jpg", "in/deep/c.png")
    (tmp_path / "in" / "torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    (tmp_path / "in" / "gone.png").symlink_to("absent")
    return tmp_path / "in"


def worked(
    archive, source, target, file_format=LabelFormat.PNG, *, threads=2, **options
) -> tuple[Job, list[dict]]:
    """The job, and the reports of its blocks."""
    job = Job(str(source), str(target), archive, file_format, options)
    extend_listing(job.storage, iter_sources(str(source)), distinct_stems=True)
    worker = BlockWorker(job, load_archive(archive, device="cpu"), threads=threads)
    return job, [worker(asdict(block)) for block in blocks_of(job.storage)]


def table(job) -> list[dict]:
    parts = [
        parquet.read_table(job.storage.path_of(block.part)) for block in blocks_of(job.storage)
    ]
    return pa.concat_tables(parts).sort_by("path").to_pylist()


def test_worker_label_maps_are_those_of_the_server(archive, source, tmp_path):
    job, _ = worked(archive, source, tmp_path / "out")
    with LocalSegmenter(archive, device="cpu") as segmenter:
        for name in ("a.png", "deep/b.jpg"):
            expected = segmenter.segment_raw(source / name, accept="image/png")
            assert job.storage.read(f"labels/{name.rpartition('.')[0]}.png") == expected


def test_worker_table_has_a_row_for_every_image(archive, source, tmp_path):
    job, done = worked(archive, source, tmp_path / "out")
    rows = {row["path"].removeprefix(f"{source}/"): row for row in table(job)}
    assert list(rows) == ["a.png", "deep/b.jpg", "deep/c.png", "gone.png", "torn.jpg"]
    good, torn, gone = rows["a.png"], rows["torn.jpg"], rows["gone.png"]
    with Picture.open(tmp_path / "out" / good["labels"]) as picture:
        label_map = np.array(picture)
    assert (good["height"], good["width"]) == label_map.shape
    assert (good["status"], good["error_code"], good["model"], good["model_version"]) == (
        "segmented",
        None,
        "tiny",
        "1.0",
    )
    assert {entry["id"]: entry["pixels"] for entry in good["classes"]} == {
        int(class_id): int(count)
        for class_id, count in zip(*np.unique(label_map, return_counts=True), strict=True)
    }
    assert sum(entry["fraction"] for entry in good["classes"]) == pytest.approx(1)
    assert all(0 < entry["confidence"] <= 1 for entry in good["classes"])
    assert good["milliseconds"] > 0
    assert (torn["status"], torn["error_code"], torn["labels"], torn["classes"]) == (
        "failed",
        "image_corrupt",
        None,
        None,
    )
    assert "header cannot be read" in torn["error_message"]
    assert (gone["error_code"], gone["error_message"]) == (
        "file",
        "cannot be read: No such file or directory",
    )
    assert sum(report["failed"] for report in done) == 2
    assert not any(report["stopped"] for report in done)


def test_worker_image_of_no_known_store_fails_alone_with_a_code(archive, tmp_path):
    (tmp_path / "list.csv").write_text("path\nnostore://bucket/a.png\n")
    job, _ = worked(archive, tmp_path / "list.csv", tmp_path / "out")
    [row] = table(job)
    assert (row["status"], row["error_code"]) == ("failed", "refused")
    assert "Protocol not known" in row["error_message"]


def test_worker_rle_gives_the_label_map_back(archive, source, tmp_path):
    job, _ = worked(archive, source, tmp_path / "out", LabelFormat.NPY)
    row = next(row for row in table(job) if row["path"].endswith("b.jpg"))
    rebuilt = np.zeros((row["height"], row["width"]), np.uint8)
    for mask in row["rle"]:
        size = [row["height"], row["width"]]
        rebuilt[
            coco_mask.decode({"size": size, "counts": mask["counts"].encode()}).astype(bool)
        ] = mask["id"]
    assert np.array_equal(rebuilt, np.load(tmp_path / "out" / row["labels"]))


def test_worker_format_rle_writes_no_label_maps(archive, source, tmp_path):
    job, _ = worked(archive, source, tmp_path / "out", LabelFormat.RLE)
    assert not job.storage.exists("labels")
    assert {row["labels"] for row in table(job)} == {None}


def test_worker_options_are_those_of_a_request(archive, source, tmp_path):
    job, _ = worked(archive, source, tmp_path / "out", classes="cat", threshold=0.4)
    with LocalSegmenter(archive, device="cpu") as segmenter:
        expected = segmenter.segment_raw(
            source / "a.png", accept="image/png", classes="cat", threshold=0.4
        )
    assert job.storage.read("labels/a.png") == expected


def test_worker_block_that_is_finished_is_left_as_it_is(archive, source, tmp_path):
    job, first = worked(archive, source, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.p*")}
    _, again = worked(archive, source, tmp_path / "out")
    assert [(report["images"], report["failed"]) for report in again] == [
        (report["images"], report["failed"]) for report in first
    ]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.p*")} == times
    assert len(table(job)) == 5


def test_worker_any_threads_give_the_same_bytes(archive, source, tmp_path):
    contents = []
    for threads in (1, 4):
        job, _ = worked(archive, source, tmp_path / f"out{threads}", threads=threads)
        contents.append([job.storage.read(row["labels"]) for row in table(job) if row["labels"]])
    assert contents[0] == contents[1]


@contextmanager
def largest_file(size_bytes: int):
    """As a full disk: a file that grows beyond cannot be written."""
    before, handler = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_worker_on_a_full_disk_stops_and_leaves_nothing_half(archive, source, tmp_path):
    job = Job(str(source), str(tmp_path / "out"), archive, LabelFormat.NPY)
    extend_listing(job.storage, job.images(), distinct_stems=True)
    worker = BlockWorker(job, load_archive(archive, device="cpu"))
    block = next(blocks_of(job.storage))
    with largest_file(100):
        stopped = worker(asdict(block))["stopped"]
    assert stopped == f"{tmp_path}/out: cannot be written: File too large"
    assert not job.storage.exists(block.part)
    assert not job.storage.exists("labels/a.npy")
    assert worker(asdict(block))["stopped"] == ""
    assert len(parquet.read_table(io.BytesIO(job.storage.read(block.part)))) == 1


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("at 10.00\u202fAM\u00a0\u200d.png", "at 10.00\u202fAM\u00a0\u200d"),
        (os.fsdecode(b"caf\xe9.png"), "caf\\udce9"),
    ],
    ids=["spaces", "no UTF-8"],
)
def test_worker_stores_names_as_they_are(archive, tmp_path, name, stored):
    write_images(tmp_path, f"in/{name}")
    job, _ = worked(archive, tmp_path / "in", tmp_path / "out")
    [row] = table(job)
    assert row["path"] == f"{tmp_path}/in/{stored}.png"
    assert row["labels"] == f"labels/{stored}.png"
    assert job.storage.exists(row["labels"])


def test_worker_label_map_that_no_name_fits_is_that_rows_failure(archive, source, tmp_path):
    (tmp_path / "out" / "labels").mkdir(parents=True)
    (tmp_path / "out" / "labels" / "deep").write_bytes(b"in the way")
    job, done = worked(archive, source, tmp_path / "out")
    rows = {row["path"].rpartition("/")[2]: row for row in table(job)}
    assert rows["a.png"]["status"] == "segmented"
    assert rows["b.jpg"]["error_message"].startswith("the label map cannot be written: ")
    assert rows["b.jpg"]["classes"] is None
    assert not any(report["stopped"] for report in done)


def test_summarize_counts_rows_failures_and_classes(archive, source, tmp_path, tiny_segmenter):
    job, _ = worked(archive, source, tmp_path / "out")
    summary = summarize(job.storage, tiny_segmenter.record, images=7, done=5, seconds=2.0)
    assert (summary.segmented, summary.failed, summary.left) == (3, 2, 2)
    assert summary.failures == {"file": 1, "image_corrupt": 1}
    assert summary.images_per_second == 2.5
    pixels = [
        sum(entry["pixels"] for entry in row["classes"]) for row in table(job) if row["classes"]
    ]
    assert sum(total.pixels for total in summary.classes) == sum(pixels)
    assert sum(total.fraction for total in summary.classes) == pytest.approx(1, abs=1e-5)
    assert max(total.images for total in summary.classes) == 3


def test_summarize_without_a_table_counts_nothing(tmp_path, tiny_segmenter):
    storage = Storage.at(str(tmp_path))
    summary = summarize(storage, tiny_segmenter.record, images=7, done=0, seconds=0)
    assert (summary.segmented, summary.left, summary.classes) == (0, 7, ())


def test_table_parts_have_the_columns_that_are_documented(archive, source, tmp_path):
    job, _ = worked(archive, source, tmp_path / "out")
    assert parquet.read_schema(job.storage.path_of(next(blocks_of(job.storage)).part)).equals(
        SCHEMA
    )


def test_worker_with_retry_computes_only_the_failed_images_again(archive, source, tmp_path):
    job, _ = worked(archive, source, tmp_path / "out")
    before = {row["path"]: row for row in table(job)}
    write_images(source, "torn.jpg")
    assert unfinished_blocks(job.storage) == []
    blocks = unfinished_blocks(job.storage, retry_failed=True)
    assert [block.images for block in blocks] == [1, 1]
    worker = BlockWorker(job, load_archive(archive, device="cpu"))
    done = [worker(asdict(block)) for block in blocks]
    assert sum(report["failed"] for report in done) == 1
    after = {row["path"]: row for row in table(job)}
    assert after[f"{source}/torn.jpg"]["status"] == "segmented"
    assert after[f"{source}/gone.png"]["error_code"] == "file"
    kept = [path for path, row in before.items() if row["status"] == "segmented"]
    assert [after[path] for path in kept] == [before[path] for path in kept]
    assert len(kept) == 3
