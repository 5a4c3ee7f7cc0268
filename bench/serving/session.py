"""One run of the benchmark: starts all systems, warms them up, measures them in rounds, and always
stops them.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from bench.machine import peak_python_bytes
from segserve.engines.errors import ServerError
from segserve.runtime.errors import ModelError

from .figures import Key, Round, Run
from .peer import BenchError, Opened, Peer, Workload
from .registry import PEERS

Progress = Callable[[int, Key, Run], None]


@dataclass
class Outcome:
    """The results of one run.

    Attributes:
        rounds: the complete rounds.
        starts_s: seconds until the system was ready, by system.
        peaks_bytes: peak memory of the system's largest Python process, by system.
        skipped: the reason for each skipped system.
        ended_by: why there are fewer rounds than requested; empty if there are not.
    """

    rounds: list[Round] = field(default_factory=list)
    starts_s: dict[str, float] = field(default_factory=dict)
    peaks_bytes: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    ended_by: str = ""


def measure(
    workload: Workload, peers: Sequence[str], clients: Iterable[int], rounds: int
) -> Outcome:
    """Measures the named systems. A system that does not start is skipped. An interrupt keeps the
    complete rounds.
    """
    outcome = Outcome()
    try:
        with ExitStack() as stack:
            opened = _started(peers, workload, outcome, stack)
            titled = {title: each for peer in opened.values() for title, each in peer.peers.items()}
            for number, whole in enumerate(
                measured_rounds(titled, clients, rounds, _report_run), start=1
            ):
                outcome.rounds.append(whole)
                outcome.peaks_bytes = {
                    name: peak_python_bytes(peer.pid) for name, peer in opened.items()
                }
                report_progress(f"round {number} of {rounds} is complete")
    except (BenchError, KeyboardInterrupt) as error:
        outcome.ended_by = str(error) or "interrupted"
    return outcome


def measured_rounds(
    peers: Mapping[str, Peer], clients: Iterable[int], rounds: int, progress: Progress
) -> Iterator[Round]:
    """Yields every complete round. Calls `progress` after every run.

    Every second round has the reverse order, so that no peer is always first on a machine
    that slows down.
    """
    order = [(name, count) for count in clients for name in peers]
    for number in range(rounds):
        runs = {}
        for key in reversed(order) if number % 2 else order:
            name, count = key
            runs[key] = peers[name].run(count)
            progress(number, key, runs[key])
        yield {key: runs[key] for key in order}


def _started(
    peers: Sequence[str], workload: Workload, outcome: Outcome, stack: ExitStack
) -> Mapping[str, Opened]:
    """Starts the systems and returns those that respond. They stop with the stack."""
    opened = {}
    for name in peers:
        report_progress(f"starting {name}")
        with ExitStack() as own:
            try:
                peer = own.enter_context(PEERS[name].opened(workload))
                _warm_up(peer.peers)
            except (BenchError, ServerError, ModelError) as error:
                outcome.skipped[name] = str(error)
                report_progress(f"skipped {name}: {error}")
                continue
            stack.enter_context(own.pop_all())
        opened[name] = peer
        outcome.starts_s[name] = peer.start_s
    return opened


def _warm_up(peers: Mapping[str, Peer]) -> None:
    for peer in peers.values():
        peer.warm_up()


def _report_run(number: int, key: Key, run: Run) -> None:
    name, clients = key
    failed = f", {run.failures} failed: {run.reason}" if run.failures else ""
    report_progress(
        f"round {number + 1}, {clients:2} clients, {name:32} {run.images_a_second():6.1f} "
        f"images/s{failed}"
    )


def report_progress(line: str) -> None:
    """Prints progress to standard error. Standard output is for the result."""
    print(line, file=sys.stderr, flush=True)
