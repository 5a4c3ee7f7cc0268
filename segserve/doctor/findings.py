"""What a check found, and how checks are kept from each other's faults."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


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
