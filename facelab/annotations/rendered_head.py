"""Renderer of a parametric human head, with exact landmarks, pose and visibility.

A head is one closed surface with a relief for nose, lips, brows and eye sockets. Eyes, brows and lips are patches
between curves on this surface. The landmarks of every layout are samples of the same curves.

Head frame: x to the right of the image, y down, z away from the viewer (the nose points to -z). The head unit is half
the width of an average face, y = 0 is the line through the eyes. The projection is orthographic.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from facelab.faces.geometry import Array, from_cells, to_cells
from facelab.faces.pose import rotation

CURVE = 96
"""Steps of a curve. 2, 3, 4, 6, 16 and 32 equal parts of it, which the layouts need, end on its samples."""
T = np.linspace(0, 1, CURVE + 1)
"""Parameter of the curves, from the left (0) to the right end (1)."""
ARC = np.sin(np.pi * T)
"""Arch over the parameter of a curve: 0 at both ends, 1 in the middle."""
PATCH = 8
"""Steps of a curve per quad of a patch."""
CROWN = -1.55
"""Y of the top of the head in head units."""
MIDDLE = np.array([0.0, 0.5, -0.6])
"""Point of the head frame that is projected to ``View.centre``."""
OVERSAMPLING, SUBPIXEL_BITS = 2, 4
"""Canvas pixels per pixel of the photo, and fractional bits of OpenCV's fixed-point drawing coordinates."""
RIM = 0.05
"""Distance in head units to an outline up to which a point behind the outline counts as visible."""
OVERLAP = 0.15
"""Minimum distance in head units from a point to a surface in front that hides it: the depth range of an oblique
quad."""
DEPTH_FAR, DEPTH_STEPS, OCCLUDER = 2.0, 62.0, 255
"""Depth channel of the canvas: depth of step 0 in head units, steps per head unit towards the viewer, value of the
occluder. The background is 0, neck and shoulders are 1, the head is 1 to 254."""

WHOLE, REVERSED, BACK_INNER = slice(None), slice(None, None, -1), slice(-2, 0, -1)
BACK_FROM_END, BACK_TO_START = slice(None, 0, -1), slice(-2, None, -1)
Piece = tuple[str, int, slice]
"""Part of a layout: a curve, the number of equally spaced samples on it, and the selection and order of the samples."""


def _eye(side: str, samples: int) -> tuple[Piece, ...]:
    """Return the pieces of the outline of an eye."""
    return (f"eye_{side}_upper", samples, WHOLE), (f"eye_{side}_lower", samples, BACK_INNER)


CONTOUR_AND_BROWS: tuple[Piece, ...] = (
    ("contour", 33, WHOLE),
    *(("brow_left_upper", 5, WHOLE), ("brow_left_lower", 5, BACK_FROM_END)),
    *(("brow_right_upper", 5, WHOLE), ("brow_right_lower", 5, BACK_TO_START)),
)
BRIDGE, BASE = ("nose_bridge", 4, WHOLE), ("nose_base", 5, WHOLE)
MOUTH: tuple[Piece, ...] = (
    *(("lip_outer_upper", 7, WHOLE), ("lip_outer_lower", 7, BACK_INNER)),
    *(("lip_inner_upper", 5, WHOLE), ("lip_inner_lower", 5, BACK_INNER)),
)
PUPILS: tuple[Piece, Piece] = ("pupil_left", 1, WHOLE), ("pupil_right", 1, WHOLE)
PIECES: dict[str, tuple[Piece, ...]] = {
    "ibug68": (
        ("contour", 17, WHOLE),
        *(("brow_left_middle", 5, WHOLE), ("brow_right_middle", 5, WHOLE)),
        *(BRIDGE, BASE, *_eye("left", 4), *_eye("right", 4), *MOUTH),
    ),
    "wflw98": (*CONTOUR_AND_BROWS, BRIDGE, BASE, *_eye("left", 5), *_eye("right", 5), *MOUTH, *PUPILS),
    "lapa106": (
        *(*CONTOUR_AND_BROWS, BRIDGE, ("nose_side_left", 3, REVERSED), BASE, ("nose_side_right", 3, REVERSED)),
        *(*_eye("left", 5), PUPILS[0], *_eye("right", 5), PUPILS[1]),  # eye centre and pupil coincide in LaPa
        *(*MOUTH, *PUPILS),
    ),
}
"""Sampled curves, in the order of the points, by name of the layout."""


