"""Overloads the server and checks that it stays stable; exits with 1 if it does not.

The server's capacity is measured first, with the same mix of requests. The figures go to standard
output. A folder receives them as JSON with every sample. docs/reliability.md explains them.
"""

import json
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import psutil
import requests
import typer

from bench.images import write_mixed_photographs
from bench.machine import facts, process_tree
from bench.serving.peer import BenchError
from bench.serving.peers.processes import running_container
from bench.serving.report import write_between_marks
from segserve.archive import build_archive
from segserve.engines.store import model_name
from segserve.fetch import model_named
from segserve.runtime.errors import ModelError

from .load import Outcome, send
from .verdict import Finding, Sample, findings

_CLIENT_HEADER = "X-Client"
_SAMPLES = 240
_SHORTEST_S = 0.5


@dataclass(frozen=True)
class _Running:
    """A running server that is ready."""

    url: str
    model: str
    pid: int
    token: str = field(repr=False)


@dataclass(frozen=True)
class Soak:
    """The measurements: the server's capacity and the load, both in requests/s, and the results
    under this load.
    """

    capacity: float
    rate: float
    seconds: float
    samples: Sequence[Sample]
    outcomes: Sequence[Outcome]

    def findings(self) -> list[Finding]:
        return findings(self.samples, self.outcomes, self.seconds)


def main(
    model: Annotated[str, typer.Option(help="a model of model/")] = "embedded",
    archive: Annotated[Path | None, typer.Option(help="an archive, in place of a model")] = None,
    minutes: float = 20.0,
    load: Annotated[float, typer.Option(help="times what the server can do")] = 1.2,
    output: Annotated[Path, typer.Option(help="folder of results and the server's log")] = Path(
        "build/soak"
    ),
    document: Annotated[
        Path | None,
        typer.Option(help="put the figures between the marks of this document, too"),
    ] = None,
) -> None:
    try:
        shutil.rmtree(output, ignore_errors=True)
        images = sorted(write_mixed_photographs(output.resolve() / "images"))
        packed = archive or build_archive(model_named(model), output)
        soak = _soaked(packed.resolve(), images, 60 * minutes, load, output / "log")
        text = _markdown(soak, model_name(packed) if archive else model)
        print(text)
        found = {**asdict(soak), "findings": [asdict(finding) for finding in soak.findings()]}
        (output / "results.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
        if document is not None:
            write_between_marks(document, text, name="soak")
    except (BenchError, ModelError, OSError) as error:
        sys.exit(f"soak: {error}")
    except KeyboardInterrupt:
        sys.exit("soak: interrupted")
    if broken := [finding.name for finding in soak.findings() if not finding.holds]:
        sys.exit(f"soak: not as it should be: {', '.join(broken)}")


def _soaked(archive: Path, images: Sequence[Path], seconds: float, load: float, log: Path) -> Soak:
    with tempfile.TemporaryDirectory() as run_dir:
        folder = Path(run_dir) / "server"
        with _container(archive, model_name(archive), folder) as server:
            url = f"{server.url}/predictions/{server.model}"
            sent = partial(send, url, server.token, images)
            capacity = _capacity(sent, min(30.0, seconds / 4))
            print(f"soak: it can do {capacity:.1f} requests a second", file=sys.stderr)
            with _watched(server, every_s=max(_SHORTEST_S, seconds / _SAMPLES)) as samples:
                outcomes = sent(seconds, rate=load * capacity)
        shutil.copy(folder / "container.log", log)
    return Soak(capacity, load * capacity, seconds, samples, outcomes)


def _capacity(sent: Callable[..., list[Outcome]], seconds: float) -> float:
    """The server's capacity in requests/s, measured after a warm-up run."""
    for _ in range(2):
        outcomes = sent(seconds, rate=None)
    if not any(outcome.status == 200 for outcome in outcomes):
        raise BenchError("no request was completed")
    return len(outcomes) / max(outcome.sent_s + outcome.latency_s for outcome in outcomes)


@contextmanager
def _container(archive: Path, model: str, folder: Path) -> Iterator[_Running]:
    """Runs the container's command for one archive. Errors and log as those of
    `running_container`.
    """
    folder.mkdir(parents=True)
    token, token_file = secrets.token_urlsafe(24), folder / "token"
    token_file.write_text(token, encoding="ascii")
    token_file.chmod(0o600)
    with running_container(archive, token_file, folder, CLIENT_HEADER=_CLIENT_HEADER) as (url, pid):
        yield _Running(url, model, pid, token)


@contextmanager
def _watched(server: _Running, *, every_s: float) -> Iterator[list[Sample]]:
    """Takes samples periodically within the context, and yields the list that receives them."""
    samples: list[Sample] = []
    over, began_s = threading.Event(), time.monotonic()

    def watch() -> None:
        while not over.wait(every_s):
            # A process may end meanwhile; the next sample comes later.
            with suppress(psutil.Error, requests.RequestException, ValueError, LookupError):
                samples.append(_sample(server, began_s))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def _sample(server: _Running, began_s: float) -> Sample:
    tree = process_tree(server.pid)
    return Sample(
        time.monotonic() - began_s,
        sum(process.memory_info().rss for process in tree),
        sum(process.num_fds() for process in tree),
        sum(process.num_threads() for process in tree),
        _waiting(server),
    )


def _waiting(server: _Running) -> int:
    """The number of requests in TorchServe's queue."""
    headers = {
        "Authorization": f"Bearer {server.token}",
        _CLIENT_HEADER: "watcher",  # not queued after the load
    }
    url = f"{server.url}/models/{server.model}"
    [version] = requests.get(url, headers=headers, timeout=30).json()
    return int(version["jobQueueStatus"]["pendingRequests"])


def _markdown(soak: Soak, model: str) -> str:
    lines = ["| | | |", "|---|---|---|"]
    lines += [
        f"| {each.name} | {each.reported} | {'holds' if each.holds else 'fails'} |"
        for each in soak.findings()
    ]
    setting = {
        "model": model,
        "load": f"{soak.rate:.1f} requests a second for {soak.seconds / 60:g} minutes",
        "capacity": f"{soak.capacity:.1f} requests a second",
    }
    return "\n".join(
        [*lines, "", *(f"- {name}: {value}" for name, value in {**setting, **facts()}.items())]
    )


if __name__ == "__main__":
    typer.run(main)
