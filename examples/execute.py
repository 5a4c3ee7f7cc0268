"""Runs the notebooks in this folder and saves their outputs: `python -m examples.execute`.

Metadata that changes from run to run (times, counters) is removed, and images are compressed.
"""

import base64
import io
import shutil
import sys
import tempfile
from contextlib import chdir
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

from segserve.archive import build_archive
from segserve.gateway.background import SERVE_DIR, Server
from segserve.resources import resource

NOTEBOOKS = (Path(__file__).with_name("quickstart.ipynb"),)
_CELL_TIMEOUT_S = 300


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = build_archive(resource("model/embedded"), Path(folder))
        with chdir(folder), Server.start([archive], SERVE_DIR) as server:
            server.wait_ready()
            for path in NOTEBOOKS:
                nbformat.write(executed(path, Path(folder)), path)
                sys.stdout.write(f"{path}  {path.stat().st_size / 1000:.0f} kB\n")


def executed(path: Path, folder: Path) -> NotebookNode:
    """Runs the notebook in `folder`/examples and returns it with its outputs. A server must run in
    `folder`.

    Raises:
        CellExecutionError: a cell fails.
    """
    (folder / "examples").mkdir(exist_ok=True)
    copy = Path(shutil.copy(path, folder / "examples"))
    notebook = nbformat.read(copy, as_version=4)
    NotebookClient(
        notebook, timeout=_CELL_TIMEOUT_S, resources={"metadata": {"path": str(copy.parent)}}
    ).execute()
    return tidied(notebook)


def tidied(notebook: NotebookNode) -> NotebookNode:
    """The notebook with only the outputs and their order, without other traces of a run.
    Idempotent.
    """
    notebook = nbformat.from_dict(notebook)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number:02}"
        cell.metadata = {}
        if "outputs" in cell:  # drops warnings of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data = {"image/png": _packed(output.data["image/png"]), "text/plain": ""}
    return notebook


def _packed(png_base64: str) -> str:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png_base64))) as picture:
        picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


if __name__ == "__main__":
    main()
