"""Numbers and texts of the figures of the page, which ``page.js`` draws."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from facelab.comparison.grid import COSTS, brief_setting, number_cell, one_line, rounded
from facelab.comparison.group import Row, Table, cost_of, machines_of, row_of, typed_apart
from facelab.comparison.pairs import (
    PAIR_REMARK,
    Faces,
    compare_faces,
    pair_cells,
    pair_line,
    paired_metrics,
    read_errors,
)
from facelab.comparison.read import LATENCY, POSE, STAMP, Run
from facelab.errors import RunError
from facelab.faces.geometry import Array
from facelab.faces.layouts import IBUG68
from facelab.files import read_table
from facelab.metrics import detection, detection_curves, wider
from facelab.metrics.detection_curves import Curve
from facelab.metrics.landmarks import THRESHOLDS, definitions, example
from facelab.metrics.record import SCALES, Unit
from facelab.run_folder import RunFolder

LOSS, MONITOR = "train/loss", "monitor.name"
"""Name of the training loss in ``metrics.csv``, and key of the name of the monitored metric in the configuration."""
CURVE_POINTS = 120
"""Maximum number of points of a curve; a longer curve is averaged over sections of equal length."""
SHARES = np.arange(101)
"""Shares of faces in percent at which a page contains a cumulative distribution; one is 1.5 to 2.5 pixels high."""
DISTRIBUTIONS = {
    "nme_box": ("box", "normalised by the size of the true box"),
    "nme_ioc": ("eye corners", "normalised by the distance of the outer eye corners"),
}
"""Short and long name of the normaliser, by the error whose distribution and dependence on costs is drawn."""
DETECTION_FACES = {"ap50": "all", **{f"wider_{name}": name for name in wider.LISTS}}
"""Short name of the faces to find, by the AP whose curves are drawn."""
RECALLS = tuple(f"recall_fppi_{name}" for name in detection.FALSE_PER_PHOTO)
"""Metrics on the curve of all faces over the false detections per photo."""
FAILURE = THRESHOLDS["08"]
"""Error ``nme_ioc`` above which a face is marked as a failure."""
MOST_PAIRS = 1000
"""Maximum number of pairs of runs per table, to keep the page small; a pair has 0.5 kB. In larger tables only the best
runs are compared with all others."""
LAST_STEP = 2**53
"""Upper bound of steps and epochs of a curve, below which JSON numbers are exact."""
BREAKDOWNS = {
    "yaw": ("Head pose", "absolute yaw"),
    "tag": ("Subset", "the dataset's tags"),
    "region": ("Region", "part of the face"),
    "size": ("Face size", "true box in the photo"),
    "stage": ("Stage", "stages of the method"),
}
"""Title of a figure, and the property that defines its parts, by breakdown; another breakdown's title is its name."""
PART_NAMES = {
    "yaw": {"0_30": "0–30°", "30_60": "30–60°", "60_90": "over 60°"},
    "size": {
        "0_16": "under 16 px",
        "16_32": "16–32 px",
        "0_32": "under 32 px",
        "32_64": "32–64 px",
        "64_128": "64–128 px",
        "128_up": "128 px and more",
    },
}
"""Label of a part in a figure by breakdown and part; another part's label is its name."""


class Curves(NamedTuple):
    """The metrics that a run logged during training."""

    steps_per_epoch: float
    values: dict[str, tuple[list[int], list[float]]]  # optimizer steps and values by metric


# Numbers


def read_curves(file: Path, names: Iterable[str]) -> Curves:
    """Read columns of ``metrics.csv``.

    A last line without a line end is skipped, as a run may be writing it. If a step was logged twice, as after a
    resume, the later value is used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line or a number is malformed; the message contains the file and the line.
    """
    rows = read_table(file, torn=True)
    heading = next(rows, [])
    if not {"epoch", "step"} <= {*heading}:
        raise ValueError(f"{file}:1: has no columns epoch and step")
    columns = {name: heading.index(name) for name in names if name in heading}
    epoch_column, step_column = heading.index("epoch"), heading.index("step")
    values: dict[str, dict[int, float]] = {name: {} for name in columns}
    rate = 0.0
    for number, row in enumerate(rows, start=2):
        try:
            if row[epoch_column] and row[step_column]:
                rate = max(rate, (_count(row[step_column]) + 1) / (_count(row[epoch_column]) + 1))
            for name, column in columns.items():
                if row[column]:
                    values[name][_count(row[step_column])] = float(row[column])
        except (ValueError, IndexError) as error:
            raise ValueError(f"{file}:{number}: {error}") from error
    return Curves(rate or 1.0, {name: (sorted(by), [by[step] for step in sorted(by)]) for name, by in values.items()})


