"""Checks pinned packages against PyPI's database of known vulnerabilities, with pip-audit: `make
audit`.

    python audit.py CONSTRAINTS.txt

Exit status: 0 if all packages were found and none has a known vulnerability, 1 if a package has
    one, 2 if a package was
not found. pip-audit skips packages that it does not find. With a mirror of PyPI, it finds none.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

VULNERABLE, UNKNOWN = 1, 2


def main(constraints: Path) -> int:
    lines = [
        line
        for line in constraints.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    for requested in (lines[:1], lines):  # if the first one is not found, skip the others
        status, reported = verdict(report(requested))
        if status == UNKNOWN:
            break
    sys.stdout.writelines(f"{line}\n" for line in reported)
    return status


def report(requirements: Sequence[str]) -> Mapping[str, Any]:
    """pip-audit's report in its own format. The list of dependencies is empty if pip-audit
    failed.
    """
    with TemporaryDirectory() as folder:
        listed = Path(folder, "requirements.txt")
        listed.write_text("\n".join(requirements), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pip_audit",
            "--requirement",
            str(listed),
            "--no-deps",
            "--disable-pip",
        ]
        command += ["--format", "json", "--progress-spinner", "off"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        sys.stderr.write(f"{done.stderr.strip().rpartition(chr(10))[2]}\n")
        return {"dependencies": []}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def verdict(found: Mapping[str, Any]) -> tuple[int, list[str]]:
    """The exit status, and the lines that explain it."""
    packages = found["dependencies"]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    lines = [
        f"{package['name']} {package['version']}: {entry['id']}, mended in "
        f"{', '.join(entry['fix_versions']) or 'none'}"
        for package in packages
        for entry in package.get("vulns", [])
    ]
    if len(unknown) == len(packages):
        return UNKNOWN, [
            "nothing was audited: PyPI's database of known vulnerabilities cannot be reached from "
            "here"
        ]
    status = VULNERABLE if lines else UNKNOWN if unknown else 0
    lines.append(
        f"{len(packages) - len(unknown)} of {len(packages)} packages audited, {len(lines)} known "
        "vulnerabilities"
    )
    if unknown:
        lines.append(f"not in the database: {', '.join(unknown)}")
    return status, lines


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
