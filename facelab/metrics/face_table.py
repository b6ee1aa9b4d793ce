"""Table of the errors of every face, in memory and on disk. All metrics are computed from it. Without torch."""

import csv
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from facelab.faces import geometry
from facelab.faces.geometry import Array
from facelab.faces.layouts import Layout
from facelab.files import read_table, replacing

Normaliser = Literal["ioc", "ipd", "box", "diag"]
NORMALISERS: tuple[Normaliser, ...] = get_args(Normaliser)
"""Columns of :class:`FaceTable` that an error can be divided by."""
SMALLEST_NORMALISER = 1.0
"""Smallest normaliser in pixels; with a smaller one the error is NaN, as it would be a ratio of rounding errors."""
ERRORS = (*(f"nme_{normaliser}" for normaliser in NORMALISERS), "nme_ioc_crop")
"""Columns of ``faces.csv`` with a normalised error; each has the name of the metric that is its mean."""
ANGLES = ("yaw", "pitch", "roll")
"""Angles of a pose, in the order of its columns."""


class FaceTable(NamedTuple):
    """Table with one row per face, sorted by ``face_id``.

    Lengths are pixels of the photo, except in ``error_crop`` and ``ioc_crop``; numbers are float64.
    """

    layout: Layout  # of the points
    tag_names: tuple[str, ...]  # Annotations.tags, the names of the columns of tags
    face_id: NDArray[np.int64]  # (F,) row of the split
    error: Array  # (F, N) distance of prediction and truth; NaN where not annotated, inf where not predicted
    valid: NDArray[np.bool_]  # (F, N) annotated; all False if the face could not be read
    ioc: Array  # (F,) distance of the outer eye corners; NaN if one is not annotated
    ipd: Array  # (F,) distance of the pupils (centroids); NaN if a point is not annotated or the layout has none
    box: Array  # (F,) sqrt(w h) of the tight box of the annotated points; NaN without an annotated point
    diag: Array  # (F,) diagonal of that box
    error_crop: Array  # (F,) mean of the distances in pixels of the network's crop; NaN and inf as in error
    ioc_crop: Array  # (F,) distance of the outer eye corners in pixels of the crop
    pose: Array  # (F, 3) yaw, pitch, roll in degrees; NaN if unknown
    tags: NDArray[np.bool_]  # (F, T) in the order of tag_names
    pose_error: Array  # (F, 3) yaw, pitch, roll in degrees; NaN if predicted, true pose or every point is missing

    def select(self, rows: Array | slice) -> "FaceTable":
        """Return the table of some rows, given by indices, a mask or a slice."""
        layout, tag_names, *columns = self
        return FaceTable(layout, tag_names, *(column[rows] for column in columns))


def face_table(
    layout: Layout,
    *,
    face_id: Array,
    predicted: Array,
    points: Array,
    valid: Array,
    to_photo: Array,
    pose: Array,
    tags: Array,
    tag_names: tuple[str, ...],
    predicted_pose: Array | None = None,
) -> FaceTable:
    """Measure predictions against the truth in pixels of the photo, and in pixels of the crop.

    The normalisers are those of 300-W (Sagonas et al., Image and Vision Computing 2016) and later work, computed from
    the annotated true points; w and h are max - min, without an added pixel.

    Args:
        layout: the layout of the points.
        face_id: ``(F,)``, ascending and unique.
        predicted: ``(F, N, 2)`` in pixels of the crop. An annotated point with a NaN or infinite prediction has an
            infinite error: it fails at every threshold and makes the mean error infinite, so it cannot go unnoticed.
        points: ``(F, N, 2)`` true points in pixels of the crop; ignored where ``valid`` is False.
        valid: ``(F, N)`` bool.
        to_photo: ``(F, 3, 3)`` from pixels of the crop to pixels of the photo.
        pose: ``(F, 3)`` true yaw, pitch, roll in degrees, NaN if unknown.
        tags: ``(F, T)`` bool.
        tag_names: names of the T tags.
        predicted_pose: ``(F, 3)`` degrees, NaN for a face without a predicted pose; None if no face has one.

    Raises:
        ValueError: a valid point is NaN or infinite, or the number of tag names is not T.
    """
    if len(tag_names) != tags.shape[1]:
        raise ValueError(f"each face has {tags.shape[1]} tags, but their names are {list(tag_names)}")
    points = np.where(valid[..., None], points, np.nan).astype(np.float64)
    if broken := face_id[(valid & ~np.isfinite(points).all(-1)).any(-1)].tolist():
        raise ValueError(
            f"faces {broken[:5]} of the split ({len(broken)} in all) have points that are marked valid but are NaN or "
            "infinite; the dataset's reader must mark them as not annotated"
        )
    to_photo, predicted = to_photo.astype(np.float64), predicted.astype(np.float64)
    with np.errstate(invalid="ignore"):  # an infinite prediction becomes NaN here
        truth = geometry.transform_points(to_photo, points)
        predicted_in_photo = geometry.transform_points(to_photo, predicted)
    x0, y0, x1, y1 = geometry.bounding_box(truth).astype(np.float64).T
    return FaceTable(
        layout=layout,
        tag_names=tag_names,
        face_id=face_id,
        error=_errors(predicted_in_photo, truth, valid),
        valid=valid,
        ioc=_eye_distance(truth, layout),
        ipd=_distance(truth, *layout.pupils),
        box=np.sqrt((x1 - x0) * (y1 - y0)),
        diag=np.hypot(x1 - x0, y1 - y0),
        error_crop=nanmean(_errors(predicted, points, valid)),
        ioc_crop=_eye_distance(points, layout),
        pose=pose.astype(np.float64),
        tags=tags,
        pose_error=_pose_error(pose, predicted_pose, valid),
    )


