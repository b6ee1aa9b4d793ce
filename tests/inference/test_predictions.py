"""Tests of predictions of any program: their photos, and whether their numbers are plausible."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import face_data

from facelab.annotations.wider_face import WiderFace
from facelab.errors import DatasetError
from facelab.faces.boxes import to_corner_and_size
from facelab.faces.face import Photo
from facelab.faces.layouts import FIVE5
from facelab.inference.predictions import columns_of, read_predictions

PHOTOS = [Photo(Path("/set/images") / name, (), "stored") for name in ("e/a.jpg", "e/b.jpg", "f/b.jpg", "f/c.d.png")]
GOOD = {"e/a": [[5, 5, 10, 12, 0.9]], "e/b": [], "f/b": [[1, 2, 3, 4, 0.5], [1, 2, 30, 40, 0.1]], "f/c.d": []}


def submission(folder: Path, detections: dict[str, Any]) -> Path:
    """Write detections x y w h score by photo."""
    for name, rows in detections.items():
        file = folder / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join([name, str(len(rows)), *(" ".join(map(str, row)) for row in rows), ""]))
    return folder


def columns(path: Path, photos: list[Photo] = PHOTOS, *, may_lack: bool = False) -> tuple[dict[str, Any], list[str]]:
    return columns_of(read_predictions(path, None), photos, "faces test", may_lack=may_lack)


def test_columns_of_finds_each_photo(tmp_path: Path) -> None:
    """Would catch detections of another photo, half a pixel, or a limit that is recorded as unused."""
    found, remarks = columns(submission(tmp_path, GOOD))
    assert remarks == []
    assert found["photo"].tolist() == [0, 2, 2]
    assert found["boxes"][0].tolist() == [4.5, 4.5, 14.5, 16.5]
    assert np.isnan(found["cut"]).all() and np.isnan(found["points"]).all()
    assert found["photo_id"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "photo"), [("a", 0), ("a.jpg", 0), ("images/e/b.jpg", 1), ("f/b", 2), ("c.d", 3), ("c.d.png", 3)]
)
def test_columns_of_accepts_names_with_and_without_folder_and_ending(name: str, photo: int, tmp_path: Path) -> None:
    """Would catch a photo that is not found under one of its usual names, and a name cut off at its first dot."""
    results = [{"image_id": name, "bbox": [1, 2, 3, 4], "score": 0.5}]
    (tmp_path / "r.json").write_text(json.dumps(results))
    found, remarks = columns(tmp_path / "r.json")
    assert found["photo"].tolist() == [photo]
    assert remarks == ["3 photos are not in the predictions and count as photos without a detection"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"b": []},
            r"the photo b of the predictions is ambiguous in faces test: /set/images/e/b.jpg and /set/images/f/b",
        ),
        ({"a": []}, r"e/a and a of the predictions are one photo|a and e/a of the predictions are one photo"),
        ({"e/b": None}, r"1 of the 4 photos of faces test are missing .*e/b.jpg. predicted.missing=empty"),
    ],
)
def test_columns_of_refuses_photos_that_do_not_fit(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Would catch photos that are mixed up, counted twice, or silently counted as without a detection."""
    photos = {name: rows for name, rows in {**GOOD, **change}.items() if rows is not None}
    with pytest.raises(DatasetError, match=message):
        columns(submission(tmp_path, photos))


def test_columns_of_refuses_predictions_of_another_dataset(tmp_path: Path) -> None:
    """Would catch an AP of 0 for the wrong dataset."""
    with pytest.raises(DatasetError, match=r"no photo of the predictions is in faces test: they have \['x/y'\]"):
        columns(submission(tmp_path, {"x/y": []}), may_lack=True)


