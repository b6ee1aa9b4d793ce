"""Comparison of two runs face by face."""

import difflib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facelab.comparison.read import Run
from facelab.errors import RunError
from facelab.faces.geometry import Array
from facelab.files import resolve_links
from facelab.metrics.face_table import read_faces
from facelab.metrics.landmarks import (
    THRESHOLDS,
    Difference,
    Statistic,
    auc,
    common_faces,
    failure_rate,
    nme,
    paired_bootstrap,
)
from facelab.run_folder import RunFolder

RESAMPLES, SEED = 1000, 0
"""Number of resamples of the paired bootstrap, and the seed of its random numbers."""
SAME_SIZE = 1e-3
"""Maximum relative difference of a face's true box between two runs: it allows rounding, but no other points."""


NORMALISERS = {"box": "nme_box", "ioc": "nme_ioc"}
"""Name of the metric, also the column of faces.csv, by normaliser."""


class Faces(NamedTuple):
    """The tested faces of a run."""

    names: list[tuple[str, int]]  # photo, and index of the face in it
    size: Array  # (F,) size of the true box in pixels of the photo
    errors: dict[str, Array]  # normaliser to (F,) fractions; NaN where not defined


class Pair(NamedTuple):
    """The differences of two runs on their common faces."""

    common: int  # number of common faces
    faces: tuple[int, int]  # number of faces of each run
    differences: dict[str, Difference]  # metric to first minus second run


def read_errors(run: Run) -> Faces:
    """Read ``faces.csv`` of a run.

    Raises:
        RunError: the run has no such file, or the file is broken.
    """
    file = RunFolder(run.folder).faces
    if not file.exists():
        raise RunError(f"{run.name} has no {file.name} ({file})")
    try:
        columns = read_faces(file)
    except ValueError as error:
        raise RunError(str(error)) from error
    if missing := {"photo", "box", *NORMALISERS.values()} - columns.keys():
        raise RunError(f"{file}: has no column {', '.join(sorted(missing))}")
    faces_of_photo: dict[str, int] = {}
    names = []
    for photo in columns["photo"].tolist():
        names.append((photo, faces_of_photo.get(photo, 0)))
        faces_of_photo[photo] = faces_of_photo.get(photo, 0) + 1
    return Faces(names, columns["box"], {normaliser: columns[name] for normaliser, name in NORMALISERS.items()})


def shared(a: Faces, b: Faces) -> tuple[Array, Array]:
    """Find the common faces of two tables: the same face of the same photo, with true boxes of the same size.

    The row of a face in its split does not identify it, since rows shift if a run skips a photo.

    Returns:
        ``(C,)`` rows in a and ``(C,)`` rows in b.
    """
    number = {name: index for index, name in enumerate(a.names)}
    ids_b = np.array([number.get(name, len(number) + index) for index, name in enumerate(b.names)], np.int64)
    rows_a, rows_b = common_faces(np.arange(len(a.names)), ids_b)
    same = np.isclose(a.size[rows_a], b.size[rows_b], rtol=SAME_SIZE, equal_nan=True)
    return rows_a[same], rows_b[same]


def compare_pair(a: Run, b: Run) -> Pair:
    """Compare the main metrics of two runs on their common faces, with 95 % intervals from a paired bootstrap.

    Raises:
        RunError: a run has no faces.csv or a broken one, or the runs have no common face.
    """
    faces_a, faces_b = read_errors(a), read_errors(b)
    rows_a, rows_b = shared(faces_a, faces_b)
    if not len(rows_a):
        raise RunError(f"{a.name} and {b.name} have no common face among {len(faces_a.names)} and {len(faces_b.names)}")
    statistics: dict[str, tuple[str, Statistic]] = {
        "nme_box": ("box", nme),
        "nme_ioc": ("ioc", nme),
        "fr08_ioc": ("ioc", partial(failure_rate, threshold=THRESHOLDS["08"])),
        "auc08_ioc": ("ioc", partial(auc, threshold=THRESHOLDS["08"])),
    }
    differences = {
        metric: paired_bootstrap(faces_a.errors[by][rows_a], faces_b.errors[by][rows_b], statistic, RESAMPLES, SEED)
        for metric, (by, statistic) in statistics.items()
    }
    return Pair(len(rows_a), (len(faces_a.names), len(faces_b.names)), differences)


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
