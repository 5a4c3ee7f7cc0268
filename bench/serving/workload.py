"""The images that everybody gets, in the same order."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from bench.images import mixed_photographs

MAX_PIXELS = 2**24


@dataclass(frozen=True)
class Workload:
    """One measurement: `requests` in order, none of which begins later than `max_s` seconds after the first.

    Attributes:
        model: a model folder.
        warm_up: every photograph once, so that each shape of the network's input has been seen.
        encodings: those of the mask, in which the served model is asked.
        scratch: an existing folder for what rivals write.
    """

    model: Path
    requests: tuple[Path, ...]
    warm_up: tuple[Path, ...]
    max_s: float
    encodings: tuple[str, ...]
    scratch: Path


def mixed_workload(model: Path, count: int, *, max_s: float, encodings: Sequence[str], scratch: Path) -> Workload:
    """`count` requests of photographs at mixed sizes, their files written to `scratch/images`."""
    folder = scratch / "images"
    folder.mkdir()
    paths = []
    for name, content in mixed_photographs().items():
        paths.append(folder / name)
        paths[-1].write_bytes(content)
    warm_up = tuple(paths[: len(paths) // len({path.stem.rpartition("-")[2] for path in paths})])
    random.Random(0).shuffle(paths)  # noqa: S311 - an order that is mixed and always the same
    return Workload(model, tuple(islice(cycle(paths), count)), warm_up, max_s, tuple(encodings), scratch)
