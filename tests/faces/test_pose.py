"""Tests of head pose: a wrong sign fits synthetic faces as well as the right one."""

from collections.abc import Callable

import numpy as np
import pytest
from conftest import face_data
from scipy.io import loadmat

from facelab.faces.convert import convert
from facelab.faces.geometry import Array, affine_about_centre, bounding_box, flip_image, from_cells, transform_points
from facelab.faces.layouts import AFLW19, ALPHA106, COFW29, FIVE5, IBUG68, LAPA106, POSE_FLIP, WFLW98, Layout
from facelab.faces.pose import (
    MODEL,
    MODEL_OF_FIVE,
    angles,
    estimate_pose,
    estimate_pose_of_five,
    flipped,
    from_300w_lp,
    official_pnp,
    rotation,
    turned,
)

WITH_POSE = pytest.mark.parametrize("layout", [IBUG68, WFLW98, LAPA106, ALPHA106, COFW29], ids=lambda x: x.name)

# yaw with and without pitch and roll
POSES = np.array(
    [(yaw, pitch, roll) for yaw in (0, 30, -30, 60, -60, 85, -85) for pitch in (0, 25, -20) for roll in (0, 40, -70)],
    float,
)

# The 14 points of the mean face of 300W in the DAN code (Kowalski, Naruniec, Trzcinski, CVPRW 2017; MIT licence),
# in pixels of a square of 112 around 1.2 times its box.
# fmt: off
MEAN_FACE = np.array([
    (18.01, 17.88), (48.56, 15.62), (63.44, 15.62), (93.99, 17.88),
    (27.51, 26.22), (43.89, 27.46), (68.11, 27.46), (84.49, 26.22),
    (46.61, 54.80), (65.39, 54.80), (37.90, 69.62), (74.10, 69.62), (56.00, 79.36), (56.00, 100.96),
])
# fmt: on


def as_faces(model_points: Array, layout: Layout) -> Array:
    """Place the 14 points of each face in a layout; the other points are NaN."""
    faces = np.full((len(model_points), layout.num_points, 2), np.nan)
    faces[:, list(layout.pose)] = model_points
    return faces


def projected(pose: Array, layout: Layout, scale: float = 9.0, shift: tuple[float, float] = (150, 40)) -> Array:
    return as_faces((MODEL @ rotation(pose).mT)[..., :2] * scale + shift, layout)


def angle_difference(pose: Array, other: Array) -> Array:
    """Return the absolute difference of angles, at most 180 degrees."""
    return np.abs((pose - other + 180) % 360 - 180)


def test_rotation_has_the_right_signs() -> None:
    """Would catch one wrong sign: nose to the wrong side, chin down, or roll counted counterclockwise."""
    nose, right = np.array([0, 0, -1.0]), np.array([1.0, 0, 0])  # out of the face; along its eyes
    assert (rotation(np.array([30, 0, 0])) @ nose)[0] == pytest.approx(-0.5)  # to the left of the image
    assert (rotation(np.array([0, 30, 0])) @ nose)[1] == pytest.approx(-0.5)  # up
    assert (rotation(np.array([0, 0, 30])) @ right)[1] == pytest.approx(0.5)  # the right eye moves down


def test_rotation_composes_roll_yaw_pitch() -> None:
    """Would catch another order of composition, which agrees on each angle alone."""
    yaw, pitch, roll = (rotation(np.array(p)) for p in ((30, 0, 0), (0, 20, 0), (0, 0, 40)))
    assert np.allclose(rotation(np.array([30, 20, 40])), roll @ yaw @ pitch)


def test_angles_inverts_rotation() -> None:
    """Would catch a rotation that is a reflection, or angles read from the wrong entries."""
    matrix = rotation(POSES)
    assert np.allclose(matrix @ matrix.mT, np.eye(3))
    assert np.allclose(np.linalg.det(matrix), 1)
    assert np.allclose(angles(matrix), POSES)
    assert np.isnan(angles(np.full((3, 3), np.nan))).all()


def test_pose_model_is_symmetric_and_upright() -> None:
    """Would catch the error of the public codes, both nose wings on one side, and a model that is upside down."""
    assert np.allclose(MODEL[list(POSE_FLIP)] * [-1, 1, 1], MODEL)
    left, right = MODEL[4], MODEL[7]  # outer eye corners
    assert left[0] < right[0]
    assert MODEL[13, 1] == MODEL[:, 1].max()  # the chin is lowest: y down
    assert MODEL[8:10, 2].max() < MODEL[4:8, 2].min()  # the nose is nearest: z points away from the viewer


