"""Head pose from landmarks.

Pose is ``(..., 3)`` yaw, pitch, roll in **degrees**, with ``R = Rz(roll) Ry(yaw) Rx(pitch)``: pitch rotates about the
axis through the ears, yaw about the vertical axis of the image, roll in the image plane. Yaw is positive with the nose
towards the left of the image, pitch with the chin up, roll clockwise in the image. The axes are those of the image: x
right, y down, z away from the viewer. Yaw is within 90 degrees; at 90 degrees pitch and roll rotate about the same axis
and only their sum or difference is determined.

The signs are those of ``Pose_Para`` of AFLW2000-3D and 300W-LP, but the order of the three rotations differs:
:func:`from_300w_lp` converts it.
"""

import cv2
import numpy as np

from facelab.faces.geometry import Array, to_cells
from facelab.faces.layouts import Layout

# In the axes of the source code: x to the left of the image, y up, z towards the viewer. There the left nose wing has
# the x of the right nose wing, an error that was reported to the authors:
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
"""Model of a head: 14 points ``(14, 3)`` in arbitrary units, x right, y down, z away from the viewer.

The public codes of PFLD compute their angles from it with a pinhole camera (Guo et al., arXiv 1902.10859, do not list
their eleven points). All three axes are reversed relative to those codes. This changes no rotation, and puts the head
in front of the camera instead of behind it."""

NOSE_TIP = (0.0, -2.0, -9.0)
"""Tip of the nose in the axes and units of :data:`MODEL`, which lacks it: fitted to the labelled yaw of AFLW2000-3D in
steps of a half."""
MODEL_OF_FIVE: Array = np.stack([MODEL[4:6].mean(axis=0), MODEL[6:8].mean(axis=0), NOSE_TIP, MODEL[10], MODEL[11]])
"""The points of the layout FIVE5 ``(5, 3)`` in the axes of :data:`MODEL`; an eye is the middle of its corners."""

MIN_POINTS = 6
"""Minimum number of the 14 points for a pose: an affine camera has 8 unknowns, and a few almost coplanar points do not
determine the depth."""

X, Y, Z = range(3)
"""Indices of the axes."""


def _rotate(degrees: Array, start: int, end: int) -> Array:
    """Return the rotations ``(..., 3, 3)`` of axis ``start`` towards axis ``end``."""
    radians = np.deg2rad(np.asarray(degrees, np.float64))
    matrix = np.zeros((*radians.shape, 3, 3))
    matrix[..., range(3), range(3)] = 1
    matrix[..., start, start] = matrix[..., end, end] = np.cos(radians)
    matrix[..., end, start] = np.sin(radians)
    matrix[..., start, end] = -np.sin(radians)
    return matrix


def _yaw(degrees: Array) -> Array:
    """Return the rotations about y."""
    return _rotate(degrees, Z, X)  # moves the nose from -z towards -x


def _pitch(degrees: Array) -> Array:
    """Return the rotations about x."""
    return _rotate(degrees, Z, Y)


def _roll(degrees: Array) -> Array:
    """Return the rotations about z."""
    return _rotate(degrees, X, Y)


def rotation(pose: Array) -> Array:
    """Convert a pose to a rotation matrix, ``Rz(roll) Ry(yaw) Rx(pitch)``.

    Args:
        pose: ``(..., 3)`` yaw, pitch, roll in degrees.

    Returns:
        ``(..., 3, 3)``, from the axes of the head to the axes of the image.

    Example:
        >>> nose = np.array([0.0, 0.0, -1.0])  # towards the viewer
        >>> (rotation(np.array([30.0, 20.0, 0.0])) @ nose).round(3)  # towards the left and up
        array([-0.47 , -0.342, -0.814])
    """
    pose = np.asarray(pose)
    return _roll(pose[..., 2]) @ _yaw(pose[..., 0]) @ _pitch(pose[..., 1])


def angles(matrix: Array) -> Array:
    """Convert a rotation matrix to a pose, the inverse of :func:`rotation` for yaw within 90 degrees.

    Args:
        matrix: ``(..., 3, 3)`` rotations; NaN stays NaN.

    Returns:
        ``(..., 3)`` yaw, pitch, roll in degrees; pitch and roll within 180.

    Example:
        >>> angles(rotation(np.array([30.0, -10.0, 5.0]))).round(6)
        array([ 30., -10.,   5.])
    """
    yaw = np.arcsin(np.clip(-matrix[..., Z, X], -1, 1))
    pitch = np.arctan2(-matrix[..., Z, Y], matrix[..., Z, Z])
    roll = np.arctan2(matrix[..., Y, X], matrix[..., X, X])
    return np.rad2deg(np.stack([yaw, pitch, roll], axis=-1))


