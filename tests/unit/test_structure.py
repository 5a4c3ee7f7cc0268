"""The structure of the product's code: names are unique, packages and modules stay small."""

import ast
from collections import Counter
from pathlib import Path

import pytest

SEGSERVE = Path(__file__).parents[2] / "segserve"
PACKAGES = sorted(path.parent for path in SEGSERVE.rglob("__init__.py"))
MODULES = sorted(SEGSERVE.rglob("*.py"))
MOST_MODULES, MOST_LINES = 15, 400


def classes(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def test_serving_packages_have_no_class_name_twice():
    serving = [path for path in MODULES if "training" not in path.parts]
    counts = Counter(name for path in serving for name in classes(path))
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_package_has_few_modules(package):
    modules = [path for path in package.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SEGSERVE)))
def test_module_is_short(module):
    assert len(module.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
