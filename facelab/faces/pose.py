"""Head pose from landmarks.

Pose is ``(..., 3)`` yaw, pitch, roll in **degrees**, with ``R = Rz(roll) Ry(yaw) Rx(pitch)``: the head nods about its
own ears, turns about the image's vertical, and tilts in the image plane. Yaw is positive with the nose towards the left
of the image, pitch with the chin up, roll clockwise in the image. Axes are those of the image: x right, y down, z away
from the viewer. Yaw lies within 90 degrees; there pitch and roll turn about one axis and only their sum is determined.

The signs are those of ``Pose_Para`` of AFLW2000-3D and 300W-LP, the order of the three turns is not: use
:func:`from_300w_lp`.
"""

import cv2
import numpy as np

from facelab.faces.geometry import Array, to_cells
from facelab.faces.layouts import Layout

# In the frame of the code it comes from: x to the left of the image, y up, z towards the viewer. There the left nose
# wing has the x of the right one, a slip that was reported to its authors:
# https://github.com/polarisZhao/PFLD-pytorch/issues/47
_LEFT_UP_NEAR = np.array(
    [
        [6.825897, 6.760612, 4.402142],  # left brow, outer end
        [1.330353, 7.122144, 6.903745],  # left brow, inner end
        [-1.330353, 7.122144, 6.903745],  # right brow, inner end
        [-6.825897, 6.760612, 4.402142],  # right brow, outer end
        [5.311432, 5.485328, 3.987654],  # left eye, outer corner
        [1.789930, 5.393625, 4.413414],  # left eye, inner corner
        [-1.789930, 5.393625, 4.413414],  # right eye, inner corner
        [-5.311432, 5.485328, 3.987654],  # right eye, outer corner
        [2.005628, 1.409845, 6.165652],  # left nose wing
        [-2.005628, 1.409845, 6.165652],  # right nose wing
        [2.774015, -2.080775, 5.048531],  # left mouth corner
        [-2.774015, -2.080775, 5.048531],  # right mouth corner
        [0.000000, -3.116408, 6.097667],  # lower lip
        [0.000000, -7.415691, 4.070434],  # chin
    ]
)
MODEL: Array = -_LEFT_UP_NEAR
"""``(14, 3)``: a head as 14 points in units of its own, x right, y down, z away from the viewer.

Widely used with a pinhole camera for PFLD's angles (Guo et al., arXiv 1902.10859, do not name their eleven points). All
three axes are reversed against that code: it leaves every rotation as it is, and the head no longer lies behind the
camera."""

MIN_POINTS = 6
"""A pose needs this many of the 14 points: an affine camera has 8 unknowns, and few points near one plane do not fix
the depth."""

X, Y, Z = range(3)


def _turn(degrees: Array, start: int, end: int) -> Array:
    """Rotations ``(..., 3, 3)`` that turn axis ``start`` towards axis ``end``."""
    radians = np.deg2rad(np.asarray(degrees, np.float64))
    matrix = np.zeros((*radians.shape, 3, 3))
    matrix[..., range(3), range(3)] = 1
    matrix[..., start, start] = matrix[..., end, end] = np.cos(radians)
    matrix[..., end, start] = np.sin(radians)
    matrix[..., start, end] = -np.sin(radians)
    return matrix


def _yaw(degrees: Array) -> Array:
    return _turn(degrees, Z, X)  # the nose is at -z: it goes to -x


def _pitch(degrees: Array) -> Array:
    return _turn(degrees, Z, Y)


def _roll(degrees: Array) -> Array:
    return _turn(degrees, X, Y)


def rotation(pose: Array) -> Array:
    """The rotation of a pose: ``Rz(roll) Ry(yaw) Rx(pitch)``.

    Args:
        pose: ``(..., 3)`` yaw, pitch, roll in degrees.

    Returns:
        ``(..., 3, 3)``, from the head's axes to the image's.
    """
    pose = np.asarray(pose)
    return _roll(pose[..., 2]) @ _yaw(pose[..., 0]) @ _pitch(pose[..., 1])


def angles(matrix: Array) -> Array:
    """The pose of a rotation, the inverse of :func:`rotation` for yaw within 90 degrees.

    Args:
        matrix: ``(..., 3, 3)`` rotations; NaN stays NaN.

    Returns:
        ``(..., 3)`` yaw, pitch, roll in degrees; pitch and roll within 180.
    """
    yaw = np.arcsin(np.clip(-matrix[..., Z, X], -1, 1))
    pitch = np.arctan2(-matrix[..., Z, Y], matrix[..., Z, Z])
    roll = np.arctan2(matrix[..., Y, X], matrix[..., X, X])
    return np.rad2deg(np.stack([yaw, pitch, roll], axis=-1))


def turned(pose: Array, degrees: float) -> Array:
    """The pose ``(..., 3)`` after the image was turned clockwise by ``degrees``; roll stays within 180."""
    pose = np.array(pose)
    pose[..., 2] = (pose[..., 2] + degrees + 180) % 360 - 180
    return pose


def flipped(pose: Array) -> Array:
    """The pose ``(..., 3)`` after the image was flipped left to right: yaw and roll change sign."""
    return np.asarray(pose) * np.array([-1, 1, -1], np.float32)


