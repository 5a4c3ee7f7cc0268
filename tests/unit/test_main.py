"""The command line itself: its start, and its version."""

import os
import signal
import subprocess
import sys

import pytest

from segserve import __version__

# A shell starts background jobs with SIGINT ignored, and so these tests.
AS_IN_A_TERMINAL = (
    "import runpy, signal\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "runpy.run_module('segserve', run_name='__main__')\n"
)


def test_ctrl_c_while_packages_are_imported_ends_without_a_traceback(tmp_path):
    (tmp_path / "typer.py").write_text(
        "import time\nprint('importing', flush=True)\ntime.sleep(30)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", AS_IN_A_TERMINAL, "models"],
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
    ("given", "expected"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "1"}, "1"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_command_sets_how_threads_wait_before_packages_are_imported(tmp_path, given, expected):
    (tmp_path / "typer.py").write_text(
        "import os, sys\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(str(os.environ.get('GOMP_SPINCOUNT')))\n"
    )
    own = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    environment = {name: value for name, value in os.environ.items() if name not in own} | given
    ended = subprocess.run(
        [sys.executable, "-m", "segserve", "models"],
        env=environment | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stderr.strip() == expected


@pytest.mark.parametrize("command", [["--help"], ["batch", "nothing"], ["segment", "--help"]])
def test_help_and_wrong_arguments_import_no_heavy_package(command):
    """The text must appear at once."""
    code = (
        "import sys\nfrom segserve.cli import app\n"
        f"try:\n    app({command!r})\n"
        "except SystemExit:\n    pass\n"
        "print('IMPORTED', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(ended.stdout.split("IMPORTED")[1].split())
    heavy = {"torch", "torchvision", "timm", "ray", "numpy", "PIL", "pyarrow", "httpx", "starlette"}
    assert imported & heavy == set()


def test_help_breaks_lines_only_at_the_width_of_the_terminal():
    command = [sys.executable, "-m", "segserve", "import", "--help"]
    wide = {**os.environ, "TERMINAL_WIDTH": "300"}
    ended = subprocess.run(command, env=wide, capture_output=True, text=True, check=True)
    assert "segmentation_models_pytorch, and MobileNetV2" in ended.stdout


def test_version_is_printed():
    command = [sys.executable, "-m", "segserve", "--version"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == (f"segserve {__version__}\n", "")
