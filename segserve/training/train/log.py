"""What a run leaves to look at: `log.csv` and TensorBoard's event files."""

import csv
from dataclasses import dataclass
from pathlib import Path

from torch.utils.tensorboard.writer import SummaryWriter

LOG_FILE = "log.csv"
TENSORBOARD_FOLDER = "tensorboard"
_COLUMNS = ("step", "loss", "learning_rate", "seconds", "mean_iou")


@dataclass(frozen=True)
class StepReport:
    """One finished step.

    Attributes:
        step: how many steps are finished with it.
        learning_rate: of the heads.
        seconds: that it took, waiting for its batch included.
        mean_iou: of the validation that followed it, in 0..1; None where none did.
    """

    step: int
    loss: float
    learning_rate: float
    seconds: float
    mean_iou: float | None = None


class RunLog:
    """Appends to the log of a run, of which `finished` steps stand; rows of later steps, made
    before the run was killed and to be made again, are dropped.
    """

    def __init__(self, run: Path, finished: int) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._path = run / LOG_FILE
        self._writer = SummaryWriter(str(run / TENSORBOARD_FOLDER), purge_step=finished + 1)
        rows = [row for row in self._rows() if int(row[0]) <= finished]
        with self._path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([_COLUMNS, *rows])

    def _rows(self) -> list[list[str]]:
        """The rows that were written whole."""
        if not self._path.exists():
            return []
        with self._path.open(newline="", encoding="utf-8") as file:
            return [
                row for row in csv.reader(file) if len(row) == len(_COLUMNS) and row[0].isdigit()
            ]

    def add(self, report: StepReport) -> None:
        mean_iou = "" if report.mean_iou is None else f"{report.mean_iou:.4f}"
        row = (
            report.step,
            f"{report.loss:.4f}",
            f"{report.learning_rate:.6g}",
            f"{report.seconds:.3f}",
            mean_iou,
        )
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)
        for name in ("loss", "learning_rate", "seconds", "mean_iou"):
            value = getattr(report, name)
            if value is not None:
                self._writer.add_scalar(name, value, report.step)

    def close(self) -> None:
        self._writer.close()
