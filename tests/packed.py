"""Small archives of handlers that need no model, for tests of what stands around them."""

import os
import subprocess
import sys
from pathlib import Path

BROKEN = """
class Broken:
    def initialize(self, context):
        raise ValueError("the weights are of another network")

    def handle(self, data, context):
        return data
"""


def pack(folder: Path, name: str, source: str, *, version: str = "1.0") -> Path:
    """The source of a handler as `folder/NAME-VERSION.mar`, whose model is called NAME."""
    work = folder / f"{name}-{version}"
    (work / "tmp").mkdir(parents=True)
    (work / "echo_handler.py").write_text(source.replace("VERSION", repr(version)))
    (work / "model-config.yaml").write_text(
        "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 1\nmaxBatchDelay: 1\n"
    )
    command = [
        sys.executable,
        "-m",
        "model_archiver.model_packaging",
        "--model-name",
        name,
        "--version",
        version,
    ]
    command += [
        "--handler",
        "echo_handler.py",
        "--config-file",
        "model-config.yaml",
        "--export-path",
        ".",
    ]
    subprocess.run(command, cwd=work, env={**os.environ, "TMPDIR": str(work / "tmp")}, check=True)
    return (work / f"{name}.mar").rename(folder / f"{name}-{version}.mar")
