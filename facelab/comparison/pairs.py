"""Comparison of runs face by face."""

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from facelab.comparison.grid import Cell, rounded, visible_cells
from facelab.comparison.group import MAIN, MAIN_OF_DETECTORS
from facelab.comparison.read import Run
from facelab.errors import RunError
from facelab.faces.geometry import Array
from facelab.files import resolve_links
from facelab.metrics import detection
from facelab.metrics.detection_files import read_detection_table
from facelab.metrics.face_table import ERRORS, NORMALISERS, read_faces
from facelab.metrics.landmarks import Difference, common_faces, means_over_faces, paired_bootstrap, summarise
from facelab.metrics.record import SCALES, Metric
from facelab.run_folder import RunFolder

RESAMPLES, SEED = 1000, 0
"""Number of resamples of the paired bootstrap, and the seed of its random numbers."""
SAME_SIZE = 1e-3
"""Maximum relative difference of a face's true box between two runs: it allows rounding, but no other points."""


PAIR_REMARK = (
    "Differences of percentages are in percentage points. p: twice the share of resamples in which the difference is "
    "zero or has the opposite sign. Better: the run with the better value, if the interval excludes zero before and "
    "after rounding."
)
"""Explanation of the columns of :func:`pair_cells`."""


class Faces(NamedTuple):
    """The tested faces of a run."""

    names: list[tuple[str, int]]  # photo, and index of the face in it
    size: Array  # (F,) size of the true box in pixels of the photo
    errors: dict[str, Array]  # column, such as nme_box, to (F,) fractions; NaN where not defined


class Pair(NamedTuple):
    """The differences of two runs on their common faces."""

    common: int  # number of common faces
    faces: tuple[int, int]  # number of faces of each run
    differences: dict[str, Difference]  # metric to first minus second run
    resampled: str = "faces"  # what a resample draws


def read_errors(run: Run) -> Faces:
    """Read ``faces.csv`` of a run.

    Raises:
        RunError: the run has no such file, or the file is broken.
    """
    file = RunFolder(run.folder).faces
    if not file.exists():
        raise RunError(f"{run.name} has no {file.name} ({file})")
    try:
        columns = read_faces(file, {"photo", "box", *ERRORS})
    except ValueError as error:
        raise RunError(str(error)) from error
    # Earlier versions wrote no errors in pixels of the crop.
    if missing := {"photo", "box", *(f"nme_{normaliser}" for normaliser in NORMALISERS)} - columns.keys():
        raise RunError(f"{file}: has no column {', '.join(sorted(missing))}")
    faces_of_photo: dict[str, int] = {}
    names = []
    for photo in columns["photo"].tolist():
        names.append((photo, faces_of_photo.get(photo, 0)))
        faces_of_photo[photo] = faces_of_photo.get(photo, 0) + 1
    return Faces(names, columns["box"], {name: columns[name] for name in ERRORS if name in columns})


def shared(a: Faces, b: Faces) -> tuple[Array, Array]:
    """Find the common faces of two tables: the same face of the same photo, with true boxes of the same size.

    The row of a face in its split does not identify it, since rows shift if a run skips a photo.

    Returns:
        ``(C,)`` rows in a and ``(C,)`` rows in b.
    """
    if a.names == b.names:
        rows_a = rows_b = np.arange(len(a.names))
    else:
        number = {name: index for index, name in enumerate(a.names)}
        ids_b = np.array([number.get(name, len(number) + index) for index, name in enumerate(b.names)], np.int64)
        rows_a, rows_b = common_faces(np.arange(len(a.names)), ids_b)
    same = np.isclose(a.size[rows_a], b.size[rows_b], rtol=SAME_SIZE, equal_nan=True)
    return rows_a[same], rows_b[same]


def compare_faces(runs: Sequence[Faces], other: Faces, metrics: Sequence[str]) -> list[Pair]:
    """Compare runs with another run on the common faces of each, with 95 % intervals from a paired bootstrap.

    Args:
        runs: faces of the runs.
        other: faces of the other run.
        metrics: names of metrics; those that are not means over the errors in ``faces.csv`` are left out, see
            :func:`facelab.metrics.landmarks.means_over_faces`.
    """
    aligned = {column: np.full((len(runs), len(other.names)), np.nan) for column in other.errors}
    common = []
    for place, faces in enumerate(runs):
        rows_other, rows = shared(other, faces)
        common.append(len(rows))
        for column in other.errors.keys() & faces.errors:
            aligned[column][place, rows_other] = faces.errors[column][rows]
    ours, theirs = means_over_faces(aligned), means_over_faces(other.errors)
    differences = {
        name: paired_bootstrap(ours[name].e, theirs[name].e, ours[name].statistic, RESAMPLES, SEED)
        for name in metrics
        if name in ours
    }
    return [
        Pair(
            common[place],
            (len(faces.names), len(other.names)),
            {name: of_runs[place] for name, of_runs in differences.items() if of_runs[place].faces},
        )
        for place, faces in enumerate(runs)
    ]