@WITH_POSE
def test_estimate_pose_recovers_the_projected_pose(layout: Layout) -> None:
    """Would catch any error of sign, order, axis or index of the fit, also in profile and with combined angles."""
    assert angle_difference(estimate_pose(projected(POSES, layout), layout), POSES).max() < 1e-3


def test_estimate_pose_needs_six_points() -> None:
    """Would catch a missing point that spoils its face, another face, or the centre of the others."""
    faces = projected(POSES, IBUG68)
    for missing in range(9):
        faces[missing, list(IBUG68.pose)[:missing]] = np.nan
    faces[1, IBUG68.pose[0], 1] = np.nan
    faces[2, IBUG68.pose[1]] = np.inf
    assert angle_difference(estimate_pose(faces, IBUG68), POSES).max() < 2e-3
    faces[3, list(IBUG68.pose)[:9]] = np.nan
    estimated = estimate_pose(faces, IBUG68)
    assert np.flatnonzero(np.isnan(estimated).any(axis=1)).tolist() == [3]
    assert np.isnan(official_pnp(faces[3:4], IBUG68, 300)).all()


def test_estimate_pose_returns_nan_without_usable_points() -> None:
    """Would catch an invented pose without pose points or for one repeated point, or a crash without faces."""
    assert np.isnan(estimate_pose(np.ones((2, 19, 2)), AFLW19)).all()
    assert np.isnan(official_pnp(np.ones((2, 19, 2)), AFLW19, 112)).all()
    on_a_line = np.linspace((0, 0), (50, 20), 14)
    collapsed = np.stack([np.full((14, 2), 7.0), on_a_line, np.full((14, 2), np.nan)])
    assert np.isnan(estimate_pose(as_faces(collapsed, IBUG68), IBUG68)).all()
    assert np.isnan(official_pnp(as_faces(collapsed, IBUG68), IBUG68, 112)).all()
    assert estimate_pose(np.zeros((0, 68, 2)), IBUG68).shape == official_pnp(np.zeros((0, 68, 2)), IBUG68, 9).shape
    with pytest.raises(ValueError, match="but layout 'wflw98' needs"):
        estimate_pose(np.zeros((1, 68, 2)), WFLW98)


def _pnp(points: Array, layout: Layout) -> Array:
    return official_pnp(points, layout, 301)


@pytest.mark.parametrize("method", [estimate_pose, _pnp])
def test_flipped_and_turned_agree_with_moved_points(method: Callable[[Array, Layout], Array]) -> None:
    """Would catch an augmentation whose pose label does not follow the image."""
    poses = POSES[np.abs(POSES[:, 0]) < 80]
    faces = projected(poses, IBUG68, scale=9.0, shift=(150, 150))
    faces += np.random.default_rng(0).normal(0, 1, faces.shape)  # no rotation of the model fits exactly
    before = method(faces, IBUG68)
    moved = IBUG68.flipped(transform_points(flip_image(301), faces))  # flipped about column 150
    assert angle_difference(method(moved, IBUG68), flipped(before)).max() < 0.05
    for degrees in (25.0, -160.0):
        moved = transform_points(affine_about_centre(301, degrees), faces)
        assert angle_difference(method(moved, IBUG68), turned(before, degrees)).max() < 0.05


def test_turned_stays_within_180_degrees() -> None:
    """Would catch a roll of 190 degrees in place of -170."""
    assert np.allclose(turned(np.array([10, 20, 170]), 20.0), [10, 20, -170])
    assert np.isnan(turned(np.full(3, np.nan), 20.0)).all()


@pytest.mark.parametrize("size", [112, 256])
def test_official_pnp_of_the_mean_face(size: int) -> None:
    """Would catch the nose-wing error (it gives 8.2, 6.7, 2.2), fractions taken for pixels, or a camera off centre."""
    face = as_faces(from_cells(MEAN_FACE / 112, size)[None], IBUG68)
    upright = official_pnp(face, IBUG68, size)[0]
    assert upright == pytest.approx([0.0, -5.98, 0.0], abs=0.01)
    tilted = official_pnp(transform_points(affine_about_centre(size, 20), face), IBUG68, size)[0]
    assert tilted == pytest.approx([0.0, -5.98, 20.0], abs=0.01)


