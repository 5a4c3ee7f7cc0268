"""Writes the page into build/browser: python -m examples.browser.build [MODEL [FOLDER]]

npm fetches onnxruntime-web, whose hash is checked.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from segserve.cli.app import model_folder
from segserve.exporting.write import export_onnx
from segserve.runtime.encode.overlay import bright
from segserve.runtime.record import read_record

PACKAGE = "onnxruntime-web@1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
PAGE = ("index.html", "page.css", "page.js")


def build(model: str, folder: Path) -> None:
    """Writes page, runtime and model into the folder.

    Raises:
        RuntimeError: npm is missing, cannot fetch the package, or fetches another one.
        ModelError, OSError: as `export_onnx`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in PAGE:
        shutil.copy(Path(__file__).with_name(name), folder)
    fetch_runtime(folder)
    write_model(model_folder(model), folder)


def fetch_runtime(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is not installed: apt-get install npm, or https://nodejs.org")
    with TemporaryDirectory() as fetched:
        command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", fetched]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"npm cannot fetch {PACKAGE}: {done.stderr.strip()}")
        [package] = Path(fetched).iterdir()
        if base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode() != SHA512:
            raise RuntimeError(f"{PACKAGE} from npm is not the published file: its SHA-512 differs")
        with tarfile.open(package) as files:
            for name in RUNTIME:
                content = files.extractfile(f"package/dist/{name}")
                assert content is not None  # noqa: S101 - the hash names the content
                (folder / name).write_bytes(content.read())


def write_model(model: Path, folder: Path) -> None:
    record = read_record(model)
    export_onnx(model, folder / "model.onnx")
    description = {
        "name": record.name,
        "version": record.version,
        "labels": record.labels,
        "colors": [bright(info.color) for info in record.classes],
    }
    (folder / "model.json").write_text(json.dumps(description), encoding="utf-8")


if __name__ == "__main__":
    model, folder = [*sys.argv[1:], *("embedded", "build/browser")[len(sys.argv) - 1 :]]
    build(model, Path(folder))
    sys.stdout.write(f"{folder}: python -m http.server --directory {folder}\n")