class Head(NamedTuple):
    """Shape and expression of a head; lengths and positions in head units."""

    width: float  # half width at the eyes
    chin: float  # y of the chin with the mouth shut
    jaw: float  # exponent of the jaw line: pointed if low, square if high
    nose_base: float  # y of the base of the nose
    nose_width: float  # half width over the wings
    nose_height: float  # height of the ridge at the tip
    eye_x: float  # x of the middle of the right eye
    eye_width: float  # half width
    eye_open: float  # 0 shut, 1 normal
    gaze: float  # -1 to the left of the image .. 1 to the right
    brow_height: float  # distance above the eye
    brow_arch: float  # height of the arch
    lip_line: float  # distance from the base of the nose to the corners of the mouth
    mouth_width: float  # half width
    mouth_open: float  # 0 shut, 1 opening as high as half the width of the mouth
    smile: float  # -1 corners down .. 1 corners up and outwards
    lips: float  # thickness, 1 normal
    hairline: float  # y of the hairline above the forehead

    @property
    def mouth(self) -> float:
        """Return y of the corners of the mouth."""
        return self.nose_base + self.lip_line

    @property
    def jaw_end(self) -> float:
        """Return y of the chin, which moves down with the open mouth."""
        return self.chin + 0.3 * self.mouth_open * self.mouth_width


# Ranges of random_head
LOW = Head(0.93, 1.52, 1.75, 0.58, 0.2, 0.3, 0.42, 0.185, 0.7, -1, 0.21, 0.03, 0.31, 0.31, 0, -0.6, 0.75, -1.1)
HIGH = Head(1.05, 1.72, 2.5, 0.7, 0.28, 0.42, 0.47, 0.225, 1.3, 1, 0.34, 0.12, 0.38, 0.4, 1, 1, 1.25, -0.75)


class View(NamedTuple):
    """Pose, size and position of a head in the photo."""

    pose: Array  # (3,) yaw, pitch, roll in degrees, see facelab.faces.pose
    scale: float  # pixels per head unit
    centre: Array  # (2,) projection of MIDDLE in pixels of the photo


class Look(NamedTuple):
    """Colours and light of a photo. A colour is (3,) blue, green, red in 0 .. 1."""

    skin: Array
    hair: Array
    iris: Array
    cloth: Array
    light: Array  # (3,) unit vector towards the lamp, in the axes of the camera
    ambient: float  # share of ambient light


class Picture(NamedTuple):
    """Photo of a head with the points of all layouts. Masks contain the points of the layouts one after the other."""

    photo: NDArray[np.uint8]  # (size, size, 3) blue, green, red
    points: dict[str, Array]  # name of a layout to (N, 3), see to_camera
    seen: NDArray[np.bool_]  # (sum of N) in the photo and not behind the head
    hidden: NDArray[np.bool_]  # (sum of N) behind the occluder or outside the photo


def random_head(rng: Generator) -> Head:
    """Draw a head: every measure uniform between LOW and HIGH, the mouth shut in 1 of 2 heads, the eyes in 1 of 12."""
    head = Head(*rng.uniform(LOW, HIGH))
    if rng.random() < 1 / 2:
        head = head._replace(mouth_open=0.0)
    return head._replace(eye_open=0.1 * head.eye_open) if rng.random() < 1 / 12 else head


def random_look(rng: Generator) -> Look:
    """Draw colours and light.

    The skin is dark to pale, the hair black, brown, blond, grey or red, the lamp in front of the face.
    """
    tones = np.array([[0.2, 0.27, 0.42], [0.42, 0.55, 0.78], [0.68, 0.76, 0.95]])
    skin = _interpolate(rng.random(), [0, 0.5, 1], tones) * rng.uniform(0.9, 1.05, 3)
    hair = np.array([[0.05, 0.06, 0.08], [0.1, 0.17, 0.28], [0.35, 0.6, 0.8], [0.6, 0.6, 0.62], [0.1, 0.25, 0.55]])
    light = rng.normal([0, -0.3, -1], [0.6, 0.4, 0.2])
    return Look(
        skin=skin,
        hair=rng.choice(hair, p=[0.35, 0.3, 0.15, 0.1, 0.1]) * rng.uniform(0.7, 1.1),
        iris=rng.uniform(0.1, 0.5, 3) * [0.9, 0.8, 0.7],
        cloth=rng.uniform(0.05, 0.9, 3),
        light=light / np.linalg.norm(light),
        ambient=rng.uniform(0.35, 0.6),
    )


