"""CSV table of a run's metrics, to which a resumed run appends."""

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from facelab.files import name_in_errors, replacing


class AppendingCSVLogger(Logger):
    """Logger of ``metrics.csv``: each call writes one row, which is on disk when the call returns.

    Lightning's CSVLogger deletes the file when a run is resumed. It also buffers up to a hundred rows in memory, which
    are lost when the run is killed.

    Args:
        path: file to write. If it exists, rows are appended.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self.columns: list[str] = []

    @property
    def name(self) -> str:
        """Return the name of the file."""
        return self.path.name

    @property
    def version(self) -> str:
        """Return an empty string, as there are no versions."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any) -> None:
        """Do nothing: config.yaml contains the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row, and add columns for metrics that are logged for the first time."""
        row = {"step": step, **metrics}
        if not self.path.is_file() or not row.keys() <= set(self.columns):
            self._add_columns(list(row))
        with name_in_errors(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)

    def _add_columns(self, names: list[str]) -> None:
        """Rewrite the file with columns for these names, too."""
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
