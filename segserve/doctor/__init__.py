"""Looks at all that a server needs, and says what to do about what is amiss.

Works with a broken installation, too: everything but the standard library is imported within the
check that needs it. `python -m segserve.doctor` is `segserve doctor` for when not even the command
line can be imported.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial

from .findings import Finding, Level
from .machine import check_disk, check_gpu, check_java, check_packages, check_python, check_torch
from .service import check_archives, check_ports, check_server, check_token

__all__ = ["Finding", "Level", "as_json", "as_lines", "examine", "isolated", "status_of"]

Check = Callable[[], Finding]


def examine(url: str | None = None, *, token: str | None = None) -> Iterator[Finding]:
    """One finding after the other, as soon as it is there; never raises.

    Args:
        url: the server to look at; by default the one that `segserve serve` left running here.
        token: inference token; by default that of the server which runs here, else SEGSERVE_TOKEN.
    """
    checks: dict[str, Check] = {
        "Python": check_python,
        "packages": check_packages,
        "Java": check_java,
        "torch": check_torch,
        "GPU": check_gpu,
        "disk": check_disk,
        "archive": check_archives,
        "ports": check_ports,
        "server": partial(check_server, url, token),
        "token": partial(check_token, url, token),
    }
    for subject, check in checks.items():
        yield isolated(subject, check)


def isolated(subject: str, check: Check) -> Finding:
    """What the check finds; where it fails itself, that is the finding."""
    try:
        return check()
    except Exception as error:  # whatever is broken here is what a doctor is called for
        reason = " ".join(str(error).split())[:300] or "no reason given"
        remedy = (
            "repair what it names; `make setup`, or pip install --force-reinstall of that package, "
            "often does"
        )
        return Finding(
            subject, Level.PROBLEM, f"cannot be examined ({type(error).__name__}: {reason})", remedy
        )


def as_lines(findings: Sequence[Finding]) -> str:
    """One line a finding: level, subject, what it means and what to do."""
    return "\n".join(f"{finding.level:<7}  {finding.subject:<8}  {finding}" for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    document = {
        "ok": not status_of(findings),
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(document, indent=2)


def status_of(findings: Sequence[Finding]) -> int:
    """Exit status of the command: 1 where there is a problem. Warnings are none."""
    return int(any(finding.level is Level.PROBLEM for finding in findings))
