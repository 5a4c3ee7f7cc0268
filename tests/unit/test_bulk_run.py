"""`segserve segment` against a server on 127.0.0.1, in this process: requests, files and
outcomes.
"""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from segserve.bulk.results import LOG_FILE, OPTIONS_FILE, Format, Layout, write_data_set
from segserve.bulk.run import OUTAGE_AFTER, Run, StoppedError
from segserve.bulk.sources import find_sources
from segserve.client import SegmentationClient

from .canned import IMAGE_RGB, LABEL_MAP, Canned, canned_server
from .pictures import PictureServer, response_of_value, write_images

NAMES = ("a.jpg", "b.jpg", "deep/c.png")


@pytest.fixture
def server():
    with canned_server(PictureServer) as server:
        yield server


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path / "in", *NAMES)
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


class Started:
    """A run, its outcomes, and how it was stopped."""

    def __init__(
        self, server, images, layout, *, force=False, retry_failed=False, workers=2, retries=0
    ):
        self.outcomes = []
        self.stopped = None
        with SegmentationClient(server.url, model="tiny", retries=retries, timeout_s=10) as client:
            sources = find_sources([str(images)])
            self.run = Run(
                sources,
                layout,
                client.segment,
                workers,
                self.outcomes.append,
                force,
                retry_failed,
            )
            try:
                self.run.finish()
            except StoppedError as error:
                self.stopped = str(error)

    def _names(self, *, failed: bool, skipped: bool) -> list[str]:
        return sorted(
            outcome.source.name
            for outcome in self.outcomes
            if (bool(outcome.message), outcome.is_skipped) == (failed, skipped)
        )

    @property
    def done(self) -> list[str]:
        return self._names(failed=False, skipped=False)

    @property
    def skipped(self) -> list[str]:
        return self._names(failed=False, skipped=True)

    @property
    def failed(self) -> list[str]:
        return self._names(failed=True, skipped=False)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        return tuple(self.run.counts.values())


def files_of(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {
        LOG_FILE
    }


def error_response(code: str, status: int) -> Canned:
    return Canned(json.dumps({"code": status, "type": code, "message": "Not so."}).encode(), status)


def test_run_writes_the_label_map_of_every_image(server, images, out):
    started = Started(server, images, Layout(out))
    assert started.counts == (3, 0, 0, 0)
    assert files_of(out) == {"a.png", "b.png", "deep/c.png"}
    with Image.open(out / "deep" / "c.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.array(picture), LABEL_MAP)


def test_run_sends_the_files_as_they_are(server, images, out):
    Started(server, images, Layout(out))
    assert {received.body for received in server.received} == {(images / "a.jpg").read_bytes()}


def test_run_with_npy_writes_what_numpy_reads(server, images, out):
    Started(server, images, Layout(out, Format.NPY))
    label_map = np.load(out / "a.npy", allow_pickle=False)
    assert label_map.dtype == np.uint8
    assert np.array_equal(label_map, LABEL_MAP)


def test_run_with_overlay_writes_a_picture_of_the_same_size(server, images, out):
    Started(server, images, Layout(out, overlay=True))
    with Image.open(out / "a-overlay.jpg") as picture:
        assert picture.size == IMAGE_RGB.shape[1::-1]
    assert len(files_of(out)) == 6


def test_run_again_does_only_what_is_left(server, images, out):
    Started(server, images, Layout(out))
    (out / "b.png").unlink()
    again = Started(server, images, Layout(out))
    assert again.skipped == ["a.jpg", "deep/c.png"]
    assert again.done == ["b.jpg"]
    assert len(server.received) == 4


def test_run_with_overlay_added_keeps_the_result_that_is_there(server, images, out):
    Started(server, images, Layout(out))
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    again = Started(server, images, Layout(out, overlay=True))
    assert again.counts == (3, 0, 0, 0)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")} == before


def test_run_with_force_makes_all_again(server, images, out):
    Started(server, images, Layout(out))
    server.response = Canned(response_of_value(2))
    Started(server, images, Layout(out, Format.NPY))
    assert np.array(Image.open(out / "a.png")).max() == 2
    server.response = Canned(response_of_value(1))
    again = Started(server, images, Layout(out), force=True)
    assert again.counts == (3, 0, 0, 0)
    assert (np.array(Image.open(out / "a.png")) == 1).all()


def test_run_with_unreadable_files_reports_each(server, images, out):
    (images / "text.jpg").write_text("no image")
    (images / "lost.jpg").symlink_to(images / "gone.jpg")
    (images / "self.jpg").symlink_to("self.jpg")
    started = Started(server, images, Layout(out))
    assert started.counts == (3, 0, 3, 0)
    failures = {outcome.source.name: outcome for outcome in started.outcomes if outcome.message}
    assert failures["lost.jpg"].message == "cannot be read: No such file or directory"
    assert failures["self.jpg"].message == "cannot be read: Too many levels of symbolic links"
    assert (failures["text.jpg"].code, failures["text.jpg"].message) == (
        "image_unsupported",
        "not an image in a format that is read",
    )
    assert files_of(out) == {"a.png", "b.png", "deep/c.png"}


def test_run_with_name_too_long_for_a_result_goes_on(server, images, out):
    write_images(images, "x" * 251 + ".jpg")
    (out / "b.png").mkdir(parents=True)
    started = Started(server, images, Layout(out, overlay=True))
    assert started.done == ["a.jpg", "deep/c.png"]
    assert started.failed == ["b.jpg", "x" * 251 + ".jpg"]


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (error_response("InvalidKeyException", 400), "Not so; `segserve serve` prints a new one"),
        (error_response("ModelNotFoundException", 404), "Not so; name the model that is served"),
        (
            Canned(b'{"error": {"code": "bad_option", "message": "no class dgo"}}', 400),
            "no class dgo",
        ),
        (Canned(b"<html>", 403), "Forbidden"),
    ],
    ids=["token", "model", "option", "proxy"],
)
def test_run_that_every_image_would_fail_stops_at_the_first(server, images, out, response, message):
    server.response = response
    started = Started(server, images, Layout(out), workers=1)
    assert message in started.stopped
    assert started.outcomes == []
    assert started.counts == (0, 0, 0, 3)


