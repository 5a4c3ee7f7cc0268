"""Measures how long commands take from start to end, as medians: `python -m bench.startup`.

    python -m bench.startup [--rounds 5]

`serve` ends when the server is ready. All commands run in an empty folder.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from segserve.resources import sample_photograph

_SEGSERVE = (sys.executable, "-m", "segserve")


def main(rounds: Annotated[int, typer.Option(help="of each command")] = 5) -> None:
    photograph = str(sample_photograph("chelsea.png"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for status, command in (
            (0, ("--help",)),
            (2, ("batch", "nothing")),  # wrong arguments
            (0, ("segment", photograph, "--force", "--local")),
        ):
            _report(command, [_seconds(command, folder, status) for _ in range(rounds)])
        served = []
        for _ in range(rounds):
            served.append(_seconds(("serve",), folder))
            with_server = ("segment", photograph, "--force")
            seconds = [_seconds(with_server, folder) for _ in range(rounds)]
            _seconds(("stop",), folder)
        _report(("serve",), served)
        _report(with_server, seconds)


def _seconds(command: tuple[str, ...], folder: Path, status: int = 0) -> float:
    began_s = time.perf_counter()
    ended = subprocess.run((*_SEGSERVE, *command), cwd=folder, capture_output=True, check=False)
    seconds = time.perf_counter() - began_s
    if ended.returncode != status:
        sys.exit(f"{' '.join(command)}: {ended.stderr.decode()}")
    return seconds


def _report(command: tuple[str, ...], seconds: list[float]) -> None:
    shown = " ".join(Path(part).name for part in command)
    print(f"{statistics.median(seconds):6.2f} s  segserve {shown}")


if __name__ == "__main__":
    typer.run(main)
