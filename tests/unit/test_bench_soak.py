"""The verdict of the soak on servers that stay as they are and on servers that do not; what it
sends.
"""

from itertools import islice

import pytest

from bench.soak.load import BAD_SHARE, Outcome, mixed_requests
from bench.soak.verdict import Sample, findings, growth, most_open, p99_by_part

SECONDS = 600.0


def steady(**changes) -> list[Sample]:
    """A sample every two seconds; a change is a function of the time."""
    fixed = {"memory_bytes": 10**9, "descriptors": 200, "threads": 60}
    return [
        Sample(
            at_s,
            **{
                name: int(changes[name](at_s)) if name in changes else value
                for name, value in fixed.items()
            },
        )
        for at_s in range(0, int(SECONDS), 2)
    ]


def responses(*, latency_s=lambda _: 2.0, also=()) -> list[Outcome]:
    """Ten requests a second, one in five of them rejected."""
    sent = [number / 10 for number in range(int(SECONDS * 10))]
    outcomes = [
        Outcome(at_s, 0.01, 503, True, True)
        if number % 5 == 0
        else Outcome(at_s, latency_s(at_s), 200, False, True)
        for number, at_s in enumerate(sent)
    ]
    return [*outcomes, *also]


def broken(samples, outcomes) -> set[str]:
    return {finding.name for finding in findings(samples, outcomes, SECONDS) if not finding.holds}


def test_findings_of_a_server_that_stays_as_it_is_all_hold():
    assert broken(steady(), responses(also=[Outcome(1.0, 0.1, 422, False, False)])) == set()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param(
            "memory", {"memory_bytes": lambda at_s: 10**9 + at_s * 2e5}, id="memory-that-grows"
        ),
        pytest.param(
            "memory", {"memory_bytes": lambda at_s: 2e9 - at_s * 1e6}, id="memory-that-falls"
        ),
        pytest.param(
            "descriptors", {"descriptors": lambda at_s: 200 + at_s / 10}, id="descriptors"
        ),
        pytest.param("threads", {"threads": lambda at_s: 60 + at_s / 50}, id="threads"),
    ],
)
def test_findings_of_a_leak_name_it(name, change):
    assert broken(steady(**change), responses()) == {name}


def test_findings_forgive_what_is_taken_while_it_warms_up():
    assert (
        broken(steady(memory_bytes=lambda at_s: 10**9 + min(at_s, 100) * 5e6), responses()) == set()
    )


@pytest.mark.parametrize(
    ("name", "outcomes"),
    [
        pytest.param(
            "p99",
            responses(latency_s=lambda at_s: 6.0 if at_s > 550 and at_s % 4 < 0.15 else 2.0),
            id="slow-at-last",
        ),
        pytest.param(
            "queue", responses(latency_s=lambda at_s: 2 + (at_s > 400) * 0.9), id="queue-that-grows"
        ),
        pytest.param(
            "responses", responses(also=[Outcome(9.0, 1.0, 500, False, True)]), id="internal-error"
        ),
        pytest.param(
            "responses", responses(also=[Outcome(9.0, 1.0, 0, False, True)]), id="no-response"
        ),
        pytest.param(
            "responses",
            responses(also=[Outcome(9.0, 1.0, 503, False, True)]),
            id="503-that-does-not-say-when",
        ),
        pytest.param(
            "responses",
            responses(also=[Outcome(9.0, 1.0, 200, False, False)]),
            id="bad-input-accepted",
        ),
        pytest.param(
            "responses",
            responses(also=[Outcome(9.0, 1.0, 422, False, True)]),
            id="good-input-rejected",
        ),
    ],
)
def test_findings_of_responses_that_are_not_as_documented_say_so(name, outcomes):
    assert broken(steady(), outcomes) == {name}


def test_findings_of_nothing_hold_nothing_up_as_good():
    assert broken([], []) == {"memory", "descriptors", "threads", "p99", "responses"}


def test_growth_compares_medians_of_the_thirds():
    assert growth([1, 1, 9, 5, 5, 5, 2, 2, 0]) == pytest.approx(1.0)


def test_p99_by_part_is_that_of_the_responses_sent_in_it():
    outcomes = [
        Outcome(0, 1.0, 200, False, True),
        Outcome(5, 9.0, 503, True, True),
        Outcome(12, 3.0, 200, False, True),
    ]
    assert p99_by_part(outcomes, 10.0) == [1.0, 3.0]


def test_most_open_counts_requests_pending_at_once():
    outcomes = [Outcome(at_s, 2.0, 200, False, True) for at_s in (0.0, 1.0, 2.5, 9.0)]
    assert most_open(outcomes) == 2


def test_mixed_requests_are_mixed_and_always_the_same(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    images = sorted(tmp_path.iterdir())
    requests = list(islice(mixed_requests(images, seed=1), 3000))
    assert requests == list(islice(mixed_requests(images, seed=1), 3000))
    bad = [request for request in requests if not request.good]
    assert len(bad) == pytest.approx(3000 * BAD_SHARE, rel=0.5)
    assert len({tuple(request.headers.items()) for request in requests if request.good}) == 8
