"""Boxes of many photos in flat arrays, and checks of their numbers: shared by the readers of detection datasets."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facelab.annotations.points_file import MAX_FRACTION
from facelab.errors import DatasetError, ImageError
from facelab.faces.face import Face
from facelab.faces.geometry import Array
from facelab.faces.image import image_size
from facelab.faces.layouts import Layout

log = logging.getLogger(__name__)

CHECKED_PHOTOS = 32
"""Number of photos whose size is compared with their boxes: their headers are read in a few milliseconds."""
BEYOND = 0.1
"""Distance from the photo at which a box ends beyond it, as a fraction of the photo: faces at the edge of a photo do
not."""
SUSPICIOUS_SHARE = 0.2
"""Share of boxes that end beyond their photo from which the numbers are not plausible. Corners that are read as sizes
do where the face is in the right or the lower half."""

OUTLIERS = 0.02
"""Share of boxes that may be outside of their photos if numbers are to be corners: a detector finds a few there."""


class BoxRows(NamedTuple):
    """Rows of P photos with R boxes, in the order of the file; each photo has the rows from its end to the next."""

    names: list[str]  # (P,) of the photos
    ends: list[int]  # (P,) number of rows up to and including those of the photo
    boxes: Array  # (R, 4) as in the file, see the reader
    places: list[str]  # (R,) file and line, for messages


def check_names(names: Sequence[str], place: str) -> None:
    """Refuse a photo that is listed twice: it would be measured twice, or be in two splits.

    Args:
        names: of the photos.
        place: file or folder, for the message.

    Raises:
        DatasetError: a name appears more than once.
    """
    if doubled := [name for name, times in Counter(names).items() if times > 1]:
        raise DatasetError(f"{place}: the photo {doubled[0]} is listed more than once ({len(doubled)} such photos)")


def check_numbers(rows: BoxRows, most: float = 0) -> None:
    """Refuse boxes that look like fractions of the photo, and log a warning about boxes that a photo has twice.

    Args:
        rows: the boxes.
        most: largest share of boxes that may look like fractions; a detector may find a box of one pixel in a corner.

    Raises:
        DatasetError: no number of a box exceeds :data:`MAX_FRACTION`, and not all are whole.
    """
    fractions = (np.abs(rows.boxes).max(axis=1, initial=0) <= MAX_FRACTION) & (rows.boxes % 1 != 0).any(axis=1)
    if fractions.sum() > most * len(fractions):
        row = int(fractions.argmax())
        raise DatasetError(
            f"{rows.places[row]}: the box {[float(f'{value:.4g}') for value in rows.boxes[row]]} looks like fractions; "
            "multiply x and y by the width and the height of the photo"
        )
    photo = np.repeat(np.arange(len(rows.ends)), np.diff(rows.ends, prepend=0))
    keys = np.column_stack([photo, rows.boxes])
    order = np.lexsort(keys.T)
    again = order[1:][(keys[order[1:]] == keys[order[:-1]]).all(axis=1)]
    if len(again):
        log.warning("%s: a box that the photo has already (%d such rows)", rows.places[again.min()], len(again))


def check_sizes(rows: BoxRows, photos: Sequence[Path], corners: Array) -> None:
    """Compare boxes with the sizes of some photos; a photo that cannot be read is left out.

    Args:
        rows: boxes ``x y width height``, or those of which the corners were made.
        photos: ``(P,)`` files.
        corners: ``(R, 4)`` boxes x0 y0 x1 y1 in pixels.

    Raises:
        DatasetError: many boxes end beyond their photos, and are inside if their numbers are read as corners.
    """
    starts = [0, *rows.ends[:-1]]
    chosen = [i for i in range(len(photos)) if rows.ends[i] > starts[i]]
    beyond: list[int] = []
    checked = outside_as_corners = 0
    for photo in chosen[:: max(1, len(chosen) // CHECKED_PHOTOS)]:
        try:
            size = np.array(image_size(photos[photo]))
        except (ImageError, OSError):
            continue
        its = slice(starts[photo], rows.ends[photo])
        checked += rows.ends[photo] - starts[photo]
        low, high, most = rows.boxes[its, :2], rows.boxes[its, 2:], (1 + BEYOND) * size
        beyond += (starts[photo] + np.flatnonzero((corners[its, 2:] > most).any(axis=1))).tolist()
        outside_as_corners += int(((high > most) | (high < low)).any(axis=1).sum())
    if len(beyond) <= SUSPICIOUS_SHARE * checked:
        return
    text = f"{rows.places[beyond[0]]}: the box ends outside of its photo, like {len(beyond)} of {checked} boxes"
    if outside_as_corners <= OUTLIERS * checked:
        raise DatasetError(f"{text}. The numbers are probably corners x0 y0 x1 y1; write x y width height")
    log.warning("%s. Are they of photos of another size?", text)


def faces_of(boxes: Array, points: Array, visible: NDArray[np.bool_], tags: Sequence[frozenset[str]]) -> list[Face]:
    """Create one face per row; its arrays are rows of these arrays.

    Args:
        boxes: ``(R, 4)`` x0 y0 x1 y1 in pixels of the photo.
        points: ``(R, N, 2)``, NaN where not annotated.
        visible: ``(R, N)``.
        tags: R sets, of which equal ones should be one object.
    """
    pose = np.full(3, np.nan, np.float32)
    pose.flags.writeable = False  # one array for all faces
    return [Face(box, xy, seen, pose, its) for box, xy, seen, its in zip(boxes, points, visible, tags, strict=True)]


def without_points(rows: int, layout: Layout) -> tuple[Array, NDArray[np.bool_]]:
    """Return the points and visibilities of faces without an annotated point, ``(R, N, 2)`` and ``(R, N)``.

    All rows are the same memory.
    """
    points = np.full((1, layout.num_points, 2), np.nan, np.float32)
    shape = (rows, layout.num_points)
    return np.broadcast_to(points, (*shape, 2)), np.broadcast_to(np.zeros((1, 1), np.bool_), shape)