def test_run_with_server_that_goes_away_stops_and_keeps_what_is_done(server, images, out):
    write_images(images, *(f"more/{number}.png" for number in range(50)))
    server.script = [server.response] * 5
    server.response = Canned(b"{}", 503)
    started = Started(server, images, Layout(out), workers=1)
    assert started.run.done == 5
    assert started.run.failed == OUTAGE_AFTER - 1
    assert started.run.counts["left"] == 48 - (OUTAGE_AFTER - 1)
    assert len(files_of(out)) == 5
    assert started.stopped


def test_run_without_a_server_reports_it_once(server, images, out):
    with canned_server() as gone:
        pass
    started = Started(gone, images, Layout(out))
    assert "no server responds there" in started.stopped
    assert started.outcomes == []


def test_run_with_a_short_outage_counts_those_images_alone(server, images, out):
    write_images(images, "d.png", "e.png")
    server.script = [server.response, Canned(b"{}", 503), Canned(b"{}", 503)]
    started = Started(server, images, Layout(out), workers=1)
    assert OUTAGE_AFTER > 2
    assert started.stopped is None
    assert started.counts == (3, 0, 2, 0)


def test_run_with_fewer_failures_than_an_outage_at_its_end_counts_them(server, images, out):
    server.script = [server.response, server.response, Canned(b"{}", 503)]
    started = Started(server, images, Layout(out), workers=1)
    assert started.stopped is None
    assert started.counts == (2, 0, 1, 0)


def test_run_with_responses_of_another_program_stops(server, images, out):
    server.response = Canned(b"<html>It works!</html>")
    started = Started(server, images, Layout(out), workers=1)
    assert started.stopped
    assert started.run.done == 0


def test_run_that_cannot_write_any_more_stops(server, images, out):
    write_images(images, *(f"more/{number}.png" for number in range(50)))
    out.mkdir()
    (out / "deep").symlink_to("/proc")  # where no file can be created
    started = Started(server, images, Layout(out), workers=1)
    assert "deep/c.png: cannot be written" in started.stopped
    assert started.done == ["a.jpg", "b.jpg"]
    assert started.run.counts["left"] == 51


def test_json_result_is_the_servers_response_with_rle(server, images, out):
    from pycocotools import mask as coco_mask

    Started(server, images, Layout(out, Format.JSON))
    response = json.loads((out / "a.json").read_bytes())
    assert (response["width"], response["height"], response["model"]) == (
        6,
        4,
        {"name": "tiny", "version": "1.0"},
    )
    assert [(entry["label"], entry["box"]) for entry in response["classes"][1:]] == [
        ("dog", [2, 1, 5, 3]),
        ("cat", [0, 0, 1, 1]),
    ]
    assert response["mask"]["encoding"] == "rle"
    for class_id, rle in response["mask"]["data"].items():
        assert np.array_equal(coco_mask.decode(rle), int(class_id) == LABEL_MAP)


