"""Where the time of a request goes."""

import time

import pytest

from segserve.runtime.telemetry import Interval, Timings


def test_stage_times_what_happens_inside():
    timings = Timings()
    with timings.stage("decode"):
        time.sleep(0.02)
    (interval,) = timings.intervals
    assert interval.stage == "decode"
    assert 0.02 <= interval.ended_s - interval.began_s < 5


def test_stage_that_raises_is_timed_all_the_same():
    timings = Timings()
    with pytest.raises(ValueError, match="broken"), timings.stage("decode"):
        raise ValueError("broken")
    assert list(timings.seconds) == ["decode"]


def test_stage_that_goes_on_is_one_stretch_and_one_that_comes_back_is_two():
    timings = Timings()
    for name in ("preprocess", "inference", "inference", "preprocess"):
        with timings.stage(name):
            pass
    assert [interval.stage for interval in timings.intervals] == [
        "preprocess",
        "inference",
        "preprocess",
    ]
    assert list(timings.seconds) == ["preprocess", "inference"]


def test_seconds_are_summed_by_stage():
    timings = Timings([Interval("a", 0, 1), Interval("b", 1, 3), Interval("a", 3, 3.5)])
    assert timings.seconds == {"a": 1.5, "b": 2.0}
