"""Text of the comparison tables: cells, headings and remarks for the terminal and the files."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from facelab.comparison.group import (
    Row,
    Table,
    best,
    cost_of,
    differing,
    machines_of,
    natural_order,
    paper_value,
    protocol_differences,
    recipe_keys,
    row_of,
    row_setting,
    typed_apart,
)
from facelab.comparison.published import Published
from facelab.comparison.read import LATENCY, POSE, Run, setting, value_text
from facelab.errors import visible

DESCRIBED = {
    "photos": "{} photos",
    "faces": "{} faces",
    "layout": "{}",
    "scale": "scale: {}",
    "box": "box: {}",
    "flip_test": "flip test: {}",
    "pose": "pose: {}",
}
"""Text of :func:`describe` for an entry of a protocol; a detector and a landmark method have different ones."""
COSTS = {"params": ("params M", 1e-6, 2), "macs": ("MACs M", 1e-6, 1), LATENCY: ("latency ms", 1.0, 1)}
COSTS |= {
    f"{POSE}{name}": (f"with pose: {heading}", factor, decimals) for name, (heading, factor, decimals) in COSTS.items()
}
"""Heading, factor and decimals of the column of a cost of one face, by its name in the files."""


LONGEST = 1000
"""Maximum number of characters shown of a name or a value."""


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    below: str = ""
    """Second line: the 95 % interval or standard deviation of a number, or the number of faces of a column."""
    bold: bool = False
    number: bool = False
    """Whether the column contains numbers, which are aligned to the right."""


def one_line(text: str) -> str:
    """Shorten a name or a value and escape its control characters, so that it is visible in one line."""
    return _unbroken(text if len(text) <= LONGEST else f"{text[:LONGEST]} ...")


def _unbroken(text: str) -> str:
    """Escape control characters, so that text is visible in one line."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def describe(protocol: dict[str, Any]) -> str:
    """Describe a protocol in one line."""
    values = {key: one_line(value_text(value)) for key, value in protocol.items()}
    name = " ".join(values.pop(key, "?") for key in ("dataset", "split"))
    described = [text.format(values.pop(key)) for key, text in DESCRIBED.items() if key in values]
    return ", ".join([name, *described, *(one_line(f"{key}: {value}") for key, value in values.items())])


def headings(tables: Sequence[Table]) -> list[str]:
    """Return the heading of each table: its protocol, preceded by its number if there are several tables."""
    numbers = [f"Table {number}: " for number in range(1, len(tables) + 1)] if len(tables) > 1 else [""] * len(tables)
    return [number + describe(table.protocol) for number, table in zip(numbers, tables, strict=True)]


def disagreement(tables: Sequence[Table]) -> str:
    """Return a warning with the entries in which the protocols differ; empty if all are equal."""
    parts = ", ".join(map(one_line, protocol_differences([table.protocol for table in tables])))
    return f"Numbers of different tables cannot be compared; their protocols differ in {parts}." * bool(parts)


def label(key: str) -> str:
    """Return the heading of a column of settings: ``model`` for ``model._target_``."""
    return key.removesuffix("._target_")


def brief_setting(row: Row, key: str) -> str:
    """Join the values of the runs of a row, with numbers rounded to four digits and long texts shortened."""
    values = [run.config.get(key) for run in row.runs]
    if all(isinstance(value, float) for value in values):
        return ", ".join(dict.fromkeys(f"{value:.4g}" for value in values))
    return _short(row_setting(row, key), 60)


def lines_of(table: Table, with_single_runs: bool) -> list[Row]:
    """List the rows of a table; with ``with_single_runs`` the runs of a row over seeds follow it."""
    return [
        line
        for row in table.rows
        for line in [row, *([row_of([run]) for run in row.runs] if with_single_runs and len(row.runs) > 1 else [])]
    ]


def build_cells(table: Table, *, with_single_runs: bool = False) -> list[list[Cell]]:
    """Build the cells of a table: the headings, then one row per run or per set of runs that differ only in the seed.

    Fractions are in percent, all other metrics in their own unit.

    Args:
        table: table to show.
        with_single_runs: whether the runs of such a set have rows too.
    """
    has_notes = any(run.reason for run in table.runs)
    ranked = [run for run in table.runs if run.ranked] or table.runs
    costs = [name for name in COSTS if any(not math.isnan(run.costs(name)) for run in table.runs)]
    overrides = typed_apart(table)
    heading = [Cell("run"), *([Cell("typed")] if overrides else []), *(Cell(label(key)) for key in table.settings)]
    with_paper = []
    for metric in table.metrics:
        faces = sorted({run.metrics[metric].faces for run in ranked if metric in run.metrics}) or [0]
        span = f"{faces[0]} faces" if len(faces) == 1 else f"{faces[0]}..{faces[-1]} faces"
        heading.append(Cell(metric, span, number=True))
        if any(not math.isnan(paper_value(table, row, metric)) for row in table.rows):
            with_paper.append(metric)
            heading.append(Cell("paper", metric, number=True))
    heading += [Cell(COSTS[name][0], number=True) for name in costs]
    cells = [heading + [Cell("note")] * has_notes]
    winners = {metric: best(table.rows, metric) for metric in table.metrics}
    for row in lines_of(table, with_single_runs):
        line = [Cell(row.name), *([Cell(overrides[row.runs[0].folder] or "-")] if overrides else [])]
        line += [Cell(brief_setting(row, key) or "-") for key in table.settings]
        for metric in table.metrics:
            line.append(number_cell(row, metric, bold=winners[metric] is row))
            if metric in with_paper:
                line.append(_paper_cell(table, row, metric))
        line += [Cell(rounded(cost_of(row, name) * COSTS[name][1], COSTS[name][2]), number=True) for name in costs]
        cells.append(line + [Cell(_short(notes_of(row), 300))] * has_notes)
    return visible_cells(cells)