def turned(pose: Array, degrees: float) -> Array:
    """Return the pose ``(..., 3)`` after a clockwise rotation of the image by ``degrees``; roll stays within 180.

    Example:
        >>> turned(np.array([30.0, -10.0, 170.0]), 20.0)
        array([  30.,  -10., -170.])
    """
    pose = np.array(pose)
    pose[..., 2] = (pose[..., 2] + degrees + 180) % 360 - 180
    return pose


def flipped(pose: Array) -> Array:
    """Return the pose ``(..., 3)`` after a left-right flip of the image: yaw and roll change sign.

    Example:
        >>> flipped(np.array([30.0, -10.0, 5.0]))
        array([-30., -10.,  -5.])
    """
    return np.asarray(pose) * np.array([-1, 1, -1], np.float32)


def from_300w_lp(pose_para: Array) -> Array:
    """Convert a pose label of 300W-LP or AFLW2000-3D.

    Their angles compose in the opposite order, ``Rx(pitch) Ry(yaw) Rz(roll)``, with the same signs. The result
    therefore has another yaw than the label if pitch and roll are both nonzero. Papers on AFLW2000-3D define their pose
    buckets by the yaw of the label.

    Args:
        pose_para: ``(..., 3)`` or longer, as in the file: pitch, yaw, roll in radians (then translation and scale).

    Returns:
        ``(..., 3)`` yaw, pitch, roll in degrees.

    Example:
        >>> from_300w_lp(np.deg2rad([20.0, 0.0, 30.0])).round(1)  # yaw 0 in the label
        array([ 9.8, 17.5, 28.5])
    """
    degrees = np.rad2deg(np.asarray(pose_para, np.float64))
    return angles(_pitch(degrees[..., 0]) @ _yaw(degrees[..., 1]) @ _roll(degrees[..., 2]))


def _model_points(points: Array, layout: Layout) -> tuple[Array, Array]:
    """Select the 14 model points of each face ``(F, 14, 2)``, with a mask of the annotated points ``(F, 14)``.

    The mask is False for a layout without pose points.
    """
    if points.ndim != 3 or points.shape[1:] != (layout.num_points, 2):
        raise ValueError(
            f"points have shape {points.shape}, but layout {layout.name!r} needs (faces, {layout.num_points}, 2)"
        )
    selected = np.full((len(points), len(MODEL), 2), np.nan)
    if layout.pose:
        selected[:] = points[:, list(layout.pose)]
    return selected, np.asarray(np.isfinite(selected).all(axis=-1))


def estimate_pose(points: Array, layout: Layout) -> Array:
    """Estimate poses by a scaled-orthographic least-squares fit of :data:`MODEL`.

    The fit computes the affine camera that best maps the annotated model points to the image points, and the rotation
    nearest to the two rows of the camera. It needs no focal length and no image size. A fit constrained to rotations is
    less accurate, because the depths of the model do not fit every head.

    On the 2,000 faces of AFLW2000-3D yaw differs from the label by 3.4 degrees on average, and 6.4 % of the faces are
    in another bucket of 30 degrees; 2.1 degrees and 4.0 % if both use the order of rotations of the label. The layout
    hardly changes yaw. It changes pitch by up to 5 degrees, because layouts place the ends of the brows and the nose
    wings differently.

    Args:
        points: ``(F, N, 2)`` in pixels, NaN where not annotated.
        layout: layout of ``points``.

    Returns:
        ``(F, 3)`` float32 yaw, pitch, roll in degrees. NaN for a face with fewer than :data:`MIN_POINTS` annotated
        model points or with collinear points, and for every face of a layout without pose points.

    Raises:
        ValueError: the shape of ``points`` does not match ``layout``.

    Example:
        >>> from facelab.faces.layouts import IBUG68
        >>> points = np.full((1, 68, 2), np.nan)
        >>> points[0, list(IBUG68.pose)] = (MODEL @ rotation(np.array([30.0, -10.0, 5.0])).T)[:, :2]
        >>> estimate_pose(points, IBUG68).round(3).tolist()
        [[30.0, -10.0, 5.0]]
    """
    selected, annotated = _model_points(points, layout)
    return _fit(selected, annotated, MODEL, MIN_POINTS)


