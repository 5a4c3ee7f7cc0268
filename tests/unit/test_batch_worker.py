"""What becomes of a block: label maps as a server would answer, one row an image whatever it is,
one part.
"""

import io
import resource
import signal
import zipfile
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image as Picture
from pyarrow import parquet
from pycocotools import mask as coco_mask

from segserve.archive import build_archive
from segserve.batch.formats import Format
from segserve.batch.job import Job
from segserve.batch.listing import blocks_of, extend_listing
from segserve.batch.model import BatchModel, check_archive
from segserve.batch.sources import images_of
from segserve.batch.table import SCHEMA, summarize
from segserve.batch.worker import BlockWorker
from segserve.local import LocalSegmenter
from segserve.runtime.errors import BadOptionError, ModelError
from segserve.segment.errors import SegmentError

from .pictures import write_images

CPU = torch.device("cpu")


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
    archive, source, target, file_format=Format.PNG, *, threads=2, **options
) -> tuple[Job, list[dict]]:
    """The job, and what its blocks were told to have become."""
    job = Job(str(target), file_format, options)
    extend_listing(job.storage, images_of(str(source)), distinct_stems=True)
    worker = BlockWorker(job, BatchModel(archive, options, device=CPU), threads=threads)
    return job, [worker(as_batch(block)) for block in blocks_of(job.storage)]


def as_batch(block) -> dict[str, np.ndarray]:
    return {name: np.array([getattr(block, name)]) for name in ("listing", "index", "images")}


def table(job) -> list[dict]:
    parts = [parquet.read_table(job.storage.path(block.part)) for block in blocks_of(job.storage)]
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
    assert sum(sum(batch["failed"]) for batch in done) == 2
    assert not any(reason for batch in done for reason in batch["stopped"])


def test_worker_image_of_no_known_store_fails_alone_with_a_code(archive, tmp_path):
    (tmp_path / "list.csv").write_text("path\nnostore://bucket/a.png\n")
    job, _ = worked(archive, tmp_path / "list.csv", tmp_path / "out")
    [row] = table(job)
    assert (row["status"], row["error_code"]) == ("failed", "refused")
    assert "no such store is known" in row["error_message"]


def test_worker_rle_gives_the_label_map_back(archive, source, tmp_path):
    job, _ = worked(archive, source, tmp_path / "out", Format.NPY)
    row = next(row for row in table(job) if row["path"].endswith("b.jpg"))
    rebuilt = np.zeros((row["height"], row["width"]), np.uint8)
    for mask in row["rle"]:
        size = [row["height"], row["width"]]
        rebuilt[
            coco_mask.decode({"size": size, "counts": mask["counts"].encode()}).astype(bool)
        ] = mask["id"]
    assert np.array_equal(rebuilt, np.load(tmp_path / "out" / row["labels"]))


def test_worker_format_rle_writes_no_label_maps(archive, source, tmp_path):
    job, _ = worked(archive, source, tmp_path / "out", Format.RLE)
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
    assert [(batch["images"], batch["failed"]) for batch in again] == [
        (b["images"], b["failed"]) for b in first
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
    job = Job(str(tmp_path / "out"), Format.NPY, {})
    extend_listing(job.storage, images_of(str(source)), distinct_stems=True)
    worker = BlockWorker(job, BatchModel(archive, {}, device=CPU))
    block = next(blocks_of(job.storage))
    with largest_file(100):
        [stopped] = worker(as_batch(block))["stopped"]
    assert stopped == f"{tmp_path}/out/: cannot be written: File too large"
    assert not job.storage.exists(block.part)
    assert not job.storage.exists("labels/a.npy")
    assert worker(as_batch(block))["stopped"] == [""]
    assert len(parquet.read_table(io.BytesIO(job.storage.read(block.part)))) == 1


def test_worker_label_map_that_no_name_fits_is_that_rows_failure(archive, source, tmp_path):
    job = Job(str(tmp_path / "out"), Format.PNG, {})
    (tmp_path / "out" / "labels").mkdir(parents=True)
    (tmp_path / "out" / "labels" / "deep").write_bytes(b"in the way")
    job, done = worked(archive, source, tmp_path / "out")
    rows = {row["path"].rpartition("/")[2]: row for row in table(job)}
    assert rows["a.png"]["status"] == "segmented"
    assert rows["b.jpg"]["error_message"].startswith("the label map cannot be written: ")
    assert rows["b.jpg"]["classes"] is None
    assert not any(reason for batch in done for reason in batch["stopped"])


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
    job = Job(str(tmp_path), Format.PNG, {})
    summary = summarize(job.storage, tiny_segmenter.record, images=7, done=0, seconds=0)
    assert (summary.segmented, summary.left, summary.classes) == (0, 7, ())


def test_table_parts_have_the_columns_that_are_documented(archive, source, tmp_path):
    job, _ = worked(archive, source, tmp_path / "out")
    assert parquet.read_schema(job.storage.path(next(blocks_of(job.storage)).part)).equals(SCHEMA)


def test_check_archive_knows_what_it_holds(archive):
    facts = check_archive(archive, {"classes": "cat"})
    assert (facts.record.name, len(facts.sha256)) == ("tiny", 64)


def test_check_archive_of_a_folder_is_refused(tiny_model):
    with pytest.raises(SegmentError, match=r"expected an archive \(.mar\), got a folder"):
        check_archive(tiny_model, {})


def test_check_archive_of_no_archive_is_refused(tmp_path):
    (tmp_path / "x.mar").write_bytes(b"no zip")
    with pytest.raises(ModelError, match="expected an archive"):
        check_archive(tmp_path / "x.mar", {})


def test_check_archive_with_weights_of_another_record_is_refused(archive, tmp_path):
    spoilt = tmp_path / "spoilt.mar"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(spoilt, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(
                name, content[:-1] + b"\x01" if name.endswith(".safetensors") else content
            )
    with pytest.raises(ModelError, match=r"SHA-256 is \w{64}, the record says"):
        check_archive(spoilt, {})


def test_check_archive_with_a_class_that_the_model_lacks_is_refused(archive):
    with pytest.raises(BadOptionError, match="did you mean 'dog'"):
        check_archive(archive, {"classes": "dgo"})
