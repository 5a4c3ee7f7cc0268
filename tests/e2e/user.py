"""A user at a shell: how the tests run commands."""

import os
import subprocess
import sys
from pathlib import Path


def run(
    *command: str, folder: Path, timeout_s: float = 300, **variables: str
) -> subprocess.CompletedProcess:
    """In that folder, with a new user's home, the package's commands on the path, and no token in
    the environment.
    """
    kept = {name: value for name, value in os.environ.items() if name != "SEGSERVE_TOKEN"}
    (folder / "home").mkdir(exist_ok=True)
    path = f"{os.path.dirname(sys.executable)}:{kept['PATH']}"
    environment = {
        **kept,
        "HOME": str(folder / "home"),
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def segserve(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    return run(sys.executable, "-m", "segserve", *arguments, folder=folder, **variables)


def shell(block: str, *, folder: Path, timeout_s: float = 300, **variables: str) -> str:
    """Runs a block of shell commands as they stand, which must all succeed; their standard
    output.
    """
    stays = f"{block}\n:"  # else bash gives way to the last command, which then finds no shell around it  # noqa: E501
    done = run(
        "bash", "-e", "-o", "pipefail", "-c", stays, folder=folder, timeout_s=timeout_s, **variables
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
