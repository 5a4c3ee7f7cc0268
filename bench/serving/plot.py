"""Plots the throughput of all peers in images/s, with one panel per number of clients."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .figures import LIMIT, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _LIMIT, _OTHERS = "#2a6f97", "#555555", "#c9ccd1"


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
