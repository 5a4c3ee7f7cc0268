"""Engines run the handlers of archives behind the gateway: `torchserve`, `local` and `ray`.

`engine.Engine` is their interface. Each says how to start, watch and stop the workers.
"""

from enum import StrEnum
from importlib.util import find_spec


class EngineName(StrEnum):
    """What runs the handlers of the archives."""

    TORCHSERVE = "torchserve"
    LOCAL = "local"
    RAY = "ray"


def default_engine() -> EngineName:
    """TorchServe where it is installed, else `local`."""
    return EngineName.LOCAL if find_spec("ts") is None else EngineName.TORCHSERVE
