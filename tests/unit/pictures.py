"""Folders of small images, and a server that responds like the real one: masks for images, 415 for
other files.
"""

import contextlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from segserve.cli import app
from tests.conftest import PROJECT

from .canned import IMAGE_RGB, Canned, CannedServer, as_file, response_document


@dataclass(frozen=True)
class Completed:
    returncode: int
    stdout: bytes
    stderr: bytes


IMAGE = as_file(IMAGE_RGB)
NO_IMAGE = Canned(
    json.dumps(
        {"error": {"code": "image_unsupported", "message": "not an image in a format that is read"}}
    ).encode(),
    415,
)


class PictureServer(CannedServer):
    """Sends the responses in `script` first, then a mask for every PNG."""

    def handle_error(self, *_) -> None:
        """An interrupted client closes the connection before the response ends."""

    def response_to(self, body: bytes) -> Canned:
        if self.script:
            return self.script.pop(0)
        return self.response if body.startswith(b"\x89PNG") else NO_IMAGE


def write_images(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(IMAGE)
    return paths


def response_of_value(value: int) -> bytes:
    """A response whose label map has that class everywhere."""
    return json.dumps(response_document(np.full((4, 6), value, np.uint8))).encode()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "segserve", *arguments]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "SEGSERVE_TOKEN"}
    return {**kept, "PYTHONPATH": str(PROJECT), **variables}


def segserve(*arguments: str, folder: Path, content: bytes = b"", **variables: str) -> Completed:
    """Runs the command in this process, which is quicker than one of its own."""
    with contextlib.chdir(folder):
        result = CliRunner(env={"SEGSERVE_TOKEN": None, **variables}).invoke(
            app, arguments, input=content
        )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Completed(result.exit_code, result.stdout_bytes, result.stderr_bytes)
