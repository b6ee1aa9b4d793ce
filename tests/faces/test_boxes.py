"""Tests of boxes: overlaps against a count of cells, and equal results of arrays and tensors."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from facelab.faces import boxes
from facelab.faces.geometry import Array


def whole_boxes(count: int, seed: int) -> Array:
    """Draw boxes with whole corners within 12 x 12 pixels, some of them empty or reversed."""
    corners = np.random.default_rng(seed).integers(0, 12, (count, 4)).astype(np.float32)
    corners[: count // 2, 2:] += corners[: count // 2, :2] / 2 // 1
    return corners


def cells(box: Array) -> set[tuple[int, int]]:
    """Return the unit cells that a box with whole corners covers."""
    x0, y0, x1, y1 = box.astype(int)
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


def test_overlaps_count_cells() -> None:
    """Would catch an added pixel, exchanged axes, a negative area, or 0 / 0 for boxes without area."""
    a, b = whole_boxes(40, 0), whole_boxes(30, 1)
    iou, iom = boxes.iou(a, b), boxes.iom(a, b)
    assert (boxes.area(a) == 0).any() and (iou > 0.5).any()
    for i, first in enumerate(map(cells, a)):
        assert boxes.area(a)[i] == len(first)
        for j, second in enumerate(map(cells, b)):
            both = len(first & second)
            assert iou[i, j] == pytest.approx(both / max(len(first | second), 1))
            assert iom[i, j] == pytest.approx(both / max(min(len(first), len(second)), 1))


@pytest.mark.parametrize(
    "function",
    [
        lambda a: boxes.iou(a, a[..., :7, :]),
        lambda a: boxes.iom(a, a[..., :7, :]),
        boxes.area,
        boxes.square,
        lambda a: boxes.clip(a, 8, 6),
    ],
    ids=["iou", "iom", "area", "square", "clip"],
)
def test_arrays_and_tensors_give_the_same(function: Callable[..., Array]) -> None:
    """Would catch a method that tensors have in another form, a lost batch axis, and a changed argument."""
    a = np.stack([whole_boxes(20, 2), whole_boxes(20, 3)])
    tensor, before = torch.tensor(a), a.copy()
    expected = function(a)
    np.testing.assert_array_equal(function(tensor).numpy(), expected)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(function(a[1]), expected[1])
    assert (a == before).all() and (tensor.numpy() == before).all()
    assert function(a[:, :0]).shape[1] == 0


def test_square_contains_the_box_and_clip_is_inside_the_image() -> None:
    """Would catch a square of the shorter side, a moved centre, and edges at 0 instead of -0.5."""
    a = whole_boxes(20, 4)[:10]
    squares = boxes.square(a)
    sides = squares[:, 2:] - squares[:, :2]
    np.testing.assert_array_equal(sides, np.repeat((a[:, 2:] - a[:, :2]).max(axis=1, keepdims=True), 2, axis=1))
    np.testing.assert_array_equal(squares[:, :2] + squares[:, 2:], a[:, :2] + a[:, 2:])
    whole = np.array([[-9.0, -9, 99, 99], [2, 3, 4, 5]])
    assert boxes.clip(whole, 8, 6).tolist() == [[-0.5, -0.5, 7.5, 5.5], [2, 3, 4, 5]]


def test_jitter_stays_in_its_bounds_and_repeats() -> None:
    """Would catch a shift by the scaled sides, one draw for all boxes, and a draw that the generator does not fix."""
    a = np.tile(np.array([10.0, 20, 30, 60]), (2000, 1))
    moved = boxes.jitter(a, scale=(0.5, 2), shift=0.25, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(moved, boxes.jitter(a, (0.5, 2), 0.25, np.random.default_rng(0)))
    factor = (moved[:, 2:] - moved[:, :2]) / [20, 40]
    shift = ((moved[:, :2] + moved[:, 2:]) / 2 - [20, 40]) / [20, 40]
    np.testing.assert_allclose(factor[:, 0], factor[:, 1])
    assert factor.min() == pytest.approx(0.5, abs=0.01) and factor.max() == pytest.approx(2, abs=0.01)
    assert shift.min() == pytest.approx(-0.25, abs=0.01) and shift.max() == pytest.approx(0.25, abs=0.01)
    assert abs(np.corrcoef(shift.T)[0, 1]) < 0.1


def test_corner_and_size_are_inverse() -> None:
    """Would catch an added pixel, or an offset in one direction only."""
    rows = np.array([[0.0, 0, 400, 300], [3, 5, 10, 0], [1026, 474, -2, 23]])
    np.testing.assert_array_equal(boxes.to_corner_and_size(boxes.from_corner_and_size(rows)), rows)
    assert boxes.from_corner_and_size(rows)[0].tolist() == [-0.5, -0.5, 399.5, 299.5]
