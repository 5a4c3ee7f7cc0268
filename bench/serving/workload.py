"""The images that all peers receive, in the same order."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from bench.images import write_mixed_photographs

MAX_PIXELS = 2**24


@dataclass(frozen=True)
class Workload:
    """The images of one measurement.

    Attributes:
        model: a model folder.
        requests: the image files, in order.
        warm_up: every photograph once, to process every shape of the network's input before the
            measurement.
        max_s: no request starts later than this many seconds after the first.
        encodings: the mask encodings to request from the served model.
        scratch: an existing folder for the systems' files.
    """

    model: Path
    requests: tuple[Path, ...]
    warm_up: tuple[Path, ...]
    max_s: float
    encodings: tuple[str, ...]
    scratch: Path


def mixed_workload(
    model: Path, count: int, *, max_s: float, encodings: Sequence[str], scratch: Path
) -> Workload:
    """A workload of `count` photographs at mixed sizes. The files are written to
    `scratch/images`.
    """
    paths = write_mixed_photographs(scratch / "images")
    warm_up = tuple(paths[: len(paths) // len({path.stem.rpartition("-")[2] for path in paths})])
    random.Random(0).shuffle(paths)  # noqa: S311 - a reproducible order
    return Workload(
        model, tuple(islice(cycle(paths), count)), warm_up, max_s, tuple(encodings), scratch
    )
