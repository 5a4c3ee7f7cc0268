"""The command line, `segserve`. It parses, calls and prints; the work is done in the modules that it calls."""

from . import segmenting, batch, page, serving, health, evaluation, models, profiling, quantizing, training, signing  # noqa: I001 - the order of `segserve --help`
from .app import app

__all__ = [
    "app",
    "batch",
    "evaluation",
    "health",
    "models",
    "page",
    "profiling",
    "quantizing",
    "segmenting",
    "serving",
    "signing",
    "training",
]
