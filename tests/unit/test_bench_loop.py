"""The benchmark's loops without a server, which run in processes of their own. Nothing here imports
torch.
"""

import os
import time
from pathlib import Path

import psutil
import pytest

from bench.serving.loop import Work, looped, open_loop
from bench.serving.peer import BenchError, Workload


def append_own_pid(workload: Workload) -> Work:
    def work(path: Path) -> None:
        with (workload.scratch / "log").open("a") as log:
            log.write(f"{os.getpid()} {path.name}\n")

    return work


def not_to_be_prepared(_workload: Workload) -> Work:
    raise RuntimeError("no compiler\nanywhere")


@pytest.fixture
def workload(tmp_path):
    images = tuple(tmp_path / f"{number}.jpg" for number in range(3))
    return Workload(tmp_path, images, images[:1], 60.0, (), tmp_path)


def test_loop_works_through_the_requests_in_a_process_of_its_own(workload):
    with open_loop(workload, title="loop", prepare=append_own_pid) as opened:
        opened.peers["loop"].warm_up()
        run = opened.peers["loop"].run(8)
        pid = opened.pid
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)
    assert len(run.latencies_s) == 3
    names = ["0.jpg", "0.jpg", "0.jpg", "1.jpg", "2.jpg"]  # one to warm up, twice
    assert (workload.scratch / "log").read_text().splitlines() == [
        f"{pid} {name}" for name in names
    ]


def test_loop_that_cannot_be_prepared_says_why_in_one_line(workload):
    with (
        pytest.raises(BenchError, match=r"^RuntimeError: no compiler anywhere$"),
        open_loop(workload, title="loop", prepare=not_to_be_prepared),
    ):
        pass


def test_looped_begins_no_image_after_the_time_is_up():
    run = looped(lambda _path: time.sleep(0.02), [Path("image")] * 1000, max_s=0.1)
    assert 1 <= len(run.latencies_s) <= 5
    assert sum(run.latencies_s) == pytest.approx(run.wall_s)
