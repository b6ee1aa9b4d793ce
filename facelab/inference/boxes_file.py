"""Files of face boxes, in pixels of the upright photo."""

import csv
import json
import math
import unicodedata
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from facelab.annotations.points_file import read_lines, read_table
from facelab.errors import DatasetError, printable
from facelab.faces.geometry import Array, bounding_box

COLUMNS = ("image", "x0", "y0", "x1", "y1")
"""Columns of a CSV file of boxes."""
RULE = "detection"
"""Key of the rule of the detector in a ``detections.json``, which a ``landmarks.json`` lacks."""
Boxes = dict[str, list[Array]]
"""Boxes of faces by the name of their photo, each ``(4,)`` x0 y0 x1 y1."""


def read_boxes(path: Path) -> Boxes:
    """Read the boxes of the faces of each photo.

    Args:
        path: a CSV file with the header ``image,x0,y0,x1,y1`` and one face per line, or a JSON file,
            ``{"photo.jpg": [[x0, y0, x1, y1], ...], ...}``. Names of photos are relative to the folder of the photos.
            Also a ``detections.json`` of predict.py with the boxes of a detector, and its ``landmarks.json``, whose
            boxes are the tight boxes of its landmarks: a method can start from the prediction of another.

    Raises:
        DatasetError: the file has another format; the message contains the line, or the photo and the face.
    """
    if path.suffix.lower() == ".json":
        return _boxes_of_json(path)
    if path.suffix.lower() == ".csv":
        return _boxes_of_csv(path)
    raise DatasetError(f"boxes={path}: expected a file with the ending .csv or .json")


def _name(text: str) -> str:
    """Return a photo's name in the form of :class:`Photos`."""
    return unicodedata.normalize("NFC", printable(str(PurePosixPath(text.strip()))))


def _boxes_of_csv(path: Path) -> Boxes:
    """Read a CSV file of boxes."""
    rows = csv.reader(read_lines(path, "surrogateescape"))
    try:
        return _boxes_of_rows(rows, path)
    except csv.Error as error:
        raise DatasetError(f"{path}, line {rows.line_num}: not valid CSV: {error}") from error


def _boxes_of_rows(rows: Any, path: Path) -> Boxes:
    """Parse the rows of a CSV file of boxes, the header first."""
    boxes: Boxes = {}
    header = ",".join(COLUMNS)
    if tuple(field.strip() for field in next(rows)) != COLUMNS:
        raise DatasetError(
            f"{path}, line 1: expected the header {header}; of the results of predict.py, pass the .json file"
        )
    for row in filter(None, rows):
        place = f"{path}, line {rows.line_num}"
        if len(row) != len(COLUMNS):
            raise DatasetError(f"{place}: found {len(row)} values, expected {len(COLUMNS)} ({header})")
        name, *numbers = row
        if not name.strip():
            raise DatasetError(f"{place}: the name of the image is empty, expected {header}")
        table = read_table(
            [",".join(numbers)], 4, ",".join(COLUMNS[1:]), path, rows.line_num, delimiter=",", allow_nan=False
        )
        boxes.setdefault(_name(name), []).append(table[0].astype(np.float64))
    return boxes


def _boxes_of_json(path: Path) -> Boxes:
    """Read a JSON file of boxes."""
    try:
        content = json.loads("\n".join(read_lines(path)), object_pairs_hook=lambda pairs: _unique(pairs, path))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or lists nested too deeply
        raise DatasetError(f"{path}: the JSON cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f'{path}: expected {{"photo.jpg": [[x0, y0, x1, y1], ...], ...}}, found {_kind(content)}')
    if isinstance(images := content.get("images"), dict):
        read = _boxes_of_detections if RULE in content else _boxes_of_landmarks
        content = {name: read(path, name, photo) for name, photo in images.items()}
    boxes: Boxes = {}
    for name, faces in content.items():
        if not isinstance(faces, list):
            raise DatasetError(f"{path}, {name!r}: expected a list of boxes, found {_kind(faces)}")
        for number, box in enumerate(faces):
            if not _is_box(box):
                raise DatasetError(
                    f"{path}, {name!r}, face {number}: expected [x0, y0, x1, y1] in numbers, found {str(box)[:100]}"
                )
        boxes.setdefault(_name(name), []).extend(np.array(box, np.float64) for box in faces)
    return boxes


def _boxes_of_landmarks(path: Path, name: str, photo: Any) -> list[list[float]]:
    """Return the tight boxes of the landmarks of a photo in a ``landmarks.json``."""
    try:
        points = [np.array(face["points"], np.float64).reshape(-1, 2) for face in photo["faces"]]
        if not all(len(face) and np.isfinite(face).all() for face in points):
            raise ValueError("a point is missing")
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path}, {name!r}: expected the faces of a landmarks.json, each with points") from error
    return [bounding_box(face).tolist() for face in points]


def _boxes_of_detections(path: Path, name: str, photo: Any) -> list[Any]:
    """Return the boxes of a photo in a ``detections.json``."""
    try:
        return [face["box"] for face in photo["faces"]]
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{path}, {name!r}: expected the faces of a detections.json, each with a box") from error


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """Make a dict of the pairs of a JSON object; refuse a repeated name, of which Python keeps the last."""
    if repeated := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise DatasetError(f"{path}: {repeated[0]!r} occurs more than once; put all boxes of a photo into one list")
    return dict(pairs)


def _kind(content: Any) -> str:
    """Describe JSON content for a message."""
    return "a mapping" if isinstance(content, dict) else "a list" if isinstance(content, list) else repr(content)


def _is_box(box: Any) -> bool:
    """Return whether JSON content is a list of four finite numbers."""
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value) for value in box)
    )


def _is_finite(value: float) -> bool:
    """Return whether a number is finite as a float."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False