def test_data_set_is_read_by_pycocotools(server, images, out, capsys):
    from pycocotools.coco import COCO

    Started(server, images, Layout(out, Format.COCO))
    data_set = COCO(str(write_data_set(out)))
    assert [data_set.imgs[i]["file_name"] for i in sorted(data_set.imgs)] == [
        "a.jpg",
        "b.jpg",
        "deep/c.png",
    ]
    assert {category["name"] for category in data_set.dataset["categories"]} == {"cat", "dog"}
    assert sorted(data_set.anns) == list(range(1, 7))
    for image_id in data_set.imgs:
        for annotation in data_set.imgToAnns[image_id]:
            assert np.array_equal(
                data_set.annToMask(annotation), annotation["category_id"] == LABEL_MAP
            )


def test_data_set_has_the_names_of_the_images_as_they_are(server, images, out):
    write_images(images, "at 10.00\u202fAM.png", os.fsdecode(b"caf\xe9.png"))
    Started(server, images, Layout(out, Format.COCO))
    listed = [row["file_name"] for row in json.loads(write_data_set(out).read_bytes())["images"]]
    assert listed == ["a.jpg", "at 10.00\u202fAM.png", "b.jpg", "caf\\udce9.png", "deep/c.png"]


def test_data_set_of_one_image_is_whole_by_itself(server, images, out):
    Started(server, images, Layout(out, Format.COCO))
    document = json.loads((out / "a.coco.json").read_bytes())
    assert [image["id"] for image in document["images"]] == [1]
    assert {annotation["image_id"] for annotation in document["annotations"]} == {1}


def test_data_set_leaves_out_files_of_others(server, images, out):
    Started(server, images, Layout(out, Format.COCO))
    (out / "mine.coco.json").write_text('{"images": [{}, {}], "annotations": []}')
    (out / "list.coco.json").write_text("[]")
    (out / "broken.coco.json").write_text("{")
    assert len(json.loads(write_data_set(out).read_bytes())["images"]) == 3


def test_data_set_leaves_out_the_results_of_other_runs(server, images, out):
    Started(server, images, Layout(out, Format.COCO))
    write_data_set(out / "deep")
    shutil.copytree(out / "deep", out / "run")
    (out / "run" / OPTIONS_FILE).write_text("{}")
    (out / OPTIONS_FILE).write_text("{}")
    data_set = json.loads(write_data_set(out).read_bytes())
    assert [row["file_name"] for row in data_set["images"]] == ["a.jpg", "b.jpg", "deep/c.png"]
    assert {row["image_id"] for row in data_set["annotations"]} == {1, 2, 3}


def test_run_leaves_no_partial_files(server, images, out):
    Started(server, images, Layout(out, overlay=True))
    assert [name for _, _, names in os.walk(out) for name in names if name.endswith(".part")] == []


def test_run_again_keeps_failures_as_recorded_until_they_are_retried(server, images, out):
    (images / "b.jpg").write_text("no image")
    Started(server, images, Layout(out))
    write_images(images, "b.jpg")
    again = Started(server, images, Layout(out))
    assert again.counts == (0, 2, 1, 0)
    [failure] = [outcome for outcome in again.outcomes if outcome.message]
    assert failure.is_skipped
    assert (failure.code, failure.message) == (
        "image_unsupported",
        "not an image in a format that is read",
    )
    assert len(server.received) == 3
    assert Started(server, images, Layout(out), retry_failed=True).counts == (1, 2, 0, 0)
    assert Started(server, images, Layout(out)).counts == (0, 3, 0, 0)


def test_run_again_repeats_failures_of_the_server(server, images, out):
    server.script = [server.response, server.response, Canned(b"{}", 503)]
    assert Started(server, images, Layout(out), workers=1).counts == (2, 0, 1, 0)
    assert Started(server, images, Layout(out)).counts == (1, 2, 0, 0)


def test_run_with_force_repeats_recorded_failures(server, images, out):
    (images / "b.jpg").write_text("no image")
    Started(server, images, Layout(out))
    write_images(images, "b.jpg")
    assert Started(server, images, Layout(out), force=True).counts == (3, 0, 0, 0)
