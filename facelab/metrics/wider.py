"""AP of WIDER FACE on the lists easy, medium and hard, as its evaluation code computes it. Without torch.

*Source.* Yang, Luo, Loy, Tang: WIDER FACE: A Face Detection Benchmark, CVPR 2016; the evaluation tools of
http://shuoyang1213.me/WIDERFACE (Matlab), and a port to Python that most detectors report.

The AP differs from that of COCO. A detection belongs to the face that it overlaps most, also if another detection has
it already: then it is false, and no second face is tried. A face that is not in the list absorbs its detections. The
scores of all photos are stretched to 0 .. 1, and the curve has a point at each of 1,000 thresholds. Corners count as
the last covered pixel: 1 is added to both sides of a box. A photo without a row of annotations is left out.

*Departures.* The code expects the detections of a photo in falling order of their scores; here they are sorted. Equal
scores are one threshold. With one score for all detections the code divides by 0; here all are above every threshold.
"""

import numpy as np
from numpy.typing import NDArray

from facelab.faces.boxes import to_corner_and_size
from facelab.faces.geometry import Array
from facelab.metrics.detection_pairs import overlapping
from facelab.metrics.detection_table import DetectionTable
from facelab.metrics.ranking import Ranking

LISTS = ("easy", "medium", "hard")
"""Tags of the faces of the three lists of the official val."""
IOU = 0.5
"""Smallest overlap of a detection with its face."""
ROUNDED = "rounded as in Matlab"
"""Entry ``wider`` of the protocol of a test with rounding."""
THRESHOLDS = 1 - np.arange(1, 1001) / 1000
"""Thresholds of the stretched scores at which the curve has a point."""


def best_faces(table: DetectionTable, *, rounded: bool) -> NDArray[np.int64]:
    """Return the face that each detection overlaps most, ``(D,)`` rows of the faces; -1 below :data:`IOU`.

    Among equal overlaps it is the first row of the annotations.

    Args:
        table: the photos, with every row of the annotations, also those without an area.
        rounded: whether to round as the Matlab code does, whose annotations are whole numbers: a box has whole corners,
            and an overlap is 0 or 1, so that a detection gets the first face with at least :data:`IOU`. The port to
            Python does not round.
    """
    boxes, true_boxes = _pixels(table.boxes), _pixels(table.true_boxes)
    if rounded:
        boxes = np.trunc(boxes + np.copysign(0.5, boxes))  # half away from zero
    pairs = overlapping(table, IOU, boxes, true_boxes)
    if rounded:
        order = np.lexsort((pairs.face, pairs.detection))
        pairs = pairs._replace(detection=pairs.detection[order], face=pairs.face[order])
    first = np.diff(pairs.detection, prepend=-1) > 0
    best = np.full(len(table.boxes), -1)
    best[pairs.detection[first]] = pairs.face[first]
    return best


def _pixels(boxes: Array) -> Array:
    """Return boxes as the code has them: from the edge of the first pixel, with 1 added to the sides."""
    rows = to_corner_and_size(boxes)
    return np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:] + 1], axis=1)


def ranking(table: DetectionTable, best: Array, listed: Array) -> Ranking:
    """Rank the detections that count for a list, with their stretched scores.

    Args:
        table: the photos.
        best: ``(D,)`` from :func:`best_faces`.
        listed: ``(F,)`` bool, the faces of the list.
    """
    annotated = np.bincount(table.true_photo, minlength=len(table.photo_id)) > 0
    counts = annotated[table.photo] & ((best < 0) | np.append(listed, False)[best])
    order = np.flatnonzero(counts)[np.argsort(-table.scores[counts], kind="stable")]
    face = best[order]
    hit = np.zeros(len(order), np.bool_)
    faces, first = np.unique(face, return_index=True)
    hit[first[faces >= 0]] = True
    low, high = table.scores.min(initial=np.inf), table.scores.max(initial=-np.inf)
    score = (table.scores[order] - low) / (high - low) if high > low else np.ones(len(order))
    return Ranking(score, hit, table.photo[order], np.bincount(table.true_photo[listed], minlength=len(table.photo_id)))


def ends(ranked: Ranking) -> NDArray[np.int64]:
    """Return the number of detections at or above each of :data:`THRESHOLDS`, ``(1000,)``."""
    return np.searchsorted(-ranked.score, -THRESHOLDS, side="right")
