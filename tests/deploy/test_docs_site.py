"""The documentation site: it builds without warnings, is complete, and loads nothing
from other hosts.
"""

import re
import subprocess
import sys

import pytest
import yaml

from segserve.cli import app
from tests.conftest import PROJECT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_site_has_every_page_of_docs_in_its_navigation(site):
    navigation = yaml.safe_dump(yaml.safe_load((PROJECT / "mkdocs.yml").read_text())["nav"])
    for page in (PROJECT / "docs").rglob("*.md"):
        name = str(page.relative_to(PROJECT / "docs"))
        assert name in navigation, name
        assert (site / name).with_suffix(".html").is_file(), name


def test_site_loads_no_file_from_another_host(site):
    loaded = re.compile(
        r"""<(?:script|img|iframe)[^>]*\ssrc="?(https?:)?//|<link[^>]*rel="?stylesheet[^>]*"""
        r"""href="?(https?:)?//|url\(["']?https?://"""
    )
    for page in site.rglob("*.html"):
        assert loaded.search(page.read_text(encoding="utf-8")) is None, page.name


def test_site_documents_every_command(site):
    text = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert len(names) > 10
    for name in names:
        assert f"segserve {name.replace('_', '-')}" in text, name


def test_site_documents_the_python_api_from_docstrings(site):
    text = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for name in ("SegmentationClient", "LocalSegmenter", "DeepLabHead", "MultiScaleDeepLabHead"):
        assert name in text, name
