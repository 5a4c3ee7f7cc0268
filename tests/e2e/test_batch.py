"""`segserve batch` on a real Ray: killed, interrupted, spread over nodes that vanish; and
docs/batch.md.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import dataset

from segserve.archive import build_archive
from segserve.bulk.batch import Job, run_batch
from segserve.bulk.run import StoppedError
from tests.conftest import EMBEDDED
from tests.documents import blocks
from tests.unit.tiny import write_tiny_model

from .user import shell

BLOCKS = blocks("docs/batch.md", "sh")
IMAGES = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model's archive and a folder of images, one of which is torn."""
    folder, random_pixels = tmp_path_factory.mktemp("job"), np.random.default_rng(0)
    (folder / "tiny").mkdir()
    build_archive(write_tiny_model(folder / "tiny"), folder)
    for number in range(IMAGES - 1):
        path = folder / "in" / f"{number % 3}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_pixels.integers(0, 255, (50 + number, 70, 3), np.uint8)).save(path)
    (folder / "in" / "torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    return folder


@contextmanager
def command(folder, target, *arguments: str, **variables: str):
    """`segserve batch in TARGET`, on its way."""
    line = [
        sys.executable,
        "-m",
        "segserve",
        "batch",
        "in",
        target,
        "--archive",
        "tiny.mar",
        "--workers",
        "2",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    with subprocess.Popen(
        [*line, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def wait_for_parts(target: Path, count: int) -> None:
    deadline = time.monotonic() + 300
    while len(list(target.glob("table/*.parquet"))) < count:
        assert time.monotonic() < deadline, "no part of the table appears"
        time.sleep(0.02)


def table(target: Path) -> pa.Table:
    return dataset.dataset(target / "table").to_table()


def assert_every_image_once(folder, target: Path) -> None:
    paths = table(target)["path"].to_pylist()
    assert sorted(paths) == sorted(str(path) for path in (folder / "in").rglob("*.*"))
    for row in table(target).filter(dataset.field("status") == "segmented").to_pylist():
        with Image.open(target / row["labels"]) as picture:
            assert picture.size == (row["width"], row["height"])
    assert not list(target.rglob(".partial/*"))


def labels(target: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(target)): path.read_bytes() for path in target.rglob("labels/**/*.png")
    }


def test_batch_that_is_killed_again_and_again_does_every_image_once(folder):
    target, moments = folder / "killed", random.Random(7)  # noqa: S311
    parts = 0
    for _ in range(2):
        with command(folder, "killed") as process:
            wait_for_parts(target, parts + moments.randint(1, 8))
            process.send_signal(signal.SIGKILL)
        parts = len(list(target.glob("table/*.parquet")))
    assert parts > 0
    with command(folder, "killed", "--json") as process:
        stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    summary = json.loads(stdout)
    assert (summary["images"], summary["segmented"], summary["failed"]) == (IMAGES, IMAGES - 1, 1)
    assert (summary["left"], summary["failures"]) == (0, {"image_corrupt": 1})
    assert_every_image_once(folder, target)
    assert json.loads((target / "summary.json").read_bytes()) == summary


def test_batch_that_is_interrupted_says_so_in_one_line_and_keeps_what_is_finished(folder):
    target = folder / "interrupted"
    with command(folder, "interrupted") as process:
        wait_for_parts(target, 1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    [line] = stderr.splitlines()
    assert re.fullmatch(
        r"segserve: interrupted; the same command goes on where it stopped",
        line,
    )
    assert len(table(target)) >= 1


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core, which this process has joined."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    store_bytes = 100 * 2**20
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": store_bytes}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1, object_store_memory=store_bytes)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def run(folder, target: str, workers: int, source: str = "in", **options):
    job = Job(str(folder / source), str(folder / target), folder / "tiny.mar")
    return run_batch(job, workers=workers, **options)


def test_batch_gives_the_same_label_maps_whatever_the_number_of_workers(cluster, folder):
    one, two = (run(folder, f"by-{workers}", workers) for workers in (1, 2))
    assert one.segmented == two.segmented == IMAGES - 1
    assert one.classes == two.classes
    assert labels(folder / "by-1") == labels(folder / "by-2")
    assert len(labels(folder / "by-1")) == IMAGES - 1


def test_batch_survives_the_loss_of_a_node_with_every_image_once(cluster, folder):
    node = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    cluster.wait_for_nodes()
    nodes = [node]

    def lose_node(images, done) -> None:
        if done:  # other blocks are in progress
            for lost in nodes:
                cluster.remove_node(lost, allow_graceful=False)
            nodes.clear()

    summary = run(folder, "lost", 3, report=lose_node)
    assert not nodes
    assert (summary.segmented, summary.failed, summary.left) == (IMAGES - 1, 1, 0)
    assert_every_image_once(folder, folder / "lost")


def test_batch_takes_up_images_that_have_come_since(cluster, folder):
    listed = folder / "some.txt"
    names = [str(path) for path in sorted((folder / "in").rglob("*.png"))]
    for count in (2, 5):
        listed.write_text("\n".join(names[:count]))
        summary = run(folder, "growing", 2, source="some.txt")
        assert (summary.images, summary.segmented) == (count, count)
    assert sorted(table(folder / "growing")["path"].to_pylist()) == names[:5]


def test_batch_with_too_many_failures_stops_and_keeps_what_is_finished(cluster, folder):
    listed, good = folder / "bad.txt", next((folder / "in").rglob("*.png"))
    listed.write_text("\n".join([str(good), *(f"absent-{number}.png" for number in range(40))]))
    with pytest.raises(
        StoppedError, match=r"\d+ images have failed, more than the 3 of --max-failures"
    ):
        run(folder, "failing", 1, source="bad.txt", max_failures=3)
    assert 4 <= len(table(folder / "failing")) < 41
    summary = run(folder, "failing", 1, source="bad.txt")
    assert (summary.segmented, summary.failures) == (1, {"file": 40})


def test_batch_with_retry_failed_computes_only_failed_images_again(cluster, folder):
    listed, good = folder / "retried.txt", next((folder / "in").rglob("*.png"))
    names = [str(good), *(f"late-{number}.png" for number in range(3))]
    listed.write_text("\n".join(names))
    assert run(folder, "retried", 1, source="retried.txt").failures == {"file": 3}
    for name in names[1:3]:
        (folder / name).write_bytes(good.read_bytes())
    assert run(folder, "retried", 1, source="retried.txt").failures == {"file": 3}
    summary = run(folder, "retried", 1, source="retried.txt", retry_failed=True)
    assert (summary.images, summary.segmented, summary.failures) == (4, 3, {"file": 1})
    assert len(table(folder / "retried")) == 4


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory, photographs):
    """A user's folder: photographs, and the archive of the embedded model."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "photos" / "trip").mkdir(parents=True)
    (folder / "photos" / "cat.png").write_bytes(photographs["chelsea"])
    (folder / "photos" / "trip" / "astronaut.png").write_bytes(photographs["astronaut"])
    build_archive(EMBEDDED, folder / "build")
    return folder


def test_batch_page_blocks_run_and_find_the_cat(user_folder):
    for block in BLOCKS:
        shell(block, folder=user_folder, timeout_s=600)
    rows = {Path(row["path"]).name: row for row in table(user_folder / "masks").to_pylist()}
    assert {entry["label"] for entry in rows["cat.png"]["classes"]} >= {"cat"}
    assert {entry["label"] for entry in rows["astronaut.png"]["classes"]} >= {"person"}
    assert json.loads((user_folder / "masks" / "summary.json").read_bytes())["segmented"] == 2


def test_batch_page_has_blocks():
    assert any("segserve batch photos masks" in block for block in BLOCKS)