def _interpolate(at: Array | float, knots: Array | list[float], values: Array) -> Array:
    """Interpolate every column of ``values (K, C)`` linearly over the knots ``(K,)``."""
    return np.stack([np.interp(at, knots, column) for column in values.T], axis=-1)


def _relief(head: Head, x: Array, y: Array) -> Array:
    """Compute the height of the face above the plain head in head units, at frontal positions (x, y)."""

    def hill(at_x: float, at_y: float, width: float, height: float, top: float) -> Array:
        """Compute a Gaussian hill and its copy on the other side of the face."""
        return top * np.exp(-(((np.abs(x) - at_x) / width) ** 2) - ((y - at_y) / height) ** 2)

    base, tip, low = head.nose_base, head.nose_base - 0.16, head.mouth + 0.5 * head.mouth_width * head.mouth_open
    down_ridge, below_tip = np.clip((y + 0.1) / (tip + 0.1), 0, 1), np.clip((y - tip) / (base + 0.03 - tip), 0, 1)
    ridge = head.nose_height * (0.12 + 0.88 * down_ridge**1.4) * np.clip((y + 0.35) / 0.25, 0, 1) * (1 - below_tip**2.5)
    nose = ridge * np.exp(-((np.abs(x) / (0.1 + 0.06 * down_ridge)) ** 2.2))
    mouth = hill(0.3, head.mouth, 0.3, 0.2, 0.05) + hill(0.0, head.mouth - 0.07, 0.25, 0.06, 0.05)
    lip_and_chin = hill(0.0, low + 0.08, 0.22, 0.07, 0.05) - hill(0.0, low + 0.22, 0.25, 0.07, 0.04)
    eye = hill(0.4, -0.27, 0.35, 0.1, 0.06) - hill(head.eye_x - 0.08, 0.0, 0.24, 0.17, 0.13)
    return (
        np.maximum(nose, hill(head.nose_width - 0.07, base - 0.09, 0.08, 0.09, 0.16))
        + (mouth + lip_and_chin + hill(0.0, low + 0.42, 0.25, 0.15, 0.05))
        + (eye + hill(head.eye_x, 0.0, 0.17, 0.1, 0.05) + hill(0.6, 0.4, 0.2, 0.2, 0.05))
    )


def _section(head: Head, y: Array) -> tuple[Array, Array, Array, Array]:
    """Compute the horizontal section of the plain head at height y.

    Returns:
        Half width, z of the widest line, depth from there to the front, and depth from there to the back.
    """
    lower = y > 0
    fraction = np.clip(np.abs(y) / np.where(lower, head.jaw_end, -CROWN), 0, 1)
    narrow = np.sqrt(np.maximum(1 - fraction ** np.where(lower, head.jaw, 2.4), 1e-9))
    widest = np.where(lower, -0.85 * fraction**3, 0.4 * fraction**2) - 0.12
    return head.width * narrow, widest, 1.1 * narrow ** np.where(lower, 1.0, 0.6), 1.4 * narrow


def around(head: Head, angle: Array, y: Array) -> Array:
    """Compute points ``(..., 3)`` of the surface at height y and an angle about the vertical.

    Args:
        head: the head.
        angle: radians, 0 in front, positive to the right.
        y: height in the head frame.
    """
    width, widest, front, back = _section(head, y)
    x, forward = width * np.sin(angle), np.cos(angle)
    z = widest - np.where(forward > 0, front, back) * forward - _relief(head, x, y) * np.clip(2 * forward, 0, 1)
    return np.stack(np.broadcast_arrays(x, y, z), axis=-1)


def ahead(head: Head, line: Array) -> Array:
    """Project frontal positions ``line (..., 2)`` onto the front of the surface, ``(..., 3)``."""
    return around(head, np.arcsin(np.clip(line[..., 0] / _section(head, line[..., 1])[0], -1, 1)), line[..., 1])


