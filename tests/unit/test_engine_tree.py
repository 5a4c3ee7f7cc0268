"""Ending process trees: real processes, small shell scripts."""

import subprocess
import sys
import time

import psutil
import pytest

from segserve.engines.processes import ProcessTree

IGNORE_SIGTERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); "
    "time.sleep(60)"
)
LEAVE_SESSION = "import os, time; os.setsid(); print(flush=True); time.sleep(60)"


@pytest.fixture
def start():
    """Start a command as the leader of a session of its own, and wait for its first line of
    output.
    """
    started = []

    def start(*command):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
        started.append(process)
        process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_tree_stop_with_children_ends_them_all(start):
    process = start("sh", "-c", "sleep 60 & sleep 60 & echo; wait")
    tree = ProcessTree.of(process.pid)
    assert len(tree.members()) == 3
    tree.stop(timeout_s=10)
    assert tree.members() == []
    assert not tree.alive()


@pytest.mark.skipif(
    not psutil.LINUX, reason="elsewhere a process's time of creation is no sum with the boot's"
)
def test_tree_after_the_clock_was_set_is_still_the_same(start, monkeypatch):
    tree = ProcessTree.of(start("sh", "-c", "echo; sleep 60").pid)
    booted_s = psutil._psplatform.boot_time
    monkeypatch.setattr(
        psutil._psplatform, "boot_time", lambda: booted_s() + 3600
    )  # moves with the clock
    assert tree.alive()


def test_tree_stop_with_dead_leader_ends_the_orphans(start):
    process = start("sh", "-c", "sleep 60 & echo; wait")
    tree = ProcessTree.of(process.pid)
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert [member.pid for member in tree.members()] == [child.pid]
    tree.stop(timeout_s=10)
    assert tree.members() == []


def test_tree_stop_with_child_in_another_session_ends_it_too(start):
    process = start("sh", "-c", f"{sys.executable} -c '{LEAVE_SESSION}' & wait")
    tree = ProcessTree.of(process.pid)
    (child,) = psutil.Process(process.pid).children()
    tree.stop(timeout_s=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_tree_stop_with_deaf_process_kills_it_after_the_timeout(start):
    process = start(sys.executable, "-c", IGNORE_SIGTERM)
    began = time.monotonic()
    ProcessTree.of(process.pid).stop(timeout_s=0.3)
    assert process.wait() == -9
    assert 0.3 <= time.monotonic() - began < 10


def test_tree_with_reused_process_id_leaves_the_newcomer_alone(start):
    process = start("sh", "-c", "echo; sleep 60")
    stale = ProcessTree(process.pid, ProcessTree.of(process.pid).created_s - 1000)
    assert not stale.alive()
    stale.stop(timeout_s=1)
    assert process.poll() is None


def test_tree_stop_twice_does_nothing_more(start):
    process = start("sh", "-c", "echo; sleep 60")
    tree = ProcessTree.of(process.pid)
    tree.stop(timeout_s=10)
    tree.stop(timeout_s=10)
    assert process.wait() == -15
