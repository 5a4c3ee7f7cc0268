"""Compares the served model with the network alone and with other servers, in one run and in
alternating rounds.

The table goes to standard output. A folder receives the table, a plot, and all results as JSON. An
interrupt stops all servers and reports the complete rounds. docs/performance.md explains every row
of the table.
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
from bench.serving.peer import BenchError, Workload
from bench.serving.report import Report, draw, write_between_marks
from bench.serving.session import ON_REQUEST, PEERS, measure, report_progress
from segserve.doctor.checks import TorchBrokenError
from segserve.fetch import servable_folder
from segserve.resources import resource
from segserve.runtime.errors import ModelError
from segserve.schema.request import MaskEncoding

ENCODINGS = get_args(MaskEncoding)


def main() -> None:
    arguments = _arguments()
    # SIGTERM stops the servers as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        report = _measured(arguments)
        _write(report, arguments)
    except (BenchError, ModelError, TorchBrokenError, OSError) as error:
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
    add("--model", default="embedded", help="a model of model/")
    add("--peers", nargs="+", choices=PEERS, default=default, metavar="PEER", help=peers)
    add("--encodings", nargs="+", choices=ENCODINGS, default=ENCODINGS, help="of our responses")
    add("--clients", nargs="+", type=_positive, default=[1, 8, 32])
    add("--rounds", type=_positive, default=5)
    add("--images", type=_positive, default=300, help="requests of one measurement")
    add("--seconds", type=_positive, default=20, help="no measurement sends for longer")
    add("--output", type=Path, default=Path("build/bench"), help="folder of results and logs")
    add("--document", type=Path, help="put table and plot between the marks of this document, too")
    return parser.parse_args()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def _measured(arguments: argparse.Namespace) -> Report:
    workload, machine = _workload(arguments), facts()
    outcome = measure(workload, arguments.peers, dict.fromkeys(arguments.clients), arguments.rounds)
    if not outcome.rounds:
        raise BenchError(f"no round is whole: {outcome.ended_by or 'nothing could be started'}")
    images = f"{arguments.images} a measurement, or as many as {arguments.seconds} s allow"
    return Report(
        machine,
        {"model": arguments.model, "images": images, "rounds": len(outcome.rounds)},
        outcome,
    )


def _workload(arguments: argparse.Namespace) -> Workload:
    scratch = (arguments.output / "run").resolve()
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    return mixed_workload(
        servable_folder(resource(f"model/{arguments.model}")),
        arguments.images,
        max_s=arguments.seconds,
        encodings=arguments.encodings,
        scratch=scratch,
    )


def _write(report: Report, arguments: argparse.Namespace) -> None:
    text, found = report.as_markdown(), rows(report.outcome.rounds)
    print(text)
    (arguments.output / "results.json").write_text(report.as_json(), encoding="utf-8")
    (arguments.output / "results.md").write_text(text, encoding="utf-8")
    plots = [arguments.output / "results.png"]
    if arguments.document:
        plots.append(arguments.document.with_suffix(".png"))
        write_between_marks(
            arguments.document, f"![Images a second of everybody]({plots[-1].name})\n\n{text}"
        )
    try:
        for plot in plots:
            draw(found, plot)
    except ImportError:
        report_progress("no plot, as matplotlib is not installed: pip install 'segserve[bench]'")
    report_progress(f"results: {arguments.output}")


if __name__ == "__main__":
    main()
