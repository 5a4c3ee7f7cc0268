"""Runs hostile requests through the pipeline of a tiny model, in this process, and reports the
result of each.

    python -m tests.hostile.run [--seed N] [--every N] [NAME ...]

One line of JSON a case: its status, code and message, the seconds of processor time and the bytes
    of memory that it
took at most. The rows are read by TorchServe's own code, which is not counted.
"""

import argparse
import json
import resource
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.pipeline import Pipeline
from segserve.runtime.settings import Settings
from tests.unit.tiny import write_tiny_model
from tests.unit.torchserve import received

from .cases import SEED, Case, all_cases, named


@dataclass(frozen=True)
class Outcome:
    name: str
    status: int
    code: str
    message: str
    seconds: float
    memory_bytes: int


def outcomes(cases: Iterable[Case], pipeline: Pipeline) -> Iterator[Outcome]:
    for case in cases:
        rows, headers = received(case.make())
        before_bytes, began_s = _reset_peak(), time.process_time()
        response = pipeline.respond(rows[0], headers[0])
        seconds, memory_bytes = time.process_time() - began_s, _peak_bytes() - before_bytes
        error = (
            json.loads(response.body)["error"]
            if response.status >= 400
            else {"code": "", "message": ""}
        )
        yield Outcome(
            case.name,
            response.status,
            error["code"],
            error["message"],
            round(seconds, 3),
            memory_bytes,
        )


def tiny_pipeline(folder: Path) -> Pipeline:
    settings = Settings(precision="fp32", max_response_bytes=64 * 2**20)
    return Pipeline(Segmenter.load(write_tiny_model(folder), settings=settings), settings)


def _reset_peak() -> int:
    """Resets the peak (only Linux can) and returns the bytes of memory in use now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--every", type=int, default=1, help="one of so many of each family")
    given = parser.parse_args()
    cases = [named(name, given.seed) for name in given.names]
    cases = cases or list(all_cases(given.seed, every=given.every))
    warnings.simplefilter("ignore")  # of Pillow, about what is broken on purpose
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        for outcome in outcomes(cases, tiny_pipeline(Path(folder))):
            print(json.dumps(asdict(outcome)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
