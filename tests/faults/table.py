"""What `make faults` measured, as Markdown in docs/reliability.md."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.serving.report import write_between_marks

from .load import Load

_HEAD = """| fault | accepted | completed | rejected | lost | lost after retries | rejected with |
|---|---:|---:|---:|---:|---:|---|"""


@dataclass
class Table:
    """A row for every fault, in the order they were measured, and sentences on what is no count."""

    rows: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)

    def add(self, fault: str, load: Load) -> None:
        """A fault with what became of the requests sent once, and how many images the patient
        clients lost.
        """
        hasty = load.hasty
        counts = (
            f"{hasty.accepted} | {hasty.responded} | {hasty.rejected} | {hasty.lost} | "
            f"{load.patient.lost}"
        )
        self.rows.append(f"| {fault} | {counts} | {_rejections(hasty.reasons)} |")

    def add_unmeasured(self, fault: str, reason: str) -> None:
        self.rows.append(f"| {fault} | | | | | | not measured here: {reason} |")

    def write(self, document: Path, machine: Mapping[str, str]) -> None:
        lines = [
            _HEAD,
            *self.rows,
            "",
            *self.sentences,
            "",
            *(f"- {name}: {value}" for name, value in machine.items()),
        ]
        write_between_marks(document, "\n".join(lines), name="faults")


def _rejections(reasons: Counter[str]) -> str:
    """Those with a status, such as `503 overloaded`; the others are not rejections."""
    return ", ".join(
        f"`{reason}` {count}" for reason, count in sorted(reasons.items()) if reason[:3].isdecimal()
    )
