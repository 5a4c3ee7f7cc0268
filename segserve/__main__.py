"""`python -m segserve`."""

from .cli import app

app()
