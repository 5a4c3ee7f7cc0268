"""Overloads the server and checks that it stays stable; exits with 1 if it does not.

The server's capacity is measured first, with the same mix of requests. The figures go to standard
output. A folder receives them as JSON with every sample. docs/reliability.md explains them.
"""

import asyncio
import json
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, TypedDict

import psutil
import typer

from bench.images import write_mixed_photographs
from bench.machine import facts, process_tree
from bench.serving.peer import BenchError
from bench.serving.peers.processes import running_container
from bench.serving.report import write_between_marks
from segserve.archive import build_archive
from segserve.engines.store import model_name
from segserve.resources import resource
from segserve.runtime.errors import ModelError

from .load import Outcome, send
from .verdict import Finding, Sample, findings

_SAMPLES = 240
_SHORTEST_S = 0.5
_DEFAULT_OUTPUT = Path("build/soak")


def main(
    archive: Annotated[Path | None, typer.Option(help="by default of the embedded model")] = None,
    minutes: float = 20.0,
    load: Annotated[float, typer.Option(help="times what the server can do")] = 1.2,
    output: Annotated[Path, typer.Option(help="folder of results and log")] = _DEFAULT_OUTPUT,
    document: Annotated[
        Path | None, typer.Option(help="put the figures between the marks of this document, too")
    ] = None,
) -> None:
    try:
        shutil.rmtree(output, ignore_errors=True)
        images = sorted(write_mixed_photographs(output.resolve() / "images"))
        packed = (archive or build_archive(resource("model/embedded"), output)).resolve()
        measured = measure(packed, images, 60 * minutes, load, output / "log")
        found = findings(measured["samples"], measured["outcomes"], 60 * minutes)
        setting = {
            "model": model_name(packed),
            "load": f"{measured['rate']:.1f} requests a second for {minutes:g} minutes",
            "capacity": f"{measured['capacity']:.1f} requests a second",
        }
        text = _markdown(found, {**setting, **facts()})
        print(text)
        (output / "results.json").write_text(json.dumps(measured) + "\n", encoding="utf-8")
        if document is not None:
            write_between_marks(document, text, name="soak")
    except (BenchError, ModelError, OSError) as error:
        sys.exit(f"soak: {error}")
    except KeyboardInterrupt:
        sys.exit("soak: interrupted")
    if broken := [finding.name for finding in found if not finding.holds]:
        sys.exit(f"soak: not as it should be: {', '.join(broken)}")


class Measured(TypedDict):
    """The server's capacity and the load in requests/s, and the results under this load."""

    capacity: float
    rate: float
    samples: list[Sample]
    outcomes: list[Outcome]


def measure(
    archive: Path, images: Sequence[Path], seconds: float, load: float, log: Path
) -> Measured:
    """Runs the container's command for an archive, measures its capacity after a warm-up, and then
    sends `load` times as many requests.
    """
    token = secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "token").write_text(token, encoding="ascii")
        with running_container(archive, folder / "token", folder) as (server, pid):
            url = f"{server}/predictions/{model_name(archive)}"
            for _ in range(2):
                first_s = min(30.0, seconds / 4)
                outcomes = asyncio.run(send(url, token, images, first_s, rate=None))
            if not any(outcome.status == 200 for outcome in outcomes):
                raise BenchError("no request was completed")
            ended_s = max(outcome.sent_s + outcome.latency_s for outcome in outcomes)
            capacity = len(outcomes) / ended_s
            print(f"soak: it can do {capacity:.1f} requests a second", file=sys.stderr)
            with _watched(pid, every_s=max(_SHORTEST_S, seconds / _SAMPLES)) as samples:
                rate = load * capacity
                outcomes = asyncio.run(send(url, token, images, seconds, rate=rate))
        shutil.copy(folder / "container.log", log)
    return {"capacity": capacity, "rate": rate, "samples": samples, "outcomes": outcomes}


@contextmanager
def _watched(pid: int, *, every_s: float) -> Iterator[list[Sample]]:
    """Takes samples periodically within the context, and yields the list that receives them."""
    samples: list[Sample] = []
    over, began_s = threading.Event(), time.monotonic()

    def watch() -> None:
        while not over.wait(every_s):
            with suppress(psutil.Error):  # a process may end meanwhile
                tree = process_tree(pid)
                memory_bytes = sum(process.memory_info().rss for process in tree)
                descriptors = sum(process.num_fds() for process in tree)
                threads = sum(process.num_threads() for process in tree)
                at_s = time.monotonic() - began_s
                samples.append(Sample(at_s, memory_bytes, descriptors, threads))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def _markdown(found: Sequence[Finding], setting: Mapping[str, str]) -> str:
    rows = [
        f"| {each.name} | {each.reported} | {'holds' if each.holds else 'fails'} |"
        for each in found
    ]
    lines = [f"- {name}: {value}" for name, value in setting.items()]
    return "\n".join(["| | | |", "|---|---|---|", *rows, "", *lines])


if __name__ == "__main__":
    typer.run(main)
