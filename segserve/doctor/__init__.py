"""Checks what a server needs, and says what to do about problems.

Works with a broken installation too: everything but the standard library is imported within the
check that needs it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial


class Level(StrEnum):
    """`PROBLEM`: something does not work. `WARNING`: it works, but not as well as it could."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """What was found about a subject, and what to do about it; `remedy` is empty if nothing is."""

    subject: str
    level: Level
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}" if self.remedy else self.message


Check = Callable[[], Finding]


def examine(url: str | None = None, *, token: str | None = None) -> Iterator[Finding]:
    """Yields the finding of each check as soon as it is known; never raises.

    Args:
        url: the server to look at; by default the one that `segserve serve` left running here.
        token: inference token; by default that of the server which runs here, else SEGSERVE_TOKEN.
    """
    from . import checks

    by_subject: dict[str, Check] = {
        "Python": checks.check_python,
        "packages": checks.check_packages,
        "Java": checks.check_java,
        "torch": checks.check_torch,
        "GPU": checks.check_gpu,
        "disk": checks.check_disk,
        "archive": checks.check_archives,
        "ports": checks.check_ports,
        "server": partial(checks.check_server, url, token),
        "token": partial(checks.check_token, url, token),
    }
    for subject, check in by_subject.items():
        yield isolated(subject, check)


def isolated(subject: str, check: Check) -> Finding:
    """The finding of a check, or that it failed."""
    try:
        return check()
    except Exception as error:  # any package may be broken
        reason = " ".join(str(error).split())[:300] or "no reason given"
        return Finding(
            subject,
            Level.PROBLEM,
            f"cannot be examined ({type(error).__name__}: {reason})",
            "repair what it names; `make setup`, or pip install --force-reinstall of that package, "
            "often does",
        )


def as_lines(findings: Sequence[Finding]) -> str:
    return "\n".join(f"{finding.level:<7}  {finding.subject:<8}  {finding}" for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    document = {
        "ok": not status_of(findings),
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(document, indent=2)


def status_of(findings: Sequence[Finding]) -> int:
    """The exit status of the command: 1 if there is a problem."""
    return int(any(finding.level is Level.PROBLEM for finding in findings))
