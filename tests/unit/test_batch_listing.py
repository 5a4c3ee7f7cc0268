"""Blocks: every image in exactly one, the same in every run; and what a target may be claimed
for.
"""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve.batch.formats import Format
from segserve.batch.job import Job, apart, check_apart, claim_target
from segserve.batch.listing import (
    Listings,
    _Seen,
    block_size,
    blocks_of,
    extend_listing,
    unfinished,
)
from segserve.batch.sources import Image
from segserve.batch.storage import Storage
from segserve.segment.errors import SegmentError


@pytest.fixture
def storage(tmp_path):
    return Storage.at(str(tmp_path / "out"))


def images(*names: str) -> list[Image]:
    return [Image(f"/in/{name}", name) for name in names]


def listed(storage: Storage) -> list[Image]:
    listings = Listings(storage)
    return [image for block in blocks_of(storage) for image in listings.images(block)]


def extend(storage: Storage, *names: str) -> int:
    return extend_listing(storage, iter(images(*names)), distinct_stems=True)


def test_extend_listing_puts_every_image_into_one_block_in_order(storage):
    names = [f"{number:05}.jpg" for number in range(5000)]
    assert extend(storage, *names) == 5000
    assert listed(storage) == images(*names)
    assert sum(block.images for block in blocks_of(storage)) == 5000
    assert (
        len({block.part for block in blocks_of(storage)})
        == len(list(blocks_of(storage)))
        < 5000 / 10
    )


def test_extend_listing_again_lists_what_is_new_alone(storage):
    extend(storage, "a.jpg", "c.jpg")
    before = list(blocks_of(storage))
    assert extend(storage, "a.jpg", "b.jpg", "c.jpg") == 1
    assert extend(storage, "a.jpg", "b.jpg", "c.jpg") == 0
    assert list(blocks_of(storage))[:2] == before
    assert listed(storage) == images("a.jpg", "c.jpg", "b.jpg")


@given(runs=st.lists(st.lists(st.integers(0, 300), max_size=200), max_size=4))
def test_extend_listing_any_runs_list_every_image_once(tmp_path_factory, runs):
    storage = Storage.at(str(tmp_path_factory.mktemp("out")))
    for run in runs:
        extend(storage, *(f"{number}.jpg" for number in run))
    names = [image.name for image in listed(storage)]
    assert sorted(names) == sorted({f"{number}.jpg" for run in runs for number in run})


@given(st.lists(st.lists(st.integers(0, 60), max_size=30), max_size=20))
def test_first_times_of_any_chunks_are_those_of_a_set(chunks):
    seen, expected = _Seen(), set()
    for chunk in chunks:
        firsts = seen.first_times([str(number).encode() for number in chunk])
        for number, is_first in zip(chunk, firsts, strict=True):
            assert is_first == (number not in expected)
            expected.add(number)


def test_extend_listing_of_names_that_are_no_utf8_keeps_their_bytes(storage):
    extend(storage, "caf\udce9.jpg")
    assert listed(storage) == images("caf\udce9.jpg")


def test_extend_listing_of_two_images_with_one_label_map_is_refused(storage):
    with pytest.raises(
        SegmentError, match=r"/in/a.png: another image becomes the same label map, a; rename one"
    ):
        extend(storage, "a.jpg", "a.png")
    assert list(blocks_of(storage)) == []
    extend(storage, "a.jpg")
    with pytest.raises(SegmentError, match="another image becomes the same label map"):
        extend(storage, "a.jpg", "a.png")
    assert extend_listing(storage, iter(images("a.jpg", "a.png")), distinct_stems=False) == 1


def test_unfinished_leaves_out_blocks_whose_part_is_there(storage):
    extend(storage, "a.jpg", "b.jpg", "c.jpg")
    first, *others = blocks_of(storage)
    storage.write(first.part, b"")
    assert unfinished(storage) == others


@pytest.mark.parametrize(
    ("listed", "size"), [(0, 1), (63, 1), (640, 20), (10**6, 128), (10**8, 4000)], ids=str
)
def test_block_size_grows_with_the_job(listed, size):
    assert block_size(listed) == size


MANIFEST = {"archive_sha256": "0" * 64, "format": "png", "classes": None}


@pytest.fixture
def job(tmp_path):
    return Job(str(tmp_path / "out"), Format.PNG, {})


def test_claim_target_twice_for_the_same_job_is_fine(job):
    for _ in range(2):
        claim_target(job, MANIFEST, overwrite=False)
    assert json.loads(job.storage.read("job.json")) == MANIFEST


def test_claim_target_of_another_job_is_refused_and_names_the_difference(job):
    claim_target(job, MANIFEST, overwrite=False)
    with pytest.raises(
        SegmentError,
        match=r"another job \(classes: None then, cat now\); name another target, or --overwrite",
    ):
        claim_target(job, {**MANIFEST, "classes": "cat"}, overwrite=False)


def test_claim_target_to_overwrite_removes_what_a_job_made_and_nothing_else(job, tmp_path):
    claim_target(job, MANIFEST, overwrite=False)
    for name in (
        "labels/a.png",
        "table/part-000-0000000.parquet",
        "summary.json",
        ".listings/000.parquet",
        "mine.txt",
    ):
        job.storage.write(name, b"")
    claim_target(job, {**MANIFEST, "classes": "cat"}, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["job.json", "mine.txt"]


@pytest.mark.parametrize("overwrite", [False, True], ids=["careful", "overwrite"])
def test_claim_target_of_something_else_is_refused_even_to_overwrite(job, overwrite):
    job.storage.write("labels/precious.png", b"")
    with pytest.raises(SegmentError, match="holds labels/ of something else"):
        claim_target(job, MANIFEST, overwrite=overwrite)
    assert job.storage.exists("labels/precious.png")


def test_claim_target_with_a_damaged_manifest_is_refused(job):
    job.storage.write("job.json", b"{")
    with pytest.raises(SegmentError, match=r"job.json is damaged"):
        claim_target(job, MANIFEST, overwrite=True)


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="needs a folder that nobody can write to"
)
def test_claim_target_that_cannot_be_written_to_is_refused():
    with pytest.raises(SegmentError, match="/proc/self/out: "):
        claim_target(Job("/proc/self/out", Format.PNG, {}), MANIFEST, overwrite=False)


@pytest.mark.parametrize(
    ("source", "target"),
    [("in", "in"), ("in", "in/out"), ("in/deep", "in"), ("in", "in/../in/out")],
    ids=["the same", "target within", "source within", "target within, by dots"],
)
def test_check_apart_of_folders_that_overlap_is_refused(tmp_path, monkeypatch, source, target):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SegmentError, match="overlap"):
        check_apart(source, target)


def test_check_apart_of_neighbours_with_like_names_is_fine(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    check_apart("in", "in-labels")
    check_apart("in/*.jpg", "in-labels")


def test_apart_of_an_image_within_the_target_is_refused(tmp_path):
    target = str(tmp_path / "out")
    assert list(apart(iter(images("a.jpg")), target)) == images("a.jpg")
    with pytest.raises(SegmentError, match="lies within the target"):
        list(apart(iter([Image(f"{target}/labels/a.png", "a.png")]), target))
