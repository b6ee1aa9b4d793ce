"""Tests of the rendered scenes: boxes against painted pixels, hidden points, sizes and places."""

from typing import Any

import numpy as np
import pytest

from facelab.annotations import rendered_scene
from facelab.annotations.rendered_head import (
    Head,
    Look,
    View,
    curves,
    paint,
    random_head,
    to_canvas,
)
from facelab.annotations.rendered_scene import (
    MOST_HIDDEN,
    OUTSIDE,
    Recipe,
    SceneFace,
    draw_thing,
    face_box,
    render_scene,
)
from facelab.faces.boxes import area, clip
from facelab.faces.geometry import Array

CROWD = Recipe(size=(160, 120), faces=6, heights=(20, 60), angles=(80, 30, 35), occlusion=0.5)


def edges(head: Head, yaw: float, pitch: float) -> tuple[Array, Array, Array]:
    """Return the box of a face, and masks of its head and of its hair, in canvas pixels."""
    look = Look(
        *(np.full(3, 0.4), np.array([0.0, 0.3, 0.0]), np.zeros(3), np.zeros(3)), light=np.array([0, 0, -1]), ambient=1.2
    )
    view = View(np.array([yaw, pitch, 0]), 40.0, np.full(2, 79.5))
    canvas = np.zeros((320, 320, 4), np.uint8)
    paint(canvas, head, curves(head), look, view)
    is_hair = (canvas[..., 0] == 0) & (canvas[..., 1] > 0) & (canvas[..., 2] == 0)
    box = to_canvas(face_box(head, curves(head), view).reshape(2, 2)).ravel() / 16
    return box, canvas[..., 3] > 1, is_hair


def test_face_box_ends_at_the_painted_face() -> None:
    """Would catch a box of the landmarks, without the forehead, or of the head, with hair and ears; and a lost nose."""
    for seed in range(3):
        head = random_head(np.random.default_rng(seed))._replace(mouth_open=0.4 * seed)
        box, is_head, is_hair = edges(head, yaw=0, pitch=0)
        middle = np.flatnonzero(is_hair[:, 160])
        assert box[1] == pytest.approx(middle.max() + 1, abs=2.5)  # the lower edge of the hair
        assert box[3] == pytest.approx(np.flatnonzero(is_head.any(axis=1)).max(), abs=2)  # the chin
        np.testing.assert_allclose(box[[0, 2]], 159.5 + 80 * head.width * np.array([-1, 1]), atol=0.6)
        profile, is_head, _ = edges(head, yaw=75, pitch=0)
        face = is_head[int(profile[1]) + 20 : int(profile[3])]
        assert profile[0] == pytest.approx(np.flatnonzero(face.any(axis=0)).min(), abs=2)  # the tip of the nose
        down, is_head, _ = edges(head, yaw=0, pitch=-25)
        assert down[3] == pytest.approx(np.flatnonzero(is_head.any(axis=1)).max(), abs=2)


@pytest.fixture(scope="module")
def scenes() -> list[tuple[list[SceneFace], Array, dict[float, Array]]]:
    """Return the faces of some scenes, the final canvas, and the canvas after painting the head of each yaw."""
    painted: dict[float, Array] = {}

    def record(canvas: Array, head: Head, lines: Any, look: Look, view: View) -> None:
        paint(canvas, head, lines, look, view)
        painted[view.pose[0]] = canvas[..., :3].copy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendered_scene, "paint", record)
        patch.setattr(rendered_scene, "expose", lambda rng, canvas, blur: canvas[..., :3].copy())
        drawn = [render_scene(np.random.default_rng(seed), CROWD) for seed in range(25)]
    return [(faces, canvas, painted) for canvas, faces in drawn]


def test_render_scene_marks_what_was_painted_over(scenes: Any) -> None:
    """Would catch a point that a nearer head, its shoulders or an occluder hides, but which is visible; and vice versa.

    A point that is not covered has the pixel that was there right after its head was painted.
    """
    differ, covered = 0, 0
    for faces, canvas, painted in scenes:
        for face in faces:
            x, y = (to_canvas(face.points[face.inside]) >> 4).T
            changed = (canvas[y, x] != painted[face.pose[0]][y, x]).any(axis=1)
            is_covered = face.covered[face.inside]
            assert not changed[~is_covered].any()
            differ, covered = differ + changed[is_covered].sum(), covered + is_covered.sum()
            assert face.hidden == face.covered[face.seen].mean() <= MOST_HIDDEN
            assert not face.seen[~face.inside].any()
    assert covered > 200
    assert differ > 0.9 * covered  # a covering thing may have the same colour


def test_render_scene_draws_sizes_and_places_in_range(scenes: Any) -> None:
    """Would catch sizes of heads in place of faces, faces outside of the photo, and a constant number of faces."""
    boxes = np.array([face.box for faces, *_ in scenes for face in faces])
    heights = boxes[:, 3] - boxes[:, 1]
    assert 20 - 1e-6 <= heights.min() < 26 and 46 < heights.max() <= 60 + 1e-6
    shown = area(clip(boxes, *CROWD.size)) / area(boxes)
    assert (1 - OUTSIDE) ** 2 - 1e-6 < shown.min() < 0.9
    for faces, *_ in scenes:  # a larger face is nearer: it hides the others
        assert np.all(np.diff([face.box[3] - face.box[1] for face in faces]) > 0)
    assert {len(faces) for faces, *_ in scenes} >= {0, 1, 5}
    assert max(len(faces) for faces, *_ in scenes) <= CROWD.faces
    assert all(np.all(np.abs(face.pose) <= CROWD.angles) for faces, *_ in scenes for face in faces)


def test_draw_thing_marks_its_pixels_at_the_border() -> None:
    """Would catch a thing that is drawn without its depth, which hides points unseen, and a crash at the border."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        canvas = np.full((60, 80, 4), [7, 7, 7, 0], np.uint8)
        draw_thing(rng, canvas, rng.uniform(-20, [100, 80]), rng.uniform(0.5, 70))
        is_drawn = canvas[..., 3] > 0
        assert (canvas[~is_drawn] == [7, 7, 7, 0]).all()
        assert (canvas[is_drawn, :3] != 7).any(axis=1).all()
