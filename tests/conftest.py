"""What the tests of every kind share."""

from pathlib import Path

import pytest

from segserve.demo import sample_photograph

PROJECT = Path(__file__).parents[1]
EMBEDDED = PROJECT / "model" / "embedded"


@pytest.fixture(scope="session")
def photographs() -> dict[str, bytes]:
    """The photographs that scikit-image ships, as files: chelsea is a cat, astronaut a person."""
    return {name: sample_photograph(f"{name}.png").read_bytes() for name in ("chelsea", "astronaut")}
