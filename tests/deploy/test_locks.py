"""deploy/locks against what they are made from, which needs no network: pyproject.toml,
constraints.txt, and what the packages that are installed here say they need."""

import re
from importlib.metadata import PackageNotFoundError, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.lock import LOCKS, locks
from tests.conftest import PROJECT

NAMES = list(locks())


def requirements(name: str) -> dict[str, tuple[Requirement, list[str]]]:
    """The packages of a lock by name, with the hashes of their files."""
    text = (LOCKS / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        package, *hashes = re.split(r"\s+--hash=", line.strip())
        found[canonicalize_name(Requirement(package).name)] = Requirement(package), hashes
    return found


def installed_in_image_of(name: str) -> dict[str, Requirement]:
    return {
        package: requirement
        for part in [*locks()[name].beside, name]
        for package, (requirement, _) in requirements(part).items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_lock_names_one_version_and_the_sha256_of_its_files(name):
    for package, (requirement, hashes) in requirements(name).items():
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], package
        assert hashes, package
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), package


@pytest.mark.parametrize("name", NAMES)
def test_lock_has_the_versions_of_the_constraints(name):
    lines = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {
        Requirement(line).name: str(Requirement(line).specifier) for line in lines if "==" in line
    }
    pinned = {canonicalize_name(package): version for package, version in pins.items()}
    for package, (requirement, _) in requirements(name).items():
        if requirement.marker is None or requirement.marker.evaluate():
            assert str(requirement.specifier) == pinned[package], f"{package}: make lock"


@pytest.mark.parametrize("name", NAMES)
def test_lock_fits_what_is_requested_of_it(name):
    there = installed_in_image_of(name)
    for requested in map(Requirement, locks()[name].requirements):
        [version] = there[canonicalize_name(requested.name)].specifier
        assert requested.specifier.contains(version.version), f"{requested}: make lock"


@pytest.mark.parametrize("name", NAMES)
def test_lock_lacks_nothing_that_its_packages_need(name):
    there = installed_in_image_of(name)
    looked_at = 0
    for package in requirements(name):
        try:
            needed = [Requirement(each) for each in requires(package) or []]
        except PackageNotFoundError:
            continue  # of another platform
        looked_at += 1
        missing = {
            each.name
            for each in needed
            if (each.marker is None or each.marker.evaluate({"extra": ""}))
            and canonicalize_name(each.name) not in there
        }
        assert not missing, f"{package} needs {missing}: make lock"
    assert looked_at >= len(requirements(name)) / 2


@pytest.mark.parametrize(
    ("name", "unwanted"),
    [
        pytest.param(
            "container", {"typer", "rich", "gradio", "opencv-python-headless", "torch"}, id="server"
        ),
        pytest.param("ray", {"typer", "gradio", "starlette"}, id="what-ray-adds"),
        pytest.param("page", {"torch", "timm", "torchserve", "safetensors"}, id="page"),
    ],
)
def test_lock_holds_nothing_that_its_image_does_without(name, unwanted):
    assert not (unwanted | {"segserve"}) & set(requirements(name))
