"""The outcomes of requests during faults: the container's command, a tiny model, clients that keep
sending.

Hasty clients send each image once; patient ones retry, as the client does by default. Every
test adds its row to the table of docs/reliability.md.
"""

import resource
import shutil
import signal
import sys
import time
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest

from tests.contract.images import encoded, picture
from tests.hostile.poison import POISON

from .conftest import DISK_FULL
from .ledger import Ledger
from .load import Load
from .rude import Trickle, leave_within_request, leave_within_response, send_without_end
from .served import TOKEN, Served

CLIENTS = 4  # hasty ones, and as many patient ones; a batch may hold four of either
CROWD = 20
WATCHED_S = 5  # the command looks after its server every two seconds

# A wall clock that is ten hours fast in one second and ten hours slow in the next, for every Python
# of the server; the boot time that Linux reports moves with it.
JUMPING_CLOCK = """
import time
import psutil

def jumping(clock, second, monotonic=time.monotonic):
    return lambda: clock() + (36000 if int(monotonic()) % 2 else -36000) * second

time.time, time.time_ns = jumping(time.time, 1), jumping(time.time_ns, 10**9)
psutil._psplatform.boot_time = jumping(psutil._psplatform.boot_time, 1)
"""


def rejections(ledger: Ledger) -> set[str]:
    return set(ledger.reasons)


def assert_nothing_lost(load: Load) -> None:
    assert load.hasty.lost == 0, load.hasty
    assert_patient_have_all(load)


def assert_patient_have_all(load: Load) -> None:
    assert load.patient.responded > 0
    assert (load.patient.rejected, load.patient.lost) == (0, 0), load.patient


def test_served_with_more_requests_than_may_wait_rejects_them_with_retry_after(
    served, table, form, image
):
    with Load(served.url, TOKEN, image, clients=CROWD, retries=60) as load:
        load.wait_until(lambda load: load.hasty.rejected and load.hasty.responded >= form.responses)
    table.add("more requests than may wait", load)
    assert rejections(load.hasty) == {"503 overloaded"}
    assert_nothing_lost(load)


def test_served_with_slow_clients_rejects_them_and_serves_the_others(served, table, form, image):
    with Load(served.url, TOKEN, image) as load:
        trickle = Trickle(served.url, clients=CROWD)
        load.wait_for_responses(form.responses)
        trickle.join_bodies()
        trickle.close()
        for reported in trickle.responses:
            load.hasty.reject(*reported)
    table.add(
        f"{CROWD} clients whose requests trickle in, and {CROWD} that never come past the head",
        load,
    )
    # Requests above the queue's size are rejected at once, the others after their timeout.
    assert rejections(load.hasty) == {"408 request_timeout"}
    assert len(trickle.responses) == load.hasty.rejected == CROWD
    assert_nothing_lost(load)


def test_served_left_in_the_middle_of_requests_and_responses_goes_on(
    served, table, form, image, large_image
):
    leave_within_response(served.url, large_image)  # so that everything is open that will stay so
    gateway = psutil.Process(served.command.process.pid)
    before = gateway.num_fds()
    with Load(served.url, TOKEN, image) as load:
        for _ in range(4 * form.times):
            leave_within_request(served.url)
            leave_within_response(served.url, large_image)
        load.wait_for_responses(form.responses)
    table.add(
        f"{8 * form.times} clients that leave during their request or the response",
        load,
    )
    assert rejections(load.hasty) == set()
    assert_nothing_lost(load)
    most = before + 2 * CLIENTS  # connections to TorchServe are kept for more requests
    deadline_s = time.monotonic() + 10  # the clients have only just closed their connections
    while gateway.num_fds() > most:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert {499} <= {line.get("status") for line in served.command.lines()}


def test_served_with_requests_that_never_end_ends_them(served, table, form, image):
    with Load(served.url, TOKEN, image) as load:
        for _ in range(form.times):
            load.hasty.reject(*send_without_end(served.url))
        load.wait_for_responses(form.responses)
    table.add("a request that never ends", load)
    assert rejections(load.hasty) == {"413 image_too_large"}
    assert_nothing_lost(load)


