"""Tests of the synthetic faces: rendering, landmarks, visibility, pose and caching."""

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

from facelab.annotations import rendered_set
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
from facelab.annotations.rendered_set import SPLITS
from facelab.annotations.synthetic import TAGS, Synthetic, tags_of
from facelab.errors import ConfigError, DatasetError
from facelab.faces.face import Split
from facelab.faces.geometry import flip_image, transform_points
from facelab.faces.image import read_image
from facelab.faces.layouts import COFW29, IBUG68, LAPA106, WFLW98, Layout
from facelab.faces.pose import estimate_pose

LAYOUTS = [IBUG68, WFLW98, LAPA106]
SIZE = 96
NEUTRAL = Head(*np.add(LOW, HIGH) / 2)._replace(mouth_open=0.0, smile=0.0)
# uniform light, and clearly different colours
FLAT = Look(
    skin=np.full(3, 0.4),
    hair=np.array([0.0, 0.2, 0.0]),
    iris=np.array([0.6, 0.0, 0.0]),
    cloth=np.zeros(3),
    light=np.array([0.0, 0.0, -1.0]),
    ambient=1.2,
)


def faces(root: Path, layout: Layout = WFLW98, **changed: Any) -> Synthetic:
    """Return a small synthetic set whose options can be changed."""
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


def render_head(
    head: Head, layout: Layout, yaw: float = 0, pitch: float = 0, roll: float = 0
) -> tuple[Any, Any, Any, View]:
    """Return canvas, points in pixels, visibility and view of a head centred in a photo of SIZE pixels."""
    view = View(np.array([yaw, pitch, roll]), SIZE / 4, np.full(2, (SIZE - 1) / 2))
    canvas = np.zeros((2 * SIZE, 2 * SIZE, 4), np.uint8)
    paint(canvas, head, curves(head), FLAT, view)
    points = to_camera(landmarks(curves(head), layout.name), view)
    return canvas, points[:, :2], visible(canvas, points, view.scale), view


def heads(count: int) -> list[Head]:
    """Draw heads with the seeds 0 to count - 1."""
    return [random_head(np.random.default_rng(i)) for i in range(count)]


def test_photos_depend_only_on_seed_split_and_number(tmp_path: Path) -> None:
    """Would catch one generator shared by all photos, and photos that depend on the machine's folder."""
    one, other = faces(tmp_path / "a").photos("all"), faces(tmp_path / "b", train=6, test=1).photos("all")
    by_name = {photo.path.relative_to(photo.path.parents[1]): photo for photo in other}
    shared = [photo for photo in one if photo.path.relative_to(photo.path.parents[1]) in by_name]
    assert len(shared) == 4 + 2 + 1
    for photo in shared:
        equal_photo = by_name[photo.path.relative_to(photo.path.parents[1])]
        assert photo.path.read_bytes() == equal_photo.path.read_bytes()
        np.testing.assert_array_equal(photo.faces[0].points, equal_photo.faces[0].points)
        assert photo.faces[0].tags == equal_photo.faces[0].tags


def test_photos_differ_between_seeds(tmp_path: Path) -> None:
    """Would catch a seed that is not used, and sets of two seeds that overwrite each other."""
    one, other = faces(tmp_path), faces(tmp_path, seed=4)
    assert one.folder != other.folder
    assert not np.allclose(one.photos("val")[0].faces[0].points, other.photos("val")[0].faces[0].points)


