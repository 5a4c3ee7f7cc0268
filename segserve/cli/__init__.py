"""The command line interface, `segserve`. It parses arguments and prints results; other packages do
the work.
"""

from . import (  # noqa: I001 - the order of `segserve --help`
    segmenting,
    batch,
    page,
    serving,
    health,
    evaluation,
    calibrating,
    models,
    importing,
    profiling,
    quantizing,
    training,
    signing,
)
from .app import app

__all__ = [
    "app",
    "batch",
    "calibrating",
    "evaluation",
    "health",
    "importing",
    "models",
    "page",
    "profiling",
    "quantizing",
    "segmenting",
    "serving",
    "signing",
    "training",
]