def curves(head: Head) -> dict[str, Array]:
    """Compute the named curves of a face, ``(CURVE + 1, 3)`` each in the head frame, from left to right.

    The contour is the widest line of the head from ear to ear: the outline in the front view, and the edge of the jaw
    in the side view. It is fixed on the head and does not depend on the pose.
    """
    right = _eye_lines(head) | _brow_lines(head) | _nose_side_lines(head)
    left = {name.replace("_right", "_left"): line[::-1] * [-1, 1] for name, line in right.items()}
    flat = right | left | _nose_lines(head) | _mouth_lines(head)
    on_surface = ahead(head, np.stack(list(flat.values())))
    return dict(zip(flat, on_surface, strict=True)) | {"contour": _contour(head)}


def _line(x: Array, y: Array) -> Array:
    """Join coordinates ``(T,)`` to points ``(T, 2)``."""
    return np.stack([x, y], axis=-1)


def _eye_lines(head: Head) -> dict[str, Array]:
    """Compute the curves of the right eye in the front view: lids, lashes, crease, iris and pupil.

    The lids clip iris and pupil.
    """
    x = head.eye_x + head.eye_width * (2 * T - 1)
    slope = 0.02 * (1 - T)  # lowers the inner corner
    upper, lower = slope - 0.125 * head.eye_open * ARC**0.8, slope + (0.02 + 0.045 * head.eye_open) * ARC
    look_x, look_y = head.eye_x + 0.05 * head.gaze, -0.03 * head.eye_open
    look_y = np.clip(look_y, np.interp(look_x, x, upper), np.interp(look_x, x, lower))
    lines = {
        "eye_right_upper": _line(x, upper),
        "eye_right_lower": _line(x, lower),
        "lash_right_upper": _line(x, upper - 0.012 - 0.02 * ARC),
        "lash_right_lower": _line(x, lower + 0.012),
        "crease_right_upper": _line(x, upper - 0.055 - 0.04 * ARC),
        "crease_right_lower": _line(x, upper - 0.04 - 0.03 * ARC),
        "pupil_right": np.tile([look_x, look_y], (CURVE + 1, 1)),
    }
    for name, radius in (("iris", 0.09), ("black", 0.04)):
        across, half = look_x + radius * (2 * T - 1), radius * np.sqrt(1 - (2 * T - 1) ** 2)
        lids = np.interp(across, x, upper), np.interp(across, x, lower)
        lines[f"{name}_right_upper"] = _line(across, np.clip(look_y - half, *lids))
        lines[f"{name}_right_lower"] = _line(across, np.clip(look_y + half, *lids))
    return lines


def _brow_lines(head: Head) -> dict[str, Array]:
    """Compute both edges and the centre line of the right brow, thick at the nose and pointed at the outer end."""
    x = 0.19 + (head.eye_x + head.eye_width - 0.01) * T
    y = -head.brow_height + 0.12 * T**3 - head.brow_arch * np.sin(np.pi * T**1.2)
    half = 0.05 * (1 - T**3)
    borders = (("upper", -half), ("middle", 0 * half), ("lower", half))
    return {f"brow_right_{name}": _line(x, y + offset) for name, offset in borders}


def _nose_side_lines(head: Head) -> dict[str, Array]:
    """Compute the right side of the nose from root to wing, the fold behind the wing, and the nostril."""
    width, base = head.nose_width, head.nose_base
    side = _interpolate(T, [0, 0.5, 1], np.array([[0.13, -0.02], [width - 0.03, base - 0.21], [width, base - 0.1]]))
    hole = _line(0.05 + (width - 0.13) * T, base - 0.055 + 0 * T)
    return {
        "nose_side_right": side,
        "fold_right_upper": side + np.outer(0.03 * np.sin(np.pi * np.clip(2 * T - 0.8, 0, 1)), [1, 0]),
        "fold_right_lower": side,
        "nostril_right_upper": hole - np.outer(0.02 * ARC, [0, 1]),
        "nostril_right_lower": hole + np.outer(0.02 * ARC, [0, 1]),
    }


def _nose_lines(head: Head) -> dict[str, Array]:
    """Compute the lines in the middle of the nose."""
    across = 2 * T - 1
    y = head.nose_base - 0.015 + 0.015 * np.cos(2 * np.pi * across) - 0.02 * np.abs(across)
    return {
        "nose_bridge": _line(0 * T, (head.nose_base - 0.16) * T),
        "nose_base": _line((head.nose_width - 0.06) * across, y),
        "nose_shadow": _line((head.nose_width - 0.06) * across, y + 0.025 * ARC),
    }


