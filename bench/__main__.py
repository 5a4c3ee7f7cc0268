"""Compares the served model with the network alone and with other servers, in alternating rounds.

The table goes to standard output, and with a plot and all results as JSON into a folder. An
interrupt stops all servers and reports the complete rounds. See docs/performance.md.
"""

import argparse
import shutil
import signal
import sys
from pathlib import Path
from typing import get_args

from bench.images import mixed_workload
from bench.machine import facts
from bench.serving.figures import rows
from bench.serving.peer import BenchError
from bench.serving.report import Report, draw, write_between_marks
from bench.serving.session import ON_REQUEST, PEERS, measure, report_progress
from segserve.fetch import model_named
from segserve.runtime.errors import ModelError
from segserve.schema.request import MaskEncoding

ENCODINGS = get_args(MaskEncoding)


def main() -> None:
    arguments = _arguments()
    # SIGTERM stops the servers as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        report = _measured(arguments)
        _write(report, arguments.output, arguments.document)
    except (BenchError, ModelError, OSError) as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit("bench: interrupted")
    if report.outcome.ended_by:
        sys.exit(f"bench: ended early: {report.outcome.ended_by}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    default = [name for name in PEERS if name not in ON_REQUEST]
    peers = f"of {', '.join(PEERS)}; by default all but {' and '.join(ON_REQUEST)}"
    add("--model", default="embedded", help="a model folder, or the name of one in model/")
    add("--peers", nargs="+", choices=PEERS, default=default, metavar="PEER", help=peers)
    add("--encodings", nargs="+", choices=ENCODINGS, default=ENCODINGS, help="of our responses")
    add("--clients", nargs="+", type=int, default=[1, 8, 32])
    add("--rounds", type=int, default=5)
    add("--images", type=int, default=300, help="requests of one measurement")
    add("--seconds", type=float, default=20, help="no measurement sends for longer")
    add("--output", type=Path, default=Path("build/bench"), help="folder of results and logs")
    add("--document", type=Path, help="put table and plot between the marks of this document, too")
    return parser.parse_args()


def _measured(arguments: argparse.Namespace) -> Report:
    scratch = (arguments.output / "run").resolve()
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    workload = mixed_workload(
        model_named(arguments.model),
        arguments.images,
        max_s=arguments.seconds,
        encodings=arguments.encodings,
        scratch=scratch,
    )
    machine = facts()
    outcome = measure(workload, arguments.peers, dict.fromkeys(arguments.clients), arguments.rounds)
    if not outcome.rounds:
        raise BenchError(f"no round is whole: {outcome.ended_by or 'nothing could be started'}")
    images = f"{arguments.images} a measurement, or as many as {arguments.seconds:g} s allow"
    setting = {"model": arguments.model, "images": images, "rounds": len(outcome.rounds)}
    return Report(machine, setting, outcome)


def _write(report: Report, output: Path, document: Path | None) -> None:
    text, plot = report.as_markdown(), output / "results.png"
    print(text)
    (output / "results.json").write_text(report.as_json(), encoding="utf-8")
    (output / "results.md").write_text(text, encoding="utf-8")
    draw(rows(report.outcome.rounds), plot)
    if document:
        shown = Path(shutil.copy(plot, document.with_suffix(".png"))).name
        write_between_marks(document, f"![Images a second of everybody]({shown})\n\n{text}")
    report_progress(f"results: {output}")


if __name__ == "__main__":
    main()
