import errno
import logging
import os
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from facelab.annotations import synthetic
from facelab.annotations.rendered_head import (
    HIGH,
    LOW,
    PIECES,
    Head,
    Look,
    View,
    curves,
    landmarks,
    paint,
    random_head,
    to_camera,
    visible,
)
from facelab.annotations.synthetic import SPLITS, TAGS, Synthetic, tags_of
from facelab.errors import ConfigError, DatasetError
from facelab.faces.face import Split
from facelab.faces.geometry import flip_image, transform_points
from facelab.faces.image import read_image
from facelab.faces.layouts import COFW29, IBUG68, LAPA106, WFLW98, Layout
from facelab.faces.pose import estimate_pose

LAYOUTS = [IBUG68, WFLW98, LAPA106]
SIZE = 96
NEUTRAL = Head(*np.add(LOW, HIGH) / 2)._replace(mouth_open=0.0, smile=0.0)
# one light from everywhere, and colours that cannot be mistaken for each other
FLAT = Look(
    skin=np.full(3, 0.4),
    hair=np.array([0.0, 0.2, 0.0]),
    iris=np.array([0.6, 0.0, 0.0]),
    cloth=np.zeros(3),
    light=np.array([0.0, 0.0, -1.0]),
    ambient=1.2,
)


def faces(root: Path, layout: Layout = WFLW98, **changed: Any) -> Synthetic:
    values: dict[str, Any] = {
        "name": "faces",
        "cache": str(root),
        "layout": layout,
        "seed": 3,
        "train": 4,
        "val": 2,
        "test": 3,
        "size": SIZE,
        "yaw": 75.0,
        "wide_yaw": 90.0,
        "wide_share": 0.3,
        "pitch": 25.0,
        "roll": 30.0,
        "occlusion": 0.5,
    }
    return Synthetic(**(values | changed))


def seen(head: Head, layout: Layout, yaw: float = 0, pitch: float = 0, roll: float = 0) -> tuple[Any, Any, Any, View]:
    """Canvas, points in pixels, their visibility and the view of a head in the middle of a photo of SIZE pixels."""
    view = View(np.array([yaw, pitch, roll]), SIZE / 4, np.full(2, (SIZE - 1) / 2))
    canvas = np.zeros((2 * SIZE, 2 * SIZE, 4), np.uint8)
    paint(canvas, head, curves(head), FLAT, view)
    points = to_camera(landmarks(curves(head), layout.name), view)
    return canvas, points[:, :2], visible(canvas, points, view.scale), view


def heads(count: int) -> list[Head]:
    return [random_head(np.random.default_rng(i)) for i in range(count)]


def test_a_photo_depends_on_seed_split_and_number_alone(tmp_path: Path) -> None:
    """Catches a generator that runs on from photo to photo, or that differs between two machines' folders."""
    one, other = faces(tmp_path / "a").photos("all"), faces(tmp_path / "b", train=6, test=1).photos("all")
    same = {photo.path.relative_to(photo.path.parents[1]): photo for photo in other}
    shared = [photo for photo in one if photo.path.relative_to(photo.path.parents[1]) in same]
    assert len(shared) == 4 + 2 + 1
    for photo in shared:
        twin = same[photo.path.relative_to(photo.path.parents[1])]
        assert photo.path.read_bytes() == twin.path.read_bytes()
        np.testing.assert_array_equal(photo.faces[0].points, twin.faces[0].points)
        assert photo.faces[0].tags == twin.faces[0].tags


def test_other_seed_other_faces(tmp_path: Path) -> None:
    """Catches a seed that is not used, and sets of two seeds that overwrite each other."""
    one, other = faces(tmp_path), faces(tmp_path, seed=4)
    assert one.folder != other.folder
    assert not np.allclose(one.photos("val")[0].faces[0].points, other.photos("val")[0].faces[0].points)


