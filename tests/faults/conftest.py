"""Servers to hurt, and the table of what that did.

The short form is part of all tests. SEGSERVE_FAULTS_DOCUMENT makes it the long one, whose table
goes into that
document: `make faults` does so.
"""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from bench.machine import facts
from segserve.archive import build_archive
from segserve.engines.config import read_config, write_properties
from tests.conftest import PROJECT
from tests.contract.images import encoded, picture
from tests.hostile.poison import with_poison
from tests.unit.tiny import write_tiny_model

from .served import MAX_REQUEST_BYTES, Served
from .table import Table

# A queue that forty clients fill, and a worker that is given up after five seconds.
CONFIG = {
    "minWorkers": 1,
    "maxWorkers": 1,
    "batchSize": 4,
    "maxBatchDelay": 1,
    "jobQueueSize": 8,
    "responseTimeout": 5,
    "handler": {"threads": 1, "precision": "fp32"},
}
DISK_FULL = "the disk of logs and temporary files full, and the worker killed"
LIMITS = {"REQUEST_TIMEOUT_S": 3, "CLIENT_IN_FLIGHT": 16, "CLIENT_WAITING": 8}


@dataclass(frozen=True)
class Form:
    """How often each fault happens, and how many images are completed before and after it."""

    times: int
    responses: int


@pytest.fixture(scope="session")
def form() -> Form:
    return (
        Form(times=5, responses=200)
        if os.environ.get("SEGSERVE_FAULTS_DOCUMENT")
        else Form(times=1, responses=20)
    )


@pytest.fixture(scope="session")
def table() -> Iterator[Table]:
    table = Table()
    yield table
    if document := os.environ.get("SEGSERVE_FAULTS_DOCUMENT"):
        table.write(PROJECT / document, facts())


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, whose decoder crashes at one picture: the poison."""
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder, name="deeplabv3")
    (folder / "model-config.yaml").write_text(yaml.safe_dump(CONFIG))
    return with_poison(build_archive(folder, folder), folder / "poisoned.mar")


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's settings of TorchServe, with requests that are soon too large."""
    path = tmp_path_factory.mktemp("config") / "config.properties"
    settings = read_config(PROJECT / "config.properties")
    write_properties({**settings, "max_request_size": str(MAX_REQUEST_BYTES)}, path)
    return path


@pytest.fixture(scope="module")
def running(
    archive: Path, config: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    server = Served(tmp_path_factory.mktemp("served"), archive, CONFIG=config, **LIMITS)
    yield server
    server.stop()


@pytest.fixture
def served(running: Served) -> Served:
    """The one server of a module, whatever the test before has left of it."""
    return running.wait_ready()


@pytest.fixture
def tmpfs(tmp_path: Path, table: Table) -> Iterator[Path]:
    """A small disk of its own."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "none", tmp_path], capture_output=True, text=True
    )
    if done.returncode:
        table.add_unmeasured(DISK_FULL, "it takes the right to mount a disk")
        pytest.skip(
            "a small disk to fill takes the right to mount one: "
            f"{done.stderr.strip() or 'mount failed'}"
        )
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


@pytest.fixture(scope="session")
def image() -> bytes:
    return encoded(picture(), "JPEG")


@pytest.fixture(scope="session")
def large_image() -> bytes:
    """2000 x 1500 pixels: 9 MB of them, and a response of 6 MB if the mask is dense."""
    return encoded(picture(2000, 1500), "JPEG")