@WITH_POSE
def test_official_pnp_recovers_the_pose_of_a_perspective_view(layout: Layout) -> None:
    """Would catch a camera with another field of view, or a head behind it."""
    size, focal = 256, 128 * np.sqrt(3)
    seen = MODEL @ rotation(POSES).mT + [1, -2, 40]
    faces = as_faces(from_cells(seen[..., :2] / seen[..., 2:] * focal + size / 2, 1), layout)
    assert angle_difference(official_pnp(faces, layout, size), POSES).max() < 1e-2


def test_official_pnp_keeps_a_flat_face_before_the_camera() -> None:
    """Would catch the iteration without a start: it finds the head behind the camera, upside down."""
    size, focal, depth = 112, 56 * np.sqrt(3), 30.0
    flat = from_cells(MODEL[None, :, :2] / depth * focal + size / 2, 1)
    (pose,) = official_pnp(as_faces(flat, IBUG68), IBUG68, size)
    assert np.abs(pose[[0, 2]]).max() < 0.1
    assert abs(pose[1]) < 30


def test_from_300w_lp_keeps_single_angles() -> None:
    """Would catch radians taken for degrees, or pitch and yaw exchanged."""
    labels = np.deg2rad([[20, 0, 0, 1, 2], [0, -30, 0, 1, 2], [0, 0, 40, 1, 2]])
    assert np.allclose(from_300w_lp(labels), [[0, 20, 0], [-30, 0, 0], [0, 0, 40]])


def test_from_300w_lp_reverses_the_composition() -> None:
    """Would catch a label used without conversion: here pitch and roll change yaw."""
    yaw, pitch, roll = 30.0, 20.0, 40.0
    expected = rotation(np.array([0, pitch, 0])) @ rotation(np.array([yaw, 0, 0])) @ rotation(np.array([0, 0, roll]))
    converted = from_300w_lp(np.deg2rad([pitch, yaw, roll]))
    assert np.allclose(rotation(converted), expected)
    assert angle_difference(converted, np.array([yaw, pitch, roll])).max() > 10


# Real faces


def _aflw2000_labels() -> tuple[Array, Array]:
    """Return ``pt3d_68`` (F, 68, 3) with z towards the viewer, and our pose of ``Pose_Para`` (F, 3)."""
    labels = [loadmat(path) for path in sorted(face_data("AFLW2000").glob("*.mat"))]
    assert len(labels) == 16
    points = np.stack([label["pt3d_68"].T for label in labels])
    return points, from_300w_lp(np.concatenate([label["Pose_Para"] for label in labels]))


def test_from_300w_lp_matches_rotations_between_aflw2000_heads() -> None:
    """Would catch another order or sign of ``Pose_Para``, which contradicts the rotation between two 3-D heads."""
    points, pose = _aflw2000_labels()
    heads = (points - points.mean(axis=1, keepdims=True)) * [1, 1, -1]  # z points away from the viewer
    labelled = rotation(pose)
    u, _, v = np.linalg.svd(heads[:, None].mT @ heads[None])  # (from F, to F, 3, 3): Kabsch
    between = (u * np.stack([np.ones(u.shape[:2])] * 2 + [np.linalg.det(u @ v)], -1)[..., None, :]) @ v
    cosine = (np.trace(between.mT @ labelled[:, None] @ labelled[None].mT, axis1=-2, axis2=-1) - 1) / 2
    error = np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))
    assert error.mean() < 2.5


def test_estimate_pose_agrees_with_aflw2000_labels() -> None:
    """Would catch a sign of yaw, pitch or roll against the common convention."""
    points, pose = _aflw2000_labels()
    estimated = estimate_pose(points[..., :2], IBUG68)
    frontal = np.abs(pose[:, 0]) < 60  # near profile, pitch and roll rotate about almost the same axis
    assert angle_difference(estimated, pose)[:, 0].mean() < 3
    assert (angle_difference(estimated, pose)[frontal].mean(axis=0) < (3, 7, 3)).all()
    large = np.abs(pose) > 15
    large[~frontal, 1:] = False
    assert large.sum(axis=0).min() >= 1
    assert (np.sign(estimated) == np.sign(pose))[large].all()


