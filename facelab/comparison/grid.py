"""Tables as cells and words, as they are printed and written."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from facelab.comparison.group import (
    DEGREES,
    WHOLE,
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

SAID = ("dataset", "split", "faces", "layout", "box", "box_scale", "flip_test", "pose")
"""Entries of a protocol that its description has words for."""
COSTS = {"params": ("params M", 1e-6, 2), "macs": ("MACs M", 1e-6, 1), LATENCY: ("latency ms", 1.0, 1)}
COSTS |= {
    f"{POSE}{name}": (f"with pose: {heading}", factor, decimals) for name, (heading, factor, decimals) in COSTS.items()
}
"""What a method costs for one face: name in the files to heading, factor and decimals of the column."""


LONGEST = 1000
"""Characters of a name or a value that are shown."""


class Cell(NamedTuple):
    """A place in the printed form of a table."""

    text: str
    below: str = ""
    """The 95 % interval or the deviation of a number, or the faces behind a column."""
    bold: bool = False
    number: bool = False


def one_line(text: str) -> str:
    """Write a name or a value, whatever stands in it, so that it is seen and takes one line that is not too long."""
    return _unbroken(text if len(text) <= LONGEST else f"{text[:LONGEST]} ...")


def _unbroken(text: str) -> str:
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def describe(protocol: dict[str, Any]) -> str:
    """Put a protocol into words."""
    said = {key: one_line(value_text(protocol[key])) if key in protocol else "?" for key in SAID}
    words = (
        "{dataset} {split}, {faces} faces, {layout}, box: {box} x {box_scale}, flip test: {flip_test}, pose: {pose}"
    ).format(**said)
    rest = [one_line(f"{key}: {value_text(value)}") for key, value in protocol.items() if key not in SAID]
    return ", ".join([words, *rest])


def headings(tables: Sequence[Table]) -> list[str]:
    """Say what stands over each table: its protocol, and its number if it is not the only one."""
    numbers = [f"Table {number}: " for number in range(1, len(tables) + 1)] if len(tables) > 1 else [""] * len(tables)
    return [number + describe(table.protocol) for number, table in zip(numbers, tables, strict=True)]


def disagreement(tables: Sequence[Table]) -> str:
    """Tell the entries in which protocols differ; empty if there is but one protocol."""
    parts = ", ".join(map(one_line, protocol_differences([table.protocol for table in tables])))
    return f"Numbers of different tables cannot be compared; their protocols differ in {parts}." * bool(parts)


def label(key: str) -> str:
    """Say what stands over a column of settings: ``model`` for ``model._target_``."""
    return key.removesuffix("._target_")


def brief_setting(row: Row, key: str) -> str:
    """Join the values of the runs of a row to be read: numbers to four digits, long texts cut."""
    values = [run.config.get(key) for run in row.runs]
    if all(isinstance(value, float) for value in values):
        return ", ".join(dict.fromkeys(f"{value:.4g}" for value in values))
    return _short(row_setting(row, key), 60)


def lines_of(table: Table, each: bool) -> list[Row]:
    """List the rows of a table; if asked, every row over seeds is followed by its runs."""
    return [
        line
        for row in table.rows
        for line in [row, *([row_of([run]) for run in row.runs] if each and len(row.runs) > 1 else [])]
    ]


def grid(table: Table, *, each: bool = False) -> list[list[Cell]]:
    """Lay out a table: the headings, then a row for each run, or for each set of runs that differ in the seed.

    Errors are in percent, those of angles in degrees.

    Args:
        table: to show.
        each: give a row to the single runs of such a set as well.
    """
    noted = any(run.reason for run in table.runs)
    whole = [run for run in table.runs if run.ranked] or table.runs
    costs = [name for name in COSTS if any(not math.isnan(run.costs(name)) for run in table.runs)]
    words = typed_apart(table)
    heading = [Cell("run"), *([Cell("typed")] if words else []), *(Cell(label(key)) for key in table.settings)]
    with_paper = []
    for metric in table.metrics:
        faces = sorted({run.faces(metric) for run in whole if metric in run.metrics}) or [0]
        span = f"{faces[0]} faces" if len(faces) == 1 else f"{faces[0]}..{faces[-1]} faces"
        heading.append(Cell(metric, "" if metric in WHOLE else span, number=True))
        if any(not math.isnan(paper_value(table, row, metric)) for row in table.rows):
            with_paper.append(metric)
            heading.append(Cell("paper", metric, number=True))
    heading += [Cell(COSTS[name][0], number=True) for name in costs]
    cells = [heading + [Cell("note")] * noted]
    winners = {metric: best(table.rows, metric) for metric in table.metrics}
    for row in lines_of(table, each):
        line = [Cell(row.name), *([Cell(words[row.runs[0].folder] or "-")] if words else [])]
        line += [Cell(brief_setting(row, key) or "-") for key in table.settings]
        for metric in table.metrics:
            line.append(_number_cell(row, metric, winners[metric] is row))
            if metric in with_paper:
                line.append(Cell(_known(100 * paper_value(table, row, metric), 2), number=True))
        line += [Cell(_known(cost_of(row, name) * COSTS[name][1], COSTS[name][2]), number=True) for name in costs]
        cells.append(line + [Cell(_short(notes_of(row), 300))] * noted)
    return _seen(cells)


def _seen(cells: list[list[Cell]]) -> list[list[Cell]]:
    return [[cell._replace(text=one_line(cell.text), below=one_line(cell.below)) for cell in line] for line in cells]


def _number_cell(row: Row, metric: str, bold: bool) -> Cell:
    value = row.metrics.get(metric, math.nan)
    if metric in WHOLE:
        return Cell(_known(value, 0), number=True)
    below, ends = "", row.intervals.get(metric, (math.nan, math.nan))
    if len(row.runs) > 1 and not math.isnan(deviation := row.deviations.get(metric, math.nan)):
        below = f"± {_shown(metric, deviation)}"
    elif len(row.runs) == 1 and not any(map(math.isnan, ends)):
        below = "..".join(_shown(metric, end) for end in ends)
    return Cell("-" if math.isnan(value) else _shown(metric, value), below, bold, number=True)


def _known(value: float, decimals: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{decimals}f}"


def _shown(metric: str, value: float) -> str:
    """Format a number as it is read: degrees for angles, percent for all others."""
    return f"{value if metric.startswith(DEGREES) else 100 * value:.2f}"


def notes_of(row: Row) -> str:
    """Join what is to be said of the runs of a row: why one has not ended, or left faces out."""
    notes = [run.reason if run.state == "finished" else _state(run) for run in row.runs]
    return "; ".join(dict.fromkeys(filter(None, notes)))


def _state(run: Run) -> str:
    return ": ".join(filter(None, (run.state, run.reason)))


def _short(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder=" ...")


def grid_without_numbers(runs: Sequence[Run]) -> list[list[Cell]]:
    """List the runs that stand in no table, what was chosen for them, and why; empty if there are none.

    What was chosen are a sweep's overrides, as typed, or else the settings in which any of the runs differ.
    """
    missing = [run for run in runs if not run.protocol]
    keys = differing(runs)
    keys = [key for key in keys if key not in recipe_keys(runs, keys)]
    rows = []
    for run in sorted(missing, key=natural_order):
        values = [f"{label(key)}={value}" for key in keys if (value := setting(run, key))]
        chosen = _short(" ".join(run.typed or values), 200)
        rows.append([run.name, chosen or "-", _short(run.state, 60), _short(run.reason, 300)])
    heading = ["run", "settings", "state", "why it has no numbers"]
    return _seen([[Cell(text) for text in row] for row in [heading, *rows]]) if rows else []


def remarks(table: Table) -> list[str]:
    """Say what stands below a table."""
    lines = [
        "In percent, with 95 % intervals over faces. Bold: the best, where its interval meets no other of its column."
    ]
    if any(row.deviations for row in table.rows):
        lines = [
            "In percent: 95 % intervals over faces; of runs that differ only in the seed, mean ± sample standard "
            "deviation over the seeds. Bold: the best, where its interval (of means: the mean of the runs' intervals) "
            "meets no other of its column and, beside means, its lead exceeds the pooled standard deviation, each "
            "where known."
        ]
    if angles := [metric for metric in table.metrics if metric.startswith(DEGREES)]:
        lines.append(f"{', '.join(angles)}: degrees, not percent.")
    if sources := sorted({entry.source for entry in _papers(table)}):
        lines.append(
            f"paper: what is published for the method and backbone on these faces; its crop, training set and frame of "
            f"measurement may differ. From {'; '.join(sources)}."
        )
    if len(machines := {*machines_of(table, LATENCY), *machines_of(table, POSE + LATENCY)}) > 1:
        lines.append(f"Latencies of different machines cannot be compared: {'; '.join(sorted(machines))}.")
    if table.recipe:
        lines.append(f"Also differ, with one value for each model: {', '.join(map(label, table.recipe))}.")
    if not all(run.ranked for run in table.runs):
        lines.append("Last, without a place: runs that have not ended.")
    return list(map(_unbroken, lines))


def _papers(table: Table) -> list[Published]:
    shown = {(row.name, metric): paper_value(table, row, metric) for row in table.rows for metric in table.metrics}
    values = {(metric, value) for (_, metric), value in shown.items()}
    return [entry for entry in table.published if (entry.metric, entry.value) in values]
