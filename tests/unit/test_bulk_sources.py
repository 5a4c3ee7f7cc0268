"""The images of arguments, and of folders, globs, lists, tables and stores."""

import os

import fsspec
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from segserve.bulk.sources import Source, find_sources, iter_sources
from segserve.bulk.storage import BulkError, Storage, printable

from .pictures import write_images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(*arguments, **options) -> list[str]:
    return [source.location for source in find_sources(arguments, **options)]


def names(*arguments) -> list[str]:
    return [source.name for source in find_sources(arguments)]


def test_find_sources_in_folder_takes_images_of_all_depths_sorted(folder):
    write_images(folder, "in/b.PNG", "in/a.jpg", "in/deep/er/c.TiFF", "in/deep/d.HEIC")
    (folder / "in" / "notes.txt").write_text("none")
    assert paths("in") == ["in/a.jpg", "in/b.PNG", "in/deep/d.HEIC", "in/deep/er/c.TiFF"]
    assert names("in/") == ["a.jpg", "b.PNG", "deep/d.HEIC", "deep/er/c.TiFF"]


def test_find_sources_in_folder_leaves_hidden_names_out(folder):
    write_images(folder, "in/a.jpg", "in/.hidden.jpg", "in/.cache/b.jpg")
    assert paths("in") == ["in/a.jpg"]


def test_find_sources_with_hidden_file_named_takes_it(folder):
    write_images(folder, ".hidden.jpg")
    assert paths(".hidden.jpg") == [".hidden.jpg"]


def test_find_sources_with_folder_called_like_an_image_searches_it(folder):
    write_images(folder, "in/x.jpg/a.png")
    assert paths("in") == ["in/x.jpg/a.png"]


def test_find_sources_with_links_that_loop_ends(folder):
    write_images(folder, "in/a.jpg")
    (folder / "in" / "again").symlink_to(folder / "in")
    (folder / "in" / "self.jpg").symlink_to("self.jpg")
    assert paths("in") == ["in/a.jpg", "in/self.jpg"]
    assert paths("in/**/*.jpg") == ["in/a.jpg", "in/self.jpg"]


def test_find_sources_keeps_links_to_files_and_to_nothing(folder):
    write_images(folder, "a.jpg")
    (folder / "in").mkdir()
    (folder / "in" / "good.jpg").symlink_to(folder / "a.jpg")
    (folder / "in" / "lost.jpg").symlink_to(folder / "gone.jpg")
    assert paths("in") == ["in/good.jpg", "in/lost.jpg"]


def test_find_sources_leaves_out_pipes_in_folders(folder):
    write_images(folder, "in/a.jpg")
    os.mkfifo(folder / "in" / "pipe.jpg")
    assert paths("in") == ["in/a.jpg"]


def test_find_sources_leaves_out_the_folder_of_results(folder):
    write_images(folder, "a.jpg", "out/a.png", "out/deep/b.png", "outer/c.png")
    assert paths(".", results=Storage(str(folder / "out"))) == ["./a.jpg", "./outer/c.png"]
    assert paths("**/*.*g", results=Storage(str(folder / "out"))) == ["a.jpg", "outer/c.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*.jpg", ["a.jpg"]),
        ("in/**/*.jpg", ["a.jpg", "deep/b.jpg"]),
        ("i?/deep/[bc].jpg", ["in/deep/b.jpg"]),
        ("in/.*.jpg", [".h.jpg"]),
    ],
    ids=["one folder", "all depths", "other wildcards", "hidden by name"],
)
def test_find_sources_with_glob_keeps_what_is_below_its_fixed_part(folder, pattern, expected):
    write_images(folder, "in/a.jpg", "in/deep/b.jpg", "in/.h.jpg")
    assert names(pattern) == expected


def test_find_sources_with_brackets_in_a_name_takes_the_file(folder):
    write_images(folder, "a[1].jpg")
    assert paths("a[1].jpg") == ["a[1].jpg"]


def test_find_sources_with_image_named_twice_takes_it_once(folder):
    write_images(folder, "in/a.jpg")
    assert paths("in/a.jpg", "in", "in/*.jpg") == ["in/a.jpg"]


