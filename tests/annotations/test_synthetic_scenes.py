"""Tests of the set of rendered scenes: labels, reproducibility, caching and options."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facelab.annotations.synthetic_scenes import TAGS, SyntheticScenes
from facelab.errors import ConfigError, DatasetError
from facelab.faces.boxes import clip
from facelab.faces.image import read_image
from facelab.faces.layouts import FIVE5, IBUG68

OPTIONS: dict[str, Any] = {
    "seed": 3,
    "train": 30,
    "val": 2,
    "test": 3,
    "width": 96,
    "height": 66,
    "faces": 3,
    "smallest": 12.0,
    "largest": 60.0,
    "yaw": 90.0,
    "pitch": 30.0,
    "roll": 35.0,
    "occlusion": 0.4,
}


def scenes(root: Path, **changed: Any) -> SyntheticScenes:
    """Return a small set whose options can be changed."""
    values: dict[str, Any] = {"name": "scenes", "cache": str(root), "layout": FIVE5}
    return SyntheticScenes(**(values | OPTIONS | changed))


def test_photos_have_labels_inside_of_the_photo(tmp_path: Path) -> None:
    """Would catch faces of another photo, points outside, boxes that the border does not cut, and no empty photo."""
    photos = scenes(tmp_path).photos("train")
    assert all(read_image(photo.path).shape == (66, 96, 3) for photo in photos)
    assert {len(photo.faces) for photo in photos} == {0, 1, 2, 3}
    faces = [face for photo in photos for face in photo.faces]
    for face in faces:
        assert (face.box == clip(face.box, 96, 66)).all() and (face.box[2:] > face.box[:2]).all()
        known = ~np.isnan(face.points[:, 0])
        assert ((face.points[known] >= -0.5) & (face.points[known] < [95.5, 65.5])).all()
        assert known[face.visible].all()
        assert known.all() or "cut" in face.tags
        if abs(face.pose[0]) > 75:  # the nose points to the left of the image if yaw is positive
            assert not face.visible[0 if face.pose[0] > 0 else 1]
        sides = face.box - [-0.5, -0.5, 95.5, 65.5]
        assert ("cut" in face.tags) == (sides == 0).any()
        assert face.tags <= set(TAGS)
        assert face.points.dtype == face.box.dtype == face.pose.dtype == np.float32
    for tag in ("cut", "occlusion", "profile", "frontal"):
        assert any(tag in face.tags for face in faces) and not all(tag in face.tags for face in faces)
    assert {bool(face.visible.all()) for face in faces} == {True, False}
    assert any(np.isnan(face.points).any() for face in faces)
    assert any(face.pose[0] > 75 for face in faces) and any(face.pose[0] < -75 for face in faces)


def test_photos_have_the_five_points_in_their_order(tmp_path: Path) -> None:
    """Would catch left and right exchanged, and points of another layout."""
    reader = scenes(tmp_path, train=8, roll=0.0, yaw=20.0, pitch=10.0, occlusion=0.0)
    whole = [face for photo in reader.photos("train") for face in photo.faces if "cut" not in face.tags]
    assert len(whole) > 3
    for face in whole:
        left, right, nose, left_corner, right_corner = (face.points - face.box[:2]) / (face.box[2:] - face.box[:2])
        assert left[0] < nose[0] < right[0] and left_corner[0] < right_corner[0]
        assert left[1] < nose[1] < left_corner[1] < 0.95 and right[1] < nose[1] < right_corner[1]


def test_photos_depend_only_on_seed_split_and_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a generator shared by photos or processes, and photos that differ with the number of processes."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    several = scenes(tmp_path, train=41).photos("all")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    one = scenes(tmp_path, train=12).photos("all")
    by_name = {(photo.path.parent.name, photo.path.name): photo for photo in several}
    assert len(one) == 12 + 2 + 3
    for photo in one:
        same = by_name[photo.path.parent.name, photo.path.name]
        assert photo.path.read_bytes() == same.path.read_bytes()
        assert len(photo.faces) == len(same.faces)
        for face, other in zip(photo.faces, same.faces, strict=True):
            assert face.tags == other.tags
            for value, equal in zip(face[:4], other[:4], strict=True):
                np.testing.assert_array_equal(value, equal)
    assert len({photo.path.read_bytes() for photo in one}) == len(one)


def test_photos_are_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a set that is rendered at every start, and one that is read with other options."""
    first = scenes(tmp_path, train=3).photos("all")
    assert len(first) == len(scenes(tmp_path, train=3).photos("train")) + 2 + 3
    monkeypatch.setattr(SyntheticScenes, "write_photo", None)
    again = scenes(tmp_path, train=3, name="other").photos("all")
    assert [photo.path for photo in again] == [photo.path for photo in first]
    folders = {scenes(tmp_path, **{key: value - 1}).folder for key, value in OPTIONS.items() if key != "occlusion"}
    assert len(folders | {scenes(tmp_path, occlusion=0.5).folder, scenes(tmp_path).folder}) == len(OPTIONS) + 1


def test_photos_without_faces_are_read(tmp_path: Path) -> None:
    """Would catch a set without a single face that cannot be written or read."""
    photos = scenes(tmp_path, train=2, faces=0).photos("all")
    assert [photo.faces for photo in photos] == [()] * 7


def test_photos_report_a_damaged_cache(tmp_path: Path) -> None:
    """Would catch an error without the damaged file and the remedy."""
    reader = scenes(tmp_path, train=1)
    reader.photos("val")
    (reader.folder / "faces.npz").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"faces\.npz.*Delete"):
        reader.photos("val")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layout": IBUG68}, "layout: rendered scenes have the points of five5, not of 'ibug68'"),
        ({"train": -1}, "train=-1 must be from 0"),
        ({"train": 0, "val": 0, "test": 0}, "at least one split needs photos"),
        ({"faces": -1}, "faces=-1 must be from 0"),
        ({"largest": 67.0}, "largest=67.0 must be from 8 to 66"),
        ({"smallest": 61.0}, "smallest=61.0 must be from 8 to 60"),
        ({"smallest": float("nan")}, "smallest=nan must be"),
        ({"occlusion": 30}, "occlusion=30 must be from 0 to 1"),
    ],
)
def test_synthetic_scenes_refuses_invalid_options(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    """Would catch a mistake in an option that ends in a traceback of numpy, or in other scenes."""
    with pytest.raises(ConfigError) as raised:
        scenes(tmp_path, **changed)
    assert message in str(raised.value)
