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
    models,
    profiling,
    training,
    signing,
)
from .app import app

__all__ = [
    "app",
    "batch",
    "evaluation",
    "health",
    "models",
    "page",
    "profiling",
    "segmenting",
    "serving",
    "signing",
    "training",
]