def test_many_processes_render_what_one_renders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches labels in another order than the photos, and workers that wait for threads which were not forked."""
    serial = faces(tmp_path / "a", train=40, val=0, test=0, size=32)
    parallel = faces(tmp_path / "b", train=40, val=0, test=0, size=32)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    expected = serial.photos("train")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    threads = cv2.getNumThreads()
    cv2.setNumThreads(2)
    for _ in range(10):  # OpenCV starts its threads
        cv2.warpAffine(np.zeros((384, 384, 3), np.uint8), np.eye(3)[:2], (1000, 1000))
    found = parallel.photos("train")
    cv2.setNumThreads(threads)
    for one, other in zip(expected, found, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()
        np.testing.assert_array_equal(one.faces[0].points, other.faces[0].points)


@pytest.mark.slow
def test_where_there_is_no_fork_one_process_renders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches what only Linux has: a dataset that needs no download, and cannot be had on a laptop."""
    expected = faces(tmp_path / "a", train=40, val=0, test=0, size=32).photos("train")
    elsewhere = faces(tmp_path / "b", train=40, val=0, test=0, size=32)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        patch.delattr(os, "sched_getaffinity", raising=False)
        patch.delattr(os, "fork", raising=False)
        found = elsewhere.photos("train")
    for one, other in zip(expected, found, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()


def test_rendering_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches minutes of silence at the first training."""
    monkeypatch.setattr(synthetic, "LOG_INTERVAL", 4)
    with caplog.at_level(logging.INFO, logger=synthetic.__name__):
        faces(tmp_path).photos("train")
    told = [record.getMessage() for record in caplog.records]
    assert told[1:] == ["4 of 9 photos are rendered", "8 of 9 photos are rendered"]


def test_layouts_share_the_photos(tmp_path: Path) -> None:
    """Catches a layout in the hash: three times the disk space, and layouts that are compared on different faces."""
    sets = [faces(tmp_path, layout, name=layout.name) for layout in LAYOUTS]
    photos = [one.photos("all") for one in sets]
    assert len(list(tmp_path.iterdir())) == 1
    assert [p.path for p in photos[0]] == [p.path for p in photos[1]] == [p.path for p in photos[2]]
    for layout, found in zip(LAYOUTS, photos, strict=True):
        face = found[0].faces[0]
        assert face.points.shape == (layout.num_points, 2)
        assert face.points.dtype == np.float32
        assert face.visible.shape == (layout.num_points,)
        assert face.visible.dtype == bool


def test_splits_are_disjoint_and_complete(tmp_path: Path) -> None:
    """Catches a split that repeats another's faces, photos that are missing, or of the wrong size."""
    annotations = faces(tmp_path)
    splits: list[Split] = ["train", "val", "test"]
    assert [len(annotations.photos(split)) for split in splits] == [4, 2, 3]
    paths = [photo.path for split in splits for photo in annotations.photos(split)]
    assert paths == [photo.path for photo in annotations.photos("all")]
    assert len({path.read_bytes() for path in paths}) == 9
    assert all(read_image(path).shape == (SIZE, SIZE, 3) for path in paths)


def _render(root: Path, barrier: Any, results: Any) -> None:
    class Waiting(Synthetic):
        def _rows(self, jobs: Any, own: Any) -> Any:
            rows = super()._rows(jobs, own)
            barrier.wait(60)  # both have rendered, neither has renamed
            return rows

    annotations = faces(root)
    annotations.__class__ = Waiting
    results.put([str(photo.path) for photo in annotations.photos("all")])


@pytest.mark.slow
def test_two_processes_at_once(tmp_path: Path) -> None:
    """Catches a second process that fails, or mixes its files in, when the first has finished before it."""
    spawn = get_context("spawn")
    barrier, results = spawn.Barrier(2), spawn.Queue()
    processes = [spawn.Process(target=_render, args=(tmp_path, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert found[0] == found[1]
    assert [path.name for path in tmp_path.iterdir()] == [faces(tmp_path).folder.name]


def test_an_interruption_leaves_nothing_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a half set under the final name, and rubbish beside it."""
    whole, done = Synthetic.write_photo, []

    def interrupted(self: Synthetic, job: Any) -> Any:
        done.append(job)
        if len(done) == 3:
            raise KeyboardInterrupt
        return whole(self, job)

    annotations = faces(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Synthetic, "write_photo", interrupted)
        with pytest.raises(KeyboardInterrupt):
            annotations.photos("train")
    assert list(tmp_path.iterdir()) == []
    killed = annotations.folder.with_name(f".{annotations.folder.name}-killed")
    (killed / "train").mkdir(parents=True)
    assert len(annotations.photos("train")) == 4


def test_a_full_disk_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that names no file: the system tells none for what is written to one that is open."""

    def full(self: Synthetic, job: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Synthetic, "write_photo", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        faces(tmp_path).photos("train")
    assert raised.value.filename == str(faces(tmp_path).folder)


def test_a_set_without_labels_is_named(tmp_path: Path) -> None:
    """Catches a damaged cache that ends in an error without the file and the remedy."""
    annotations = faces(tmp_path)
    annotations.photos("val")
    (annotations.folder / "faces.npz").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"faces\.npz.*Delete"):
        annotations.photos("val")


@pytest.mark.parametrize(
    "changed",
    [
        {"layout": COFW29},
        {"train": -1},
        {"train": 0, "val": 0, "test": 0},
        {"yaw": 120.0},
        {"occlusion": 30},
        {"seed": -1},
    ],
)
def test_what_cannot_be_rendered_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Catches a typing error in the config that would end in a traceback from numpy, or in wrong faces."""
    with pytest.raises(ConfigError, match=r"layouts|must be from|needs photos"):
        faces(tmp_path, **changed)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_symmetric_face_is_its_own_mirror_image(layout: Layout) -> None:
    """Catches a curve that is sampled in the wrong order, and a left that is a right."""
    assert landmarks(curves(NEUTRAL), layout.name).shape == (layout.num_points, 3)
    _, points, visible, _ = seen(NEUTRAL, layout, pitch=7)
    flipped = layout.flipped(transform_points(flip_image(SIZE), points))
    np.testing.assert_allclose(flipped, points, atol=0.1)
    left, right = layout.eye_corners
    assert points[left, 0] < points[right, 0]
    assert visible.all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_points_mean_what_the_layout_says(layout: Layout) -> None:
    """Catches pieces in the wrong order: the five points and the eye corners stand at their curves."""
    lines = curves(NEUTRAL)
    points = landmarks(lines, layout.name)
    five = np.stack([points[list(group)].mean(axis=0) for group in layout.five])
    names = [
        ("pupil_left", 0),
        ("pupil_right", 0),
        ("nose_bridge", -1),
        ("lip_outer_upper", 0),
        ("lip_outer_upper", -1),
    ]
    np.testing.assert_allclose(five, [lines[name][at] for name, at in names], atol=0.03)
    corners = lines["eye_left_upper"][0], lines["eye_right_upper"][-1]
    np.testing.assert_allclose(points[list(layout.eye_corners)], corners, atol=1e-9)
    for loops in layout.regions.values():  # a line of a region joins neighbours: none leaps across the face
        for loop in (loop for loop in loops if len(loop) > 1):
            assert np.linalg.norm(np.diff(points[list(loop)], axis=0), axis=-1).max() < 0.65


def test_pose_signs() -> None:
    """Catches a sign or an axis that differs from facelab.faces.pose: yaw left, pitch up, roll clockwise."""
    tip = PIECES["ibug68"][0][1] + 5 + 5 + 3
    left, right = IBUG68.eye_corners
    _, front, _, _ = seen(NEUTRAL, IBUG68)
    for signs in (-1, 1):
        _, turned, _, _ = seen(NEUTRAL, IBUG68, yaw=signs * 30)
        _, nodded, _, _ = seen(NEUTRAL, IBUG68, pitch=signs * 20)
        _, tilted, _, _ = seen(NEUTRAL, IBUG68, roll=signs * 20)
        assert signs * (turned[tip, 0] - turned[[left, right], 0].mean()) < -5
        assert signs * ((nodded[tip] - nodded[left])[1] - (front[tip] - front[left])[1]) < -2
        assert signs * (tilted[right] - tilted[left])[1] > 5


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_the_estimated_pose_agrees(layout: Layout) -> None:
    """Catches a head whose proportions no estimator would recognise, and points that turn the other way."""
    rng = np.random.default_rng(0)
    pose = rng.uniform(-1, 1, (60, 3)) * [75, 25, 30]
    points = [
        to_camera(landmarks(curves(head), layout.name), View(angles, 50, np.zeros(2)))[:, :2]
        for head, angles in zip(heads(60), pose, strict=True)
    ]
    error = np.abs(estimate_pose(np.stack(points), layout) - pose).mean(axis=0)
    assert error[0] < 8, error
    assert error[1] < 12, error
    assert error[2] < 8, error


def test_points_of_frontal_faces_are_visible_and_on_the_head() -> None:
    """Catches landmarks that float beside the head, and visibility that hides what one sees."""
    for head in heads(12):
        canvas, points, visible, _ = seen(head, LAPA106)
        assert visible.all()
        mask = cv2.dilate((canvas[..., 3] > 0).astype(np.uint8), np.ones((5, 5), np.uint8))
        at = np.rint(2 * points).astype(int)
        assert mask[at[:, 1], at[:, 0]].all()


def test_the_far_side_is_hidden() -> None:
    """Catches visibility of the wrong side, and a jaw line that slides along the outline."""
    for head in heads(6):
        _, points, visible, view = seen(head, WFLW98, yaw=70)
        left, right = WFLW98.eye_corners
        assert not visible[left]
        assert visible[right]
        contour = visible[: PIECES["wflw98"][0][1]]
        assert contour[: len(contour) // 3].sum() <= 2
        assert contour[-len(contour) // 3 :].all()
        line = to_camera(curves(head)["contour"], view)[:, :2]
        np.testing.assert_allclose(points[0], line[0])


def test_visible_points_lie_in_the_photo(tmp_path: Path) -> None:
    """Catches points beyond the border that are called visible, and occluders that hide nothing."""
    photos = faces(tmp_path, train=40, occlusion=1.0).photos("train")
    hidden = 0
    for photo in photos:
        face = photo.faces[0]
        assert (np.abs(face.points[face.visible] - (SIZE - 1) / 2) <= SIZE / 2).all()
        assert (face.box[:2] <= face.points.min(axis=0)).all()
        assert (face.box[2:] >= face.points.max(axis=0)).all()
        hidden += "occlusion" in face.tags
        if "occlusion" in face.tags:
            assert not face.visible.all()
    assert hidden > 20


def test_lips_and_eyes_end_at_their_landmarks() -> None:
    """Catches landmarks beside the border that a network is to learn: colours differ just inside and just outside."""
    lips = np.rint(255 * np.clip(1.2 * FLAT.skin * [0.6, 0.5, 0.83], 0, 1))
    skin = np.rint(255 * 1.2 * FLAT.skin)
    for head in (NEUTRAL, NEUTRAL._replace(mouth_open=0.5), NEUTRAL._replace(smile=1.0)):
        canvas, _, _, view = seen(head, WFLW98)
        lines = curves(head)
        for name in ("lip_outer_upper", "lip_outer_lower"):
            border = to_camera(lines[name][24:-24:12], view)[:, :2]
            outward = np.array([0, -1]) if name.endswith("upper") else np.array([0, 1])
            for offset, colour in ((-1.0, lips), (1.0, skin)):
                at = np.rint(2 * (border + offset * outward)).astype(int)
                off = np.abs(canvas[at[:, 1], at[:, 0], :3] - colour)
                assert (off < 0.15 * 255).all(), (name, offset)
        lid = to_camera(lines["eye_left_lower"][[20, 76]], view)[:, :2]
        (x, above), (_, below) = (np.rint(2 * (lid + np.array([0, offset]))).astype(int).T for offset in (-1.2, 1.2))
        assert (canvas[above, x, :3] > 200).all()
        assert (canvas[below, x, :3] < 150).all()


@pytest.mark.parametrize(
    ("pose", "changed", "hidden", "expected"),
    [
        ((0, 0, 0), {}, 0.0, {"frontal"}),
        ((30, 15, 40), {}, 0.05, {"frontal"}),
        ((-31, 0, 0), {}, 0.0, {"profile"}),
        ((31, 16, 0), {}, 0.0, {"profile", "head_up"}),
        ((0, -16, 0), {}, 0.06, {"head_down", "occlusion"}),
        ((0, 0, 0), {"mouth_open": 0.41}, 0.0, {"frontal", "expression"}),
        ((0, 0, 0), {"smile": 0.61}, 0.0, {"frontal", "expression"}),
        ((0, 0, 0), {"eye_open": 0.1}, 0.0, {"frontal", "expression"}),
    ],
)
def test_tags(pose: tuple[float, float, float], changed: dict[str, float], hidden: float, expected: set[str]) -> None:
    """Catches a threshold on the wrong side, and up taken for down."""
    assert tags_of(np.array(pose), NEUTRAL._replace(**changed), hidden) == expected
    assert expected <= set(TAGS)


def test_yaw_per_split(tmp_path: Path) -> None:
    """Catches wide poses in the training set, and a test split that has none."""
    annotations = faces(tmp_path, train=30, val=10, test=30, size=32, wide_share=1.0, yaw=40.0)
    yaw = {split: np.array([photo.faces[0].pose[0] for photo in annotations.photos(split)]) for split in SPLITS}
    assert np.abs(yaw["train"]).max() <= 40
    assert np.abs(yaw["val"]).max() <= 40
    assert 60 < np.abs(yaw["test"]).max() <= 90
    assert yaw["train"].min() < -20
    assert yaw["train"].max() > 20
    for photo in annotations.photos("all"):
        assert ("profile" in photo.faces[0].tags) == (abs(photo.faces[0].pose[0]) > 30)
