"""The moment before a command is there to be stopped."""

import os
import signal
import subprocess
import sys

import pytest


def test_ctrl_c_while_packages_are_imported_ends_without_a_traceback(tmp_path):
    (tmp_path / "typer.py").write_text(
        "import time\nprint('importing', flush=True)\ntime.sleep(30)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "segserve", "models"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "")


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")]
)
def test_command_sets_how_threads_wait_before_packages_are_imported(tmp_path, given, expected):
    (tmp_path / "typer.py").write_text(
        "import os, sys\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(os.environ['OMP_WAIT_POLICY'])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | given
    ended = subprocess.run(
        [sys.executable, "-m", "segserve", "models"],
        env=environment | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stderr.strip() == expected
