"""Tests of results in the format of COCO."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facelab.errors import DatasetError
from facelab.inference.coco_results import read_results

IMAGES = {"images": [{"id": 7, "file_name": "e/a.jpg"}, {"id": 9, "file_name": "e/b.jpg"}, {"id": 8, "file_name": "c"}]}
BOX = {"bbox": [1, 2, 3, 4], "score": 0.5}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_read_results_of_names(tmp_path: Path) -> None:
    """Would catch detections of another photo, pixels counted from 0, or a missing point at -0.5."""
    points = [1, 2, 1, 3, 4, 0.7, 0, 0, 0, 5, 6, 2, 7, 8, 0]
    content = [{"image_id": "b", **BOX}, {"image_id": "a", **BOX, "keypoints": points}, {"image_id": "b", **BOX}]
    content[2] = content[2] | {"score": -3, "bbox": [5.5, 6, 7, 8]}
    rows, scores, found = read_results(write(tmp_path / "r.json", content), None)
    assert (rows.names, rows.ends) == (["b", "a"], [2, 3])
    np.testing.assert_array_equal(rows.boxes, [[1, 2, 3, 4], [5.5, 6, 7, 8], [1, 2, 3, 4]])
    assert scores.tolist() == [0.5, -3, 0.5]
    assert rows.places[1] == f"{tmp_path / 'r.json'}, detection 3"
    assert np.isnan(found[:2]).all()
    np.testing.assert_array_equal(found[2], [[0.5, 1.5], [2.5, 3.5], [np.nan, np.nan], [4.5, 5.5], [6.5, 7.5]])


def test_read_results_of_numbers(tmp_path: Path) -> None:
    """Would catch a photo without a detection that counts as missing, and numbers that are taken for rows."""
    results = write(tmp_path / "r.json", [{"image_id": 8, **BOX}, {"image_id": 7, **BOX}])
    rows, _, _ = read_results(results, write(tmp_path / "images.json", IMAGES))
    assert (rows.names, rows.ends) == (["e/a.jpg", "e/b.jpg", "c"], [1, 1, 2])


def test_read_results_without_a_detection(tmp_path: Path) -> None:
    """Would catch a crash on a detector that found nothing."""
    rows, scores, points = read_results(write(tmp_path / "r.json", []), write(tmp_path / "images.json", IMAGES))
    assert (rows.ends, scores.shape, points.shape) == ([0, 0, 0], (0,), (0, 5, 2))


@pytest.mark.parametrize(
    ("content", "images", "message"),
    [
        ("[", None, "r.json, line 1: not valid JSON"),
        ({"annotations": []}, None, "r.json: expected a list of detections.*found a mapping"),
        ([7], None, "r.json, detection 1: expected a mapping, found 7"),
        (
            [{"image_id": "a", **BOX}, {"image_id": 7, **BOX}],
            None,
            "detection 2: expected an image_id, the name .*=FILE",
        ),
        ([{"image_id": 1, **BOX}], IMAGES, "detection 1: .*images.json has no image with the id 1"),
        ([{"image_id": "a", "score": 1}], None, r"detection 1: expected bbox as 4 finite numbers \(x, y, .*found None"),
        ([{"image_id": "a", "bbox": [1, 2, 3], "score": 1}], None, "detection 1: expected bbox as 4 finite numbers"),
        ('[{"image_id": "a", "bbox": [1, 2, NaN, 4], "score": 1}]', None, "detection 1: expected bbox as 4 finite"),
        ([{"image_id": "a", **BOX, "score": None}], None, "detection 1: expected a score, a finite number, found None"),
        ([{"image_id": "a", **BOX, "keypoints": [1, 2]}], None, "expected keypoints as 15 finite numbers"),
        ([{"image_id": "a", **BOX, "category_id": i} for i in (1, 2)], None, "of 2 categories; keep those of faces"),
        ([], {"images": [{"id": 1}]}, "images.json: expected annotations of COCO"),
        ([], {"images": IMAGES["images"] * 2}, "two of the 6 images have the same id or file_name"),
    ],
)
def test_read_results_names_detection_and_fault(content: Any, images: Any, message: str, tmp_path: Path) -> None:
    """Would catch a traceback, or a detection that is dropped silently."""
    file = images and write(tmp_path / "images.json", images)
    with pytest.raises(DatasetError, match=message):
        read_results(write(tmp_path / "r.json", content), file)
