"""Overloads the server and checks that it stays stable; exits with 1 if it does not.

The server's capacity is measured first, with the same mix of requests. The figures go to standard
output. A folder receives them as JSON with every sample. docs/reliability.md explains them.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench.images import write_mixed_photographs
from bench.machine import facts
from bench.serving.peer import BenchError
from bench.serving.report import write_between_marks
from segserve.archive import build_archive
from segserve.engines.store import model_name
from segserve.fetch import model_named
from segserve.runtime.errors import ModelError

from .load import Order, Outcome, send
from .server import Running, Sample, container, watched
from .verdict import Finding, findings

_SAMPLES = 240
_SHORTEST_S = 0.5


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
        with container(archive, model_name(archive), folder) as server:
            capacity = _capacity(server, images, min(30.0, seconds / 4))
            print(f"soak: it can do {capacity:.1f} requests a second", file=sys.stderr)
            order = _order(server, images, seconds, rate=load * capacity)
            with watched(server, every_s=max(_SHORTEST_S, seconds / _SAMPLES)) as samples:
                outcomes = send(order)
        shutil.copy(folder / "container.log", log)
    return Soak(capacity, load * capacity, seconds, samples, outcomes)


def _order(server: Running, images: Sequence[Path], seconds: float, *, rate: float | None) -> Order:
    url = f"{server.url}/predictions/{server.model}"
    return Order(url, server.token, tuple(map(str, images)), seconds, rate)


def _capacity(server: Running, images: Sequence[Path], seconds: float) -> float:
    """The server's capacity in requests/s, measured after a warm-up run."""
    for _ in range(2):
        outcomes = send(_order(server, images, seconds, rate=None))
    if not any(outcome.status == 200 for outcome in outcomes):
        raise BenchError("no request was completed")
    return len(outcomes) / max(outcome.sent_s + outcome.latency_s for outcome in outcomes)


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
