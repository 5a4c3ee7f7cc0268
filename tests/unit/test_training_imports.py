"""Serving does not depend on `segserve.training`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKING = {
    "cli",
    "exporting",
    "training",
}  # the other packages serve models, or request segmentations
SERVING = sorted(
    path.parent.name
    for path in (ROOT / "segserve").glob("*/__init__.py")
    if path.parent.name not in MAKING
)


def imported_modules(path: Path) -> set[str]:
    """The absolute names of all modules that a file imports, anywhere in it."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def is_training(name: str) -> bool:
    return name == "segserve.training" or name.startswith("segserve.training.")


def test_imported_modules_resolves_relative_imports():
    names = imported_modules(ROOT / "segserve" / "training" / "loop.py")
    assert {"segserve.runtime.errors", "segserve.training.data", "torch.utils.data"} <= names
    assert is_training("segserve.training.data")
    assert not is_training("segserve.trainings")


def test_the_serving_packages_are_found():
    assert {"client", "engines", "gateway", "page", "runtime", "schema"} <= set(SERVING)


@pytest.mark.parametrize("package", SERVING)
def test_serving_packages_do_not_import_training(package):
    files = sorted((ROOT / "segserve" / package).rglob("*.py"))
    found = {
        str(path.relative_to(ROOT)): name
        for path in files
        for name in imported_modules(path)
        if is_training(name)
    }
    assert found == {}


def test_modules_of_the_package_itself_do_not_import_training():
    files = [*(ROOT / "segserve").glob("*.py"), ROOT / "handler.py", ROOT / "deeplabv3.py"]
    assert len(files) > 5
    assert [str(path) for path in files if any(map(is_training, imported_modules(path)))] == []


def test_command_line_starts_without_training():
    code = (
        "import sys, segserve.__main__, segserve.cli; "
        "print([name for name in sys.modules if name.startswith('segserve.training')])"
    )
    started = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert started.stdout.strip() == "[]"
