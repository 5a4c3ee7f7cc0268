"""The command line, `segserve`: parses arguments and prints results; other packages do the work."""

from . import (  # noqa: I001, F401 - the order of `segserve --help`
    segment,
    serving,
    evaluation,
    models,
    importing,
    training,
)
from .app import app

__all__ = ["app"]
