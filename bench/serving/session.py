"""One run of the benchmark: starts all systems, warms them up, measures them in rounds, and always
stops them.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from bench.memory import peak_python_bytes
from segserve.engines.errors import ServerError
from segserve.runtime.errors import ModelError

from .contestant import Contestant, Opened
from .errors import BenchError
from .figures import Key, Round, Run
from .registry import RIVALS
from .rounds import measured_rounds
from .workload import Workload


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
    workload: Workload, rivals: Sequence[str], clients: Iterable[int], rounds: int
) -> Outcome:
    """Measures the named systems. A system that does not start is skipped. An interrupt keeps the
    complete rounds.
    """
    outcome = Outcome()
    try:
        with ExitStack() as stack:
            opened = _started(rivals, workload, outcome, stack)
            contestants = {
                title: each
                for rival in opened.values()
                for title, each in rival.contestants.items()
            }
            for number, whole in enumerate(
                measured_rounds(contestants, clients, rounds, _tell_run), start=1
            ):
                outcome.rounds.append(whole)
                outcome.peaks_bytes = {
                    name: peak_python_bytes(rival.pid) for name, rival in opened.items()
                }
                tell(f"round {number} of {rounds} is whole")
    except (BenchError, KeyboardInterrupt) as error:
        outcome.ended_by = str(error) or "interrupted"
    return outcome


def _started(
    rivals: Sequence[str], workload: Workload, outcome: Outcome, stack: ExitStack
) -> Mapping[str, Opened]:
    """Starts the systems and returns those that respond. They stop with the stack."""
    opened = {}
    for name in rivals:
        tell(f"starting {name}")
        with ExitStack() as own:
            try:
                rival = own.enter_context(RIVALS[name].opened(workload))
                _warm_up(rival.contestants)
            except (BenchError, ServerError, ModelError) as error:
                outcome.skipped[name] = str(error)
                tell(f"skipped {name}: {error}")
                continue
            stack.enter_context(own.pop_all())
        opened[name] = rival
        outcome.starts_s[name] = rival.start_s
    return opened


def _warm_up(contestants: Mapping[str, Contestant]) -> None:
    for contestant in contestants.values():
        contestant.warm_up()


def _tell_run(number: int, key: Key, run: Run) -> None:
    name, clients = key
    failed = f", {run.failures} failed: {run.reason}" if run.failures else ""
    tell(
        f"round {number + 1}, {clients:2} clients, {name:32} {run.images_a_second:6.1f} "
        f"images/s{failed}"
    )


def tell(line: str) -> None:
    """Prints progress to standard error. Standard output is for the result."""
    print(line, file=sys.stderr, flush=True)
