"""Comparison tables as files: rounded in Markdown, unrounded in CSV."""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from facelab.comparison.grid import (
    COSTS,
    Cell,
    build_cells,
    disagreement,
    grid_without_numbers,
    headings,
    label,
    lines_of,
    notes_of,
    remarks,
)
from facelab.comparison.group import (
    Row,
    Table,
    cost_of,
    differing,
    natural_order,
    paper_value,
    row_of,
    row_setting,
)
from facelab.comparison.read import Run
from facelab.files import replacing

MEAN = "mean"
"""State of a row of the CSV file that is a mean over runs."""


def write_markdown(path: Path, runs: Sequence[Run], tables: Sequence[Table], *, each: bool) -> None:
    """Write the tables in percent as Markdown; with ``each`` the single runs of a row over seeds follow it."""
    blocks = [_escape(disagreement(tables))]
    for heading, table in zip(headings(tables), tables, strict=True):
        blocks += [f"**{_escape(heading)}**", _markdown(build_cells(table, with_single_runs=each))]
        blocks += [_escape(line) for line in remarks(table)]
    if rows := grid_without_numbers(runs):
        blocks += ["**Runs without metrics**", _markdown(rows)]
    with replacing(path) as temporary:
        temporary.write_text("\n\n".join(filter(None, blocks)) + "\n", encoding="utf-8")


def _markdown(rows: list[list[Cell]]) -> str:
    """Format a table in Markdown."""
    rule = ["---:" if cell.number else "---" for cell in rows[0]]
    heading, *body = [[_markdown_cell(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heading, rule, *body])


def _markdown_cell(cell: Cell) -> str:
    """Format a cell in Markdown."""
    text = f"**{_escape(cell.text)}**" if cell.bold else _escape(cell.text)
    return f"{text} ({cell.below})" if cell.below else text


def _escape(text: str) -> str:
    """Escape text so that no part of it is a tag, a link, a cell or emphasis in Markdown."""
    return re.sub(r"([\\`*\[\]~$|]|(?<!\w)_|_(?!\w))", r"\\\1", escape(text, quote=False))


def write_csv(path: Path, runs: Sequence[Run], tables: Sequence[Table]) -> None:
    """Write one row per run, and before them one row per mean over seeds, with unrounded numbers in their own unit.

    An undefined value is an empty cell. ``runs`` is the number of runs of a row, and ``state`` of a mean is
    :data:`MEAN`. ``config.*`` are all settings in which any two of the runs differ, ``<metric>_low`` and
    ``<metric>_high`` the 95 % interval, ``<metric>_sd`` the standard deviation over seeds, ``<metric>_paper`` the
    published result for the method, ``<metric>_faces`` the number of faces, ``<metric>_unit`` the unit. Names are
    unchanged except for bytes that are not UTF-8.
    """
    keys = differing(runs)
    entries = list(dict.fromkeys(entry for table in tables for entry in table.protocol))
    metrics = list(dict.fromkeys(metric for table in tables for metric in table.metrics))
    costs = [name for name in COSTS if any(not math.isnan(run.costs(name)) for run in runs)]
    order: list[tuple[str, Table | None, Row]] = [
        (str(number), table, row)
        for number, table in enumerate(tables, start=1)
        for row in lines_of(table, with_single_runs=True)
    ]
    order += [("", None, row_of([run])) for run in sorted(runs, key=natural_order) if not run.protocol]
    rows = []
    for number, table, row in order:
        first, is_single = row.runs[0], len(row.runs) == 1
        columns = {
            "table": number,
            "run": row.name,
            "runs": str(len(row.runs)),
            "folder": first.folder if is_single else "",
            "state": first.state if is_single else MEAN,
            "reason": notes_of(row) if not is_single else first.reason,
            "typed": " ".join(first.typed) if is_single else "",
            **{f"config.{label(key)}": row_setting(row, key) for key in keys},
            **{f"protocol.{entry}": _plain(first.protocol.get(entry)) for entry in entries},
        }
        for metric in metrics:
            columns |= _columns(row, metric, table)
        rows.append(columns | {name: _plain(cost_of(row, name)) for name in costs})
    names = list(dict.fromkeys(name for row in rows for name in row))
    written = [name for name in names if not name.endswith(("_low", "_sd", "_high", "_paper")) or _any(rows, name)]
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, written, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _any(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Return whether any row has a value in a column."""
    return any(row.get(name) for row in rows)


def _columns(row: Row, metric: str, table: Table | None) -> dict[str, str]:
    """Return the columns of a metric: value, interval, deviation, published result, faces, unit."""
    record, is_single = row.metrics.get(metric), len(row.runs) == 1
    return {
        metric: _plain(record and record.value),
        f"{metric}_low": _plain(record.low if record and is_single else None),
        f"{metric}_high": _plain(record.high if record and is_single else None),
        f"{metric}_sd": _plain(row.deviations.get(metric)),
        f"{metric}_paper": _plain(paper_value(table, row, metric) if table else None),
        f"{metric}_faces": _plain(record and record.faces),
        f"{metric}_unit": _plain(record and record.unit),
    }


def _plain(value: Any) -> str:
    """Format a value without rounding; None and NaN are empty."""
    return "" if value is None or value != value else str(value)
