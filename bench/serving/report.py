"""Reports the results as Markdown, as JSON and as a plot."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from .figures import LIMIT, Round, Row, headlines, rows
from .peer import BenchError
from .session import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
            "rounds": [_round(each) for each in outcome.rounds],
            "starts_s": outcome.starts_s,
            "peaks_bytes": outcome.peaks_bytes,
            "skipped": outcome.skipped,
            "ended_by": outcome.ended_by,
        }
        return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n"

    def as_markdown(self) -> str:
        """The headlines, one table per number of clients, the start time and memory of each system,
        and the machine.
        """
        found = rows(self.outcome.rounds)
        clients = dict.fromkeys(row.clients for row in found)
        blocks = [_headline_table(self.outcome.rounds)]
        blocks += [
            _table(count, [row for row in found if row.clients == count]) for count in clients
        ]
        blocks += [_costs(self.outcome), "\n".join(_circumstances(self))]
        return "\n\n".join(block for block in blocks if block) + "\n"


def write_between_marks(document: Path, text: str, *, name: str = "figures") -> None:
    """Replaces the text between the marks of that name in a document.

    Raises:
        BenchError: the document is missing, or does not contain both marks exactly once.
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
    times = "-" if row.ours_to_it is None else f"{row.ours_to_it:.2f}"
    failed = f"{row.failures} of {row.failures + row.responded}" if row.failures else "0"
    latencies = f"{_number(row.median_ms)} | {_number(row.p99_ms)}"
    return f"| {row.peer} | {row.images_a_second:.1f} | {latencies} | {times} | {failed} |"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f}"


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


def _round(runs: Round) -> list[dict[str, object]]:
    return [
        {
            "peer": peer,
            "clients": clients,
            "completed": len(run.latencies_s),
            "failures": run.failures,
            "wall_s": run.wall_s,
            "images_a_second": run.images_a_second(),
            "median_ms": run.median_ms(),
            "p99_ms": run.p99_ms(),
        }
        for (peer, clients), run in runs.items()
    ]


def draw(found: Sequence[Row], path: Path) -> None:
    """Writes the plot. The path's suffix defines the format.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # pyplot would need a display

    clients = list(dict.fromkeys(row.clients for row in found))
    height_in = 1.2 + 0.32 * sum(row.clients == clients[0] for row in found)
    figure = Figure(figsize=(3.6 * len(clients) + 1.5, height_in), layout="constrained")
    panels = figure.subplots(1, len(clients), sharex=True, sharey=True, squeeze=False)[0]
    for panel, count in zip(panels, clients, strict=True):
        _draw_panel(panel, [row for row in found if row.clients == count])
        panel.set_title("one client" if count == 1 else f"{count} clients")
    figure.supxlabel("images a second")
    figure.savefig(path, dpi=150)


def _draw_panel(panel: "Axes", found: Sequence[Row]) -> None:
    names = [row.peer for row in found]
    bars = panel.barh(
        names, [row.images_a_second for row in found], color=[_color(name) for name in names]
    )
    panel.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    panel.margins(x=0.2)
    panel.spines[["top", "right"]].set_visible(False)
    if not panel.yaxis_inverted():
        panel.invert_yaxis()


def _color(name: str) -> str:
    if name == LIMIT:
        return _LIMIT
    return _OURS if name.startswith("ours") else _OTHERS
