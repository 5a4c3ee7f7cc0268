"""The log of a run: `log.csv` and TensorBoard's event files."""

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
        step: the number of finished steps.
        learning_rate: of the heads.
        seconds: duration of the step, with the wait for its batch.
        mean_iou: of the validation after the step, in 0..1; None if there was none.
    """

    step: int
    loss: float
    learning_rate: float
    seconds: float
    mean_iou: float | None = None


class RunLog:
    """Appends to the log of a run that has `finished` steps.

    Rows of later steps are removed: a resumed run repeats these steps.
    """

    def __init__(self, run: Path, finished: int) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._path = run / LOG_FILE
        self._writer = SummaryWriter(str(run / TENSORBOARD_FOLDER), purge_step=finished + 1)
        rows = [row for row in self._rows() if int(row[0]) <= finished]
        with self._path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([_COLUMNS, *rows])

    def _rows(self) -> list[list[str]]:
        """The complete rows. A killed run may leave part of a row."""
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
