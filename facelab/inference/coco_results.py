"""Detections in the format of COCO's results: a JSON list with one mapping per detection.

A mapping has ``image_id``, ``bbox`` (x y width height), ``score``, and for a detector with points ``keypoints`` (five
times x y v; 0 0 0 is no prediction). x and y count from the edge of the first pixel, as in COCO: 0.5 is subtracted.
``image_id`` is the name of a photo, or a number that a file of annotations maps to one: ``{"images": [{"id": 17,
"file_name": "EVENT/PHOTO.jpg"}, ...], ...}``.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from facelab.annotations.box_rows import BoxRows
from facelab.errors import DatasetError
from facelab.faces.geometry import Array, from_cells
from facelab.faces.layouts import FIVE5

WIDTHS = {"bbox": 4, "keypoints": 3 * FIVE5.num_points}
"""Numbers in the lists of a detection."""
NO_POINTS = [0.0] * WIDTHS["keypoints"]
"""Points of a detection without ``keypoints``."""


def read_results(path: Path, images: Path | None) -> tuple[BoxRows, Array, Array]:
    """Read the detections of photos.

    Args:
        path: the file of results.
        images: file of annotations, whose ``images`` give the names of numbered photos; None if ``image_id`` is a name.

    Returns:
        The boxes x y width height ``(D, 4)`` of the photos, the scores ``(D,)``, and the points ``(D, 5, 2)`` in pixels
        of the photo, NaN without a prediction. Without ``images`` only photos with a detection are known.

    Raises:
        DatasetError: a file is malformed; the message contains the file and the row.
    """
    content = _read(path)
    if not isinstance(content, list):
        raise DatasetError(
            f"{path}: expected a list of detections, each with image_id, bbox and score; found {_kind(content)}"
        )
    names = None if images is None else _names(images)
    found: dict[str, list[int]] = {name: [] for name in names.values()} if names else {}
    numbers: dict[str, list[Any]] = {key: [] for key in (*WIDTHS, "score")}
    places, categories = [], set()
    for row, entry in enumerate(content):
        place = f"{path}, detection {row + 1}"
        if not isinstance(entry, dict):
            raise DatasetError(f"{place}: expected a mapping, found {_kind(entry)}")
        found.setdefault(_name(entry, names, images, place), []).append(row)
        categories.add(str(entry.get("category_id")))
        for key, width in WIDTHS.items():
            numbers[key].append(_list(entry.get(key, NO_POINTS if key == "keypoints" else None), key, width, place))
        if not _is_number(score := entry.get("score")):
            raise DatasetError(f"{place}: expected a score, a finite number, found {score!r}")
        numbers["score"].append(score)
        places.append(place)
    if len(categories) > 1:
        raise DatasetError(f"{path}: the detections are of {len(categories)} categories; keep those of faces only")
    order = np.array([row for rows in found.values() for row in rows], np.int64)
    boxes, keypoints, scores = (
        np.array(numbers[key], np.float64).reshape(len(content), *shape)[order]
        for key, shape in (("bbox", (4,)), ("keypoints", (FIVE5.num_points, 3)), ("score", ()))
    )
    points = np.where(keypoints.any(axis=-1, keepdims=True), from_cells(keypoints[..., :2], 1), np.nan)
    ends = np.cumsum([len(rows) for rows in found.values()]).tolist()
    return BoxRows(list(found), ends, boxes, [places[row] for row in order]), scores, points


def _read(path: Path) -> Any:
    """Parse a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of thousands of digits, lists nested too deeply
        raise DatasetError(f"{path}: the JSON cannot be read: {error}") from error


def _names(path: Path) -> dict[Any, str]:
    """Read the names of numbered photos."""
    content = _read(path)
    try:
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
    except (KeyError, TypeError) as error:
        raise DatasetError(
            f'{path}: expected annotations of COCO, {{"images": [{{"id": 17, "file_name": "PHOTO.jpg"}}, ...]}}'
        ) from error
    if len({*names.values()}) < len(content["images"]):
        raise DatasetError(f"{path}: two of the {len(content['images'])} images have the same id or file_name")
    return names


def _name(entry: dict[str, Any], names: dict[Any, str] | None, images: Path | None, place: str) -> str:
    """Return the name of the photo of a detection."""
    photo = entry.get("image_id")
    if names is not None and isinstance(photo, int | str):
        if photo not in names:
            raise DatasetError(f"{place}: {images} has no image with the id {photo!r}")
        return names[photo]
    if not isinstance(photo, str) or not photo:
        raise DatasetError(
            f"{place}: expected an image_id, the name of a photo, found {photo!r}. For numbers, name the file of "
            "annotations that contains their names: predicted.images=FILE"
        )
    return photo


def _list(value: Any, key: str, width: int, place: str) -> list[float]:
    """Check a list of finite numbers."""
    if not isinstance(value, list) or len(value) != width or not all(map(_is_number, value)):
        meaning = "x, y, width, height" if key == "bbox" else "five times x, y, v"
        raise DatasetError(f"{place}: expected {key} as {width} finite numbers ({meaning}), found {str(value)[:80]}")
    return value


def _is_number(value: Any) -> bool:
    """Return whether JSON content is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def _kind(content: Any) -> str:
    """Describe JSON content for a message."""
    return "a mapping" if isinstance(content, dict) else "a list" if isinstance(content, list) else repr(content)[:80]
