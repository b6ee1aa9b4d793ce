"""Renderer of scenes: heads of many sizes, some of them hidden or cut by the border, among things that are no faces.

The heads are those of :mod:`facelab.annotations.rendered_head`. A larger head is nearer and is painted later.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from facelab.annotations.rendered_head import (
    OCCLUDER,
    OVERSAMPLING,
    SUBPIXEL_BITS,
    Head,
    Look,
    View,
    background,
    curves,
    expose,
    face_surface,
    landmarks,
    occlude,
    paint,
    painted,
    random_head,
    random_look,
    to_camera,
    to_canvas,
    visible,
)
from facelab.faces.geometry import Array, bounding_box, image_box
from facelab.faces.layouts import LAPA106

MOST_THINGS = 30
"""Largest number of things behind the heads."""
THING_SIDES = 0.01, 0.4
"""Smallest and largest side of a thing behind the heads, as a fraction of the longer side of the photo."""
SKIN_SHARE, DOTS_SHARE, COVER_SHARE = 0.3, 0.3, 0.5
"""Shares of things of the colours of skin, of other things with two dark dots, and of things among the occluders."""
COVER_SIDES = 0.7, 2.5
"""Smallest and largest side of a thing over a face in head units."""
MOST_BACKS, BACK_YAW = 2, (150.0, 210.0)
"""Largest number of heads that show only their back, and their yaw in degrees."""
OUTSIDE = 0.35
"""Largest part of a side of a face outside of the photo."""
MOST_HIDDEN = 0.6
"""Largest share of the landmarks of a face that other things hide, see :attr:`SceneFace.hidden`: annotators do not find
faces of which less is seen."""
TRIALS = 3
"""Places to try for a head before it is left out."""
BLUR = 1.5
"""Largest standard deviation of the blur of a photo, in pixels."""


class Recipe(NamedTuple):
    """Ranges of the scenes."""

    size: tuple[int, int]  # width and height in pixels
    faces: int  # largest number of faces
    heights: tuple[float, float]  # smallest and largest height of the box of a face in pixels
    angles: tuple[float, float, float]  # largest yaw, pitch and roll in degrees
    occlusion: float  # probability of an occluder over a face


class SceneFace(NamedTuple):
    """Face in a scene, in pixels of the photo."""

    head: Head
    pose: Array  # (3,) yaw, pitch, roll in degrees
    box: Array  # (4,) of the whole face, also of what is hidden or outside of the photo
    points: Array  # (N, 2) of LAPA106
    inside: NDArray[np.bool_]  # (N,) in the photo
    seen: NDArray[np.bool_]  # (N,) in the photo and not behind the head itself
    covered: NDArray[np.bool_]  # (N,) behind a nearer thing, or outside

    @property
    def hidden(self) -> float:
        """Return the share of the points seen without nearer things that these cover; 1 if none is seen."""
        return float(self.covered[self.seen].mean()) if self.seen.any() else 1.0


def render_scene(rng: Generator, recipe: Recipe) -> tuple[NDArray[np.uint8], list[SceneFace]]:
    """Render a photo, and return it ``(H, W, 3)`` in blue, green, red with its faces, far ones first.

    The number of faces is uniform from 0 to the largest, the logarithm of their heights is uniform. A head that finds
    no place where every face remains recognisable is left out.
    """
    canvas = background(rng, *recipe.size)
    low, high = (max(canvas.shape) * side for side in THING_SIDES)
    for _ in range(rng.integers(0, MOST_THINGS + 1)):
        draw_thing(rng, canvas, rng.uniform(0, canvas.shape[1::-1]), log_uniform(rng, low, high))
    lamp = random_look(rng)
    count, backs = rng.integers(0, recipe.faces + 1), rng.integers(0, MOST_BACKS + 1)
    heights = [log_uniform(rng, *recipe.heights) for _ in range(count + backs)]
    faces: list[SceneFace] = []
    for i in np.argsort(heights):
        for _ in range(TRIALS):
            trial = canvas.copy()
            trial[..., 3] = 0  # so that the depth tells what this head covers
            face = _add_head(rng, trial, recipe, heights[i], lamp, back=bool(i >= count))
            behind = [_cover(each, trial) for each in faces]
            shown = behind if i >= count else [*behind, face]
            if all(each.hidden <= MOST_HIDDEN for each in shown):
                canvas, faces = trial, shown
                break
    return expose(rng, canvas, BLUR), faces


def face_box(head: Head, lines: dict[str, Array], view: View) -> Array:
    """Compute the box ``(4,)`` of the face in pixels of the photo: from the hairline to the chin, and from ear to ear.

    Args:
        head: the head.
        lines: its curves.
        view: pose, size and position.
    """
    surface = np.concatenate([face_surface(head), lines["nose_bridge"]])  # its end is the tip of the nose
    return bounding_box(to_camera(surface, view)[:, :2])


def log_uniform(rng: Generator, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _add_head(rng: Generator, canvas: Array, recipe: Recipe, height: float, lamp: Look, back: bool) -> SceneFace:
    """Paint a head, and sometimes an occluder over it, at a random place of a canvas whose depth is 0.

    Args:
        rng: random generator.
        canvas: the canvas.
        recipe: ranges of pose and occlusion.
        height: height of the box of the face in pixels of the photo.
        lamp: light of the scene.
        back: whether the head shows its back; its face is not in the photo.
    """
    head, look = random_head(rng), random_look(rng)._replace(light=lamp.light, ambient=lamp.ambient)
    pose = rng.uniform(-1, 1, 3) * recipe.angles
    if back:
        pose[0] = rng.uniform(*BACK_YAW)
    lines = curves(head)
    unit = face_box(head, lines, View(pose, 1, np.zeros(2)))
    scale = height / (unit[3] - unit[1])
    slack = scale * (unit[2:] - unit[:2]) * (1 / 2 - OUTSIDE)
    photo = image_box(*recipe.size)
    centre = rng.uniform(photo[:2] + slack, photo[2:] - slack)
    view = View(pose, scale, centre - scale * (unit[:2] + unit[2:]) / 2)
    paint(canvas, head, lines, look, view)
    points = to_camera(landmarks(lines, LAPA106.name), view)
    flat = points[:, :2]
    inside = np.all((flat >= photo[:2]) & (flat < photo[2:]), axis=1)
    seen = visible(canvas, points, scale) & inside
    if rng.random() < recipe.occlusion:
        at, side = (to_canvas(rng.choice(points)[:2]) >> SUBPIXEL_BITS).astype(float), OVERSAMPLING * scale
        if rng.random() < COVER_SHARE:
            draw_thing(rng, canvas, at, rng.uniform(*COVER_SIDES) * side)
        else:
            occlude(rng, canvas, at, side, look.skin)
    covered = painted(canvas[..., 3], flat) == OCCLUDER
    return SceneFace(head, pose, scale * unit + np.tile(view.centre, 2), flat, inside, seen, covered)


def _cover(face: SceneFace, canvas: Array) -> SceneFace:
    """Mark the points behind what was drawn on a canvas whose depth was 0."""
    return face._replace(covered=face.covered | (painted(canvas[..., 3], face.points) > 0))


def draw_thing(rng: Generator, canvas: Array, at: Array, side: float) -> None:
    """Draw a thing that is no face: a turned rectangle or ellipse with a pattern of two colours.

    Some things have the colours of skin. Of the others, some have two dark dots.

    Args:
        rng: random generator.
        canvas: the canvas; the thing has the depth of an occluder.
        at: ``(2,)`` centre in canvas pixels.
        side: longer side in canvas pixels.
    """
    reach = side / np.sqrt(2)
    low, high = np.clip([at - reach, at + reach], 0, canvas.shape[1::-1]).astype(int)
    turn, aspect = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 1)
    x, y = ((np.arange(*ends) - middle) * 2 / side for *ends, middle in zip(low, high, at, strict=True))
    (cos_x, sin_x), (cos_y, sin_y) = (
        np.outer([np.cos(turn), np.sin(turn)], each).astype(np.float32) for each in (x, y)
    )
    # along and across the thing, in halves of its longer side
    u, v = cos_x + sin_y[:, None], cos_y[:, None] - sin_x
    is_round = rng.random() < 1 / 2
    area = u**2 + (v / aspect) ** 2 < 1 if is_round else np.maximum(np.abs(u), np.abs(v) / aspect) < 1

    skin = rng.random() < SKIN_SHARE
    first, second = rng.uniform(0, 255, (2, 3))
    if skin:
        first, second = 255 * random_look(rng).skin, 255 * random_look(rng).skin * rng.uniform(0.5, 1)
    colours = np.clip(first + np.linspace(0, 1, 256)[:, None] * (second - first), 0, 255)
    colours = np.column_stack([colours, np.full(256, OCCLUDER)]).astype(np.uint8)
    window = canvas[low[1] : high[1], low[0] : high[0]]
    window[area] = colours[(255 * _pattern(rng, u, v)[area]).astype(np.uint8)]
    if not skin and rng.random() < DOTS_SHARE:
        apart, radius = rng.uniform(0.2, 0.5), rng.uniform(0.06, 0.15)
        window[(np.abs(u) - apart) ** 2 + v**2 < radius**2] = [*rng.uniform(0, 60, 3), OCCLUDER]


def _pattern(rng: Generator, u: Array, v: Array) -> Array:
    """Draw a pattern at coordinates from -1 to 1: plain, a gradient, stripes, squares or spots, 0 to 1."""
    waves = rng.uniform(3, 15, 2).astype(np.float32)
    kind = rng.integers(5)
    if kind == 0:
        return np.zeros_like(u)
    if kind == 1:
        return np.clip((u + 1) / 2, 0, 1)
    if kind == 2:
        return (np.sin(waves[0] * u) > 0).astype(np.float32)
    if kind == 3:
        return (np.sin(waves[0] * u) * np.sin(waves[1] * v) > 0).astype(np.float32)
    spots = rng.random((*rng.integers(3, 30, 2),), np.float32)
    return cv2.resize(spots, u.shape[::-1], interpolation=cv2.INTER_LINEAR) if u.size else u
