"""What every family of hostile requests is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from tests.unit.torchserve import Request

Made = Request | bytes
"""Bytes stand for a request whose body they are: an image, or what pretends to be one."""


@dataclass(frozen=True)
class Family:
    """`make` takes a source of chance and the case's number, and gives what is sent."""

    make: Callable[[Random, int], Made]
    count: int


def listed(makers: Sequence[Callable[[], Made]]) -> Family:
    """A family without chance: each case made by a function of its own."""
    return Family(lambda _, number: makers[number](), len(makers))
