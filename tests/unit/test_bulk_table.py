"""Blocks: every image is in exactly one block, the same in every run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve.bulk.sources import Source
from segserve.bulk.storage import BulkError, Storage
from segserve.bulk.table import (
    _Seen,
    block_size,
    blocks_of,
    extend_listing,
    images_of,
    unfinished_blocks,
)


@pytest.fixture
def storage(tmp_path):
    return Storage.at(str(tmp_path / "out"))


def images(*names: str) -> list[Source]:
    return [Source(f"/in/{name}", name) for name in names]


def listed(storage: Storage) -> list[Source]:
    return [image for block in blocks_of(storage) for image in images_of(storage, block)]


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
        firsts = seen.first_times([str(number) for number in chunk])
        for number, is_first in zip(chunk, firsts, strict=True):
            assert is_first == (number not in expected)
            expected.add(number)


def test_extend_listing_of_names_that_are_no_utf8_keeps_their_bytes(storage):
    extend(storage, "caf\udce9.jpg")
    assert listed(storage) == images("caf\udce9.jpg")


def test_extend_listing_of_two_images_with_one_label_map_raises(storage):
    with pytest.raises(
        BulkError, match=r"/in/a.png: another image becomes the same label map, a; rename one"
    ):
        extend(storage, "a.jpg", "a.png")
    assert list(blocks_of(storage)) == []
    extend(storage, "a.jpg")
    with pytest.raises(BulkError, match="another image becomes the same label map"):
        extend(storage, "a.jpg", "a.png")
    assert extend_listing(storage, iter(images("a.jpg", "a.png")), distinct_stems=False) == 1


def test_unfinished_blocks_leaves_out_blocks_whose_part_is_there(storage):
    extend(storage, "a.jpg", "b.jpg", "c.jpg")
    first, *others = blocks_of(storage)
    storage.write(first.part, b"")
    assert unfinished_blocks(storage) == others


@pytest.mark.parametrize(
    ("listed", "size"), [(0, 1), (63, 1), (640, 20), (10**6, 128), (10**8, 4000)], ids=str
)
def test_block_size_grows_with_the_job(listed, size):
    assert block_size(listed) == size
