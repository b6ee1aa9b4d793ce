"""Two runs, face by face."""

import difflib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facelab.comparison.read import Run
from facelab.errors import RunError
from facelab.faces.geometry import Array
from facelab.files import real
from facelab.metrics.face_table import read_faces
from facelab.metrics.landmarks import (
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
"""Resamples of the paired bootstrap, and the seed of its draws."""
SAME_SIZE = 1e-3
"""Share by which the true box of a face may differ between two runs: arithmetic, not other points."""


NORMALISERS = {"box": "nme_box", "ioc": "nme_ioc"}
"""Normaliser to the metric, and the column of faces.csv, of its errors."""


class Faces(NamedTuple):
    """The tested faces of a run."""

    names: list[tuple[str, int]]  # photo, and which of its faces
    size: Array  # (F,) of the true box in pixels of the photo
    errors: dict[str, Array]  # normaliser to (F,) fractions; NaN where not defined


class Pair(NamedTuple):
    """How two runs differ on the faces they share."""

    common: int
    faces: tuple[int, int]  # of each
    differences: dict[str, Difference]  # metric to first minus second


def read_errors(run: Run) -> Faces:
    """Read ``faces.csv`` of a run.

    Raises:
        RunError: the run has none, or the file is broken.
    """
    file = RunFolder(run.folder).faces
    if not file.exists():
        raise RunError(f"{run.name} has no {file.name} ({file})")
    try:
        columns = read_faces(file)
    except ValueError as error:
        raise RunError(str(error)) from error
    if lacking := {"photo", "box", *NORMALISERS.values()} - columns.keys():
        raise RunError(f"{file}: has no column {', '.join(sorted(lacking))}")
    seen: dict[str, int] = {}
    names = []
    for photo in columns["photo"].tolist():
        names.append((photo, seen.get(photo, 0)))
        seen[photo] = seen.get(photo, 0) + 1
    return Faces(names, columns["box"], {normaliser: columns[name] for normaliser, name in NORMALISERS.items()})


def shared(a: Faces, b: Faces) -> tuple[Array, Array]:
    """Find the faces that two tables share: the same face of the same photo, with true points of the same extent.

    Row numbers of the split will not do: they shift where one run left a photo out.

    Returns:
        ``(C,)`` rows of a and ``(C,)`` rows of b.
    """
    number = {name: index for index, name in enumerate(a.names)}
    ids_b = np.array([number.get(name, len(number) + index) for index, name in enumerate(b.names)], np.int64)
    rows_a, rows_b = common_faces(np.arange(len(a.names)), ids_b)
    same = np.isclose(a.size[rows_a], b.size[rows_b], rtol=SAME_SIZE, equal_nan=True)
    return rows_a[same], rows_b[same]


def compare_pair(a: Run, b: Run) -> Pair:
    """Compare the main numbers of two runs on their common faces, with 95 % intervals from a paired bootstrap.

    Raises:
        RunError: a run has no faces.csv or a broken one, or the runs share no face.
    """
    faces_a, faces_b = read_errors(a), read_errors(b)
    rows_a, rows_b = shared(faces_a, faces_b)
    if not len(rows_a):
        raise RunError(f"{a.name} and {b.name} share no face, of {len(faces_a.names)} and {len(faces_b.names)}")
    statistics: dict[str, tuple[str, Statistic]] = {
        "nme_box": ("box", nme),
        "nme_ioc": ("ioc", nme),
        "fr08_ioc": ("ioc", partial(failure_rate, threshold=0.08)),
        "auc08_ioc": ("ioc", partial(auc, threshold=0.08)),
    }
    differences = {
        metric: paired_bootstrap(faces_a.errors[by][rows_a], faces_b.errors[by][rows_b], statistic, RESAMPLES, SEED)
        for metric, (by, statistic) in statistics.items()
    }
    return Pair(len(rows_a), (len(faces_a.names), len(faces_b.names)), differences)


def choose(runs: Sequence[Run], text: str) -> Run:
    """Choose the run that is meant: by its name or folder, or by a part of its name that no other has.

    Raises:
        RunError: none is, or several are.
    """
    exact = [run for run in runs if run.name == text or real(run.folder) == real(Path(text))]
    found = exact or [run for run in runs if text in run.name]
    if len(found) == 1:
        return found[0]
    names = [run.name for run in found] or difflib.get_close_matches(text, [run.name for run in runs], n=5, cutoff=0.1)
    what = "is the name of several runs" if found else "is no run's name"
    raise RunError(f"--pair {text}: {what}; there are {', '.join(names)}" if names else f"--pair {text}: {what}")
