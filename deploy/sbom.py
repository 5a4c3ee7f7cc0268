"""Writes what an image holds, Python's packages and Debian's, as a CycloneDX 1.5 document to stdout."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from urllib.parse import quote

DPKG_FORMAT = "${Package}\t${Version}\t${Architecture}\n"


def document() -> dict[str, object]:
    components = sorted((*python_components(), *debian_components()), key=lambda component: component["purl"])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": "segserve", "bom-ref": "segserve"}},
        "components": components,
    }


def python_components() -> Iterator[dict[str, object]]:
    for distribution in distributions():
        name = distribution.metadata["Name"].lower()
        purl = f"pkg:pypi/{quote(name)}@{quote(distribution.version)}"
        yield component(name, distribution.version, purl, licence_of(distribution))


def debian_components() -> Iterator[dict[str, object]]:
    if shutil.which("dpkg-query") is None:
        return
    command = ["dpkg-query", "--show", f"--showformat={DPKG_FORMAT}"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        name, version, architecture = line.split("\t")
        yield component(name, version, f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}", None)


def component(name: str, version: str, purl: str, licence: str | None) -> dict[str, object]:
    entry: dict[str, object] = {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}
    return {**entry, "licenses": [{"license": {"name": licence}}]} if licence else entry


def licence_of(distribution: Distribution) -> str | None:
    """Its SPDX expression, else the first line of what older packages say."""
    told = distribution.metadata.get("License-Expression") or distribution.metadata.get("License")
    return told.splitlines()[0].strip() or None if told else None


if __name__ == "__main__":
    json.dump(document(), sys.stdout, indent=1)