def _mouth_lines(head: Head) -> dict[str, Array]:
    """Compute the edges of the lips and of the upper teeth."""
    across = 2 * T - 1
    width = head.mouth_width * (1 + 0.12 * head.smile - 0.15 * head.mouth_open)
    gap, middle = head.mouth_width * head.mouth_open * ARC, head.mouth - 0.07 * head.smile * across**2
    bow = 0.1 * head.lips * (ARC**0.7 - 0.16 * np.exp(-((across / 0.15) ** 2)))
    upper, lower = middle - 0.15 * gap - 0.006 * ARC, middle + 0.85 * gap + 0.006 * ARC
    return {
        "lip_outer_upper": _line(width * across, upper - bow),
        "lip_outer_lower": _line(width * across, lower + 0.14 * head.lips * ARC**0.9),
        "lip_inner_upper": _line(0.88 * width * across, upper),
        "lip_inner_lower": _line(0.88 * width * across, lower),
        "teeth": _line(0.88 * width * across, upper + np.minimum(0.3 * gap, 0.09)),
    }


def _contour(head: Head) -> Array:
    """Compute the contour from ear to ear, in steps of equal length in the front view, ``(CURVE + 1, 3)``."""
    y = head.jaw_end * np.sin(np.linspace(-0.03, np.pi / 2, 400))
    right = around(head, np.full(400, np.pi / 2), y)
    line = np.concatenate([right * [-1, 1, 1], right[-2::-1]])
    length = np.concatenate([[0], np.linalg.norm(np.diff(line[:, :2], axis=0), axis=-1).cumsum()])
    return _interpolate(length[-1] * T, length, line)


def hairline(head: Head, angle: Array) -> Array:
    """Compute the y of the lower edge of the hair at an angle in radians about the vertical, 0 in front."""
    from_front = np.abs(np.arctan2(np.sin(angle), np.cos(angle)))
    return head.hairline + np.interp(from_front, np.deg2rad([0, 50, 80, 95, 110, 180]), [0, 0.1, 0.5, 0.95, 1.5, 1.8])


def face_surface(head: Head) -> Array:
    """Sample the surface of the face from the hairline to the chin and from ear to ear, ``(S, 3)`` in the head frame.

    The ears are not part of it.
    """
    angle = np.linspace(-np.pi / 2, np.pi / 2, 33)
    top = hairline(head, angle)
    down = np.sin(np.linspace(0, np.pi / 2, 25))[:, None]  # dense at the chin
    return around(head, angle, top + (head.jaw_end - top) * down).reshape(-1, 3)


def landmarks(lines: dict[str, Array], layout: str) -> Array:
    """Sample the points of a layout from the curves of a head, ``(N, 3)`` in the head frame."""
    return np.concatenate(
        [lines[name][np.linspace(0, CURVE, samples).astype(int)][part] for name, samples, part in PIECES[layout]]
    )


def to_camera(points: Array, view: View) -> Array:
    """Project points ``(..., 3)`` of the head frame to x, y and depth (larger is farther) in pixels of the photo."""
    rotate = rotation(view.pose)
    return (points @ rotate.T - [*(rotate @ MIDDLE)[:2], 0]) * view.scale + [*view.centre, 0]


def _quads(vertices: Array) -> Array:
    """Collect the corners ``(Q, 4, 3)`` of the quads between vertices ``(..., R, C, 3)``."""
    up, down = vertices[..., :-1, :, :], vertices[..., 1:, :, :]
    corners = up[..., :-1, :], up[..., 1:, :], down[..., 1:, :], down[..., :-1, :]
    return np.stack(corners, axis=-2).reshape(-1, 4, 3)


