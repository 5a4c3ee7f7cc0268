"""The command line, `segserve`. It parses, calls and prints; the work is done in the modules that it calls."""

from . import evaluation, models, serving, training
from .app import app

__all__ = ["app", "evaluation", "models", "serving", "training"]
