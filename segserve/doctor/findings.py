"""What a check found."""

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
