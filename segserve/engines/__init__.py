"""Engines run the handlers of archives behind the gateway: `torchserve`, `local` and `ray`.

`engine.Engine` is their interface. Each says how to start, watch and stop the workers.
"""

from enum import StrEnum


class EngineName(StrEnum):
    """What runs the handlers of the archives."""

    TORCHSERVE = "torchserve"
    LOCAL = "local"
    RAY = "ray"
