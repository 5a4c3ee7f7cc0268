"""Hostile requests, the same ones for the same seed: at least 2,000, each with a name such as
`flips-17`.

python -m tests.hostile.run flips-17        # what the pipeline makes of one
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random

from tests.unit.torchserve import Request, raw

from . import bodies, bombs, damage, disguises, metadata, sizes
from .family import Family

SEED = 20_240_607


@dataclass(frozen=True)
class Case:
    """`make` gives the request. It is generated when needed, one at a time: some have 60 MB."""

    family: str
    number: int
    make: Callable[[], Request]

    @property
    def name(self) -> str:
        return f"{self.family}-{self.number}"


def families() -> Mapping[str, Family]:
    modules = damage, sizes, metadata, bombs, disguises, bodies
    return {name: family for module in modules for name, family in module.FAMILIES.items()}


def all_cases(seed: int = SEED, *, every: int = 1) -> Iterator[Case]:
    """Every case, or one out of `every` of each family. A case depends on the seed and its own name
    alone.
    """
    for name, family in families().items():
        for number in range(0, family.count, every):
            yield Case(
                name,
                number,
                lambda name=name, family=family, number=number: _made(family, name, number, seed),
            )


def named(name: str, seed: int = SEED) -> Case:
    """The case of that name.

    Raises:
        KeyError: there is none.
    """
    found = next((case for case in all_cases(seed) if case.name == name), None)
    if found is None:
        raise KeyError(name)
    return found


def _made(family: Family, name: str, number: int, seed: int) -> Request:
    made = family.make(Random(f"{seed} {name} {number}"), number)  # noqa: S311
    return raw(made, X_Segment_Mask="none") if isinstance(made, bytes) else made
