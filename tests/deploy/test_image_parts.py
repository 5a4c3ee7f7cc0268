"""What the image is made with, as far as it runs without an engine: the list of contents, the build
context.
"""

import json
import os
import platform
import re
import subprocess
import sys

from segserve.gateway.settings import GatewaySettings
from tests.conftest import PROJECT

DEPLOY = PROJECT / "deploy"


def sbom(**environment: str) -> dict:
    command = [sys.executable, DEPLOY / "sbom.py"]
    done = subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout)


def test_image_is_not_called_unhealthy_while_it_may_still_load():
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    periods = [int(period) for period in re.findall(r"--start-period=(\d+)s", dockerfile)]
    assert len(periods) == 2  # with PyTorch and without
    assert min(periods) >= GatewaySettings.model_fields["start_timeout_s"].default


def test_sbom_lists_every_package_of_the_interpreter_once():
    document = sbom()
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    purls = [component["purl"] for component in document["components"]]
    assert len(set(purls)) == len(purls)
    [numpy] = [
        component
        for component in document["components"]
        if component["purl"].startswith("pkg:pypi/numpy@")
    ]
    assert {"type", "name", "version", "licenses"} <= set(numpy)


def test_sbom_lists_the_python_and_the_java_that_no_package_brings(tmp_path):
    (tmp_path / "release").write_text('IMPLEMENTOR="Debian"\nJAVA_VERSION="17.0.99"\n')
    purls = {component["purl"] for component in sbom(JAVA_HOME=str(tmp_path))["components"]}
    assert {
        f"pkg:generic/cpython@{platform.python_version()}",
        "pkg:generic/openjdk@17.0.99",
    } <= purls


def test_build_context_holds_what_the_dockerfile_copies():
    """`.dockerignore` names what it lets in; everything that is copied from the context must be
    among it.
    """
    let_in = [
        line[1:]
        for line in (PROJECT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = [
        source
        for line in (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]
    assert set(copied) - {"."} <= set(let_in)
    assert all((PROJECT / source).exists() for source in copied)