def test_find_sources_with_odd_names_keeps_their_bytes(folder):
    odd = os.fsdecode(b"in/line\nbreak \xff.jpg")
    write_images(folder, odd)
    [source] = find_sources(["in"])
    assert os.fsencode(source.location) == b"in/line\nbreak \xff.jpg"
    assert str(source) == "in/line\\nbreak \\udcff.jpg"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("empty", "empty: holds no images .*jpg"),
        ("empty/*.jpg", r"empty/\*.jpg: holds no images"),
        ("gone.jpg", "gone.jpg: there is no such file or folder"),
    ],
    ids=["folder without images", "glob without matches", "missing file"],
)
def test_find_sources_that_name_nothing_raises(folder, argument, message):
    (folder / "empty").mkdir()
    write_images(folder, "a.jpg")
    with pytest.raises(BulkError, match=message):
        find_sources(["a.jpg", argument])


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a/b.jpg", "a/b"), ("b.v2.JPEG", "b.v2"), ("frame.0001", "frame.0001"), (".jpg", ".jpg")],
    ids=["suffix", "upper case", "no image's suffix", "nothing but a suffix"],
)
def test_stem_drops_the_suffix_of_an_image_alone(name, stem):
    assert Source(f"in/{name}", name).stem == stem


def test_printable_leaves_ordinary_names_as_they_are():
    assert printable("Käfer und 猫.jpg") == "Käfer und 猫.jpg"


@pytest.fixture
def photos(tmp_path):
    for name in ("b/2.JPG", "b/1.png", "a.jpg", "notes.txt", ".hidden/x.png", "c d/é.webp"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    return tmp_path / "in"


NAMES = ["a.jpg", "b/1.png", "b/2.JPG", "c d/é.webp"]


def stored_names(source, **options) -> list[str]:
    return [image.name for image in iter_sources(str(source), **options)]


def test_stored_sources_of_folder_are_sorted_and_keep_their_paths(photos):
    assert stored_names(photos) == NAMES
    assert [image.location for image in iter_sources(str(photos))] == [
        str(photos / name) for name in NAMES
    ]


def test_stored_sources_of_file_uri_are_those_of_the_path(photos):
    assert stored_names(f"file://{photos}") == NAMES


def test_stored_sources_of_glob_keep_what_stands_below_its_fixed_part(photos):
    assert stored_names(photos / "b" / "*.png") == ["1.png"]
    assert stored_names(photos / "**" / "*.png") == ["b/1.png"]


def test_stored_sources_of_store_folder_and_glob_are_those_of_a_disk(photos):
    memory = fsspec.filesystem("memory")
    for name in [*NAMES, ".hidden/x.png", "notes.md"]:
        memory.pipe(f"/shelf/in/{name}", b"")
    assert sorted(stored_names("memory://shelf/in")) == sorted(NAMES)
    assert stored_names("memory://shelf/in/**/*.png") == ["b/1.png"]
    assert Source("memory:///shelf/in/b/1.png", "b/1.png") in iter_sources("memory://shelf/in")


def test_stored_sources_of_list_are_relative_to_the_list(photos, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(
        f"in/a.jpg\n\n  in/b/../b/1.png\n{photos}/b/2.JPG\ns3://bucket/x/y.png\n../z.png\n"
    )
    assert list(iter_sources(str(listed))) == [
        Source(f"{photos}/a.jpg", "in/a.jpg"),
        Source(f"{photos}/b/1.png", "in/b/1.png"),
        Source(f"{photos}/b/2.JPG", f"{photos}/b/2.JPG".lstrip("/")),
        Source("s3://bucket/x/y.png", "bucket/x/y.png"),
        Source(f"{tmp_path.parent}/z.png", f"{tmp_path.parent}/z.png".lstrip("/")),
    ]


def test_stored_sources_of_entry_that_climbs_stay_below_the_target(tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("s3://bucket/../../etc/x.png\n/a/../../b.png\n")
    assert stored_names(listed) == ["etc/x.png", "b.png"]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_stored_sources_of_table_are_those_of_its_column(photos, tmp_path, kind):
    table, file = (
        pa.table({"id": [1, 2], "file": ["in/a.jpg", "in/b/1.png"]}),
        tmp_path / f"images.{kind}",
    )
    parquet.write_table(table, file) if kind == "parquet" else csv.write_csv(table, file)
    assert stored_names(file, column="file") == ["in/a.jpg", "in/b/1.png"]
    with pytest.raises(
        BulkError, match="there is no column 'path', but id, file; name it with --column"
    ):
        stored_names(file)


def test_stored_sources_of_table_with_a_null_raise(tmp_path):
    parquet.write_table(pa.table({"path": ["a.jpg", None]}), tmp_path / "images.parquet")
    with pytest.raises(BulkError, match="column 'path' has rows without a path"):
        stored_names(tmp_path / "images.parquet")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent", "absent: there is no such file or folder"),
        ("broken.parquet", "broken.parquet: "),
        ("absent.txt", "absent.txt: "),
        ("memory://nowhere/at/all", "memory://nowhere/at/all: there is no such"),
    ],
    ids=["absent", "no Parquet", "no list", "no folder in a store"],
)
def test_stored_sources_of_an_unusable_source_raise_one_line(
    photos, tmp_path, monkeypatch, source, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(BulkError, match=message) as caught:
        stored_names(source)
    assert "\n" not in str(caught.value)
