"""The cores of a container whose share of the processor is limited."""

import os

import pytest

from segserve.runtime.cores import available_cores


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        pytest.param({}, 4, id="no-cgroup"),
        pytest.param({"cpu.max": "max 100000\n"}, 4, id="v2-unlimited"),
        pytest.param({"cpu.max": "200000 100000\n"}, 2, id="v2-two"),
        pytest.param({"cpu.max": "50000 100000\n"}, 1, id="v2-half"),
        pytest.param({"cpu.max": "250000 100000\n"}, 3, id="v2-two-and-a-half"),
        pytest.param({"cpu.max": "1600000 100000\n"}, 4, id="v2-more-than-there-are"),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4, id="v1-unlimited"
        ),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2, id="v1-two"
        ),
    ],
)
def test_available_cores_are_those_of_the_limit(four_cores, tmp_path, files, cores):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert available_cores(tmp_path) == cores
