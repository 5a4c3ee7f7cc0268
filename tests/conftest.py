"""What the tests of every kind share."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from segserve.resources import sample_photograph

PROJECT = Path(__file__).parents[1]
EMBEDDED = PROJECT / "model" / "embedded"


@pytest.fixture(scope="session")
def photographs() -> dict[str, bytes]:
    """The photographs that scikit-image ships, as files: chelsea is a cat, astronaut a person."""
    return {
        name: sample_photograph(f"{name}.png").read_bytes() for name in ("chelsea", "astronaut")
    }


@pytest.fixture
def silent_url() -> Iterator[str]:
    """An address without a listener; no process can listen there while the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
