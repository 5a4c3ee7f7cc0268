"""`segserve segment`: its output, its exit status, signals and a full disk."""

import io
import json
import os
import re
import resource
import signal
import subprocess
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from segserve.bulk.results import LOG_FILE, OPTIONS_FILE
from segserve.bulk.sources import Source
from segserve.engines.processes import creation_s
from segserve.gateway.background import ServerState
from segserve.resources import model_names

from .canned import LABEL_MAP, Canned, canned_server
from .pictures import IMAGE, PictureServer, command, environment, segserve, write_images

CLASSES = ("background", "dog", "cat")


@pytest.fixture
def server():
    with canned_server(PictureServer) as server:
        yield server


def result_files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {
        OPTIONS_FILE,
        LOG_FILE,
    }


def lines(content: bytes) -> list[dict]:
    return [json.loads(line) for line in content.decode().splitlines()]


def test_segment_prints_the_classes_on_stdout_and_a_summary_on_stderr(server, tmp_path):
    write_images(tmp_path, "in/a.jpg", "in/deep/b.png")
    done = segserve("segment", "in", "-o", "out", "--server", server.url, folder=tmp_path)
    assert done.returncode == 0
    title, *table = done.stdout.decode().splitlines()
    assert title.strip() == "classes"
    assert re.split(r"\s*[┃│]\s*", table[1])[1:-1] == ["class", "share of all pixels", "images"]
    rows = [re.split(r"\s*│\s*", line)[1:-1] for line in table if line.startswith("│")]
    assert [row[2] for row in rows] == ["2"] * len(CLASSES)
    assert {row[0] for row in rows} == set(CLASSES)
    [summary] = done.stderr.decode().splitlines()
    assert summary.startswith("2 segmented; results in out/ (")
    assert result_files(tmp_path / "out") == {"a.png", "deep/b.png"}


