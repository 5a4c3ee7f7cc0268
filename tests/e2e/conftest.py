import pytest

from segserve.archive import build_archive
from segserve.gateway.background import Server
from tests.conftest import EMBEDDED


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photographs):
    """A user's folder: photographs, and a server that `segserve serve` would have left running.

    Not for the whole session: tests without a server need a free default
        port.
    """
    folder = tmp_path_factory.mktemp("user")
    (folder / "photos" / "trip").mkdir(parents=True)
    (folder / "photos" / "cat.png").write_bytes(photographs["chelsea"])
    (folder / "photos" / "trip" / "astronaut.png").write_bytes(photographs["astronaut"])
    (folder / "cat.png").write_bytes(photographs["chelsea"])
    archive = build_archive(EMBEDDED, folder / "build")
    with Server.start([archive], folder / ".run" / "serve") as server:
        server.wait_ready()
        yield folder
