"""Files of a table of detections: all columns for programs, and two CSV files for readers. Without torch."""

import csv
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facelab.files import replacing
from facelab.metrics.detection import all_pairs, count_photos, found_faces
from facelab.metrics.detection_table import DetectionTable, detection_table
from facelab.metrics.face_table import cells

SHOWN = 0.3
"""Score from which a detection is in the CSV files; those below, most of all, only matter for the AP."""
KINDS = {"i": "integers", "f": "numbers", "b": "true or false", "U": "text"}
"""Names of the kinds of numpy's types, for messages."""
COLUMNS = {
    "photo_id": ("i", ("P",)),
    "skipped": ("b", ("P",)),
    "cut": ("f", ("P",)),
    "boxes": ("f", ("D", 4)),
    "scores": ("f", ("D",)),
    "points": ("f", ("D", 5, 2)),
    "photo": ("i", ("D",)),
    "face_id": ("i", ("F",)),
    "true_boxes": ("f", ("F", 4)),
    "true_points": ("f", ("F", 5, 2)),
    "pose": ("f", ("F", 3)),
    "tags": ("b", ("F", "T")),
    "ignore": ("b", ("F",)),
    "true_photo": ("i", ("F",)),
    "tag_names": ("U", ("T",)),
    "photos": ("U", ("P",)),
}
"""Kind of the type and shape of each array of ``detections.npz``."""


def write_detection_table(table: DetectionTable, path: Path, photos: Sequence[str]) -> None:
    """Write all detections and faces; the file is written atomically.

    The arrays are the columns of :class:`DetectionTable`, in which ``photo`` and ``true_photo`` are rows of the arrays
    of photos, and ``photos``, the names.

    Args:
        table: the photos.
        path: ``detections.npz`` of a run.
        photos: name of each photo of the split, indexed by ``photo_id``.

    Raises:
        ValueError: a ``photo_id`` has no name.
    """
    columns = {**table._asdict(), "tag_names": np.array(table.tag_names, np.str_)}
    names = np.array(_names(table, photos), np.str_)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **columns, photos=names)


def read_detection_table(path: Path) -> tuple[DetectionTable, list[str]]:
    """Read a file of :func:`write_detection_table`.

    Returns:
        The table, and the name of each of its photos.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such a file; the message contains the path and the array.
    """
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:  # np.load reads other files too
            columns = {name: file[name] for name in COLUMNS if name in file}
    # NotImplementedError: zipfile does not know the compression.
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise ValueError(f"{path} is not a file of NumPy arrays (.npz): {error}") from error
    lengths: dict[str, int] = {}
    for name, (kind, shape) in COLUMNS.items():
        if name not in columns:
            raise ValueError(f"{path} has no array `{name}`; this is not a detections.npz")
        array = columns[name]
        sizes = dict(zip(shape, array.shape, strict=False))  # by letter or number
        expected = tuple(
            axis if isinstance(axis, int) else lengths.setdefault(axis, sizes.get(axis, 0)) for axis in shape
        )
        if array.dtype.kind != kind or array.shape != expected:
            raise ValueError(
                f"{path}: the array `{name}` contains {array.dtype} in the shape {array.shape}, expected "
                f"{KINDS[kind]} in the shape ({', '.join(map(str, shape))})"
            )
    names, tags = columns.pop("photos").tolist(), tuple(columns.pop("tag_names").tolist())
    for name in ("photo", "true_photo"):
        rows = columns[name]
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(names):
            raise ValueError(f"{path}: the array `{name}` contains rows that the {len(names)} photos do not have")
        columns[name] = columns["photo_id"][rows]
    order = np.argsort(columns["photo_id"])
    try:
        return detection_table(tags, **columns), [names[row] for row in order]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_detections(table: DetectionTable, path: Path, photos: Sequence[str]) -> None:
    """Write one row per detection with a score of at least :data:`SHOWN`; the file is written atomically.

    Boxes and points are pixels of the photo; ``face_id`` is the row of the found face in the split, empty for a false
    detection and for one on an ignored face. NaN is an empty cell. Numbers are not rounded.

    Args:
        table: the photos.
        path: ``detections.csv`` of a run.
        photos: name of each photo of the split, indexed by ``photo_id``.

    Raises:
        ValueError: a ``photo_id`` has no name.
    """
    names, found = _names(table, photos), found_faces(table, all_pairs(table))
    shown = table.scores >= SHOWN
    numbers = np.concatenate([table.scores[:, None], table.boxes, table.points.reshape(-1, 10)], axis=1)[shown]
    header = ["score", "x0", "y0", "x1", "y1", *(f"{axis}_point{i}" for i in range(5) for axis in "xy")]
    columns: dict[str, Sequence[object]] = {
        "photo": [names[row] for row in table.photo[shown]],
        "face_id": [table.face_id[face] if face >= 0 else "" for face in found[shown]],
        **{name: cells(column) for name, column in zip(header, numbers.T, strict=True)},
    }
    _write(path, columns)


def write_photos(table: DetectionTable, path: Path, photos: Sequence[str]) -> None:
    """Write one row per photo; the file is written atomically.

    ``found``, ``missed`` and ``false`` count at an overlap of 0.5, from the score :data:`SHOWN` on.

    Args:
        table: the photos.
        path: ``photos.csv`` of a run.
        photos: name of each photo of the split, indexed by ``photo_id``.

    Raises:
        ValueError: a ``photo_id`` has no name.
    """
    columns: dict[str, Sequence[object]] = {
        "photo_id": table.photo_id.tolist(),
        "photo": _names(table, photos),
        **{name: column.tolist() for name, column in count_photos(table, SHOWN)._asdict().items()},
        "ignored": np.bincount(table.true_photo[table.ignore], minlength=len(table.photo_id)).tolist(),
        "skipped": table.skipped.astype(int).tolist(),
        "cut": ["" if np.isnan(cut) else int(cut) for cut in table.cut],
    }
    _write(path, columns)


def _write(path: Path, columns: dict[str, Sequence[object]]) -> None:
    """Write a CSV file."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _names(table: DetectionTable, photos: Sequence[str]) -> list[str]:
    """Return the name of each photo of a table."""
    if len(table.photo_id) and not 0 <= table.photo_id[0] <= table.photo_id[-1] < len(photos):
        raise ValueError(f"the table has photo {table.photo_id[-1]}, but the split has {len(photos)} photos")
    return [photos[photo] for photo in table.photo_id]
