"""The notebook runs as a reader runs it, and shows what is kept of it."""

import re

import nbformat
import pytest

from examples.execute import NOTEBOOKS, executed, tidied
from segserve.archive import build_archive
from segserve.gateway.background import SERVE_DIR, Server
from tests.conftest import EMBEDDED

AGAIN = "; create it again with: python -m examples.execute"
LARGEST_BYTES = 500_000

notebooks = pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem) for path in NOTEBOOKS]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where `segserve serve` was run."""
    folder = tmp_path_factory.mktemp("notebook")
    with Server.start([build_archive(EMBEDDED, folder)], folder / SERVE_DIR) as server:
        server.wait_ready()
        yield folder


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell):
    """What a cell shows, without what another processor computes a little differently."""
    return [
        (
            output.output_type,
            sorted(output.get("data", {})),
            re.sub(r"\d+", "0", output.get("data", {}).get("text/plain", "")),
        )
        for output in cell.outputs
    ]


@notebooks
def test_notebook_when_run_shows_what_is_kept(path, folder):
    kept = code_cells(nbformat.read(path, as_version=4))
    made = code_cells(executed(path, folder))
    assert [shown(cell) for cell in made] == [shown(cell) for cell in kept], AGAIN


@notebooks
def test_notebook_is_as_the_command_leaves_it(path):
    notebook = nbformat.read(path, as_version=4)
    assert tidied(notebook) == notebook, AGAIN
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), AGAIN
    assert path.stat().st_size < LARGEST_BYTES


@notebooks
def test_notebook_names_no_path_and_no_token_of_the_machine_it_was_made_on(path):
    assert (
        re.findall(r"/(?:home|root|tmp|work|usr)/|Bearer", path.read_text(encoding="utf-8")) == []
    )
