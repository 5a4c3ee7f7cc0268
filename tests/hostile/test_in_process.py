"""Every hostile request through the pipeline of a tiny model: the documented response, within
bounds of time and memory.

A third of the cases here, all of them by `make hostile` (SEGSERVE_HOSTILE=all). They run in a
process of their own, so that a decoder that crashes is the failure of a test and not its end.
"""

import json
import os
import subprocess
import sys
from functools import cache

import pytest

from tests.conftest import PROJECT

from .cases import SEED, all_cases, families, named
from .leaks import leaks_of

ALL = os.environ.get("SEGSERVE_HOSTILE") == "all"
EVERY = 1 if ALL else 7
DOCUMENTED = {200, 400, 406, 413, 415, 422}
MOST_SECONDS, MOST_MEMORY_BYTES = 5.0, 1_500_000_000


@cache
def outcomes() -> dict[str, dict]:
    """What every case of this run came to, by its name."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.hostile.run", "--every", str(EVERY)],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    reported = [json.loads(line) for line in ended.stdout.splitlines()]
    last = reported[-1]["name"] if reported else "none"
    assert ended.returncode == 0, (
        f"ended with {ended.returncode} behind {last}: {ended.stderr[-2000:]}"
    )
    return {outcome["name"]: outcome for outcome in reported}


def test_cases_are_two_thousand_at_least_and_each_has_a_name():
    names = [case.name for case in all_cases()]
    assert len(names) == len(set(names)) >= 2000


@pytest.mark.parametrize(
    "family", [name for name in families() if name not in ("bombs", "largest")]
)
def test_cases_of_a_seed_are_the_same_every_time_and_of_another_are_not(family):
    count = families()[family].count
    names = [f"{family}-{number}" for number in range(count - 10, count)]
    requests = [named(name).make() for name in names]
    assert requests == [named(name).make() for name in names]
    assert requests != [named(name, SEED + 1).make() for name in names]


def test_cases_reach_the_pipeline_and_each_gets_the_documented_response():
    wrong = {
        name: reported
        for name, reported in outcomes().items()
        if reported["status"] not in DOCUMENTED
    }
    assert not wrong
    assert len(outcomes()) == len(list(all_cases(every=EVERY)))
    assert {reported["status"] for reported in outcomes().values()} == DOCUMENTED


def test_cases_take_no_more_time_or_memory_than_is_documented():
    over = {
        name: (reported["seconds"], reported["memory_bytes"])
        for name, reported in outcomes().items()
        if reported["seconds"] > MOST_SECONDS or reported["memory_bytes"] > MOST_MEMORY_BYTES
    }
    assert not over


def test_cases_messages_reveal_nothing_about_the_server():
    leaks = {
        name: (leaks_of(reported["message"]), reported["message"])
        for name, reported in outcomes().items()
    }
    assert not {name: found for name, found in leaks.items() if found[0]}


def test_cases_that_are_rejected_have_a_reason():
    rejected = [reported for reported in outcomes().values() if reported["status"] != 200]
    assert not [
        reported
        for reported in rejected
        if not reported["code"] or len(reported["message"]) < 15 or len(reported["message"]) > 1000
    ]


def test_cases_of_the_largest_pictures_get_a_response():
    largest = [reported for name, reported in outcomes().items() if name.startswith("largest")]
    assert largest
    assert {reported["status"] for reported in largest} == {200}
