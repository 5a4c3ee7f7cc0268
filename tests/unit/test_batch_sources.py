"""Which images a source names, under which names, in which order."""

import fsspec
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from segserve.batch.sources import Image, images_of
from segserve.segment.errors import SegmentError


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.JPG", "b/1.png", "a.jpg", "notes.txt", ".hidden/x.png", "c d/é.webp"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    return tmp_path / "in"


NAMES = ["a.jpg", "b/1.png", "b/2.JPG", "c d/é.webp"]


def names(source, **options) -> list[str]:
    return [image.name for image in images_of(str(source), **options)]


def test_images_of_folder_are_sorted_and_keep_their_paths(folder):
    assert names(folder) == NAMES
    assert [image.location for image in images_of(str(folder))] == [
        str(folder / name) for name in NAMES
    ]


def test_images_of_file_uri_are_those_of_the_path(folder):
    assert names(f"file://{folder}") == NAMES


def test_images_of_glob_keep_what_stands_below_its_fixed_part(folder):
    assert names(folder / "b" / "*.png") == ["1.png"]
    assert names(folder / "**" / "*.png") == ["b/1.png"]


def test_images_of_store_folder_and_glob_are_those_of_a_disk(folder):
    memory = fsspec.filesystem("memory")
    for name in [*NAMES, ".hidden/x.png", "notes.md"]:
        memory.pipe(f"/shelf/in/{name}", b"")
    assert sorted(names("memory://shelf/in")) == sorted(NAMES)
    assert names("memory://shelf/in/**/*.png") == ["b/1.png"]
    assert Image("memory:///shelf/in/b/1.png", "b/1.png") in images_of("memory://shelf/in")


def test_images_of_list_are_relative_to_the_list(folder, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(
        f"in/a.jpg\n\n  in/b/../b/1.png\n{folder}/b/2.JPG\ns3://bucket/x/y.png\n../z.png\n"
    )
    assert list(images_of(str(listed))) == [
        Image(f"{folder}/a.jpg", "in/a.jpg"),
        Image(f"{folder}/b/1.png", "in/b/1.png"),
        Image(f"{folder}/b/2.JPG", f"{folder}/b/2.JPG".lstrip("/")),
        Image("s3://bucket/x/y.png", "bucket/x/y.png"),
        Image(f"{tmp_path.parent}/z.png", f"{tmp_path.parent}/z.png".lstrip("/")),
    ]


def test_images_of_entry_that_climbs_stay_below_the_target(tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("s3://bucket/../../etc/x.png\n/a/../../b.png\n")
    assert names(listed) == ["etc/x.png", "b.png"]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_images_of_table_are_those_of_its_column(folder, tmp_path, kind):
    table, file = (
        pa.table({"id": [1, 2], "file": ["in/a.jpg", "in/b/1.png"]}),
        tmp_path / f"images.{kind}",
    )
    parquet.write_table(table, file) if kind == "parquet" else csv.write_csv(table, file)
    assert names(file, column="file") == ["in/a.jpg", "in/b/1.png"]
    with pytest.raises(
        SegmentError, match="there is no column 'path', but id, file; name it with --column"
    ):
        names(file)


def test_images_of_table_with_a_null_are_refused(tmp_path):
    parquet.write_table(pa.table({"path": ["a.jpg", None]}), tmp_path / "images.parquet")
    with pytest.raises(SegmentError, match="column 'path' has rows without a path"):
        names(tmp_path / "images.parquet")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent", "there is no such file or folder; expected a folder, a quoted glob"),
        ("in/a.jpg", "is a single file; expected a folder"),
        ("broken.parquet", "broken.parquet: "),
        ("absent.txt", "absent.txt: "),
        ("memory://nowhere/at/all", "memory://nowhere/at/all: expected a folder"),
    ],
    ids=["absent", "a single image", "no Parquet", "no list", "no folder in a store"],
)
def test_images_of_what_is_no_source_is_refused_in_one_line(
    folder, tmp_path, monkeypatch, source, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(SegmentError, match=message) as refused:
        names(source)
    assert "\n" not in str(refused.value)
