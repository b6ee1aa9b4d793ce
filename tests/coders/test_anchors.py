"""Tests of the anchors: places, encoding, matching, and the choice of detections."""

import pytest
import torch
from torch import Tensor

from facelab.coders.anchors import BACKGROUND, UNUSED, AnchorCoder
from facelab.errors import ConfigError

CPU = torch.device("cpu")
STRIDES = (8, 16, 32)
FACES = torch.tensor(
    [[100, 100, 140, 150], [302, 302, 311, 311], [400, 200, 640, 500], [10, 10, 15, 15], [204, 204, 240, 248]]
).float()
"""Boxes in the coordinates of the reference code, whose zero is the edge of the first pixel."""


def coder() -> AnchorCoder:
    return AnchorCoder(STRIDES, ((16, 32), (64, 128), (256, 512)), (0.1, 0.2), 0.35, 0.2)


def anchors(height: int, width: int) -> Tensor:
    shapes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    return coder().anchors(shapes, CPU)


@pytest.mark.parametrize(
    ("height", "width", "count"), [(640, 640, 16_800), (840, 840, 29_126), (300, 300, 3_810), (480, 640, 12_600)]
)
def test_anchors_have_the_number_of_the_reference_code(height: int, width: int, count: int) -> None:
    """Would catch a grid that is rounded down, or another number of anchors in a cell."""
    assert len(anchors(height, width)) == count


def test_anchors_have_the_places_of_the_reference_code() -> None:
    """Would catch other orders of grids, rows, columns or sizes, or a shift by half a pixel.

    The values are those of the reference code for 480 x 640 pixels; the edge of the first pixel is its zero.
    """
    found = anchors(480, 640)
    expected = {
        0: (0.00625, 0.008333, 0.025, 0.033333),
        1: (0.00625, 0.008333, 0.05, 0.066667),
        2: (0.01875, 0.008333, 0.025, 0.033333),
        9600: (0.0125, 0.016667, 0.1, 0.13333),
        -1: (0.975, 0.96667, 0.8, 1.06667),
    }
    for row, fractions in expected.items():
        centre, sides = (found[row, :2] + 0.5).tolist(), found[row, 2:].tolist()
        assert [*centre, *sides] == pytest.approx(
            [a * b for a, b in zip(fractions, (640, 480) * 2, strict=True)], abs=0.02
        )


def test_anchors_of_an_evaluation_can_be_used_in_training() -> None:
    """Would catch a cached tensor of the inference mode, which autograd refuses."""
    with torch.inference_mode():
        found = coder().anchors([(3, 5), (2, 3), (1, 2)], CPU)
    weight = torch.ones(4, requires_grad=True)
    (coder().anchors([(3, 5), (2, 3), (1, 2)], CPU) * weight).sum().backward()
    assert len(found) == 2 * (15 + 6 + 2)


def test_encode_equals_the_values_of_the_reference_code() -> None:
    """Would catch other variances, or offsets from a corner; decoding returns the face."""
    anchor = torch.tensor([[0.5, 0.5, 0.1, 0.1]])
    box = torch.tensor([[0.46, 0.44, 0.58, 0.60]])
    points = torch.tensor([[[0.48, 0.49], [0.55, 0.49], [0.515, 0.52], [0.49, 0.56], [0.54, 0.56]]])
    boxes, offsets = coder().encode(box, points, anchor)
    assert boxes[0].tolist() == pytest.approx([2, 2, 0.91161, 2.35002], abs=1e-4)
    assert offsets.flatten().tolist() == pytest.approx([-2, -1, 5, -1, 1.5, 2, -1, 6, 4, 6], abs=1e-4)
    decoded = coder().decode(boxes, offsets, anchor)
    assert torch.allclose(decoded[0], box, atol=1e-6)
    assert torch.allclose(decoded[1], points, atol=1e-6)


def test_match_equals_the_counts_of_the_reference_code() -> None:
    """Would catch another threshold, or a face that does not claim its best anchor or claims it although it is poor."""
    match = coder().match(FACES - 0.5, torch.zeros(5, dtype=torch.bool), anchors(640, 640))
    assert [int((match == face).sum()) for face in range(5)] == [14, 1, 38, 0, 13]
    assert int((match == BACKGROUND).sum()) == 16_800 - 66
    best = {2269: 0, 6156: 1, 16432: 2, 4375: 4}
    assert {anchor: int(match[anchor]) for anchor in best} == best


def test_match_leaves_out_ignored_faces() -> None:
    """Would catch an ignored face that is learned as a face or as background."""
    ignore = torch.tensor([True, False, False, False, False])
    match = coder().match(FACES - 0.5, ignore, anchors(640, 640))
    assert int((match == UNUSED).sum()) == 14
    assert not (match == 0).any()


@pytest.mark.parametrize("side", [5.0, 9])
def test_match_leaves_out_ignored_faces_that_are_smaller_than_the_anchors(side: float) -> None:
    """Would catch small faces that are to be ignored, but are learned as the hardest background."""
    match = coder().match(torch.tensor([[100, 100, 100 + side, 100 + side]]), torch.tensor([True]), anchors(640, 640))
    left_out = anchors(640, 640)[match == UNUSED]
    assert len(left_out) >= 1
    assert (left_out[:, 2] == 16).all(), "the smallest anchors have the largest overlap"
    assert ((left_out[:, :2] - 100 - side / 2).abs() <= 8).all()
    outside = coder().match(torch.tensor([[2000.0, 2000, 2010, 2010]]), torch.tensor([True]), anchors(640, 640))
    assert (outside == BACKGROUND).all()


