"""Writes deploy/locks: all packages of the images, with the SHA-256 of each file.

    python lock.py          (`make lock` installs uv first)

PyTorch and its dependencies have a separate lock, because its wheels without CUDA are other files
from another index.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
PROJECT = HERE.parent
LOCKS = HERE / "locks"

# The server's image needs no command line and packs no archives.
_WITHOUT = frozenset({"rich", "torch-model-archiver", "typer"})
_COMMAND = (
    "-m",
    "uv",
    "pip",
    "compile",
    "-",
    "--quiet",
    "--universal",
    "--python-version=3.11",
    "--generate-hashes",
)
_PLAIN = ("--no-header", "--no-annotate")


class Lock(NamedTuple):
    """The requirements of a lock. It omits packages of the locks `beside`, which the image installs
    too.
    """

    requirements: Sequence[str]
    beside: Sequence[str] = ()


def locks() -> Mapping[str, Lock]:
    """The locks by name, in the order of their dependencies."""
    return {
        "torch": Lock(["torch", "torchvision"]),
        "container": Lock(_requirements("serve", but=_WITHOUT), beside=["torch"]),
        "onnx": Lock(["openvino", *_requirements("gateway", but=_WITHOUT)]),
        "ray": Lock(_requirements("serve", "ray", but=_WITHOUT), beside=["torch", "container"]),
        "otel": Lock(_requirements("serve", "otel", but=_WITHOUT), beside=["torch", "container"]),
        "grpc": Lock(_requirements("serve", "grpc", but=_WITHOUT), beside=["torch", "container"]),
        "archiver": Lock(["torch-model-archiver"]),
        "page": Lock(_requirements("page")),
    }


def _requirements(*extras: str, but: frozenset[str] = frozenset()) -> list[str]:
    """The project's dependencies and those of the extras, except the packages `but`."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional, own = project["optional-dependencies"], project["name"]
    requirements, pending = [*project["dependencies"]], [*extras]
    while pending:
        for requirement in optional[pending.pop()]:
            nested = re.fullmatch(rf"{own}\[(.*)\]", requirement)
            pending += nested[1].split(",") if nested else []
            requirements += [] if nested else [requirement]
    if missing := but - set(map(name_of, requirements)):
        sys.exit(
            f"pyproject.toml has no dependency {', '.join(sorted(missing))}: mend deploy/lock.py"
        )
    return [each for each in requirements if name_of(each) not in but]


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0]


def names_in(lock: str) -> list[str]:
    """The package names in a lock's text."""
    return [name_of(line) for line in lock.splitlines() if line[:1].strip()]


def _locked(requirements: Iterable[str], but: Iterable[str]) -> str:
    """Locks the requirements with all of their dependencies, except the packages `but`."""
    left_out = [f"--no-emit-package={name}" for name in but]
    command = [
        sys.executable,
        *_COMMAND,
        *_PLAIN,
        *left_out,
        f"--constraint={PROJECT / 'constraints.txt'}",
    ]
    done = subprocess.run(
        command, input="\n".join(requirements), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"uv could not lock: {done.stderr.strip()}")
    return done.stdout


def main() -> None:
    LOCKS.mkdir(exist_ok=True)
    written: dict[str, str] = {}
    for name, lock in locks().items():
        there = [package for other in lock.beside for package in names_in(written[other])]
        written[name] = _locked(lock.requirements, but=there)
        (LOCKS / f"{name}.txt").write_text(written[name], encoding="utf-8")


if __name__ == "__main__":
    main()