@pytest.mark.skipif(
    sys.platform != "linux", reason="prlimit, which takes a running process's memory, is Linux's"
)
def test_served_short_of_memory_rejects_what_does_not_fit_and_serves_the_rest(
    served, table, form, image
):
    worker = served.worker()
    colossal = encoded(picture(4000, 4000), "PNG")  # more than the freed memory of the worker
    with Load(served.url, TOKEN, image) as load:
        load.wait_for_responses(form.responses)
        limit = worker.memory_info().vms + 2**23
        resource.prlimit(worker.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        with Load(served.url, TOKEN, colossal, clients=1, retries=0) as large:
            large.wait_until(lambda large: large.hasty.rejected >= form.times)
        load.wait_for_responses(form.responses)
        resource.prlimit(
            worker.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        )
    table.add("no memory for large images: the small ones beside them", load)
    table.add("no memory for large images: these themselves", large)
    assert rejections(large.hasty) == {"507 out_of_memory"}
    assert worker.is_running()
    assert rejections(load.hasty) == set()
    assert_nothing_lost(load)


def test_served_whose_worker_is_killed_loses_nothing(served, table, form, image):
    with Load(served.url, TOKEN, image, clients=CLIENTS) as load:
        for _ in range(form.times):
            load.wait_for_responses(form.responses)
            served.worker().kill()
            load.wait_for_responses(form.responses)
    table.add(
        f"the worker killed {form.times} times" if form.times > 1 else "the worker killed", load
    )
    assert rejections(load.hasty) <= {"503 unavailable", "503 overloaded"}
    assert_nothing_lost(load)


def test_served_whose_worker_hangs_gets_another_and_loses_nothing(served, table, form, image):
    with Load(served.url, TOKEN, image, clients=CLIENTS) as load:
        load.wait_for_responses(form.responses)
        served.worker().send_signal(signal.SIGSTOP)
        load.wait_for_responses(form.responses)
    table.add("the worker hangs", load)
    assert rejections(load.hasty) <= {"503 unavailable", "503 overloaded"}
    assert_nothing_lost(load)


def test_served_with_an_image_that_crashes_the_decoder_rejects_it_from_then_on(
    served, table, form, image
):
    with Load(served.url, TOKEN, image) as load:
        load.wait_for_responses(form.responses)
        with Load(served.url, TOKEN, POISON, clients=1) as poisoned:
            poisoned.wait_until(
                lambda poisoned: all("422" in str(each.reasons) for each in poisoned.both)
            )
            worker = served.worker().pid
            rejected = poisoned.hasty.rejected
            poisoned.wait_until(
                lambda poisoned: poisoned.hasty.rejected >= rejected + 5 * form.times
            )
        load.wait_for_responses(form.responses)
    table.add("an image that crashes the decoder: the others beside it", load)
    table.add("an image that crashes the decoder: itself", poisoned)
    assert served.worker().pid == worker
    assert rejections(poisoned.hasty) <= {"422 image_corrupt", "503 unavailable", "503 overloaded"}
    assert (poisoned.hasty.lost, poisoned.patient.lost) == (0, 0)
    assert_nothing_lost(load)


def test_served_killed_whole_loses_what_it_had_and_patient_clients_nothing(
    served, table, form, image
):
    with Load(served.url, TOKEN, image, clients=CLIENTS) as load:
        for _ in range(form.times):
            load.wait_for_responses(form.responses)
            served.kill()
            served.start()
            load.wait_for_responses(form.responses)
    table.add("the whole server killed, and started again", load)
    assert load.hasty.lost <= form.times * CLIENTS
    assert_patient_have_all(load)


def test_served_stopped_completes_accepted_requests(served, table, form, image):
    with Load(served.url, TOKEN, image, clients=CLIENTS) as load:
        for _ in range(form.times):
            load.wait_for_responses(form.responses)
            assert served.stop() == 0
            served.start()
            load.wait_for_responses(form.responses)
    table.add("SIGTERM, and started again", load)
    assert_nothing_lost(load)


def fill(disk: Path) -> None:
    """To the last page."""
    with suppress(OSError), (disk / "rest").open("wb", buffering=0) as rest:
        while True:
            rest.write(bytes(4096))
    assert shutil.disk_usage(disk).free == 0


def test_served_with_full_disk_goes_on_responding(
    archive, tmpfs, tmp_path_factory, table, form, image
):
    served = Served(tmp_path_factory.mktemp("full"), archive, RUN_DIR=tmpfs / "run")
    try:
        with Load(served.wait_ready().url, TOKEN, image) as load:
            load.wait_for_responses(form.responses)
            fill(tmpfs)
            load.wait_for_responses(form.responses)
            served.worker().kill()
            load.wait_for_responses(form.responses)
        table.add(DISK_FULL, load)
        assert_nothing_lost(load)
    finally:
        served.stop()


def test_served_whose_clock_jumps_neither_waits_nor_rejects(
    archive, tmp_path, monkeypatch, table, form, image
):
    (tmp_path / "sitecustomize.py").write_text(JUMPING_CLOCK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    served = Served(tmp_path / "served", archive)
    try:
        with Load(served.wait_ready().url, TOKEN, image) as load:
            assert str(tmp_path) in served.worker().environ()["PYTHONPATH"]
            load.wait_for_responses(10 * form.responses)
            time.sleep(WATCHED_S)
    finally:
        assert served.stop() == 0
    table.add("the clock jumps by twenty hours every second", load)
    reported = [line for line in served.command.lines() if line["logger"] == "segserve.gateway"]
    times = [datetime.fromisoformat(line["time"]) for line in reported]
    assert max(times) - min(times) > timedelta(hours=19)
    durations_ms = [line["duration_ms"] for line in reported if "duration_ms" in line]
    assert durations_ms
    assert all(0 < duration_ms < 60_000 for duration_ms in durations_ms)
    assert rejections(load.hasty) == set()
    assert_nothing_lost(load)