def _errors(predicted: Array, truth: Array, valid: Array) -> Array:
    """Return the distances ``(F, N)`` of points: NaN where not annotated, infinite where not predicted."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        distance = np.linalg.norm(predicted - truth, axis=-1)
    return np.where(valid, np.where(np.isfinite(distance), distance, np.inf), np.nan)


def _pose_error(pose: Array, predicted: Array | None, valid: Array) -> Array:
    """Compute the errors of the angles ``(F, 3)`` in degrees; NaN for a face without a valid point.

    Such a face may belong to a photo that could not be read.
    """
    if predicted is None:
        return np.full(pose.shape, np.nan)
    return np.where(valid.any(axis=1, keepdims=True), _angle_between(pose, predicted), np.nan)


def _angle_between(a: Array, b: Array) -> Array:
    """Return the absolute difference of angles in degrees, at most 180."""
    return np.abs((a.astype(np.float64) - b + 180) % 360 - 180)


def _eye_distance(points: Array, layout: Layout) -> Array:
    """Return the distance ``(F,)`` of the outer eye corners; NaN if one is missing."""
    return _distance(points, layout.eye_corners[:1], layout.eye_corners[1:])


def _distance(points: Array, left: Sequence[int], right: Sequence[int]) -> Array:
    """Return the distance ``(F,)`` of two centroids; NaN if a point is missing or an index list is empty."""
    if not left or not right:
        return np.full(len(points), np.nan)
    return np.linalg.norm(points[:, list(left)].mean(axis=1) - points[:, list(right)].mean(axis=1), axis=-1)


def mean_error(table: FaceTable, points: Sequence[int] | None = None) -> Array:
    """Compute the mean distance over the annotated points of each face in pixels of the photo.

    Args:
        table: the faces.
        points: indices of the points to average; None for all.

    Returns:
        ``(F,)``, NaN if none of the points is annotated.
    """
    return nanmean(table.error if points is None else table.error[:, list(points)])


def nme_per_face(table: FaceTable, normaliser: Normaliser, points: Sequence[int] | None = None) -> Array:
    """Compute the normalised mean error of each face.

    Args:
        table: the faces.
        normaliser: column of :class:`FaceTable` to divide by.
        points: indices of the points to average; None for all.

    Returns:
        ``(F,)``, a fraction; NaN without an annotated point, or if the normaliser is NaN or below
        :data:`SMALLEST_NORMALISER`.
    """
    return _ratio(mean_error(table, points), getattr(table, normaliser))


def nme_in_crop(table: FaceTable) -> Array:
    """Compute the mean error of each face in pixels of the crop, divided by the distance of the eye corners there.

    It equals ``nme_per_face(table, "ioc")`` for a crop that only moves, turns and resizes the photo. A crop that
    stretches it, such as PIPNet's, changes both lengths; the code of PIPNet measures in this way.

    Returns:
        ``(F,)``, a fraction; NaN in the same cases as in :func:`nme_per_face`.
    """
    return _ratio(table.error_crop, table.ioc_crop)


def errors_per_face(table: FaceTable) -> dict[str, Array]:
    """Compute the normalised errors ``(F,)`` of each face by column name, see :data:`ERRORS`."""
    errors = [*(nme_per_face(table, normaliser) for normaliser in NORMALISERS), nme_in_crop(table)]
    return dict(zip(ERRORS, errors, strict=True))


def _ratio(error: Array, length: Array) -> Array:
    """Divide errors by lengths; NaN for a length below :data:`SMALLEST_NORMALISER`."""
    return error / np.where(length >= SMALLEST_NORMALISER, length, np.nan)


def write_faces(table: FaceTable, path: Path, photos: Sequence[str]) -> None:
    """Write one row per face; the file is written atomically.

    Lengths and ``error_px`` are pixels of the photo, ``nme_*`` fractions, angles degrees, ``points`` the number of
    annotated points, ``tag_*`` 0 or 1. NaN is an empty cell. Numbers are not rounded.

    Args:
        table: the faces.
        path: ``faces.csv`` of a run.
        photos: photo of each face of the split, indexed by ``face_id``.

    Raises:
        ValueError: a ``face_id`` has no photo.
    """
    if len(table.face_id) and not 0 <= table.face_id.min() <= table.face_id.max() < len(photos):
        raise ValueError(f"the table has face {table.face_id.max()}, but the split has {len(photos)} faces")
    columns: dict[str, Sequence[object]] = {
        "face_id": table.face_id.tolist(),
        "photo": [photos[face] for face in table.face_id],
        **{name: cells(e) for name, e in errors_per_face(table).items()},
        "error_px": cells(mean_error(table)),
        **{normaliser: cells(getattr(table, normaliser)) for normaliser in NORMALISERS},
        **{angle: cells(table.pose[:, i]) for i, angle in enumerate(ANGLES)},
        "points": table.valid.sum(axis=1).tolist(),
        **{f"tag_{tag}": faces.astype(int).tolist() for tag, faces in zip(table.tag_names, table.tags.T, strict=True)},
    }
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def read_faces(path: Path, columns: Collection[str] | None = None) -> dict[str, Array]:
    """Read a file of :func:`write_faces`.

    Args:
        path: file to read.
        columns: names of the columns to read; None for all. A column that the file does not have is left out.

    Returns:
        Values ``(F,)`` by column name: int64 ``face_id`` and ``points``, object ``photo`` (of str), bool ``tag_*``;
        all others float64, NaN for an empty cell.

    Raises:
        ValueError: a line or a number is invalid; the message contains the file, the line and the column.
    """
    names, *rows = list(read_table(path)) or [[]]
    if names[:2] != ["face_id", "photo"]:
        raise ValueError(f"{path}:1: starts with {names[:2]}, expected face_id, photo; this is not a faces.csv")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise ValueError(f"{path}:{line}: {len(row)} cells, but the header has {len(names)} columns")
    cells = zip(*rows, strict=True) if rows else [() for _ in names]
    return {
        name: _column(path, name, column)
        for name, column in zip(names, cells, strict=True)
        if columns is None or name in columns
    }


def _column(path: Path, name: str, cells: Sequence[str]) -> Array:
    """Convert the cells of a column to its type, see :func:`read_faces`."""
    if name == "photo":
        return np.array(cells, np.object_)  # str_ would use the memory of the longest string for each
    integer, flag = name in ("face_id", "points"), name.startswith("tag_")
    values: list[float] = []
    for line, cell in enumerate(cells, start=2):
        try:
            values.append(int(cell) if integer or flag else float(cell or "nan"))
        except ValueError as error:
            raise ValueError(f"{path}:{line}: column {name} contains {cell!r}, expected a number") from error
    try:
        return np.array(values, np.int64 if integer else np.bool_ if flag else np.float64)
    except OverflowError as error:
        raise ValueError(f"{path}: column {name} contains {max(map(abs, values))}, too large for int64") from error


def cells(values: Array) -> list[float | str]:
    """Replace NaN by an empty cell."""
    return ["" if np.isnan(value) else value for value in values.tolist()]


def nanmean(values: Array) -> Array:
    """Average over the last axis without NaN; NaN if all values are. Unlike ``np.nanmean`` it does not warn.

    >>> nanmean(np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]]))
    array([ 2., nan])
    """
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.nansum(values, axis=-1) / (~np.isnan(values)).sum(axis=-1)