def compare_pair(a: Run, b: Run, metrics: Sequence[str]) -> Pair:
    """Compare two runs, on their common faces, see :func:`compare_faces`, or on the photos of two detectors.

    Raises:
        RunError: a run has no faces.csv or a broken one, or the runs have no common face or metric; of detectors see
            :func:`compare_detections`.
    """
    metrics = [name for name in metrics if name in b.metrics]  # whose records have the units
    if all(RunFolder(run.folder).detections.is_file() for run in (a, b)):
        return compare_detections(a, b, metrics)
    faces_a, faces_b = read_errors(a), read_errors(b)
    pair = compare_faces([faces_a], faces_b, metrics)[0]
    if not pair.common:
        raise RunError(f"{a.name} and {b.name} have no common face among {len(faces_a.names)} and {len(faces_b.names)}")
    if not pair.differences:
        raise RunError(f"{a.name} and {b.name} have no metric in common; {b.name} has {', '.join(b.metrics) or 'none'}")
    return pair


def compare_detections(a: Run, b: Run, metrics: Sequence[str]) -> Pair:
    """Compare two detectors on the photos that both have searched; each resample draws the same photos for both.

    Raises:
        RunError: a ``detections.npz`` is broken, or the runs were tested on other photos or faces.
    """
    definitions, tables = [], []
    for run in (a, b):
        try:
            table, names = read_detection_table(RunFolder(run.folder).detections)
        except (OSError, ValueError) as error:
            raise RunError(str(error)) from error
        definitions.append(detection.definitions(table, wider_rounded="wider" in run.protocol))
        tables.append((names, table.skipped, table.true_boxes, table.ignore))
    if not all(np.array_equal(*columns, equal_nan=columns[0].dtype.kind == "f") for columns in _columns(*tables)):
        raise RunError(
            f"{a.name} and {b.name} were not tested on the same photos and faces; evaluate.py measures a run on others"
        )
    differences = {}
    for name in metrics:
        ours, theirs = (each.get(name) for each in definitions)
        if ours is None or theirs is None or ours.resampled is None or theirs.resampled is None:
            continue
        weights = detection.photo_weights(ours.photos, RESAMPLES, SEED)
        drawn = ours.resampled(weights) - theirs.resampled(weights)
        drawn = drawn[np.isfinite(drawn)]  # a resample may lack the few faces of a part
        if len(drawn):
            differences[name] = summarise(ours.value() - theirs.value(), drawn, ours.faces, math.nan)
    photos = len(tables[0][0])
    return Pair(photos, (photos, photos), differences, "photos")


def _columns(a: Sequence[Any], b: Sequence[Any]) -> list[tuple[Array, Array]]:
    """Return the same column of two tables, as arrays."""
    return [(np.asarray(one), np.asarray(other)) for one, other in zip(a, b, strict=True)]


def paired_metrics(columns: Sequence[str]) -> list[str]:
    """List the metrics of a pair of runs: those shown by default, then further columns of a table."""
    return list(dict.fromkeys([*MAIN, *MAIN_OF_DETECTORS, *columns]))


def pair_cells(pair: Pair, records: Mapping[str, Metric]) -> list[list[Cell]]:
    """Build the cells of the comparison of two runs, A and B: the headings, then one row per metric.

    Args:
        pair: the differences.
        records: records of these metrics, which contain their units and directions.
    """
    heading = ["metric", "A - B", "95 % interval", "unit", "p", "faces", "A's error smaller", "better"]
    cells = [[Cell(text, number=0 < column < len(heading) - 1) for column, text in enumerate(heading)]]
    for name, difference in pair.differences.items():
        value, low, high = (records[name].text(number, plus=True) for number in difference[:3])
        texts = [
            *(value, f"{low}..{high}", SCALES[records[name].unit].sign, rounded(difference.probability, 3)),
            *(str(difference.faces), "-" if math.isnan(difference.smaller) else f"{100 * difference.smaller:.0f} %"),
        ]
        cells.append(
            [Cell(name), *(Cell(text, number=True) for text in texts), Cell(_better(difference, records[name]))]
        )
    return visible_cells(cells)


def _better(difference: Difference, record: Metric) -> str:
    """Return which run of a pair is better, A or B; a dash if neither direction is or the interval contains zero.

    The interval must exclude zero before and after rounding: a difference that is shown as zero has no better run.
    """
    nearest = difference.low if difference.low > 0 else difference.high
    excludes_zero = difference.low > 0 or difference.high < 0
    if record.better == "none" or not excludes_zero or float(record.text(nearest)) == 0:
        return "-"
    return "A" if (difference.low > 0) == (record.better == "higher") else "B"


def pair_line(pair: Pair) -> str:
    """Describe the faces or photos of a comparison of two runs."""
    return "Paired bootstrap, {} resamples of the {} common {} (of {} and {}).".format(
        RESAMPLES, pair.common, pair.resampled, *pair.faces
    )


def choose(runs: Sequence[Run], text: str) -> Run:
    """Choose a run by its name, its folder, or a part of its name that no other run has.

    Raises:
        RunError: no run matches, or several do.
    """
    exact = [run for run in runs if run.name == text or resolve_links(run.folder) == resolve_links(Path(text))]
    matches = exact or [run for run in runs if text in run.name]
    if len(matches) == 1:
        return matches[0]
    names = [run.name for run in matches] or difflib.get_close_matches(
        text, [run.name for run in runs], n=5, cutoff=0.1
    )
    fault = "matches several runs" if matches else "matches no run"
    raise RunError(f"--pair {text}: {fault}; choose from {', '.join(names)}" if names else f"--pair {text}: {fault}")