def _count(text: str) -> int:
    """Parse a step or an epoch."""
    if not 0 <= (number := int(text)) < LAST_STEP:
        raise ValueError(f"{text[:40]} is not a valid step or epoch")
    return number


def thin(steps: Sequence[int], values: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """Reduce a curve to at most ``most`` points by averaging over sections of equal length."""
    size = max(1, math.ceil(len(steps) / most))
    starts = range(0, len(steps), size)

    def means(numbers: Sequence[float]) -> list[float]:
        """Average over sections."""
        return [sum(part) / len(part) for part in (numbers[start : start + size] for start in starts)]

    return means(steps), means(values)


def distribution(e: Array) -> list[float]:
    """Compute the errors that at least 0, 1, ..., 100 % of the faces do not exceed, see :data:`SHARES`.

    Args:
        e: ``(F,)`` errors; NaN for a face without one.

    Returns:
        101 errors, beginning with the smallest; empty if no face has an error.
    """
    ordered = np.sort(e[~np.isnan(e)])
    ranks = -(-SHARES * len(ordered) // 100)  # rounded up, from 1
    return ordered[np.maximum(ranks - 1, 0)].tolist() if len(ordered) else []


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Find the Pareto front: the points that no other point dominates, the cheapest first.

    Args:
        points: pairs of numbers, lower is better; a point with a NaN or an infinite number is never in the front.

    Returns:
        Indices of the points in the front.
    """
    front: list[int] = []
    finite = [index for index, point in enumerate(points) if all(map(math.isfinite, point))]
    for index in sorted(finite, key=points.__getitem__):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def labels_of(table: Table) -> list[str]:
    """Return short distinct names of the rows for legends.

    They omit the date and time. The jobs of a sweep are named by their different settings or by their overrides.
    """
    typed = typed_apart(table)
    labels = [one_line(_label(row, table, typed.get(row.runs[0].folder, ""))) for row in table.rows]
    counts = Counter(labels)
    return [
        label if counts[label] == 1 else f"{label} · {one_line(row.name)}"
        for label, row in zip(labels, table.rows, strict=True)
    ]


def _label(row: Row, table: Table, typed: str) -> str:
    """Return a short name of a row, see :func:`labels_of`."""
    name = STAMP.sub("", row.name)
    keys = [key for key in table.settings if key != "seed" or len(row.runs) == 1]
    values = {key: text for key in keys if (text := brief_setting(row, key))}
    if "/" not in row.name or not (values or typed):
        return name
    words = (
        [typed]
        if typed
        else [
            text if key.endswith(("name", "_target_")) else f"{key.rpartition('.')[2]} {text}"
            for key, text in list(values.items())[:4]
        ]
    )
    return ", ".join(words) + (f" ({len(row.runs)} seeds)" if len(row.runs) > 1 else "")


# Data for the figures


def _plain(value: float, factor: float = 1) -> float | None:
    """Scale a number to draw and round it to four digits; None for NaN and infinity.

    With the two decimals of a table, a mark in a narrow range would move by pixels.
    """
    return float(f"{factor * value:.4g}") if math.isfinite(value) else None


def _scaled(values: Iterable[float], unit: Unit) -> list[float | None]:
    """Convert numbers to those that figures show."""
    return [_plain(value, SCALES[unit].factor) for value in values]


def _entry(row: Row, metric: str) -> list[Any]:
    """Return the value of a metric, the ends of its error bar, and the text of both as in the table.

    The bar is the mean -/+ standard deviation over seeds, or the 95 % interval of a single run.
    """
    record, cell = row.metrics[metric], number_cell(row, metric)
    value, low, high = record[:3]
    if len(row.runs) > 1:
        deviation = row.deviations.get(metric, math.nan)
        low, high = value - deviation, value + deviation
    text = " ".join(filter(None, (cell.text, SCALES[record.unit].sign, f"({cell.below})" * bool(cell.below))))
    numbers = (value, low, high) if math.isfinite(low) and math.isfinite(high) else (value, math.nan, math.nan)
    return [*_scaled(numbers, record.unit), text]


def _metrics_of_figures(table: Table) -> list[str]:
    """List the metrics that the figures show."""
    metrics = {name: metric for run in table.runs for name, metric in run.metrics.items()}
    whole = (*DISTRIBUTIONS, *DETECTION_FACES, *RECALLS)
    return [name for name, metric in metrics.items() if name in whole or metric.breakdown]


def _groups(table: Table) -> list[dict[str, Any]]:
    """Collect the data of the breakdown figures."""
    groups: dict[tuple[str, str, Unit], dict[str, Any]] = {}
    for name in _metrics_of_figures(table):
        metrics = [run.metrics[name] for run in table.runs if run.ranked and name in run.metrics]
        counts = sorted({metric.faces for metric in metrics} or {0})
        if not counts[-1] or not (breakdown := metrics[0].breakdown):
            continue
        whole, unit, part = metrics[0].whole, metrics[0].unit, metrics[0].part
        title, parted_by = BREAKDOWNS.get(breakdown, (breakdown, ""))
        group = {"title": title, "about": parted_by, "axis": _axis(whole, unit), "items": []}
        span = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
        label = PART_NAMES.get(breakdown, {}).get(part, part.replace("_", " "))
        groups.setdefault((whole, breakdown, unit), group)["items"].append([label, span, name])
    return list(groups.values())


def _axis(name: str, unit: Unit) -> str:
    """Return the label of an axis."""
    return ", ".join(filter(None, (name, SCALES[unit].sign)))


def _costs(table: Table) -> list[dict[str, Any]]:
    """Collect the data of the cost figures: one for each cost, with and without head pose, and for each machine."""
    rows = table.rows
    figures = []
    for prefix, suffix in (("", ""), (POSE, " with pose")):
        macs, latency = f"{prefix}macs", prefix + LATENCY
        values = [cost_of(row, macs) for row in rows]
        figures.append((macs, f"MACs{suffix}", "M", "multiply-adds for one face", "Not measured", values))
        for machine in machines_of(table, latency):
            on_machine = [[run for run in row.runs if run.machine(latency) == machine] for row in rows]
            values = [cost_of(row_of(runs), latency) if runs else math.nan for runs in on_machine]
            about, missing = f"median at batch 1; {machine}", "Not measured on this machine"
            figures.append((latency, f"Latency{suffix}", "ms", about, missing, values))
    return [
        {
            "title": title,
            "about": about,
            "axis": f"{title}, {unit}",
            "missing": missing,
            "values": [_plain(value, COSTS[cost][1]) for value in values],
            "texts": [f"{rounded(value * COSTS[cost][1], COSTS[cost][2])} {unit}" for value in values],
            "fronts": {
                metric: pareto([(x, row.value(metric)) for x, row in zip(values, rows, strict=True)])
                for metric in DISTRIBUTIONS
            },
        }
        for cost, title, unit, about, missing, values in figures
        if any(map(math.isfinite, values))
    ]


def _monitor(run: Run) -> str:
    """Return the name of the metric that a run monitored."""
    return str(run.config.get(MONITOR, "val/nme_box"))


def figures_of_curves(runs: Sequence[Run]) -> dict[str, Any]:
    """Map the metrics of curves to the subtitle, the label of the axis and the factor of their figure.

    Runs that are still training have no records. They log the metrics that every layout has, so any layout will do.
    """
    units = {name: definition.unit for name, definition in definitions(example(IBUG68, tags=())).items()}
    units |= {name: metric.unit for run in runs for name, metric in run.metrics.items()}
    figures = {LOSS: {"about": "of training batches", "axis": "loss", "factor": 1}}
    for monitor in dict.fromkeys(map(_monitor, runs)):
        unit, is_validated = units.get(monitor.partition("/")[2]), monitor.startswith("val/")
        figures[monitor] = {
            "about": "on the validation faces" if is_validated else "of training batches",
            "axis": SCALES[unit].sign if unit else "value" if is_validated else "loss",
            "factor": SCALES[unit].factor if unit else 1,
        }
    return figures


def figures_of_errors() -> list[dict[str, Any]]:
    """Describe the figures of errors by normaliser."""
    scale = SCALES["fraction"]
    failure = {"at": scale.factor * FAILURE, "text": f"failure above {scale.factor * FAILURE:g} {scale.sign}"}
    return [
        {"metric": metric, "short": short, "about": about, "axis": _axis(metric, "fraction")}
        | ({"failure": failure} if metric == "nme_ioc" else {})
        for metric, (short, about) in DISTRIBUTIONS.items()
    ]


def figures_of_detections() -> dict[str, Any]:
    """Describe the curves of detectors: the faces to choose from, and the figures of the lines of :func:`_lines`.

    ``tips`` are the metrics in the tooltips of each figure.
    """
    scale = SCALES["fraction"]
    precision, recall, false = _axis("precision", "fraction"), _axis("recall", "fraction"), "false detections per photo"
    return {
        "faces": [
            {"metric": metric, "short": short, "tips": [[metric], RECALLS if metric == "ap50" else []]}
            for metric, short in DETECTION_FACES.items()
        ],
        "remark": f"A detection finds a face that it overlaps by at least {detection.IOU} (IoU). A curve ends at the "
        "lowest score of the run's detections.",
        "figures": [
            {"title": "Precision", "about": "the best at this recall or a higher one; the AP is the area below"}
            | {"x": recall, "y": precision, "range": [0, scale.factor], "log": False},
            {"title": "Recall", "about": f"against {false}"}
            | {"x": false, "y": recall, "range": detection_curves.FALSE_AXIS[[0, -1]].tolist(), "log": True},
        ],
    }


def _run_data(run: Run, figures: dict[str, Any], steps: dict[tuple[int, ...], int]) -> dict[str, Any]:
    """Collect the name of a run and its curves, or why they cannot be read.

    Args:
        run: the run.
        figures: result of :func:`figures_of_curves`.
        steps: numbers of the steps of all curves by their content; equal ones are embedded once.
    """
    data: dict[str, Any] = {"name": one_line(run.name), "curves": {}, "faults": []}
    try:
        curves = read_curves(RunFolder(run.folder).curves, [LOSS, _monitor(run)])
    except FileNotFoundError:
        return data
    except (OSError, ValueError) as error:
        return data | {"faults": [one_line(str(error))]}
    for name, curve in curves.values.items():
        if curve[0]:
            places, values = thin(*curve, CURVE_POINTS)
            place = steps.setdefault(tuple(map(round, places)), len(steps))
            data["curves"][name] = [place, [_plain(value, figures[name]["factor"]) for value in values]]
    return data | {"rate": curves.steps_per_epoch}


def _read_faces(runs: Sequence[Run]) -> tuple[dict[int, Faces], dict[int, str]]:
    """Read the errors of single faces.

    Returns:
        The faces of each run that has a readable ``faces.csv``, and why the others cannot be read, by index.
    """
    faces: dict[int, Faces] = {}
    faults: dict[int, str] = {}
    names: list[tuple[str, int]] = []
    for place, run in enumerate(runs):
        if RunFolder(run.folder).faces.exists():
            try:
                faces[place] = read_errors(run)
            except (OSError, RunError) as error:
                faults[place] = one_line(str(error))
                continue
            # Runs have the same names, which would take more memory than the errors.
            names = names if faces[place].names == names else faces[place].names
            faces[place] = faces[place]._replace(names=names)
    return faces, faults


def _lines(curve: Curve) -> list[list[list[float | None]]]:
    """Return x and y of the two lines of a detector: precision by recall, and recall by false detections per photo."""
    (found, precision), (false, recall) = curve.precision_line(), curve.recall_line()
    percents = [_scaled(share, "fraction") for share in (found, precision, recall)]
    return [percents[:2], [[*map(_plain, false)], percents[2]]]


def _read_detections(runs: Sequence[Run]) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """Read the curves of detectors.

    Returns:
        The lines of each run that has a readable ``detection_curves.csv``, and why the others cannot be read, by index.
    """
    lines: dict[int, dict[str, Any]] = {}
    faults: dict[int, str] = {}
    for place, run in enumerate(runs):
        try:
            curves = detection_curves.read_curves(RunFolder(run.folder).detection_curves)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            faults[place] = one_line(str(error))
            continue
        lines[place] = {name: _lines(curve) for name, curve in curves.items() if name in DETECTION_FACES}
    return lines, faults


def _pairs(table: Table, faces: dict[int, Faces], named: Collection[Path]) -> dict[str, Any]:
    """Compare all runs with the best ones and the named ones; empty if fewer than two runs have faces.

    Args:
        table: the table.
        faces: faces by index of the run.
        named: folders of runs that are always compared with all others.

    Returns:
        ``of``: entries by index of B and of A, each the index of a line and one row per metric: value, ends of the
        interval, cells.
    """
    if len(faces) < 2:
        return {}
    best = list(faces)[: max(1, MOST_PAIRS // len(faces))]
    others = [*best, *(place for place in faces if table.runs[place].folder in named and place not in best)]
    lines: dict[str, int] = {}
    columns: list[str] = []
    axes: dict[str, str] = {}
    of: dict[int, dict[int, Any]] = {}
    for b in others:
        records = table.runs[b].metrics
        metrics = [name for name in paired_metrics(table.metrics) if name in records]
        pairs = compare_faces(list(faces.values()), faces[b], metrics)
        of[b] = {}
        for a, pair in zip(faces, pairs, strict=True):
            heading, *rows = pair_cells(pair, records)
            axes |= {name: _axis("A - B", records[name].unit) for name in pair.differences}
            columns = [cell.text for cell in heading]
            numbers = [
                _scaled(difference[:3], records[name].unit) if math.isfinite(difference.low) else [None] * 3
                for name, difference in pair.differences.items()
            ]
            entries = [[*three, *(cell.text for cell in row)] for three, row in zip(numbers, rows, strict=True)]
            if a != b:
                of[b][a] = [lines.setdefault(pair_line(pair), len(lines)), entries]
    remark = PAIR_REMARK
    if len(others) < len(faces):
        remark += (
            f" B is one of the best {len(best)} runs or named by --pair: a page has at most {MOST_PAIRS} pairs. "
            "compare.py --pair A B compares any two."
        )
    return {"lines": list(lines), "columns": columns, "metrics": list(axes.items()), "remark": remark, "of": of}


def section_data(table: Table, figures: dict[str, Any], named: Collection[Path] = ()) -> dict[str, Any]:
    """Collect the data of a table's figures for ``page.js``.

    Args:
        table: the table.
        figures: result of :func:`figures_of_curves`.
        named: folders of the runs of ``--pair``.
    """
    index = {id(run): position for position, run in enumerate(table.runs)}
    metrics = _metrics_of_figures(table)
    rows = [
        {
            "label": label,
            "runs": [index[id(run)] for run in row.runs],
            "metrics": {name: _entry(row, name) for name in metrics if name in row.metrics},
        }
        for row, label in zip(table.rows, labels_of(table), strict=True)
    ]
    (faces, faults), (detections, broken) = _read_faces(table.runs), _read_detections(table.runs)
    steps: dict[tuple[int, ...], int] = {}
    runs = [_run_data(run, figures, steps) for run in table.runs]
    for place, fault in [*faults.items(), *broken.items()]:
        runs[place]["faults"].append(fault)
    for place, lines in detections.items():
        runs[place]["detections"] = lines
    for place, of_run in faces.items():
        runs[place]["errors"] = {
            name: _scaled(errors, "fraction") for name in DISTRIBUTIONS if (errors := distribution(of_run.errors[name]))
        }
    return {
        "rows": rows,
        "runs": runs,
        "steps": list(steps),
        "groups": _groups(table),
        "costs": _costs(table),
        "pairs": _pairs(table, faces, named),
    }


def unmeasured_data(runs: Sequence[Run], figures: dict[str, Any]) -> dict[str, Any]:
    """Collect the curves of runs without metrics."""
    steps: dict[tuple[int, ...], int] = {}
    data_of_runs = [(run, _run_data(run, figures, steps)) for run in runs]
    drawn = [(run, data) for run, data in data_of_runs if data["curves"] or data["faults"]]
    return {
        "rows": [
            {"label": one_line(f"{STAMP.sub('', run.name)} ({run.state})"), "runs": [position], "metrics": {}}
            for position, (run, _) in enumerate(drawn)
        ],
        "runs": [data for _, data in drawn],
        "steps": list(steps),
        "groups": [],
        "costs": [],
        "pairs": {},
    }
