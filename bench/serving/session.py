"""One run of the benchmark: everybody is started, warmed up, measured in rounds, and stopped whatever happens."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from bench.memory import peak_python_bytes
from segserve.runtime.errors import ModelError
from segserve.server.errors import ServerError

from .contestant import Contestant, Opened
from .errors import BenchError
from .figures import Key, Round, Run
from .registry import RIVALS
from .rounds import measured_rounds
from .workload import Workload


@dataclass
class Outcome:
    """What one run has measured.

    Attributes:
        rounds: those that are whole.
        starts_s: seconds by rival until it could be asked.
        peaks_bytes: the largest of its Python processes, by rival.
        skipped: why, by rival.
        ended_by: why there are fewer rounds than were asked for.
    """

    rounds: list[Round] = field(default_factory=list)
    starts_s: dict[str, float] = field(default_factory=dict)
    peaks_bytes: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    ended_by: str = ""


def measure(workload: Workload, rivals: Sequence[str], clients: Iterable[int], rounds: int) -> Outcome:
    """Measures the rivals of those names. A rival that does not start is skipped; an interrupt keeps what is whole."""
    outcome = Outcome()
    try:
        with ExitStack() as stack:
            opened = _started(rivals, workload, outcome, stack)
            contestants = {title: each for rival in opened.values() for title, each in rival.contestants.items()}
            for number, whole in enumerate(measured_rounds(contestants, clients, rounds, _tell_run), start=1):
                outcome.rounds.append(whole)
                outcome.peaks_bytes = {name: peak_python_bytes(rival.pid) for name, rival in opened.items()}
                tell(f"round {number} of {rounds} is whole")
    except (BenchError, KeyboardInterrupt) as error:
        outcome.ended_by = str(error) or "interrupted"
    return outcome


def _started(rivals: Sequence[str], workload: Workload, outcome: Outcome, stack: ExitStack) -> Mapping[str, Opened]:
    """Those rivals that start and answer; they stop with the stack."""
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
    tell(f"round {number + 1}, {clients:2} clients, {name:32} {run.images_a_second:6.1f} images/s{failed}")


def tell(line: str) -> None:
    """Progress goes to standard error; standard output is for the result."""
    print(line, file=sys.stderr, flush=True)