def _aflw2000_all() -> tuple[Array, Array]:
    """Return 68 points of the 2,000 faces and their labelled yaw; two of the angles are not wrapped."""
    folder = face_data("samples", "aflw2000_gt")
    yaw = np.load(folder / "AFLW2000-3D.pose.npy")
    return np.load(folder / "AFLW2000-3D.pts68.npy")[:, :2].transpose(0, 2, 1), yaw


def _bucket(yaw: Array) -> Array:
    return np.digitize(np.abs(yaw), [30, 60], right=True)


def test_estimate_pose_sorts_2000_faces_into_yaw_buckets() -> None:
    """Would catch an estimate too coarse to sort faces by pose, which is its purpose."""
    points, label = _aflw2000_all()
    pose = estimate_pose(points, IBUG68)
    assert angle_difference(pose[:, 0], label).mean() < 3.5
    assert (_bucket(pose[:, 0]) != _bucket(label)).mean() < 0.07
    # the label's yaw is of the other order of rotations; in that order the estimate's yaw is closer to it
    same_order = np.rad2deg(np.arcsin(rotation(pose)[:, 0, 2]))
    assert angle_difference(same_order, label).mean() < 2.3
    assert (_bucket(same_order) != _bucket(label)).mean() < 0.045


def test_estimate_pose_of_five_sorts_2000_faces_into_yaw_buckets() -> None:
    """Would catch a nose without depth, whose yaw is a guess, and another order of the five points."""
    points, label = _aflw2000_all()
    pose = estimate_pose_of_five(convert(points, IBUG68, FIVE5))
    assert angle_difference(pose[:, 0], label).mean() < 3.3
    assert (_bucket(pose[:, 0]) != _bucket(label)).mean() < 0.055
    assert angle_difference(pose, estimate_pose(points, IBUG68)).mean(axis=0)[1:].max() < 5


def test_estimate_pose_of_five_is_nan_without_all_points() -> None:
    """Would catch a pose from four points, which fit every rotation of a plane, or from points that coincide."""
    points = np.tile((MODEL_OF_FIVE @ rotation(np.array([20.0, 5, 0])).T)[:, :2], (3, 1, 1))
    points[1, 3] = np.nan
    points[2] = points[2, 0]
    assert np.isnan(estimate_pose_of_five(points)).all(axis=1).tolist() == [False, True, True]
    assert estimate_pose_of_five(points[:0]).shape == (0, 3)


def test_official_pnp_has_its_known_error_on_2000_faces() -> None:
    """Would catch an unusual camera: the errors on crops of 1.2 times the tight box are known."""
    points, label = _aflw2000_all()
    box = bounding_box(points)
    centre, side = (box[:, :2] + box[:, 2:]) / 2, 1.2 * (box[:, 2:] - box[:, :2]).max(axis=1)
    crop = from_cells((points - centre[:, None]) / side[:, None, None] + 0.5, 112)
    pose = official_pnp(crop, IBUG68, 112)
    assert angle_difference(pose[:, 0], label).mean() == pytest.approx(7.68, abs=0.1)
    assert (_bucket(pose[:, 0]) != _bucket(label)).mean() == pytest.approx(0.1355, abs=0.003)


@pytest.mark.parametrize(
    ("layout", "tolerance"),
    # ibug68 marks the middle of a brow's inner end, the other two its lower edge, which changes the pitch
    [(LAPA106, (1e-3, 1e-3, 1e-3)), (ALPHA106, (1e-3, 1e-3, 1e-3)), (IBUG68, (0.5, 5, 1))],
    ids=["lapa106", "alpha106", "ibug68"],
)
def test_estimate_pose_agrees_across_layouts(layout: Layout, tolerance: tuple[float, ...]) -> None:
    """Would catch a pose index on another part of the face, like pfld_106's index on the side of the nose."""
    lists = face_data("WFLW", "WFLW_annotations", "list_98pt_rect_attr_train_test")
    lines = (lists / "list_98pt_rect_attr_test.txt").read_text().splitlines()
    faces = np.array([line.split()[: 2 * WFLW98.num_points] for line in lines], float).reshape(-1, 98, 2)
    wflw_pose = estimate_pose(faces, WFLW98)
    difference = angle_difference(estimate_pose(convert(faces, WFLW98, layout), layout), wflw_pose).mean(axis=0)
    assert (difference < tolerance).all()