def estimate_pose_of_five(points: Array) -> Array:
    """Estimate poses from the points of the layout FIVE5 by the fit of :func:`estimate_pose` to :data:`MODEL_OF_FIVE`.

    On the 2,000 faces of AFLW2000-3D yaw differs from the label by 3.2 degrees on average, and 5.4 % of the faces are
    in another bucket of 30 degrees. Pitch differs from that of the 14 points by 4.8 degrees.

    Args:
        points: ``(F, 5, 2)`` in pixels, NaN where not annotated.

    Returns:
        ``(F, 3)`` float32 yaw, pitch, roll in degrees; NaN for a face without all five points or with collinear points.

    Example:
        >>> points = (MODEL_OF_FIVE @ rotation(np.array([30.0, -10.0, 5.0])).T)[None, :, :2]
        >>> estimate_pose_of_five(points).round(3).tolist()
        [[30.0, -10.0, 5.0]]
    """
    return _fit(points, np.asarray(np.isfinite(points).all(axis=-1)), MODEL_OF_FIVE, len(MODEL_OF_FIVE))


def _fit(selected: Array, annotated: Array, model: Array, fewest: int) -> Array:
    """Fit a model to the points of faces, see :func:`estimate_pose`.

    Args:
        selected: ``(F, M, 2)`` image of each point of the model.
        annotated: ``(F, M)`` bool.
        model: ``(M, 3)``.
        fewest: number of annotated points below which the pose is NaN.
    """
    weight = annotated[..., None].astype(np.float64)  # (F, M, 1)
    total = np.maximum(weight.sum(axis=1, keepdims=True), 1)
    selected = np.where(weight > 0, selected, 0)
    image = weight * (selected - selected.sum(axis=1, keepdims=True) / total)  # (F, M, 2)
    head = weight * (model - (weight * model).sum(axis=1, keepdims=True) / total)  # (F, M, 3)
    camera = (np.linalg.pinv(head) @ image).mT  # (F, 2, 3)
    u, singular, v = np.linalg.svd(camera, full_matrices=False)
    rows = u @ v
    matrix = np.concatenate([rows, np.cross(rows[:, :1], rows[:, 1:])], axis=1)  # (F, 3, 3)
    usable = (annotated.sum(axis=1) >= fewest) & (singular[:, 1] > 1e-6 * singular[:, 0])
    return np.where(usable[:, None], angles(matrix), np.nan).astype(np.float32)


def official_pnp(points: Array, layout: Layout, size: float) -> Array:
    """Estimate poses with a pinhole camera of 60 degrees field of view, like the public codes of PFLD.

    The method is iterative perspective-n-point with the principal point at the image centre and no distortion. The
    image is the crop, so the result depends on the crop: on AFLW2000-3D, in squares of 1.2 times the tight box, yaw
    differs from the label by 7.7 degrees on average, and 13.6 % of the faces are in another bucket.

    Departures from the public codes:

    * Left and right nose wing have different x.
    * ``points`` must be in pixels of the image of side ``size``. polarisZhao/PFLD-pytorch passes fractions of the crop
      to a camera of 256 pixels, so its angles are noise.
    * The iteration starts from SQPnP (Terzakis, Lourakis, ECCV 2020). Without an initial pose it converges to a pose
      behind the camera, rolled by 180 degrees, for some frontal faces.
    * The result is yaw, pitch, roll with the signs of this module. The public codes return pitch, yaw, roll with the
      opposite sign of pitch.

    Args:
        points: ``(F, N, 2)`` in pixels of a square image, NaN where not annotated.
        layout: layout of ``points``.
        size: side of the image in pixels.

    Returns:
        ``(F, 3)`` float32 yaw, pitch, roll in degrees, NaN as in :func:`estimate_pose`.

    Raises:
        ValueError: the shape of ``points`` does not match ``layout``.
    """
    selected, annotated = _model_points(points, layout)
    focal = size / 2 / np.tan(np.deg2rad(60 / 2))
    camera = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    matrix = np.full((len(points), 3, 3), np.nan)
    for face in np.flatnonzero(np.isfinite(estimate_pose(points, layout)).all(axis=1)):
        head, image = MODEL[annotated[face]], to_cells(selected[face, annotated[face]], 1)  # from the edge of the image
        solved, vector, translation = cv2.solvePnP(head, image, camera, None, flags=cv2.SOLVEPNP_SQPNP)
        if solved:
            cv2.solvePnP(head, image, camera, None, vector, translation, True, cv2.SOLVEPNP_ITERATIVE)
            matrix[face] = cv2.Rodrigues(vector)[0]
    return angles(matrix).astype(np.float32)