def _head_quads(head: Head, look: Look) -> tuple[Array, Array]:
    """Compute the quads of the head without ears and patches ``(Q, 4, 3)`` and their colours ``(Q, 3)``.

    One row of vertices follows the hairline. Above it the hair enlarges the head. Rows and columns are dense at the
    nose.
    """
    hair_rows = 12
    u, chin = np.linspace(-1, 1, 33), 0.66 + 0.34 * np.sin(np.linspace(0, np.pi / 2, 13))
    angle = np.concatenate([np.sign(u) * np.abs(u) ** 1.3, np.linspace(1, 3, 13)[1:]]) * np.pi / 2
    down = np.concatenate([np.linspace(0, 0.25, 6)[:-1], np.linspace(0.25, 0.66, 21)[:-1], chin])[:, None]
    top = 1 - np.cos(np.linspace(0, np.pi / 2, hair_rows))[:, None]
    line = hairline(head, angle)
    y = np.concatenate([CROWN + (line - CROWN) * top, line + (head.jaw_end - line) * down])
    thick = np.where(np.arange(len(y)) < hair_rows, 1.05, 1.0)[:, None, None]
    behind = np.cos((angle[:-1] + angle[1:]) / 2) < 0
    shadow = (y[:-1, :-1] > 0.3) & behind  # of the jaw on the surface behind the contour
    colour = np.where(shadow[..., None], 0.75 * look.skin, look.skin)
    colour[:hair_rows] = look.hair
    return _quads(around(head, angle, y) * thick), colour.reshape(-1, 3)


def _ear_quads(head: Head, look: Look) -> tuple[Array, Array]:
    """Compute the quads and colours of both ears."""
    t = np.linspace(0, 1, 9)
    front = around(head, np.deg2rad(96 - 4 * t), -0.12 + 0.68 * t)
    rim = np.outer(np.sin(np.pi * t) ** 0.7 * (1.1 - 0.35 * t), [0.15, 0, 0.26])
    shell, edge = (_quads(np.stack([front + a * rim, front + b * rim])) for a, b in ((0, 0.75), (0.75, 1)))
    right = np.concatenate([shell, edge])
    colour = np.repeat([look.skin * 0.75, look.skin], len(shell), axis=0)
    return np.concatenate([right, right * [-1, 1, 1]]), np.concatenate([colour, colour])


def _patch_quads(lines: dict[str, Array], look: Look) -> tuple[Array, Array, Array]:
    """Compute the patches on the head.

    Returns:
        Quads ``(Q, 4, 3)``, their colours ``(Q, 3)``, and the number of patches below each quad ``(Q,)``.
    """
    white, throat, lips = np.array([0.88, 0.9, 0.92]), np.array([0.1, 0.08, 0.22]), look.skin * [0.6, 0.5, 0.83]
    table = [
        ("nose_base", "nose_shadow", look.skin * 0.75, 0),
        ("lip_outer_upper", "lip_inner_upper", lips * 0.9, 0),
        ("lip_inner_lower", "lip_outer_lower", lips, 0),
        ("lip_inner_upper", "lip_inner_lower", throat, 0),
        ("lip_inner_upper", "teeth", white, 3),
    ]
    for side in ("left", "right"):
        table += [
            (f"fold_{side}_upper", f"fold_{side}_lower", look.skin * 0.75, 0),
            (f"nostril_{side}_upper", f"nostril_{side}_lower", look.skin * 0.4, 1),
            (f"brow_{side}_upper", f"brow_{side}_lower", look.hair * 0.7, 0),
            (f"crease_{side}_upper", f"crease_{side}_lower", look.skin * 0.75, 0),
            (f"eye_{side}_upper", f"eye_{side}_lower", white, 0),
            (f"iris_{side}_upper", f"iris_{side}_lower", look.iris, 1),
            (f"black_{side}_upper", f"black_{side}_lower", np.full(3, 0.03), 2),
            (f"eye_{side}_lower", f"lash_{side}_lower", look.skin * 0.7, 2),
            (f"lash_{side}_upper", f"eye_{side}_upper", look.hair * 0.5, 3),
        ]
    quads = _quads(np.array([(lines[up][::PATCH], lines[low][::PATCH]) for up, low, *_ in table]))
    each = len(quads) // len(table)
    return quads, np.repeat([row[2] for row in table], each, axis=0), np.repeat([row[3] for row in table], each)


