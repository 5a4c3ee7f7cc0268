"""All measured systems, and one run of the benchmark: starts them, warms them up, measures them in
rounds, and always stops them.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial

from bench.machine import peak_python_bytes
from segserve.engines import EngineName, ServerError
from segserve.runtime.errors import ModelError

from .figures import LIMIT, PLAIN_LOOP, Round
from .loop import Prepare, open_loop
from .peer import BenchError, Opened, Peer, Workload
from .peers.deployed import open_deployed
from .peers.loops import prepare_huggingface, prepare_limit, prepare_plain_loop
from .peers.ours import open_ours, open_without_gateway
from .peers.processes import open_python_server
from .peers.stock import open_stock

Open = Callable[[Workload], AbstractContextManager[Opened]]


def _loop(title: str, prepare: Prepare) -> Open:
    return partial(open_loop, title=title, prepare=prepare)


_litserve = partial(
    open_python_server, module="litserve_server", request={"body": "json", "part": "image_data"}
)
_fastapi = partial(
    open_python_server, module="fastapi_server", request={"body": "form", "part": "file"}
)


_GRAPHS = {"cuda_graphs": True, "cuda_streams": True}

PEERS: dict[str, Open] = {
    "limit": _loop(LIMIT, prepare_limit),
    "loop": _loop(PLAIN_LOOP, prepare_plain_loop),
    "ours": open_ours,
    "ours-bf16": partial(open_ours, variant="bf16", settings={"precision": "bf16"}),
    "ours-graphs": partial(open_ours, variant="graphs", settings={"acceleration": _GRAPHS}),
    "ours-onnx": partial(open_ours, variant="local onnx", engine=EngineName.LOCAL, runtime="onnx"),
    "ours-ray": partial(open_ours, variant="ray", engine=EngineName.RAY),
    "ours-direct": open_without_gateway,
    "deployed": open_deployed,
    "stock": partial(open_stock, title="image_segmenter, as shipped", same_size=False),
    "stock-same-size": partial(open_stock, title="image_segmenter, our input size", same_size=True),
    "litserve": partial(_litserve, title="LitServe, as documented", network="eager"),
    "litserve-ours": partial(_litserve, title="LitServe, our network", network="ours"),
    "fastapi": partial(_fastapi, title="FastAPI, as documented", network="eager"),
    "fastapi-ours": partial(_fastapi, title="FastAPI, our network", network="ours"),
    "huggingface": _loop("Hugging Face pipeline", prepare_huggingface),
}
"""The contexts that start and stop a system, by its name on the command line."""

ON_REQUEST = ("ours-ray", "ours-direct", "ours-graphs")
"""Systems that are measured only if they are named."""


@dataclass
class Outcome:
    """The complete rounds, and by system: the time until it was ready, the peak memory of its
    largest Python process, or why it was skipped. `ended_by` says why rounds are missing.
    """

    rounds: list[Round] = field(default_factory=list)
    starts_s: dict[str, float] = field(default_factory=dict)
    peaks_bytes: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    ended_by: str = ""


def measure(
    workload: Workload, peers: Sequence[str], clients: Iterable[int], rounds: int
) -> Outcome:
    """Measures the named systems. One that does not start is skipped."""
    outcome = Outcome()
    try:
        with ExitStack() as stack:
            opened = _started(peers, workload, outcome, stack)
            titled = {title: each for peer in opened.values() for title, each in peer.peers.items()}
            for whole in measured_rounds(titled, clients, rounds):
                outcome.rounds.append(whole)
                outcome.peaks_bytes = {
                    name: peak_python_bytes(peer.pid) for name, peer in opened.items()
                }
    except (BenchError, KeyboardInterrupt) as error:
        outcome.ended_by = str(error) or "interrupted"
    return outcome


def measured_rounds(
    peers: Mapping[str, Peer], clients: Iterable[int], rounds: int
) -> Iterator[Round]:
    """Yields every complete round. Every second one has the reverse order, so that no peer is
    always first on a machine that slows down.
    """
    order = [(name, count) for count in clients for name in peers]
    for number in range(rounds):
        runs = {}
        for key in reversed(order) if number % 2 else order:
            name, count = key
            run = runs[key] = peers[name].run(count)
            failed = f", {run.failures} failed: {run.reason}" if run.failures else ""
            report_progress(
                f"round {number + 1} of {rounds}, {count:2} clients, {name:32} "
                f"{run.images_a_second():6.1f} images/s{failed}"
            )
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
                peer = own.enter_context(PEERS[name](workload))
                for each in peer.peers.values():
                    each.warm_up()
            except (BenchError, ServerError, ModelError, ImportError) as error:
                outcome.skipped[name] = str(error)
                report_progress(f"skipped {name}: {error}")
                continue
            stack.enter_context(own.pop_all())
        opened[name] = peer
        outcome.starts_s[name] = peer.start_s
    return opened


def report_progress(line: str) -> None:
    """Prints progress to standard error. Standard output is for the result."""
    print(line, file=sys.stderr, flush=True)
