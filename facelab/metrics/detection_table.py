"""Table of the detections and the annotated faces of every photo. All metrics are computed from it. Without torch."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facelab.faces import boxes as box_maps
from facelab.faces.geometry import Array
from facelab.faces.pose import estimate_pose_of_five


class DetectionTable(NamedTuple):
    """Detections and faces of P photos. Lengths are pixels of the photo; numbers are float64.

    The photos are sorted by ``photo_id`` and the faces by ``face_id``. The detections are sorted by photo, falling
    score, and then by the numbers of their boxes and points: the order of their rows before plays no part. A photo may
    have no face, no detection, or neither.
    """

    tag_names: tuple[str, ...]  # Annotations.tags, the names of the columns of tags
    photo_id: NDArray[np.int64]  # (P,) row of the split
    skipped: NDArray[np.bool_]  # (P,) the photo could not be read; it has no detection, and its faces are ignored
    cut: Array  # (P,) 1 if a limit of the number of detections removed some, 0 if not, NaN if nobody knows
    boxes: Array  # (D, 4)
    scores: Array  # (D,)
    points: Array  # (D, 5, 2); NaN from a detector without points
    photo: NDArray[np.int64]  # (D,) row of its photo among the P
    face_id: NDArray[np.int64]  # (F,) row of the split
    true_boxes: Array  # (F, 4)
    true_points: Array  # (F, 5, 2), NaN where not annotated
    pose: Array  # (F, 3) yaw, pitch, roll in degrees: labelled, else estimated from the five points; NaN if unknown
    tags: NDArray[np.bool_]  # (F, T) in the order of tag_names
    ignore: NDArray[np.bool_]  # (F,) neither a face to find nor background; also each box without an area
    true_photo: NDArray[np.int64]  # (F,) row of its photo among the P

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Return which points are annotated, ``(F, 5)``."""
        return np.asarray(np.isfinite(self.true_points).all(axis=-1))

    def readable(self) -> "DetectionTable":
        """Return the table of the photos that could be read, with their faces."""
        kept = ~self.skipped
        rows, faces = np.cumsum(kept) - 1, kept[self.true_photo]
        return self._replace(
            photo_id=self.photo_id[kept],
            skipped=self.skipped[kept],
            cut=self.cut[kept],
            photo=rows[self.photo],
            face_id=self.face_id[faces],
            true_boxes=self.true_boxes[faces],
            true_points=self.true_points[faces],
            pose=self.pose[faces],
            tags=self.tags[faces],
            ignore=self.ignore[faces],
            true_photo=rows[self.true_photo[faces]],
        )


def detection_table(
    tag_names: tuple[str, ...],
    *,
    photo_id: Array,
    skipped: Array,
    cut: Array,
    boxes: Array,
    scores: Array,
    points: Array,
    photo: Array,
    face_id: Array,
    true_boxes: Array,
    true_points: Array,
    pose: Array,
    tags: Array,
    ignore: Array,
    true_photo: Array,
) -> DetectionTable:
    """Build the table from columns in any order.

    The arguments are the columns of :class:`DetectionTable`, of any float type, with these differences.

    Args:
        tag_names: names of the T tags.
        photo_id: ``(P,)``, unique, in any order.
        skipped: ``(P,)`` bool.
        cut: ``(P,)`` of any type: whether a limit removed detections, NaN if it is not known.
        boxes: ``(D, 4)``; a box with a NaN or infinite number finds no face.
        scores: ``(D,)``.
        points: ``(D, 5, 2)``.
        photo: ``(D,)`` the ``photo_id`` of its photo.
        face_id: ``(F,)``, unique, in any order.
        true_boxes: ``(F, 4)``; a box with NaN or without an area is ignored.
        true_points: ``(F, 5, 2)``.
        pose: ``(F, 3)`` labelled pose, NaN where not labelled.
        tags: ``(F, T)`` bool.
        ignore: ``(F,)`` bool.
        true_photo: ``(F,)`` the ``photo_id`` of its photo.

    Raises:
        ValueError: columns differ in length, a score is not finite, an id appears twice, or a photo is not listed.
    """
    columns = {
        "photos": (photo_id, skipped, cut),
        "detections": (boxes, scores, points, photo),
        "faces": (face_id, true_boxes, true_points, pose, tags, ignore, true_photo),
    }
    for name, each in columns.items():
        if len({len(column) for column in each}) > 1:
            raise ValueError(f"the columns of the {name} have {[len(column) for column in each]} rows")
    if tags.shape[1] != len(tag_names):
        raise ValueError(f"each face has {tags.shape[1]} tags, but their names are {list(tag_names)}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are NaN or infinite")
    for name, ids in (("photo", photo_id), ("face", face_id)):
        if len(np.unique(ids)) < len(ids):
            raise ValueError(f"a {name} appears twice among the {len(ids)} {name}s")
    by_photo, by_face = np.argsort(photo_id), np.argsort(face_id)
    photo_id, skipped, cut = photo_id[by_photo], skipped[by_photo], cut[by_photo]
    row, true_row = _rows(photo, photo_id), _rows(true_photo, photo_id)
    boxes = boxes.astype(np.float64)
    order = np.lexsort((*points.reshape(len(points), 2 * points.shape[1]).T[::-1], *boxes.T[::-1], -scores, row))
    order = order[~skipped[row[order]]]
    true_boxes, true_points = true_boxes.astype(np.float64), true_points.astype(np.float64)
    pose = np.where(np.isnan(pose), estimate_pose_of_five(true_points), pose)
    ignore = ignore | ~(box_maps.area(true_boxes) > 0) | skipped[true_row]
    return DetectionTable(
        tag_names=tag_names,
        photo_id=photo_id.astype(np.int64),
        skipped=skipped,
        cut=np.where(skipped, 0.0, cut),
        boxes=boxes[order],
        scores=scores[order].astype(np.float64),
        points=points[order].astype(np.float64),
        photo=row[order],
        face_id=face_id[by_face].astype(np.int64),
        true_boxes=true_boxes[by_face],
        true_points=true_points[by_face],
        pose=pose[by_face].astype(np.float64),
        tags=tags[by_face],
        ignore=ignore[by_face],
        true_photo=true_row[by_face],
    )


def _rows(photo: Array, photo_id: Array) -> NDArray[np.int64]:
    """Return the rows of photos in the sorted ``photo_id``."""
    rows = np.searchsorted(photo_id, photo)
    if len(photo) and (rows.max(initial=0) >= len(photo_id) or (photo_id[rows] != photo).any()):
        raise ValueError("a detection or a face belongs to a photo that is not listed")
    return rows
