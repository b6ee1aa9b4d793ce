"""The metrics of a run in one table on disk, which a resumed run continues."""

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from facelab.files import naming, replacing


class AppendingCSVLogger(Logger):
    """Writes ``metrics.csv``: a row for each time that something is logged, whole on disk when the call returns.

    Lightning's own CSVLogger removes the file of a run that goes on, and keeps up to a hundred rows in memory, which a
    killed run loses.

    Args:
        path: of the file. If it is there, rows are added to it.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self.columns: list[str] = []

    @property
    def name(self) -> str:
        """Of the file."""
        return self.path.name

    @property
    def version(self) -> str:
        """There is one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any) -> None:
        """The configuration stands in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row, and columns for what was not logged before."""
        row = {"step": step, **metrics}
        if not self.path.is_file() or not row.keys() <= set(self.columns):
            self._widen(list(row))
        with naming(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)

    def _widen(self, names: list[str]) -> None:
        rows = []
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                rows, self.columns = list(reader), list(reader.fieldnames or [])
        self.columns = list(dict.fromkeys(["epoch", "step", *self.columns, *names]))
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
