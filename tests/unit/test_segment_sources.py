"""Which images the arguments of `segserve segment` name."""

import os

import pytest

from segserve.segment.errors import SegmentError
from segserve.segment.sources import Source, find_sources, printable

from .pictures import write_images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(*arguments, **options) -> list[str]:
    return [source.path for source in find_sources(arguments, **options)]


def names(*arguments) -> list[str]:
    return [source.name for source in find_sources(arguments)]


def test_find_sources_in_folder_takes_images_of_all_depths_sorted(folder):
    write_images(folder, "in/b.PNG", "in/a.jpg", "in/deep/er/c.TiFF", "in/deep/d.webp")
    (folder / "in" / "notes.txt").write_text("none")
    assert paths("in") == ["in/a.jpg", "in/b.PNG", "in/deep/d.webp", "in/deep/er/c.TiFF"]
    assert names("in/") == ["a.jpg", "b.PNG", "deep/d.webp", "deep/er/c.TiFF"]


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
    assert paths(".", results=folder / "out") == ["./a.jpg", "./outer/c.png"]
    assert paths("**/*.*g", results=folder / "out") == ["a.jpg", "outer/c.png"]


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


def test_find_sources_with_dash_is_standard_input(folder):
    assert find_sources(["-"]) == [Source("", "stdin", is_stdin=True)]


def test_find_sources_with_odd_names_keeps_their_bytes(folder):
    odd = os.fsdecode(b"in/line\nbreak \xff.jpg")
    write_images(folder, odd)
    [source] = find_sources(["in"])
    assert os.fsencode(source.path) == b"in/line\nbreak \xff.jpg"
    assert str(source) == "in/line\\nbreak \\udcff.jpg"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("empty", "empty: the folder holds no images .*jpg"),
        ("empty/*.jpg", r"empty/\*.jpg: no file matches"),
        ("gone.jpg", "gone.jpg: there is no such file or folder"),
    ],
    ids=["folder without images", "glob without matches", "missing file"],
)
def test_find_sources_that_name_nothing_raises(folder, argument, message):
    (folder / "empty").mkdir()
    write_images(folder, "a.jpg")
    with pytest.raises(SegmentError, match=message):
        find_sources(["a.jpg", argument])


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a/b.jpg", "a/b"), ("b.v2.JPEG", "b.v2"), ("frame.0001", "frame.0001"), (".jpg", ".jpg")],
    ids=["suffix", "upper case", "no image's suffix", "nothing but a suffix"],
)
def test_stem_drops_the_suffix_of_an_image_alone(name, stem):
    assert Source("in", name).stem == stem


def test_printable_leaves_ordinary_names_as_they_are():
    assert printable("Käfer und 猫.jpg") == "Käfer und 猫.jpg"
