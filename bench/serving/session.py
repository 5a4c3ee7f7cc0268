"""All measured systems, by their names on the command line, and one run of the benchmark: starts
them, warms them up, measures them in rounds, and always stops them.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec

from bench.machine import peak_python_bytes
from segserve.engines import EngineName, ServerError
from segserve.runtime.errors import ModelError

from .figures import LIMIT, PLAIN_LOOP, Key, Round, Run
from .loop import Prepare, open_loop
from .peer import BenchError, Opened, Peer, Workload
from .peers.deployed import open_deployed
from .peers.loops import prepare_huggingface, prepare_limit, prepare_plain_loop
from .peers.ours import open_ours, open_without_gateway
from .peers.processes import open_python_server
from .peers.stock import open_stock

Open = Callable[[Workload], AbstractContextManager[Opened]]


@dataclass(frozen=True)
class System:
    """A system to measure. It is skipped if a package of `needs`, import names, is missing."""

    name: str
    open: Open
    needs: tuple[str, ...] = ()

    def opened(self, workload: Workload) -> AbstractContextManager[Opened]:
        """The context that starts and stops the system. Raises BenchError for a missing package."""
        missing = [package for package in self.needs if find_spec(package) is None]
        if missing:
            raise BenchError(
                f"{', '.join(missing)} is not installed: pip install 'segserve[bench]'"
            )
        return self.open(workload)


def _loop(name: str, title: str, prepare: Prepare, *needs: str) -> System:
    return System(name, partial(open_loop, title=title, prepare=prepare), needs)


def _stock(name: str, title: str, *, same_size: bool) -> System:
    return System(name, partial(open_stock, title=title, same_size=same_size), ("captum",))


def _server(name: str, title: str, module: str, network: str, *needs: str) -> System:
    return System(
        name, partial(open_python_server, title=title, module=module, network=network), needs
    )


_open_onnx = partial(open_ours, variant="local onnx", engine=EngineName.LOCAL, runtime="onnx")

PEERS: Mapping[str, System] = {
    peer.name: peer
    for peer in (
        _loop("limit", LIMIT, prepare_limit),
        _loop("loop", PLAIN_LOOP, prepare_plain_loop),
        System("ours", open_ours),
        System("ours-bf16", partial(open_ours, variant="bf16", bf16=True)),
        System("ours-onnx", _open_onnx),
        System("ours-ray", partial(open_ours, variant="ray", engine=EngineName.RAY), ("ray",)),
        System("ours-direct", open_without_gateway),
        System("deployed", open_deployed),
        _stock("stock", "image_segmenter, as shipped", same_size=False),
        _stock("stock-same-size", "image_segmenter, our input size", same_size=True),
        _server("litserve", "LitServe, as documented", "litserve_server", "eager", "litserve"),
        _server("litserve-ours", "LitServe, our network", "litserve_server", "ours", "litserve"),
        _server("fastapi", "FastAPI, as documented", "fastapi_server", "eager", "fastapi"),
        _server("fastapi-ours", "FastAPI, our network", "fastapi_server", "ours", "fastapi"),
        _loop("huggingface", "Hugging Face pipeline", prepare_huggingface, "transformers"),
    )
}

ON_REQUEST = ("ours-ray", "ours-direct")
"""The systems that are measured only if they are named."""

Progress = Callable[[int, Key, Run], None]


@dataclass
class Outcome:
    """The complete rounds of one run, and by system: the time until it was ready, the peak memory
    of its largest Python process, or why it was skipped.

    `ended_by` says why there are fewer rounds than requested; it is empty if there are not.
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
                for each in peer.peers.values():
                    each.warm_up()
            except (BenchError, ServerError, ModelError) as error:
                outcome.skipped[name] = str(error)
                report_progress(f"skipped {name}: {error}")
                continue
            stack.enter_context(own.pop_all())
        opened[name] = peer
        outcome.starts_s[name] = peer.start_s
    return opened


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