def test_segment_quiet_prints_problems_alone(server, tmp_path):
    write_images(tmp_path, "a.jpg")
    arguments = ("--quiet", "--server", server.url)
    done = segserve("segment", "a.jpg", *arguments, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    done = segserve("segment", "b.jpg", *arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    [line] = done.stderr.decode().splitlines()
    assert line.startswith("b.jpg: ")


def test_segment_of_a_folder_counts_the_files_that_are_no_images(server, tmp_path):
    write_images(tmp_path, "in/a.jpg", "in/b.MOV", "in/c.mov", "in/deep/notes", "in/.hidden.txt")
    done = segserve("segment", "in", "-o", "out", "--server", server.url, folder=tmp_path)
    assert done.returncode == 0
    end = "; left out, as they are not images: 2 .mov, 1 without a suffix"
    assert done.stderr.decode().splitlines()[-1].endswith(end)


def test_segment_again_says_how_many_are_there(server, tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg")
    segserve("segment", "a.jpg", "--server", server.url, folder=tmp_path)
    done = segserve("segment", "*.jpg", "--server", server.url, folder=tmp_path)
    assert done.returncode == 0
    assert done.stderr.decode().startswith("1 segmented, 1 already there; results in segmented/")
    assert len(server.received) == 2


def test_segment_of_another_image_with_the_same_name_exits_1_and_names_both(server, tmp_path):
    write_images(tmp_path, "a/cat.png", "b/cat.png")
    arguments = ("-o", "out", "--server", server.url)
    assert segserve("segment", "a/cat.png", *arguments, folder=tmp_path).returncode == 0
    done = segserve("segment", "b/cat.png", *arguments, folder=tmp_path)
    assert (done.returncode, done.stdout, len(server.received)) == (1, b"", 1)
    [line] = done.stderr.decode().splitlines()
    assert line.startswith("segserve: b/cat.png would become out/cat.png, which is the result of ")
    assert str(tmp_path / "a" / "cat.png") in line
    assert segserve("segment", "b", *arguments, "--force", folder=tmp_path).returncode == 0
    assert segserve("segment", "b", *arguments, folder=tmp_path).returncode == 0
    assert segserve("segment", "a", *arguments, folder=tmp_path).returncode == 1


def test_segment_sends_options_token_and_model(server, tmp_path):
    write_images(tmp_path, "a.jpg")
    options = (
        "--mode",
        "slide",
        "--tta",
        "flip",
        "--classes",
        "cat,dog",
        "--threshold",
        "0.5",
        "--model",
        "tiny",
    )
    address = ("--server", server.url)
    done = segserve(
        "segment",
        "a.jpg",
        *address,
        *options,
        folder=tmp_path,
        SEGSERVE_TOKEN="made up",  # noqa: S106
    )
    assert done.returncode == 0, done.stderr
    [received] = server.received
    assert received.path == "/predictions/tiny"
    assert received.headers["Authorization"] == "Bearer made up"
    sent = {
        name: received.headers[f"X-Segment-{name}"]
        for name in ("Mode", "Tta", "Classes", "Threshold")
    }
    assert sent == {"Mode": "slide", "Tta": "flip", "Classes": '["cat", "dog"]', "Threshold": "0.5"}


def test_segment_with_bad_files_reports_each_in_a_line_and_exits_1(server, tmp_path):
    write_images(tmp_path, "in/a.jpg", "in/line\nbreak.jpg")
    (tmp_path / "in" / "line\nbreak.jpg").write_text("no image")
    (tmp_path / "in" / "lost.jpg").symlink_to("gone.jpg")
    done = segserve("segment", "in", "-o", "out", "--server", server.url, folder=tmp_path)
    assert done.returncode == 1
    *failures, summary = done.stderr.decode().splitlines()
    assert sorted(failures) == [
        "in/line\\nbreak.jpg: not an image in a format that is read",
        "in/lost.jpg: cannot be read: No such file or directory",
    ]
    assert summary.startswith("1 segmented, 2 failed; results in out/")


def test_segment_with_json_prints_one_object_a_line(server, tmp_path):
    write_images(tmp_path, "in/a.jpg", "in/b.jpg")
    segserve("segment", "in/a.jpg", "-o", "out", "--server", server.url, folder=tmp_path)
    odd = os.fsdecode(b"in/\xff.jpg")
    (tmp_path / odd).write_text("no image")
    done = segserve("segment", "in", "-o", "out", "--json", "--server", server.url, folder=tmp_path)
    assert (done.returncode, done.stderr) == (1, b"")
    *images, last = lines(done.stdout)
    by_path = {image["path"]: image for image in images}
    assert by_path["in/a.jpg"] == {"path": "in/a.jpg", "output": "out/a.png", "skipped": True}
    assert by_path["in/b.jpg"]["output"] == "out/b.png"
    assert [entry["label"] for entry in by_path["in/b.jpg"]["classes"]] == [
        "background",
        "dog",
        "cat",
    ]
    assert by_path[odd]["error"] == {
        "code": "image_unsupported",
        "message": "not an image in a format that is read",
    }
    seconds = last["summary"].pop("seconds")
    assert seconds >= 0
    assert last["summary"] == {
        "segmented": 1,
        "skipped": 1,
        "failed": 1,
        "left": 0,
        "left_out": {},
        "stopped": None,
    }


def test_segment_from_stdin_writes_the_result_to_stdout(server, tmp_path):
    arguments = command("segment", "-", "--server", server.url)
    done = subprocess.run(
        arguments,
        cwd=tmp_path,
        env=environment(),
        input=IMAGE,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert np.array_equal(np.array(Image.open(io.BytesIO(done.stdout))), LABEL_MAP)
    assert list(tmp_path.iterdir()) == []


def test_segment_with_coco_writes_one_data_set_beside_the_images_own(server, tmp_path):
    write_images(tmp_path, "in/a.jpg", "in/b.jpg")
    done = segserve(
        "segment", "in", "-o", "out", "--format", "coco", "--server", server.url, folder=tmp_path
    )
    assert done.returncode == 0
    assert result_files(tmp_path / "out") == {
        "a.coco.json",
        "b.coco.json",
        "segmentation.coco.json",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("a.jpg", "in/a.jpg"),
            "a.jpg would become out/a.png, which is another image",
        ),
        (("empty",), "empty: holds no images"),
        (("gone.jpg",), "gone.jpg: there is no such file or folder"),
        (("a.jpg", "-o", "a.jpg"), "a.jpg: cannot be written to"),
        (("a.jpg", "-o", "/proc/out"), "/proc/out: cannot be written to"),
        (("a.jpg", "--local", "--token", "t"), "--local computes without a server: leave out"),
        (("-", "--overlay"), "leave out -o, --overlay and --json"),
    ],
    ids=[
        "same result",
        "no images",
        "missing",
        "file instead of folder",
        "read-only",
        "local and token",
        "two on stdout",
    ],
)
def test_segment_with_a_wrong_argument_sends_nothing(server, tmp_path, arguments, message):
    write_images(tmp_path, "a.jpg", "in/a.jpg")
    (tmp_path / "empty").mkdir()
    given = () if "-o" in arguments or arguments[0] == "-" else ("-o", "out")
    address = () if "--local" in arguments else ("--server", server.url)
    done = segserve("segment", *arguments, *given, *address, folder=tmp_path, content=IMAGE)
    assert (done.returncode, done.stdout, server.received) == (1, b"", [])
    [line] = done.stderr.decode().splitlines()
    assert message in line


def test_segment_with_other_options_into_the_same_folder_exits_1(server, tmp_path):
    write_images(tmp_path, "a.jpg")
    segserve("segment", "a.jpg", "--server", server.url, folder=tmp_path)
    done = segserve(
        "segment", "a.jpg", "--force", "--mode", "slide", "--server", server.url, folder=tmp_path
    )
    assert done.returncode == 1
    assert "segmented holds results of other options (mode)" in done.stderr.decode()


def test_segment_with_model_that_was_mistyped_does_not_block_the_right_one(server, tmp_path):
    write_images(tmp_path, "in/a.jpg")
    server.script = [
        Canned(
            b'{"code": 404, "type": "ModelNotFoundException", "message": "Model not found: tni"}',
            404,
        )
    ]
    arguments = ("segment", "in", "-o", "out", "--server", server.url, "--model")
    assert segserve(*arguments, "tni", folder=tmp_path).returncode == 1
    done = segserve(*arguments, "tiny", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert result_files(tmp_path / "out") == {"a.png"}


def test_segment_that_makes_nothing_leaves_earlier_results_their_options(server, tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg")
    arguments = ("-o", "out", "--server", server.url)
    segserve("segment", "a.jpg", *arguments, folder=tmp_path)
    server.response = Canned(
        b'{"code": 404, "type": "ModelNotFoundException", "message": "Model not found: tni"}', 404
    )
    assert segserve("segment", "b.jpg", *arguments, folder=tmp_path).returncode == 1
    done = segserve("segment", "b.jpg", *arguments, "--mode", "slide", folder=tmp_path)
    assert "out holds results of other options (mode)" in done.stderr.decode()


def test_segment_into_a_folder_of_an_odd_name_prints_one_line(server, tmp_path):
    write_images(tmp_path, "a.jpg")
    done = segserve(
        "segment", "a.jpg", "-o", "line\nbreak", "--server", server.url, folder=tmp_path
    )
    [summary] = done.stderr.decode().splitlines()
    assert summary.startswith("1 segmented; results in line\\nbreak/ (")
    failed = segserve(
        "segment", "a.jpg", "-o", "a.jpg/line\nbreak", "--server", server.url, folder=tmp_path
    )
    [line] = failed.stderr.decode().splitlines()
    assert line.startswith("segserve: a.jpg/line\\nbreak: cannot be written to")


def test_segment_with_token_that_no_header_holds_sends_nothing_and_does_not_print_it(
    server, tmp_path
):
    write_images(tmp_path, "a.jpg")
    done = segserve(
        "segment", "a.jpg", "--server", server.url, "--token", "s3cr\net", folder=tmp_path
    )
    assert (done.returncode, server.received) == (1, [])
    [line] = done.stderr.decode().splitlines()
    assert line.startswith("segserve: the token contains a line break")
    assert "s3cr" not in line


def test_segment_with_no_server_says_what_to_do_in_one_line(tmp_path):
    write_images(tmp_path, "a.jpg")
    with canned_server() as gone:
        pass
    done = segserve("segment", "a.jpg", "--server", gone.url, folder=tmp_path)
    assert done.returncode == 1
    [line] = done.stderr.decode().splitlines()
    assert "no server responds there" in line
    assert line.endswith("0 segmented, 1 left; the same command goes on where it stopped")


def test_segment_with_force_that_stops_does_not_promise_to_resume(tmp_path):
    write_images(tmp_path, "a.jpg")
    with canned_server() as gone:
        pass
    done = segserve("segment", "a.jpg", "--force", "--server", gone.url, folder=tmp_path)
    assert done.returncode == 1
    [line] = done.stderr.decode().splitlines()
    assert line.endswith(
        "1 left; the same command starts again; without --force it keeps all existing results"
    )


def test_segment_with_an_invalid_address_prints_one_line(tmp_path):
    write_images(tmp_path, "a.jpg")
    done = segserve("segment", "a.jpg", "--server", "localhost", folder=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.decode().splitlines()) == 1


def test_segment_on_a_full_disk_stops_with_one_line_and_leaves_nothing_half(server, tmp_path):
    """A limit on the size of files gives the same error as a full disk, when a file is written."""
    write_images(tmp_path, *(f"in/{number}.jpg" for number in range(30)))

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))

    done = subprocess.run(
        command("segment", "in", "-o", "out", "--overlay", "--server", server.url),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        timeout=60,
        preexec_fn=small_files,
        check=False,
    )
    assert done.returncode == 1
    [line] = done.stderr.decode().splitlines()
    assert "cannot be written: File too large; 0 segmented, 30 left" in line
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.endswith(".part")]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "TERM"]
)
def test_segment_that_is_interrupted_keeps_what_is_finished(server, tmp_path, number, status):
    write_images(tmp_path, *(f"in/{n:02}.jpg" for n in range(40)))
    quick = server.response
    server.script = [quick] * 12
    server.response = Canned(quick.body, pause_s=20)
    arguments = command("segment", "in", "-o", "out", "--server", server.url)
    with subprocess.Popen(
        arguments, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 30
        while len(result_files(tmp_path / "out")) < 12 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        began_s = time.monotonic()
        _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - began_s < 5
    assert process.returncode == status
    [line] = stderr.decode().splitlines()
    assert (
        line
        == "segserve: interrupted; 12 segmented, 28 left; the same command goes on where it stopped"
    )
    assert all(name.endswith(".png") for name in result_files(tmp_path / "out"))

    server.response = quick
    again = segserve("segment", "in", "-o", "out", "--server", server.url, folder=tmp_path)
    assert again.returncode == 0
    assert again.stderr.decode().startswith("28 segmented, 12 already there;")


def test_segment_keeps_eight_requests_in_flight(server, tmp_path):
    write_images(tmp_path, *(f"in/{number}.jpg" for number in range(16)))
    server.response = Canned(server.response.body, pause_s=3)
    process = subprocess.Popen(
        command("segment", "in", "--server", server.url),
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    with process:
        deadline = time.monotonic() + 30
        while len(server.received) < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)  # a ninth request would arrive now, before the first response
        in_flight = len(server.received)
        process.wait(timeout=30)
    assert in_flight == 8
    assert len({received.connection for received in server.received}) == 8  # connections are reused


def test_segment_finds_the_server_that_was_left_running_here(server, tmp_path):
    """Its address and the path of its token are in .run/serve/server.json."""
    write_images(tmp_path, "a.jpg")
    run_dir = tmp_path / ".run" / "serve"
    run_dir.mkdir(parents=True)
    (run_dir / "token").write_text("found")
    state = ServerState(
        pid=os.getpid(),
        created_s=creation_s(os.getpid()),
        engine="local",
        models=("mine",),
        inference_url=server.url,
        metrics_url="http://127.0.0.1:9",
        token_file=str(run_dir / "token"),
    )
    (run_dir / "server.json").write_text(state.model_dump_json())
    done = segserve("segment", "a.jpg", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert server.received[0].path == "/predictions/mine"
    assert server.received[0].headers["Authorization"] == "Bearer found"


def test_segment_through_a_server_imports_no_torch(server, tmp_path):
    write_images(tmp_path, "a.jpg")
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    arguments = command("segment", "a.jpg", "--server", server.url)
    done = subprocess.run(
        arguments, cwd=tmp_path, env=environment(), capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_completion_offers_models(tmp_path):
    variables = {
        "_PYTHON__M_SEGSERVE_COMPLETE": "complete_bash",
        "_SEGSERVE_COMPLETE": "complete_bash",
    }
    words = {"COMP_WORDS": "segserve archive emb", "COMP_CWORD": "2"}
    code = "from segserve.cli import app; app(prog_name='segserve')"
    done = subprocess.run(
        [*command()[:1], "-c", code],
        cwd=tmp_path,
        env=environment(**variables, **words),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == [b"embedded"]


def test_model_names_are_those_with_a_record():
    assert {"embedded", "resnet50", "resnet101"} <= set(model_names(""))
    assert model_names("resnet1") == ["resnet101"]


def test_source_takes_little_memory():
    """A million images are listed in a few hundred megabytes at most."""
    root = "photographs/of/some/folder"
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = [
        Source(f"{root}/{name}", name)
        for number in range(10_000)
        for name in [f"deep/image-{number:08}.jpg"]
    ]
    each_bytes = (tracemalloc.get_traced_memory()[0] - before) / len(kept)
    tracemalloc.stop()
    assert each_bytes < 250
