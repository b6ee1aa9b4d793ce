"""The errors of every face: one table in memory and on disk, from which every number is computed. Without torch."""

import csv
from collections.abc import Sequence
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
SMALLEST_NORMALISER = 1.0
"""Pixels of the photo. Below it the error of a face is a ratio of roundings."""
ANGLES = ("yaw", "pitch", "roll")


class FaceTable(NamedTuple):
    """One row per face, in the order of ``face_id``. Lengths are in pixels of the photo, numbers are float64."""

    face_id: NDArray[np.int64]  # (F,) row of the split
    error: Array  # (F, N) distance of prediction and truth; NaN where not annotated, inf where not predicted
    valid: NDArray[np.bool_]  # (F, N) annotated. All False: the face could not be read
    ioc: Array  # (F,) between the outer eye corners; NaN if one is not annotated
    ipd: Array  # (F,) between the centroids of the pupils' points; NaN if one is not annotated or the layout has none
    box: Array  # (F,) sqrt(w h) of the tight box of the annotated points; NaN if there is none
    diag: Array  # (F,) diagonal of that box
    pose: Array  # (F, 3) yaw, pitch, roll in degrees; NaN where unknown
    tags: NDArray[np.bool_]  # (F, T) in the order of Annotations.tags
    pose_error: Array  # (F, 3) degrees, of yaw, pitch, roll; NaN where not predicted or known, or no point is


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
    predicted_pose: Array | None = None,
) -> FaceTable:
    """Measure predictions against the truth in pixels of the photo.

    The normalisers are those in use since 300-W (Sagonas et al., Image and Vision Computing 2016), all taken from the
    annotated true points; w and h are max - min, without a pixel added.

    Args:
        layout: the layout of the points.
        face_id: ``(F,)``, ascending and unique.
        predicted: ``(F, N, 2)`` in pixels of the crop. A point that is annotated and predicted as NaN or infinite has
            an infinite error: it fails at every threshold and makes the mean error infinite, so it cannot be missed.
        points: ``(F, N, 2)`` true points in pixels of the crop; ignored where ``valid`` is False.
        valid: ``(F, N)`` bool.
        to_photo: ``(F, 3, 3)`` from the crop's pixels to the photo's.
        pose: ``(F, 3)`` degrees.
        tags: ``(F, T)`` bool.
        predicted_pose: ``(F, 3)`` degrees, NaN where none is predicted; None for nobody.

    Raises:
        ValueError: a point is marked as annotated and has no coordinates.
    """
    points = np.where(valid[..., None], points, np.nan).astype(np.float64)
    if broken := face_id[(valid & ~np.isfinite(points).all(-1)).any(-1)].tolist():
        raise ValueError(
            f"faces {broken[:5]} of the split ({len(broken)} in all) have points that are marked valid but are NaN or "
            "infinite; the dataset's reader must mark them as not annotated"
        )
    to_photo = to_photo.astype(np.float64)
    with np.errstate(invalid="ignore"):  # an infinite prediction becomes NaN here and infinite again below
        truth = geometry.transform_points(to_photo, points)
        error = np.linalg.norm(geometry.transform_points(to_photo, predicted.astype(np.float64)) - truth, axis=-1)
    x0, y0, x1, y1 = geometry.bounding_box(truth).astype(np.float64).T
    return FaceTable(
        face_id=face_id,
        error=np.where(valid, np.where(np.isfinite(error), error, np.inf), np.nan),
        valid=valid,
        ioc=_distance(truth, layout.eye_corners[:1], layout.eye_corners[1:]),
        ipd=_distance(truth, *layout.pupils),
        box=np.sqrt((x1 - x0) * (y1 - y0)),
        diag=np.hypot(x1 - x0, y1 - y0),
        pose=pose.astype(np.float64),
        tags=tags,
        pose_error=_pose_error(pose, predicted_pose, valid),
    )


def _pose_error(pose: Array, predicted: Array | None, valid: Array) -> Array:
    """Of faces that are measured: one without a point may be a photo that could not be read."""
    if predicted is None:
        return np.full(pose.shape, np.nan)
    return np.where(valid.any(axis=1, keepdims=True), _angle_between(pose, predicted), np.nan)


def _angle_between(a: Array, b: Array) -> Array:
    """Absolute differences of angles in degrees, the short way round: within 180."""
    return np.abs((a.astype(np.float64) - b + 180) % 360 - 180)


def _distance(points: Array, left: Sequence[int], right: Sequence[int]) -> Array:
    """Distance between two centroids of points, ``(F,)``; NaN where a point is missing or there are none."""
    if not left or not right:
        return np.full(len(points), np.nan)
    return np.linalg.norm(points[:, list(left)].mean(axis=1) - points[:, list(right)].mean(axis=1), axis=-1)