def from_300w_lp(pose_para: Array) -> Array:
    """The pose of a label of 300W-LP or AFLW2000-3D.

    Their angles compose the other way round, ``Rx(pitch) Ry(yaw) Rz(roll)``, with the signs used here. So yaw itself
    changes where the head is both nodded and tilted: the pose buckets of papers on AFLW2000-3D go by the label's own
    yaw.

    Args:
        pose_para: ``(..., 3)`` or longer, as in the file: pitch, yaw, roll in radians (then translation and scale).

    Returns:
        ``(..., 3)`` yaw, pitch, roll in degrees.
    """
    degrees = np.rad2deg(np.asarray(pose_para, np.float64))
    return angles(_pitch(degrees[..., 0]) @ _yaw(degrees[..., 1]) @ _roll(degrees[..., 2]))


def _model_points(points: Array, layout: Layout) -> tuple[Array, Array]:
    """The 14 points of each face ``(F, 14, 2)``, and which of them are annotated ``(F, 14)``: none without a list."""
    if points.ndim != 3 or points.shape[1:] != (layout.num_points, 2):
        raise ValueError(
            f"points of shape {points.shape} are not those of layout {layout.name!r} (faces, {layout.num_points}, 2)"
        )
    found = np.full((len(points), len(MODEL), 2), np.nan)
    if layout.pose:
        found[:] = points[:, list(layout.pose)]
    return found, np.asarray(np.isfinite(found).all(axis=-1))


def estimate_pose(points: Array, layout: Layout) -> Array:
    """Poses by a scaled-orthographic least-squares fit of :data:`MODEL`.

    The affine camera that best maps the annotated model points to the image points is found, and the nearest
    rotation to its two rows taken. It needs no focal length and no image size. Forcing the camera to be a rotation
    during the fit is worse, for the model's depths do not fit every head.

    On the 2,000 faces of AFLW2000-3D yaw is off by 3.4 degrees on average from the label, and 6.4 % of the faces are
    in another bucket of 30 degrees; 2.1 degrees and 4.0 % when both follow the label's order of turns. Yaw hardly
    depends on the layout, pitch does by up to 5 degrees, with the ends of the brows and the nose wings it marks.

    Args:
        points: ``(F, N, 2)`` in pixels, NaN where not annotated.
        layout: their layout.

    Returns:
        ``(F, 3)`` float32 yaw, pitch, roll in degrees. NaN where fewer than :data:`MIN_POINTS` of the 14 points are
        annotated, where they lie on one line, and everywhere for a layout without pose points.

    Raises:
        ValueError: when ``points`` are not those of ``layout``.
    """
    found, known = _model_points(points, layout)
    weight = known[..., None].astype(np.float64)  # (F, 14, 1)
    total = np.maximum(weight.sum(axis=1, keepdims=True), 1)
    found = np.where(weight > 0, found, 0)
    image = weight * (found - found.sum(axis=1, keepdims=True) / total)  # (F, 14, 2)
    head = weight * (MODEL - (weight * MODEL).sum(axis=1, keepdims=True) / total)  # (F, 14, 3)
    camera = (np.linalg.pinv(head) @ image).mT  # (F, 2, 3)
    u, spread, v = np.linalg.svd(camera, full_matrices=False)
    rows = u @ v
    matrix = np.concatenate([rows, np.cross(rows[:, :1], rows[:, 1:])], axis=1)  # (F, 3, 3)
    usable = (known.sum(axis=1) >= MIN_POINTS) & (spread[:, 1] > 1e-6 * spread[:, 0])
    return np.where(usable[:, None], angles(matrix), np.nan).astype(np.float32)


def official_pnp(points: Array, layout: Layout, size: float) -> Array:
    """Poses by a pinhole camera with 60 degrees of view, as the public codes of PFLD find their angles.

    Iterative perspective-n-point with its principal point in the middle of the image and no distortion. The camera
    sees the crop alone, so the answer depends on how the crop was made: on AFLW2000-3D in squares of 1.2 times the
    tight box yaw is off by 7.7 degrees on average, and 13.6 % of the faces are in another bucket.

    Departures from the public codes: each nose wing has its own x; ``points`` must be in pixels of the image of
    ``size`` (polarisZhao/PFLD-pytorch passes fractions of the crop to a camera of 256 pixels, which makes its angles
    noise); the iteration starts from SQPnP (Terzakis, Lourakis, ECCV 2020), since without a start it ends with some
    frontal faces behind the camera, rolled by 180 degrees; the result is yaw, pitch, roll with our signs, where those
    codes return pitch, yaw, roll with pitch of the opposite sign.

    Args:
        points: ``(F, N, 2)`` in pixels of a square image, NaN where not annotated.
        layout: their layout.
        size: side of that image in pixels.

    Returns:
        ``(F, 3)`` float32 yaw, pitch, roll in degrees, NaN as in :func:`estimate_pose`.

    Raises:
        ValueError: when ``points`` are not those of ``layout``.
    """
    found, known = _model_points(points, layout)
    focal = size / 2 / np.tan(np.deg2rad(60 / 2))
    camera = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    matrix = np.full((len(points), 3, 3), np.nan)
    for face in np.flatnonzero(np.isfinite(estimate_pose(points, layout)).all(axis=1)):
        head, image = MODEL[known[face]], to_cells(found[face, known[face]], 1)  # counted from the image's edge
        solved, vector, place = cv2.solvePnP(head, image, camera, None, flags=cv2.SOLVEPNP_SQPNP)
        if solved:
            cv2.solvePnP(head, image, camera, None, vector, place, True, cv2.SOLVEPNP_ITERATIVE)
            matrix[face] = cv2.Rodrigues(vector)[0]
    return angles(matrix).astype(np.float32)
