"""Curves of a detector over the threshold of its scores, and the file that contains them. Without torch.

A curve belongs to an AP: the faces to find, and which detections count, are those of that metric.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facelab.faces.geometry import Array
from facelab.files import read_table, replacing
from facelab.metrics import wider
from facelab.metrics.detection import IOU, all_pairs, rank
from facelab.metrics.detection_table import DetectionTable
from facelab.metrics.ranking import RECALLS, Ranking

FALSE_AXIS = np.logspace(-2, 1, 91)
"""Numbers of false detections per photo of which a thinned curve has the recall: 30 per factor of ten, 0.01 to 10.

Below 0.01, a set of 100 photos has no point; a detector with more than 10 is of no use."""
MOST_POINTS = len(RECALLS) + len(FALSE_AXIS) + 1
"""Largest number of points of a thinned curve."""
MAX_BYTES = 2**20
"""Largest size in bytes of a file of curves that is read; four curves have at most 80,000."""


class Curve(NamedTuple):
    """Numbers at K thresholds, from the highest to the lowest. Equal scores are one threshold."""

    score: Array  # (K,) threshold; stretched to 0 .. 1 for a list of WIDER FACE
    recall: Array  # (K,); NaN without a face
    precision: Array  # (K,)
    envelope: Array  # (K,) best precision at this recall or a higher one, which an AP integrates
    false_per_photo: Array  # (K,) also over photos without a face

    def thinned(self) -> "Curve":
        """Return at most :data:`MOST_POINTS` of the points.

        They are those that the AP of COCO reads, those with the recall at each of :data:`FALSE_AXIS`, and the last
        one. The AP, the recalls at 0.1 and 1 false detections per photo, and the recall of all detections are therefore
        exactly those of the whole curve.

        >>> many = np.arange(1, 1001)
        >>> curve = Curve(-many, many / 2000, 1 - many / 4000, 1 - many / 4000, many / 500).thinned()
        >>> len(curve.score), float(curve.recall[-1])
        (114, 0.5)
        """
        at = np.searchsorted(self.recall, RECALLS)
        allowed = np.searchsorted(self.false_per_photo, FALSE_AXIS, side="right") - 1
        last = len(self.score) - 1
        kept = np.unique([*at[at <= last], *allowed[allowed >= 0], *([last] if last >= 0 else [])]).astype(np.int64)
        return Curve(*(column[kept] for column in self))

    def precision_line(self) -> tuple[Array, Array]:
        """Return recall and precision to draw, from a recall of 0; the precision is the envelope.

        The AP is the area under this line.
        """
        return np.append(0, self.recall), np.append(self.envelope[:1], self.envelope)

    def recall_line(self) -> tuple[Array, Array]:
        """Return false detections per photo and recall to draw, from the first to the last of :data:`FALSE_AXIS`.

        Fewer false detections stand at the first number, with their highest recall.

        >>> curve = Curve(*np.zeros((1, 4)), np.arange(1, 5) / 8, *np.ones((2, 4)), np.array([0, 0, 0.5, 20]))
        >>> curve.recall_line()
        (array([0.01, 0.5 ]), array([0.25 , 0.375]))
        """
        first, end = np.searchsorted(self.false_per_photo, FALSE_AXIS[[0, -1]], side="right")
        shown = slice(max(first - 1, 0), end)
        return np.maximum(self.false_per_photo[shown], FALSE_AXIS[0]), self.recall[shown]


def curves(table: DetectionTable) -> dict[str, Curve]:
    """Compute the curve of ``ap50``, and those of the lists of WIDER FACE where the table has them, by the AP's name.

    A curve without a detection, or without a face to find, is left out. The boxes are not rounded, also where the AP of
    an evaluation with ``wider_rounded`` is.

    Args:
        table: the photos; those that could not be read are left out.
    """
    table = table.readable()
    every = np.ones(len(table.scores), np.bool_)
    ranked = rank(table, all_pairs(table), IOU, ~table.ignore, every)
    found = {"ap50": _curve(ranked, ranked.thresholds())}
    if set(wider.LISTS) <= set(table.tag_names):
        best = wider.best_faces(table, rounded=False)
        for name in wider.LISTS:
            ranked = wider.ranking(table, best, table.tags[:, table.tag_names.index(name)])
            ends = np.unique(wider.ends(ranked))
            found[f"wider_{name}"] = _curve(ranked, ends[ends > 0])
    return {name: curve for name, curve in found.items() if len(curve.recall) and curve.recall[-1] >= 0}


def _curve(ranked: Ranking, ends: NDArray[np.int64]) -> Curve:
    """Compute the curve at some thresholds, the numbers of detections at or above them."""
    counts = ranked.counts(ends)
    recall, precision, envelope, false = (
        column[:, 0] for column in (counts.recall(), counts.precision(), counts.envelope(), counts.false)
    )
    return Curve(ranked.score[ends - 1], recall, precision, envelope, false / max(counts.photos, 1))


def write_curves(curves: Mapping[str, Curve], path: Path) -> None:
    """Write one row per point of the thinned curves, after the name of the AP; the file is written atomically.

    Args:
        curves: result of :func:`curves`.
        path: ``detection_curves.csv`` of a run.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["metric", *Curve._fields])
        for name, curve in curves.items():
            writer.writerows([name, *point] for point in zip(*map(Array.tolist, curve.thinned()), strict=True))


def read_curves(path: Path) -> dict[str, Curve]:
    """Read a file of :func:`write_curves`.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be read.
        ValueError: it is not such a file, or a number is malformed; the message contains the file and the line.
    """
    rows = read_table(path, most=MAX_BYTES)
    if (heading := next(rows, [])) != ["metric", *Curve._fields]:
        raise ValueError(f"{path}:1: has the columns {', '.join(heading)[:80]}, expected {', '.join(Curve._fields)}")
    points: dict[str, list[list[float]]] = {}
    for number, row in enumerate(rows, start=2):
        try:
            name, *values = row
            point = [float(value) for value in values]
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        if len(point) != len(Curve._fields) or not np.isfinite(point).all():
            raise ValueError(f"{path}:{number}: expected a name and {len(Curve._fields)} finite numbers")
        points.setdefault(name, []).append(point)
    return {name: Curve(*np.array(each).T) for name, each in points.items()}