def mean_error(table: FaceTable, points: Sequence[int] | None = None) -> Array:
    """Mean distance over the annotated points of each face in pixels of the photo.

    Args:
        table: the faces.
        points: the points to take; all where None.

    Returns:
        ``(F,)``, NaN where none of the points is annotated.
    """
    return mean_known(table.error if points is None else table.error[:, list(points)])


def nme_per_face(table: FaceTable, normaliser: Normaliser, points: Sequence[int] | None = None) -> Array:
    """Normalised mean error of each face.

    Args:
        table: the faces.
        normaliser: what the error is divided by, see :class:`FaceTable`.
        points: the points to take; all where None.

    Returns:
        ``(F,)``, a fraction; NaN where not defined.
    """
    length = getattr(table, normaliser)
    return mean_error(table, points) / np.where(length >= SMALLEST_NORMALISER, length, np.nan)


def write_faces(table: FaceTable, path: Path, photos: Sequence[str], tags: tuple[str, ...]) -> None:
    """Write one row per face. The file appears under its name only when it is complete.

    Lengths and ``error_px`` are pixels of the photo, ``nme_*`` fractions, angles degrees, ``points`` the number of
    annotated points, ``tag_*`` 0 or 1. What is not defined is an empty cell. Numbers are written in full.

    Args:
        table: the faces.
        path: ``faces.csv`` of a run.
        photos: the photo of each face of the split; ``photos[face_id]`` is that of a row.
        tags: Annotations.tags, the columns of ``table.tags``.

    Raises:
        ValueError: the table has another number of tags, or a face that has no photo.
    """
    if len(tags) != table.tags.shape[1]:
        raise ValueError(f"the table has {table.tags.shape[1]} tags per face, but these are named: {list(tags)}")
    if len(table.face_id) and not 0 <= table.face_id.min() <= table.face_id.max() < len(photos):
        raise ValueError(f"the table has face {table.face_id.max()}, but the split has {len(photos)} faces")
    columns: dict[str, Sequence[object]] = {
        "face_id": table.face_id.tolist(),
        "photo": [photos[face] for face in table.face_id],
        **{f"nme_{normaliser}": _cells(nme_per_face(table, normaliser)) for normaliser in NORMALISERS},
        "error_px": _cells(mean_error(table)),
        **{normaliser: _cells(getattr(table, normaliser)) for normaliser in NORMALISERS},
        **{angle: _cells(table.pose[:, i]) for i, angle in enumerate(ANGLES)},
        "points": table.valid.sum(axis=1).tolist(),
        **{f"tag_{tag}": faces.astype(int).tolist() for tag, faces in zip(tags, table.tags.T, strict=True)},
    }
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def read_faces(path: Path) -> dict[str, Array]:
    """Read a file of :func:`write_faces`.

    Returns:
        Name of a column to its ``(F,)`` values: int64 ``face_id`` and ``points``, object ``photo`` (of str), bool
        ``tag_*``, the rest float64 with NaN for an empty cell.

    Raises:
        ValueError: a line or a number that is not of such a file, with its place.
    """
    names, *rows = list(read_table(path)) or [[]]
    if names[:2] != ["face_id", "photo"]:
        raise ValueError(f"{path}:1: starts with {names[:2]}, expected face_id, photo; this is not a table of faces")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise ValueError(f"{path}:{line}: {len(row)} cells, but the header names {len(names)} columns")
    cells = zip(*rows, strict=True) if rows else [() for _ in names]
    return {name: _column(path, name, column) for name, column in zip(names, cells, strict=True)}


def _column(path: Path, name: str, cells: Sequence[str]) -> Array:
    if name == "photo":
        return np.array(cells, np.object_)  # of str_ each would take the room of the longest
    whole, flag = name in ("face_id", "points"), name.startswith("tag_")
    values: list[float] = []
    for line, cell in enumerate(cells, start=2):
        try:
            values.append(int(cell) if whole or flag else float(cell or "nan"))
        except ValueError as error:
            raise ValueError(f"{path}:{line}: column {name} holds {cell!r}, expected a number") from error
    try:
        return np.array(values, np.int64 if whole else np.bool_ if flag else np.float64)
    except OverflowError as error:
        raise ValueError(f"{path}: column {name} holds {max(map(abs, values))}, expected a count") from error


def _cells(values: Array) -> list[float | str]:
    return ["" if np.isnan(value) else value for value in values.tolist()]


def mean_known(values: Array) -> Array:
    """Take the mean over the last axis of what is not NaN; NaN if nothing is."""
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.nansum(values, axis=-1) / (~np.isnan(values)).sum(axis=-1)