def test_match_of_a_face_does_not_depend_on_unusable_ones() -> None:
    """Would catch a box without a number, or with negative sides, that takes all other faces of its photo away."""
    boxes = torch.cat([FACES - 0.5, torch.tensor([[torch.nan, 0, 10, 10], [torch.nan] * 4, [120.0, 90, 110, 80]])])
    for ignore in (False, True):
        none = torch.zeros(8, dtype=torch.bool).index_fill_(0, torch.arange(5, 8), ignore)
        alone = coder().match(FACES - 0.5, none[:5], anchors(640, 640))
        assert torch.equal(coder().match(boxes, none, anchors(640, 640)), alone)


@pytest.mark.parametrize("boxes", [torch.empty(0, 4), torch.tensor([[5.0, 5, 5, 9], [9, 5, 3, 9], [torch.nan] * 4])])
def test_match_without_a_usable_face_is_background(boxes: Tensor) -> None:
    """Would catch a crash for a photo without a face, or a match with a box without area."""
    match = coder().match(boxes, torch.zeros(len(boxes), dtype=torch.bool), anchors(64, 64))
    assert (match == BACKGROUND).all()


def test_match_gives_a_contested_anchor_to_the_last_face() -> None:
    """Would catch a match that depends on the order of parallel writes, or a face that takes another's anchor."""
    boxes = torch.tensor([[-4.0, -4, 12, 12], [-4, -4, 12, 12.4]]) - 0.5  # the best anchor of both is the first
    found = {tuple(coder().match(boxes, torch.zeros(2, dtype=torch.bool), anchors(64, 64)).tolist()) for _ in range(5)}
    (match,) = found
    assert match[0] == 1
    ignored = coder().match(boxes, torch.tensor([False, True]), anchors(64, 64))
    assert ignored[0] == 0, "an ignored face takes the anchor of a face"


def test_detect_keeps_the_highest_scores_of_each_image() -> None:
    """Would catch a limit over the whole batch, a wrong order, or an image whose cut is not reported."""
    grid = coder().anchors([(1, 2), (1, 1), (1, 1)], CPU)
    margin = torch.tensor([[0.0, 2.0, 1.0, 3.0, -9, -9, -9, -9], [-9, -9, 0.5, -9, -9, -9, -9, -9]])
    logits = torch.stack([torch.zeros_like(margin), margin], dim=-1)
    boxes, points = torch.zeros(2, 8, 4), torch.zeros(2, 8, 5, 2)
    found, cut = coder().detect(logits, boxes, points, grid, threshold=0.1, most=3)
    assert found.photo.tolist() == [0, 0, 0, 1]
    assert found.scores.tolist() == pytest.approx(torch.tensor([3.0, 2, 1, 0.5]).sigmoid().tolist())
    assert torch.equal(found.boxes[0], coder().decode(boxes[0, 3], points[0, 3], grid[3])[0])
    assert cut.tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_detect_computes_in_float32(dtype: torch.dtype) -> None:
    """Would catch equal scores and boxes off by pixels in a mixed precision."""
    grid = coder().anchors([(1, 2), (1, 1), (1, 1)], CPU)
    margin = torch.tensor([[8.0, 8.0625, 8.125, 8.1875, -9, -9, -9, -9]])
    logits = torch.stack([torch.zeros_like(margin), margin], dim=-1).to(dtype)
    boxes, points = torch.full((1, 8, 4), 1.7).to(dtype), torch.full((1, 8, 5, 2), 1.7).to(dtype)
    found, _ = coder().detect(logits, boxes, points, grid, threshold=0.1, most=9)
    exact = coder().decode(boxes[0].float(), points[0].float(), grid)
    assert torch.equal(found.boxes[0], exact[0][3])
    assert torch.equal(found.points[0], exact[1][3])
    assert [column.dtype for column in found[:3]] == [torch.float32] * 3
    assert len(found.scores.unique()) == 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again, _ = coder().detect(logits, boxes, points, grid, threshold=0.1, most=9)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_detect_leaves_out_boxes_that_are_not_finite() -> None:
    """Would catch one infinite box that switches off the suppression in all photos."""
    grid = coder().anchors([(1, 2), (1, 1), (1, 1)], CPU)
    logits = torch.tensor([0.0, 3.0]).expand(1, 8, 2)
    boxes = torch.zeros(1, 8, 4)
    boxes[0, 2, 2] = 1000.0
    found, _ = coder().detect(logits, boxes, torch.zeros(1, 8, 5, 2), grid, threshold=0.1, most=9)
    assert len(found.scores) == 7
    assert found.boxes.isfinite().all()


def test_coder_refuses_sizes_that_fit_no_grid() -> None:
    """Would catch a crash in the first step."""
    with pytest.raises(ConfigError, match="one list of equal length for each of 3 grids"):
        AnchorCoder(STRIDES, ((16, 32), (64, 128)), (0.1, 0.2), 0.35, 0.2)