def visible_cells(cells: list[list[Cell]]) -> list[list[Cell]]:
    """Apply :func:`one_line` to all cells."""
    return [[cell._replace(text=one_line(cell.text), below=one_line(cell.below)) for cell in line] for line in cells]


def number_cell(row: Row, metric: str, *, bold: bool = False) -> Cell:
    """Format a metric of a row, with its deviation or interval below."""
    if not (record := row.metrics.get(metric)):
        return Cell("-", number=True)
    below, ends = "", (record.low, record.high)
    if len(row.runs) > 1 and not math.isnan(deviation := row.deviations.get(metric, math.nan)):
        below = f"± {record.text(deviation)}"
    elif len(row.runs) == 1 and not any(map(math.isnan, ends)):
        below = "..".join(map(record.text, ends))
    return Cell(record.text(record.value), below, bold, number=True)


def _paper_cell(table: Table, row: Row, metric: str) -> Cell:
    """Format the published result for a row."""
    record = row.metrics.get(metric)
    return Cell(record.text(paper_value(table, row, metric)) if record else "-", number=True)


def rounded(value: float, decimals: int) -> str:
    """Format a number with so many decimals; NaN is a dash."""
    return "-" if math.isnan(value) else f"{value:.{decimals}f}"


def notes_of(row: Row) -> str:
    """Join the notes on the runs of a row: why a run has not ended or skipped faces."""
    notes = [run.reason if run.state == "finished" else _state(run) for run in row.runs]
    return "; ".join(dict.fromkeys(filter(None, notes)))


def _state(run: Run) -> str:
    """Join the state of a run and its reason."""
    return ": ".join(filter(None, (run.state, run.reason)))


def _short(text: str, width: int) -> str:
    """Shorten text at a space."""
    return textwrap.shorten(text, width, placeholder=" ...")


def grid_without_numbers(runs: Sequence[Run]) -> list[list[Cell]]:
    """Build the cells of the list of runs without metrics, with their settings and reasons; empty if there are none.

    The settings are the overrides of a job of a sweep, or otherwise the settings in which any of the runs differ.
    """
    missing = [run for run in runs if not run.protocol]
    keys = differing(runs)
    keys = [key for key in keys if key not in recipe_keys(runs, keys)]
    rows = []
    for run in sorted(missing, key=natural_order):
        values = [f"{label(key)}={value}" for key in keys if (value := setting(run, key))]
        settings = _short(" ".join(run.typed or values), 200)
        rows.append([run.name, settings or "-", _short(run.state, 60), _short(run.reason, 300)])
    heading = ["run", "settings", "state", "reason for missing metrics"]
    return visible_cells([[Cell(text) for text in row] for row in [heading, *rows]]) if rows else []


def remarks(table: Table) -> list[str]:
    """Return the remarks below a table."""
    lines = [
        f"In percent, with 95 % intervals over {table.noun}. Bold: the best value, if its interval overlaps no other "
        "in its column."
    ]
    if any(row.deviations for row in table.rows):
        lines = [
            f"In percent, with 95 % intervals over {table.noun}; for runs that differ only in the seed, mean ± sample "
            "standard deviation over the seeds. Bold: the best value, if its interval (for a mean, the mean of the "
            "runs' intervals) overlaps no other in its column and, if one of two values is a mean, their difference "
            "exceeds the pooled standard deviation. Unknown intervals and deviations are ignored."
        ]
    by_unit: dict[str, list[str]] = {}
    for metric in table.metrics:
        for unit in {run.metrics[metric].unit for run in table.runs if metric in run.metrics} - {"fraction"}:
            by_unit.setdefault(unit, []).append(metric)
    lines += [f"{', '.join(metrics)}: {unit}, not percent." for unit, metrics in by_unit.items()]
    if sources := sorted({entry.source for entry in _shown_publications(table)}):
        lines.append(
            "paper: the published result for the method and backbone on these faces, in the frame of the metric to its "
            f"left; its crop and training set may differ. From {'; '.join(sources)}."
        )
    if len(machines := {*machines_of(table, LATENCY), *machines_of(table, POSE + LATENCY)}) > 1:
        lines.append(f"Latencies of different machines cannot be compared: {'; '.join(sorted(machines))}.")
    if table.recipe:
        lines.append(f"Settings that also differ, with one value per model: {', '.join(map(label, table.recipe))}.")
    if not all(run.ranked for run in table.runs):
        lines.append("Runs that have not ended are last and not ranked.")
    return list(map(_unbroken, lines))


def _shown_publications(table: Table) -> list[Published]:
    """Return the published results that appear in the column paper."""
    by_row = {(row.name, metric): paper_value(table, row, metric) for row in table.rows for metric in table.metrics}
    values = {(metric, value) for (_, metric), value in by_row.items()}
    return [entry for entry in table.published if (entry.metric, entry.value) in values]
