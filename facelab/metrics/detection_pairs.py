"""Pairs of a detection and a face that overlap, and who gets whom. Without torch."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facelab.faces.boxes import iou
from facelab.faces.geometry import Array
from facelab.metrics.detection_table import DetectionTable


class Pairs(NamedTuple):
    """Pairs of a detection and a face of one photo that overlap enough, sorted by detection, then falling overlap."""

    detection: NDArray[np.int64]  # (K,) row of the detections
    face: NDArray[np.int64]  # (K,) row of the faces; among equal overlaps the first row is first
    iou: Array  # (K,)


def overlapping(table: DetectionTable, least: float, boxes: Array, true_boxes: Array) -> Pairs:
    """Find all pairs of a detection and a face with an intersection over union of at least ``least``.

    Args:
        table: the photos.
        least: smallest overlap.
        boxes: ``(D, 4)`` boxes of the detections, ``table.boxes`` or a change of them.
        true_boxes: ``(F, 4)`` boxes of the faces.
    """
    by_photo = np.argsort(table.true_photo, kind="stable")
    photos = np.arange(len(table.photo_id) + 1)
    ends, true_ends = np.searchsorted(table.photo, photos), np.searchsorted(table.true_photo[by_photo], photos)
    found = [Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for i in np.flatnonzero((np.diff(ends) > 0) & (np.diff(true_ends) > 0)):
        first, faces = ends[i], by_photo[true_ends[i] : true_ends[i + 1]]
        overlaps = iou(boxes[first : ends[i + 1]], true_boxes[faces])
        detection, column = np.nonzero(overlaps >= least)  # False for NaN
        found.append(Pairs(first + detection, faces[column], overlaps[detection, column]))
    pairs = Pairs(*(np.concatenate(columns) for columns in zip(*found, strict=True)))
    order = np.lexsort((pairs.face, -pairs.iou, pairs.detection))
    return Pairs(*(column[order] for column in pairs))


def assign(pairs: Pairs, detections: int, faces: int) -> NDArray[np.int64]:
    """Give each detection the face it overlaps most among those that no detection with a smaller row has (COCO).

    The pairs are decided in rounds instead of one detection after the other: a pair is decided as soon as it is the
    first of its detection and no earlier detection overlaps its face any more.

    Args:
        pairs: the allowed pairs.
        detections: number of detections D.
        faces: number of faces F.

    Returns:
        ``(D,)`` row of the face; -1 for a detection without one.
    """
    assigned, taken = np.full(detections, -1), np.zeros(faces, np.bool_)
    earliest = np.empty(faces, np.int64)
    detection, face = pairs.detection, pairs.face
    while len(detection):
        first = np.diff(detection, prepend=-1) > 0
        earliest[face[::-1]] = detection[::-1]  # the last assignment to an element holds
        decided = first & (earliest[face] == detection)
        assigned[detection[decided]] = face[decided]
        taken[face[decided]] = True
        left = ~taken[face] & (assigned[detection] < 0)
        detection, face = detection[left], face[left]
    return assigned
