"""Docker or Podman, whichever runs here."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

IMAGE = os.environ.get("SEGSERVE_IMAGE") or "segserve"
HARDENED = (
    "--read-only",
    "--tmpfs",
    "/tmp:noexec",  # noqa: S108
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
)


@cache
def engine() -> str | None:
    """The first of the two that can do its work, not only be called."""
    for name in ("docker", "podman"):
        if shutil.which(name) and _done(name, "info").returncode == 0:
            return name
    return None


def need_image() -> None:
    """Skips unless `make image-test` named an image and an engine can run it; an image that
    happens to be in an engine's storage may be of other code.
    """
    if "SEGSERVE_IMAGE" not in os.environ:
        pytest.skip("the image is tested by make image-test")
    if engine() is None:
        pytest.skip("neither docker nor podman can run here: the image is not tested")
    if call_engine("image", "inspect", IMAGE, check=False).returncode:
        pytest.skip(f"there is no image {IMAGE} to test: make image")


def call_engine(
    *arguments: str, check: bool = True, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    name = engine()
    assert name is not None
    done = _done(name, *arguments, timeout_s=timeout_s)
    assert not check or done.returncode == 0, done.stderr
    return done


class Container:
    """A container that runs on its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def inspect(self, template: str) -> str:
        return call_engine("inspect", "--format", template, self.name).stdout.strip()

    def address_of(self, port: int) -> str:
        return call_engine("port", self.name, f"{port}/tcp").stdout.split()[0]

    def python(self, code: str) -> str:
        """What a program in it prints; there need be no shell."""
        return call_engine("exec", self.name, "python", "-c", code).stdout.strip()

    def log(self) -> list[dict]:
        return [json.loads(line) for line in call_engine("logs", self.name).stdout.splitlines()]

    def running(self) -> bool:
        return self.inspect("{{.State.Running}}") == "true"

    def wait_healthy(self, timeout_s: float = 180) -> float:
        """Runs the image's own health check until it passes; returns how long that took, in
        seconds.
        """
        [_, *check] = json.loads(
            call_engine("image", "inspect", "--format", HEALTHCHECK, IMAGE).stdout
        )
        began = time.monotonic()
        while call_engine("exec", self.name, *check, check=False).returncode:
            assert self.running(), self.log()[-1]
            assert time.monotonic() - began < timeout_s, self.log()[-5:]
            time.sleep(0.5)
        return time.monotonic() - began

    def wait_ended(self, timeout_s: float = 120) -> int:
        return int(call_engine("wait", self.name, timeout_s=timeout_s).stdout.strip())


HEALTHCHECK = "{{json .Config.Healthcheck.Test}}"


@contextmanager
def container(*options: str, command: tuple[str, ...] = ()) -> Iterator[Container]:
    """One of the image, hardened, gone at the end."""
    name = f"segserve-test-{os.getpid()}-{time.monotonic_ns()}"
    call_engine("run", "--detach", "--name", name, *HARDENED, *options, IMAGE, *command)
    try:
        yield Container(name)
    finally:
        call_engine("rm", "--force", name, check=False)


def readable(path: Path, content: str) -> Path:
    """A secret as a file that the container's user can read."""
    path.write_text(content)
    path.chmod(0o644)
    return path


def _done(name: str, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [name, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )
