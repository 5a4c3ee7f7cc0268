"""`make audit`: its report on the findings of pip-audit. No network is used."""

import importlib.util
import subprocess
import sys

import pytest

from tests.conftest import PROJECT

SPECIFICATION = importlib.util.spec_from_file_location("audit", PROJECT / "deploy" / "audit.py")
audit = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(audit)

SAFE = {"name": "safe", "version": "1.0", "vulns": []}
SKIPPED = {
    "name": "own",
    "skip_reason": "Dependency not found on PyPI and could not be audited: own (1.0)",
}
VULNERABLE = {
    "name": "old",
    "version": "0.9",
    "vulns": [
        {"id": "CVE-2000-1", "fix_versions": ["1.0"]},
        {"id": "CVE-2000-2", "fix_versions": []},
    ],
}


@pytest.mark.parametrize(
    ("packages", "status", "reported"),
    [
        pytest.param([SAFE], 0, "1 of 1 packages audited, 0 known vulnerabilities", id="none"),
        pytest.param([SAFE, VULNERABLE], 1, "old 0.9: CVE-2000-1, mended in 1.0", id="one"),
        pytest.param(
            [SAFE, VULNERABLE], 1, "old 0.9: CVE-2000-2, mended in none", id="one-without-remedy"
        ),
        pytest.param(
            [SAFE, VULNERABLE, SKIPPED],
            1,
            "2 of 3 packages audited, 2 known vulnerabilities",
            id="counts",
        ),
        pytest.param([SAFE, SKIPPED], 2, "not in the database: own", id="not-all-known"),
        pytest.param([SKIPPED], 2, "nothing was audited", id="all-unknown"),
        pytest.param([], 2, "nothing was audited", id="no-response"),
    ],
)
def test_verdict_reports_what_was_found_and_never_takes_silence_for_safety(
    packages, status, reported
):
    found, lines = audit.verdict({"dependencies": packages})
    assert found == status
    assert reported in "\n".join(lines)


def test_audit_without_pip_audit_audits_nothing_and_says_so(tmp_path):
    (tmp_path / "constraints.txt").write_text("# pins\nsafe==1.0\n")
    command = [
        sys.executable,
        "-S",
        str(PROJECT / "deploy" / "audit.py"),
        str(tmp_path / "constraints.txt"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={"PATH": "/nowhere"}
    )
    assert done.returncode == 2
    assert done.stdout.startswith("nothing was audited")
