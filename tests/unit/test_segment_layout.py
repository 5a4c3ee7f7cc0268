"""Where results go, and what is refused before anything starts."""

import json
from pathlib import Path

import pytest

from segserve.segment.errors import SegmentError
from segserve.segment.folder import OPTIONS_FILE, claim_folder
from segserve.segment.layout import Format, Layout
from segserve.segment.sources import Source, find_sources

from .pictures import write_images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(layout: Layout, *arguments: str) -> None:
    layout.check(find_sources(arguments, results=layout.folder), arguments)


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
    result, overlay = layout.files(Source("in", "deep/a.jpg"))
    assert result == str(tmp_path / expected)
    assert overlay == str(tmp_path / "out/deep/a-overlay.jpg")


def test_missing_names_the_files_that_are_not_there(tmp_path):
    layout, source = Layout(tmp_path, overlay=True), Source("in", "a.jpg")
    Path(layout.result(source)).touch()
    assert layout.missing(source) == [layout.overlay_of(source)]


@pytest.mark.parametrize(
    "arguments",
    [("in",), ("in/a.jpg", "other/a.jpg"), ("in/a.jpg", "other")],
    ids=["two suffixes", "two folders", "file and folder"],
)
def test_check_with_two_images_of_one_result_names_both(folder, arguments):
    write_images(folder, "in/a.jpg", "in/a.png", "other/a.jpg")
    with pytest.raises(
        SegmentError, match=r"a\.(jpg|png) and (in|other)/a\.(jpg|png) would both become out/a\.png"
    ):
        check(Layout(Path("out")), *arguments)


def test_check_with_result_that_is_an_image_raises(folder):
    [image] = write_images(folder, "in/a.png")
    with pytest.raises(SegmentError, match=r"in/a\.png is both an image and a result"):
        check(Layout(image.parent), "in/a.png")


def test_check_with_results_among_the_images_raises(folder):
    write_images(folder, "in/a.jpg")
    with pytest.raises(SegmentError, match="in: results among the images"):
        check(Layout(folder / "in"), "in")
    check(Layout(folder / "in", Format.NPY), "in")


def test_check_keeps_the_name_of_the_data_set_free(folder):
    write_images(folder, "segmentation.jpg")
    check(Layout(folder / "out"), "segmentation.jpg")
    with pytest.raises(SegmentError, match=r"would both become .*segmentation\.coco\.json"):
        check(Layout(folder / "out", Format.COCO), "segmentation.jpg")


def test_claim_folder_makes_it_and_notes_the_options(tmp_path):
    out = tmp_path / "a" / "b"
    claim_folder(out, {"model": "tiny", "mode": None, "tta": "flip"})
    claim_folder(out, {"model": "tiny", "tta": "flip"})
    assert json.loads((out / OPTIONS_FILE).read_text()) == {"model": "tiny", "tta": "flip"}
    assert [path.name for path in out.iterdir()] == [OPTIONS_FILE]


def test_claim_folder_with_other_options_raises_and_keeps_the_note(tmp_path):
    claim_folder(tmp_path, {"model": "tiny", "mode": "slide"})
    with pytest.raises(
        SegmentError, match=r"\(mode: slide then, default now; threshold: default then, 0.5 now\)"
    ):
        claim_folder(tmp_path, {"model": "tiny", "threshold": 0.5})
    claim_folder(tmp_path, {"model": "tiny", "mode": "slide"})


def test_claim_folder_with_damaged_note_says_what_to_do(tmp_path):
    (tmp_path / OPTIONS_FILE).write_text("{")
    with pytest.raises(SegmentError, match="is damaged; remove it"):
        claim_folder(tmp_path, {})


def test_claim_folder_with_a_foreign_data_set_leaves_it(tmp_path):
    (tmp_path / "segmentation.coco.json").write_text("{}")
    with pytest.raises(SegmentError, match="was not made here"):
        claim_folder(tmp_path, {})


@pytest.mark.parametrize(
    "place", ["file", "file/below", "/proc/segserve"], ids=["file", "below a file", "read-only"]
)
def test_claim_folder_that_cannot_be_written_to_raises(folder, place):
    (folder / "file").write_text("")
    with pytest.raises(SegmentError, match="cannot be written to"):
        claim_folder(folder / place, {})
