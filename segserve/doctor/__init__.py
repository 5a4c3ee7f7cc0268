"""Looks at all that a server needs, and says what to do about what is amiss.

Works with a broken installation, too: everything but the standard library is imported within the
check that needs it. `python -m segserve.doctor` is `segserve doctor` for when not even the command
line can be imported.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial


class Level(StrEnum):
    """`PROBLEM`: something will not work. `WARNING`: it works, but not as one would wish."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One line for people: what it is about, what was found, and what to do about it (empty where
    nothing is).
    """

    subject: str
    level: Level
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}" if self.remedy else self.message


Check = Callable[[], Finding]


def ok(subject: str, message: str, remedy: str = "") -> Finding:
    return Finding(subject, Level.OK, message, remedy)


def warning(subject: str, message: str, remedy: str = "") -> Finding:
    return Finding(subject, Level.WARNING, message, remedy)


def problem(subject: str, message: str, remedy: str = "") -> Finding:
    return Finding(subject, Level.PROBLEM, message, remedy)


def examine(url: str | None = None, *, token: str | None = None) -> Iterator[Finding]:
    """One finding after the other, as soon as it is there; never raises.

    Args:
        url: the server to look at; by default the one that `segserve serve` left running here.
        token: inference token; by default that of the server which runs here, else SEGSERVE_TOKEN.
    """
    from . import machine, service

    checks: dict[str, Check] = {
        "Python": machine.check_python,
        "packages": machine.check_packages,
        "Java": machine.check_java,
        "torch": machine.check_torch,
        "GPU": machine.check_gpu,
        "disk": machine.check_disk,
        "archive": service.check_archives,
        "ports": service.check_ports,
        "server": partial(service.check_server, url, token),
        "token": partial(service.check_token, url, token),
    }
    for subject, check in checks.items():
        yield isolated(subject, check)


def isolated(subject: str, check: Check) -> Finding:
    """What the check finds; where it fails itself, that is the finding."""
    try:
        return check()
    except Exception as error:  # whatever is broken here is what a doctor is called for
        reason = " ".join(str(error).split())[:300] or "no reason given"
        return problem(
            subject,
            f"cannot be examined ({type(error).__name__}: {reason})",
            "repair what it names; `make setup`, or pip install --force-reinstall of that package, "
            "often does",
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