def paint(canvas: Array, head: Head, lines: dict[str, Array], look: Look, view: View) -> None:
    """Paint neck, shoulders and head on a canvas ``(H, W, 4)``, far quads first, with the depth in the last channel."""
    neck = to_camera(np.array([0, 0.75, 0.3]), view)[:2]
    trunk = np.array([[-0.55, 0], [0.55, 0], [0.6, 1.5], [2.2, 2.1], [2.2, 9], [-2.2, 9], [-2.2, 2.1], [-0.6, 1.5]])
    trunk = to_canvas(neck + trunk * view.scale)
    cv2.fillPoly(canvas, [trunk[[0, 1, 2, 7]]], (*(160 * look.skin), 1), shift=SUBPIXEL_BITS)
    cv2.fillPoly(canvas, [trunk[2:]], (*(220 * look.cloth), 1), shift=SUBPIXEL_BITS)

    (plain, skin), (ears, ear_skin) = _head_quads(head, look), _ear_quads(head, look)
    patches, paints, under = _patch_quads(lines, look)
    quads, colour = to_camera(np.concatenate([plain, ears, patches]), view), np.concatenate([skin, ear_skin, paints])
    normal = np.cross(quads[:, 3] - quads[:, 1], quads[:, 2] - quads[:, 0])
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9
    ear = slice(len(plain), len(plain) + len(ears))
    normal[ear] *= -np.sign(normal[ear, 2:])  # both sides of an ear are visible
    shade = look.ambient + (1.2 - look.ambient) * np.clip(normal @ look.light, 0, None)
    depth = quads[..., 2].mean(axis=1) / view.scale
    # Depth bias in head units: ears and patches are painted after the surface they are on.
    bias = np.concatenate([np.zeros(len(plain)), np.full(len(ears), 0.08), 0.05 + 0.03 * under])
    order = np.argsort(bias - depth, kind="stable")
    order = order[normal[order, 2] < 0]
    values = np.column_stack([255 * np.clip(colour * shade[:, None], 0, 1), _steps(depth)])[order].tolist()
    for corners, value in zip(to_canvas(quads[order, :, :2]), values, strict=True):
        cv2.fillConvexPoly(canvas, corners, value, cv2.LINE_8, SUBPIXEL_BITS)


def to_canvas(points: Array) -> NDArray[np.int32]:
    """Convert pixels of the photo to fixed-point pixels of the canvas, as OpenCV draws."""
    return np.rint(from_cells(to_cells(points, 1), OVERSAMPLING) * 2**SUBPIXEL_BITS).astype(np.int32)


def _steps(depth: Array) -> Array:
    """Convert depths to grey values of the depth buffer, larger for nearer points."""
    return np.clip((DEPTH_FAR - depth) * DEPTH_STEPS, 1, OCCLUDER - 1)


def painted(depth: Array, points: Array) -> NDArray[np.uint8]:
    """Read the depth channel at points ``(N, 2)`` of the photo, ``(N,)``; OCCLUDER outside the photo."""
    x, y = (to_canvas(points) >> SUBPIXEL_BITS).T
    inside = (x >= 0) & (y >= 0) & (x < depth.shape[1]) & (y < depth.shape[0])
    return np.where(inside, depth[np.where(inside, y, 0), np.where(inside, x, 0)], np.uint8(OCCLUDER))


def visible(canvas: Array, points: Array, scale: float) -> NDArray[np.bool_]:
    """Return whether points ``(N, 3)`` of :func:`to_camera` are in the photo and not behind the head, ``(N,)``.

    A point behind an outline is visible up to a distance of RIM, because annotators mark the jaw line at the edge of
    the cheek.
    """
    reach = 2 * round(OVERSAMPLING * RIM * scale) + 1
    farthest = np.asarray(cv2.erode(canvas[..., 3], np.ones((reach, reach), np.uint8)))
    return painted(farthest, points[:, :2]) <= _steps(points[:, 2] / scale) + OVERLAP * DEPTH_STEPS


def render(rng: Generator, head: Head, look: Look, view: View, size: int, occlusion: float) -> Picture:
    """Render a photo of a head in front of a random background, with the image noise of a camera.

    Args:
        rng: generator for background, occluder, exposure and noise.
        head: shape and expression.
        look: colours and light.
        view: pose, size and position.
        size: side of the photo in pixels.
        occlusion: probability of an occluder over one of the points.
    """
    canvas = background(rng, size, size)
    lines = curves(head)
    paint(canvas, head, lines, look, view)
    points = {name: to_camera(landmarks(lines, name), view) for name in PIECES}
    all_points = np.concatenate(list(points.values()))
    seen = visible(canvas, all_points, view.scale)
    if rng.random() < occlusion:
        at = to_canvas(rng.choice(all_points)[:2]) >> SUBPIXEL_BITS
        occlude(rng, canvas, at.astype(float), OVERSAMPLING * view.scale, look.skin)
    hidden = painted(canvas[..., 3], all_points[:, :2]) == OCCLUDER
    return Picture(expose(rng, canvas, 1.0), points, seen, hidden)


