"""Writes an image's SBOM to stdout as a CycloneDX 1.5 document: Python, Java, Python packages and
Debian packages.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from urllib.parse import quote

DPKG_FORMAT = "${Package}\t${Version}\t${Architecture}\n"


def document() -> dict[str, object]:
    components = sorted(
        (*runtimes(), *python_components(), *debian_components()),
        key=lambda component: component["purl"],
    )
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": "segserve", "bom-ref": "segserve"}},
        "components": sorted(components, key=lambda component: component["purl"]),
    }


def runtimes() -> Iterator[dict[str, object]]:
    """The runtimes that belong to no package: the base image's Python, and the Java of
    JAVA_HOME.
    """
    python = platform.python_version()
    yield component("cpython", python, f"pkg:generic/cpython@{quote(python)}", "PSF-2.0")
    release = Path(os.environ.get("JAVA_HOME") or "nowhere", "release")
    if release.is_file():
        java = re.search(
            r'^JAVA_VERSION="(.+)"$', release.read_text(encoding="utf-8"), re.MULTILINE
        )
        if java is None:
            sys.exit(f"{release} names no JAVA_VERSION")
        yield component(
            "openjdk",
            java[1],
            f"pkg:generic/openjdk@{quote(java[1])}",
            "GPL-2.0 with Classpath exception",
        )


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
        yield component(
            name,
            version,
            f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}",
            None,
        )


def component(name: str, version: str, purl: str, licence: str | None) -> dict[str, object]:
    entry: dict[str, object] = {
        "type": "library",
        "name": name,
        "version": version,
        "purl": purl,
        "bom-ref": purl,
    }
    return {**entry, "licenses": [{"license": {"name": licence}}]} if licence else entry


def licence_of(distribution: Distribution) -> str | None:
    """The SPDX licence expression, else the first line of the older field `License`."""
    reported = distribution.metadata.get("License-Expression") or distribution.metadata.get(
        "License"
    )
    return reported.splitlines()[0].strip() or None if reported else None


if __name__ == "__main__":
    json.dump(document(), sys.stdout, indent=1)