def test_columns_of_counts_photos_of_one_side(tmp_path: Path) -> None:
    """Would catch photos that are left out, or added without detections, without a word."""
    found, remarks = columns(submission(tmp_path, {"e/a": GOOD["e/a"], "x/y": [[1, 1, 9, 9, 0.5]]}), may_lack=True)
    assert found["photo"].tolist() == [0]
    assert remarks == [
        "3 photos are not in the predictions and count as photos without a detection",
        "1 photos of the predictions are not in faces test and are left out",
    ]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Photo]:
    """Write two photos of 100 x 80 pixels."""
    paths = [tmp_path / "set" / f"{name}.png" for name in "ab"]
    paths[0].parent.mkdir()
    for path in paths:
        cv2.imwrite(str(path), np.zeros((80, 100, 3), np.uint8))
    return [Photo(path, (), "stored") for path in paths]


def test_columns_of_refuses_corners_in_place_of_sizes(pictures: list[Photo], tmp_path: Path) -> None:
    """Would catch x0 y0 x1 y1 that are read as x y width height: an AP near 0 without a reason."""
    corners = [[60, 40, 90, 70, 0.9], [50, 30, 105, 60, 0.8]]
    with pytest.raises(DatasetError, match=r"a.txt, line 3: the box ends outside .* write x y width height"):
        columns(submission(tmp_path / "corners", {"a": corners, "b": corners}), pictures)
    sizes = [[60, 40, 30, 30, 0.9], [50, 30, 55, 30, 0.8]]  # the second ends beyond the photo, as detections may
    assert columns(submission(tmp_path / "sizes", {"a": sizes, "b": sizes}), pictures)[1] == []


def test_read_predictions_refuses_fractions(tmp_path: Path) -> None:
    """Would catch fractions of the photo, and one tiny detection that makes a whole folder unreadable."""
    with pytest.raises(DatasetError, match=r"e/a.txt, line 3: the box \[0.1, 0.2, 0.3, 0.4\] looks like fractions"):
        read_predictions(submission(tmp_path / "a", {"e/a": [[0.1, 0.2, 0.3, 0.4, 0.9]] * 2, "e/b": []}), None)
    tiny = {**GOOD, "e/b": [[0.1, 0.2, 1.1, 1.2, 0.05]]}
    assert len(columns(submission(tmp_path / "b", tiny))[0]["boxes"]) == 4


def test_columns_of_states_scores_beyond_probabilities(tmp_path: Path) -> None:
    """Would catch a refusal of scores that are no probabilities, whose order is all that the AP needs."""
    found, remarks = columns(submission(tmp_path, {**GOOD, "e/b": [[1, 2, 3, 4, -2.5]]}))
    assert sorted(found["scores"].tolist()) == [-2.5, 0.1, 0.5, 0.9]
    assert len(remarks) == 1 and remarks[0].startswith("the scores are -2.5 to 0.9, not 0 to 1")


@pytest.mark.parametrize(
    ("path", "images", "message"),
    [
        ("missing", None, "there is no such file or folder"),
        ("missing.json", None, "missing.json: No such file"),
        ("missing.npz", None, "missing.npz: No such file"),
        ("a.csv", None, "expected a folder of EVENT/PHOTO.txt"),
        (".", "images.json", "predicted.images=images.json belongs to results of COCO"),
    ],
)
def test_read_predictions_names_what_it_reads(path: str, images: str | None, message: str, tmp_path: Path) -> None:
    """Would catch a traceback for a wrong path."""
    (tmp_path / "a.csv").touch()
    with pytest.raises(DatasetError, match=message):
        read_predictions(tmp_path / path, images and Path(images))  # type: ignore[arg-type]


def test_columns_of_reads_a_submission_of_real_photos(tmp_path: Path) -> None:
    """Would catch a plausible submission of the official val that is refused, or coordinates that do not fit it."""
    reader = WiderFace("wider", str(face_data("WIDER")), FIVE5, "official", None, 0.1, skip_unpaired=True)
    photos = reader.photos("test")
    rows = {
        f"{photo.path.parent.name}/{photo.path.stem}": [
            [*to_corner_and_size(face.box.astype(float)).tolist(), 0.5] for face in photo.faces
        ]
        for photo in photos
    }
    found, remarks = columns(submission(tmp_path, rows | {"62--None/other": []}), photos)
    assert remarks == ["1 photos of the predictions are not in faces test and are left out"]
    np.testing.assert_array_equal(found["boxes"], np.stack([face.box for photo in photos for face in photo.faces]))