def background(rng: Generator, width: int, height: int) -> NDArray[np.uint8]:
    """Draw smooth noise with up to 7 shapes on it, a canvas with depth 0 for a photo of this width and height."""
    size = (OVERSAMPLING * width, OVERSAMPLING * height)
    grid = (*rng.integers(2, 12, 2),)
    noise = (rng.uniform(0, 255, (*grid, 1)) + rng.uniform(-60, 60, (*grid, 3))).astype(np.float32)
    canvas = np.clip(cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)
    for _ in range(rng.integers(0, 8)):
        colour, centre, axes = rng.uniform(0, 255, 3), rng.uniform(0, size, 2), rng.uniform(0.03, 0.3, 2) * min(size)
        shape = centre.tolist(), axes.tolist(), rng.uniform(0, 180)
        if rng.random() < 0.5:
            cv2.ellipse(canvas, shape, colour.tolist(), -1)
        else:
            cv2.fillConvexPoly(canvas, cv2.boxPoints(shape).astype(int), colour.tolist())
    with_depth = np.zeros((*size[::-1], 4), np.uint8)
    with_depth[..., :3] = canvas
    return with_depth


def occlude(rng: Generator, canvas: Array, at: Array, unit: float, skin: Array) -> None:
    """Draw a bar, an ellipse or a hand at the canvas pixel ``at``; ``unit`` is a head unit in canvas pixels."""
    kind, turn = rng.integers(3), rng.uniform(0, 360)
    colour, centre = [*rng.uniform(0, 255, 3), OCCLUDER], at.tolist()
    if kind == 0:
        bar = cv2.boxPoints((centre, (6 * unit, rng.uniform(0.25, 0.6) * unit), turn))
        cv2.fillConvexPoly(canvas, bar.astype(int), colour)
    elif kind == 1:
        cv2.ellipse(canvas, (centre, (rng.uniform(0.6, 1.4, 2) * unit).tolist(), turn), colour, -1)
    else:
        arm = np.array([np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))]) * unit
        side = arm[::-1] * [-0.24, 0.24]
        lines = [(at + (k - 1.5) * side, at + (k - 1.5) * 1.3 * side - rng.uniform(0.75, 1) * arm) for k in range(4)]
        lines += [(at + 0.3 * arm, at + 2.6 * side - 0.3 * arm), (at + 0.2 * arm, at + 5 * arm)]
        palm = (at + 0.2 * arm).tolist(), (1.2 * unit, 0.95 * unit), turn
        for width, tone in ((0.28, 130), (0.23, 230)):  # the wider, darker hand below becomes the outline
            for line in lines:
                start, end = np.array(line).astype(int).tolist()
                cv2.line(canvas, start, end, [*(tone * skin), OCCLUDER], int(width * unit))
            cv2.ellipse(canvas, palm, [*(tone * skin), OCCLUDER], -1)


def expose(rng: Generator, canvas: Array, blur: float) -> NDArray[np.uint8]:
    """Reduce the canvas to a photo ``(H, W, 3)`` with random brightness, contrast, blur and noise.

    Args:
        rng: random generator.
        canvas: the canvas.
        blur: largest standard deviation of the blur in pixels of the photo; the smallest is 0.3.
    """
    height, width = (side // OVERSAMPLING for side in canvas.shape[:2])
    small = cv2.resize(canvas[..., :3], (width, height), interpolation=cv2.INTER_AREA)
    curve = rng.uniform(0.7, 1.1) * np.linspace(0, 1, 256) ** rng.uniform(0.7, 1.3)
    lit = cv2.LUT(small, np.clip(255 * curve, 0, 255).astype(np.uint8))
    photo = cv2.GaussianBlur(lit, (0, 0), rng.uniform(0.3, blur))
    noise = np.float32(rng.uniform(0, 8)) * rng.standard_normal(photo.shape, np.float32)
    return np.clip(np.rint(photo + noise), 0, 255).astype(np.uint8)
