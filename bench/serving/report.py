"""Reports the results as Markdown, as JSON and as a plot."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from .figures import LIMIT, Round, Row, headlines, rows
from .peer import BenchError
from .session import Outcome

_OURS, _LIMIT, _OTHERS = "#2a6f97", "#555555", "#c9ccd1"


def marks(name: str) -> tuple[str, str]:
    """The marks before and after a generated part of a document."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


BEGIN, END = marks("figures")


@dataclass(frozen=True)
class Report:
    """An outcome with its `machine` (hardware and versions) and its `setting` (parameters)."""

    machine: Mapping[str, str]
    setting: Mapping[str, object]
    outcome: Outcome

    def as_json(self) -> str:
        """All results except the individual latencies; null in place of NaN."""
        outcome = self.outcome
        document = {
            "machine": self.machine,
            "setting": self.setting,
            "figures": rows(outcome.rounds),
            "headlines": headlines(outcome.rounds),
            **vars(outcome),
            "rounds": [rows([each]) for each in outcome.rounds],
        }
        return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n"

    def as_markdown(self) -> str:
        """The headlines, one table per number of clients, the start time and memory of each system,
        and the machine.
        """
        found = by_clients(rows(self.outcome.rounds))
        tables = [_table(clients, of_clients) for clients, of_clients in found.items()]
        blocks = [_headline_table(self.outcome.rounds), *tables, _costs(self.outcome)]
        blocks.append("\n".join(_circumstances(self)))
        return "\n\n".join(filter(None, blocks)) + "\n"


def by_clients(found: Sequence[Row]) -> dict[int, list[Row]]:
    counts = dict.fromkeys(row.clients for row in found)
    return {count: [row for row in found if row.clients == count] for count in counts}


def write_between_marks(document: Path, text: str, *, name: str = "figures") -> None:
    """Replaces the text between the marks of that name in a document. Raises BenchError if it does
    not contain both exactly once.
    """
    begin, end = marks(name)
    try:
        before, rest = document.read_text(encoding="utf-8").split(begin)
        _, after = rest.split(end)
    except (OSError, ValueError) as error:
        raise BenchError(
            f"{document}: expected a document with one line {begin} and one line {end} below it"
        ) from error
    document.write_text(f"{before}{begin}\n{text.rstrip()}\n{end}{after}", encoding="utf-8")


def _headline_table(rounds: Sequence[Round]) -> str:
    found = [f"| {title} | {value:.2f} |" for title, value in headlines(rounds).items()]
    return "\n".join(["| ratio | |", "|---|---:|", *found]) if found else ""


def _table(clients: int, found: Sequence[Row]) -> str:
    title = f"{clients} clients" if clients > 1 else "One client"
    head = [
        f"**{title}**",
        "",
        "| | images/s | median, ms | p99, ms | ours to it, images/s | failed |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*head, *map(_line, found)])


def _line(row: Row) -> str:
    failed = f"{row.failures} of {row.failures + row.responded}" if row.failures else "0"
    median, p99 = _number(row.median_ms, 0), _number(row.p99_ms, 0)
    cells = [row.peer, f"{row.images_a_second:.1f}", median, p99, _number(row.ours_to_it, 2)]
    return f"| {' | '.join(cells)} | {failed} |"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _costs(outcome: Outcome) -> str:
    found = [
        f"| {name} | {outcome.peaks_bytes.get(name, 0) / 1e9:.2f} | {start_s:.0f} |"
        for name, start_s in outcome.starts_s.items()
    ]
    return "\n".join(["| peer | largest process, GB | ready after, s |", "|---|---:|---:|", *found])


def _circumstances(report: Report) -> Iterator[str]:
    yield from (
        f"- {name}: {value}" for name, value in {**report.machine, **report.setting}.items()
    )
    yield from (f"- skipped: {name}: {reason}" for name, reason in report.outcome.skipped.items())
    if report.outcome.ended_by:
        yield f"- ended early: {report.outcome.ended_by}"
    yield from dict.fromkeys(
        f"- {row.peer}: {row.reason}" for row in rows(report.outcome.rounds) if row.reason
    )


def draw(found: Sequence[Row], path: Path) -> None:
    """Writes the plot. The path's suffix defines the format."""
    from matplotlib.figure import Figure  # pyplot would need a display

    of_clients = by_clients(found)
    height_in = 1.2 + 0.32 * max(map(len, of_clients.values()))
    figure = Figure(figsize=(3.6 * len(of_clients) + 1.5, height_in), layout="constrained")
    panels = figure.subplots(1, len(of_clients), sharex=True, sharey=True, squeeze=False)[0]
    for panel, (count, shown) in zip(panels, of_clients.items(), strict=True):
        names = [row.peer for row in shown]
        colors = [_color(name) for name in names]
        bars = panel.barh(names, [row.images_a_second for row in shown], color=colors)
        panel.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        panel.margins(x=0.2)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_title("one client" if count == 1 else f"{count} clients")
    panels[0].invert_yaxis()  # of all panels, as they share it
    figure.supxlabel("images a second")
    figure.savefig(path, dpi=150)


def _color(name: str) -> str:
    if name == LIMIT:
        return _LIMIT
    return _OURS if name.startswith("ours") else _OTHERS