def test_photos_are_equal_with_one_and_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch labels in another order than photos, and workers that hang on threads lost by fork."""
    serial = faces(tmp_path / "a", train=40, val=0, test=0, size=32)
    parallel = faces(tmp_path / "b", train=40, val=0, test=0, size=32)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    expected = serial.photos("train")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    threads = cv2.getNumThreads()
    cv2.setNumThreads(2)
    for _ in range(10):  # so that OpenCV starts its threads
        cv2.warpAffine(np.zeros((384, 384, 3), np.uint8), np.eye(3)[:2], (1000, 1000))
    photos = parallel.photos("train")
    cv2.setNumThreads(threads)
    for one, other in zip(expected, photos, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()
        np.testing.assert_array_equal(one.faces[0].points, other.faces[0].points)


@pytest.mark.slow
def test_photos_render_in_one_process_without_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a function that only Linux has: the set, which needs no download, would fail on a laptop."""
    expected = faces(tmp_path / "a", train=40, val=0, test=0, size=32).photos("train")
    without_fork = faces(tmp_path / "b", train=40, val=0, test=0, size=32)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        patch.delattr(os, "sched_getaffinity", raising=False)
        patch.delattr(os, "fork", raising=False)
        photos = without_fork.photos("train")
    for one, other in zip(expected, photos, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()


def test_photos_log_the_progress_of_rendering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch minutes without a message at the first training."""
    monkeypatch.setattr(rendered_set, "LOG_INTERVAL", 4)
    with caplog.at_level(logging.INFO, logger=rendered_set.__name__):
        faces(tmp_path).photos("train")
    messages = [record.getMessage() for record in caplog.records]
    assert messages[1:] == ["4 of 9 photos are rendered", "8 of 9 photos are rendered"]


def test_photos_are_shared_between_layouts(tmp_path: Path) -> None:
    """Would catch a layout in the hash: three times the disk space, and layouts compared on different faces."""
    sets = [faces(tmp_path, layout, name=layout.name) for layout in LAYOUTS]
    photos = [one.photos("all") for one in sets]
    assert len(list(tmp_path.iterdir())) == 1
    assert [p.path for p in photos[0]] == [p.path for p in photos[1]] == [p.path for p in photos[2]]
    for layout, photos_of_layout in zip(LAYOUTS, photos, strict=True):
        face = photos_of_layout[0].faces[0]
        assert face.points.shape == (layout.num_points, 2)
        assert face.points.dtype == np.float32
        assert face.visible.shape == (layout.num_points,)
        assert face.visible.dtype == bool


def test_photos_of_splits_are_disjoint_and_complete(tmp_path: Path) -> None:
    """Would catch a split that repeats another's faces, and photos that are missing or of the wrong size."""
    annotations = faces(tmp_path)
    splits: list[Split] = ["train", "val", "test"]
    assert [len(annotations.photos(split)) for split in splits] == [4, 2, 3]
    paths = [photo.path for split in splits for photo in annotations.photos(split)]
    assert paths == [photo.path for photo in annotations.photos("all")]
    assert len({path.read_bytes() for path in paths}) == 9
    assert all(read_image(path).shape == (SIZE, SIZE, 3) for path in paths)


def _render(root: Path, barrier: Any, results: Any) -> None:
    """Render the set and wait for the other process before renaming it."""
    original = rendered_set._rows

    def waiting(*arguments: Any) -> Any:
        rows = original(*arguments)
        barrier.wait(60)  # both processes have rendered, neither has renamed
        return rows

    rendered_set._rows = waiting  # type: ignore[assignment]
    results.put([str(photo.path) for photo in faces(root).photos("all")])


@pytest.mark.slow
def test_photos_rendered_by_two_processes_at_once(tmp_path: Path) -> None:
    """Would catch a second process that fails or adds its files if the first finishes earlier."""
    spawn = get_context("spawn")
    barrier, results = spawn.Barrier(2), spawn.Queue()
    processes = [spawn.Process(target=_render, args=(tmp_path, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    paths = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert paths[0] == paths[1]
    assert [path.name for path in tmp_path.iterdir()] == [faces(tmp_path).folder.name]


def test_photos_leave_no_files_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an incomplete set under the final name, and temporary files beside it."""
    original, jobs = Synthetic.write_photo, []

    def interrupted(self: Synthetic, *job: Any) -> Any:
        jobs.append(job)
        if len(jobs) == 3:
            raise KeyboardInterrupt
        return original(self, *job)

    annotations = faces(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Synthetic, "write_photo", interrupted)
        with pytest.raises(KeyboardInterrupt):
            annotations.photos("train")
    assert list(tmp_path.iterdir()) == []
    killed = annotations.folder.with_name(f".{annotations.folder.name}-killed")
    (killed / "train").mkdir(parents=True)
    assert len(annotations.photos("train")) == 4


def test_photos_report_a_full_disk_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a message without a file: the system names none when writing to an open file fails."""

    def full(self: Synthetic, *job: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Synthetic, "write_photo", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        faces(tmp_path).photos("train")
    assert raised.value.filename == str(faces(tmp_path).folder)


def test_photos_report_a_damaged_cache(tmp_path: Path) -> None:
    """Would catch an error without the damaged file and the remedy."""
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
def test_synthetic_refuses_invalid_options(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Would catch a typing error in the config that causes a traceback of numpy, or wrong faces."""
    with pytest.raises(ConfigError, match=r"layouts|must be from|needs photos"):
        faces(tmp_path, **changed)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_landmarks_of_a_symmetric_head_are_symmetric(layout: Layout) -> None:
    """Would catch a curve that is sampled in the wrong order, and left and right exchanged."""
    assert landmarks(curves(NEUTRAL), layout.name).shape == (layout.num_points, 3)
    _, points, visible, _ = render_head(NEUTRAL, layout, pitch=7)
    flipped = layout.flipped(transform_points(flip_image(SIZE), points))
    np.testing.assert_allclose(flipped, points, atol=0.1)
    left, right = layout.eye_corners
    assert points[left, 0] < points[right, 0]
    assert visible.all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_landmarks_follow_the_order_of_the_layout(layout: Layout) -> None:
    """Would catch pieces in the wrong order: the five points and the eye corners must be on their curves."""
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
    for loops in layout.regions.values():  # a line of a region joins neighbours, which are close together
        for loop in (loop for loop in loops if len(loop) > 1):
            assert np.linalg.norm(np.diff(points[list(loop)], axis=0), axis=-1).max() < 0.65


def test_rendered_pose_has_the_right_signs() -> None:
    """Would catch a sign or an axis that differs from facelab.faces.pose: yaw left, pitch up, roll clockwise."""
    tip = PIECES["ibug68"][0][1] + 5 + 5 + 3
    left, right = IBUG68.eye_corners
    _, front, _, _ = render_head(NEUTRAL, IBUG68)
    for signs in (-1, 1):
        _, turned, _, _ = render_head(NEUTRAL, IBUG68, yaw=signs * 30)
        _, nodded, _, _ = render_head(NEUTRAL, IBUG68, pitch=signs * 20)
        _, tilted, _, _ = render_head(NEUTRAL, IBUG68, roll=signs * 20)
        assert signs * (turned[tip, 0] - turned[[left, right], 0].mean()) < -5
        assert signs * ((nodded[tip] - nodded[left])[1] - (front[tip] - front[left])[1]) < -2
        assert signs * (tilted[right] - tilted[left])[1] > 5


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_estimate_pose_agrees_with_the_rendered_pose(layout: Layout) -> None:
    """Would catch proportions that no estimator accepts, and points that rotate the other way."""
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


def test_visible_is_true_for_every_point_of_frontal_faces() -> None:
    """Would catch landmarks beside the head, and visible points that are marked as hidden."""
    for head in heads(12):
        canvas, points, visible, _ = render_head(head, LAPA106)
        assert visible.all()
        mask = cv2.dilate((canvas[..., 3] > 1).astype(np.uint8), np.ones((5, 5), np.uint8))
        at = np.rint(2 * points).astype(int)
        assert mask[at[:, 1], at[:, 0]].all()


def test_visible_is_false_on_the_far_side() -> None:
    """Would catch visibility of the wrong side, and a jaw line that follows the outline."""
    for head in heads(6):
        _, points, visible, view = render_head(head, WFLW98, yaw=70)
        left, right = WFLW98.eye_corners
        assert not visible[left]
        assert visible[right]
        contour = visible[: PIECES["wflw98"][0][1]]
        assert contour[: len(contour) // 3].sum() <= 2
        assert contour[-len(contour) // 3 :].all()
        line = to_camera(curves(head)["contour"], view)[:, :2]
        np.testing.assert_allclose(points[0], line[0])


def test_photos_have_visible_points_only_inside(tmp_path: Path) -> None:
    """Would catch visible points beyond the border, and occluders that hide nothing."""
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


def test_paint_ends_lips_and_eyes_at_their_landmarks() -> None:
    """Would catch landmarks beside the painted border: the colours just inside and outside must differ."""
    lips = np.rint(255 * np.clip(1.2 * FLAT.skin * [0.6, 0.5, 0.83], 0, 1))
    skin = np.rint(255 * 1.2 * FLAT.skin)
    for head in (NEUTRAL, NEUTRAL._replace(mouth_open=0.5), NEUTRAL._replace(smile=1.0)):
        canvas, _, _, view = render_head(head, WFLW98)
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
def test_tags_of_applies_the_thresholds(
    pose: tuple[float, float, float], changed: dict[str, float], hidden: float, expected: set[str]
) -> None:
    """Would catch a threshold on the wrong side, and up exchanged with down."""
    assert tags_of(np.array(pose), NEUTRAL._replace(**changed), hidden) == expected
    assert expected <= set(TAGS)


def test_photos_have_wide_yaw_only_in_test(tmp_path: Path) -> None:
    """Would catch wide poses in the training set, and a test split without them."""
    annotations = faces(tmp_path, train=30, val=10, test=30, size=32, wide_share=1.0, yaw=40.0)
    yaw = {split: np.array([photo.faces[0].pose[0] for photo in annotations.photos(split)]) for split in SPLITS}
    assert np.abs(yaw["train"]).max() <= 40
    assert np.abs(yaw["val"]).max() <= 40
    assert 60 < np.abs(yaw["test"]).max() <= 90
    assert yaw["train"].min() < -20
    assert yaw["train"].max() > 20
    for photo in annotations.photos("all"):
        assert ("profile" in photo.faces[0].tags) == (abs(photo.faces[0].pose[0]) > 30)
