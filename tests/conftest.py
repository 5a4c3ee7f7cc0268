"""What the tests of every kind share."""

from importlib.util import find_spec
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
EMBEDDED = PROJECT / "model" / "embedded"


@pytest.fixture(scope="session")
def photographs() -> dict[str, bytes]:
    """The photographs that scikit-image ships, as files: chelsea is a cat, astronaut a person."""
    data = Path(find_spec("skimage").origin).parent / "data"
    return {name: (data / f"{name}.png").read_bytes() for name in ("chelsea", "astronaut")}
