"""Tests of the loss of anchors: published numbers, hard examples, masks, and divisors."""

import math

import pytest
import torch
from torch import Tensor, distributed

from facelab.coders.anchors import BACKGROUND, UNUSED, AnchorCoder, AnchorTarget
from facelab.faces.batch import DetectionBatch
from facelab.losses.anchors import AnchorLoss
from facelab.networks.retinaface import AnchorPrediction

SHAPES = ((80, 80), (40, 40), (20, 20))
"""Grids of an image of 640 x 640 pixels."""
FACES = torch.tensor(
    [[100, 100, 140, 150], [302, 302, 311, 311], [400, 200, 640, 500], [10, 10, 15, 15], [204, 204, 240, 248]]
).float()
"""Boxes in the coordinates of the reference code, whose zero is the edge of the first pixel."""
PLACES = torch.tensor([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])
"""Landmarks as fractions of a box."""


def coder() -> AnchorCoder:
    return AnchorCoder((8, 16, 32), ((16, 32), (64, 128), (256, 512)), (0.1, 0.2), 0.35, 0.2)


def loss(**weights: float) -> AnchorLoss:
    return AnchorLoss(**{"class_weight": 1.0, "box_weight": 1.0, "landmark_weight": 1.0, "negatives": 7.0} | weights)


def faces_in(photo: list[int], images: int = 1) -> DetectionBatch:
    """Return the five faces in images, the third without landmarks."""
    boxes = FACES - 0.5
    points = boxes[:, None, :2] + PLACES * (boxes[:, None, 2:] - boxes[:, None, :2])
    points[2] = torch.nan
    return DetectionBatch(
        image=torch.zeros(images, 3, 640, 640, dtype=torch.uint8),
        size=torch.full((images, 2), 640),
        to_photo=torch.eye(3).expand(images, 3, 3),
        photo_id=torch.arange(images),
        boxes=boxes,
        points=points,
        valid=points.isfinite().all(dim=-1),
        pose=torch.full((5, 3), torch.nan),
        tags=torch.zeros(5, 0, dtype=torch.bool),
        ignore=torch.zeros(5, dtype=torch.bool),
        face_id=torch.arange(5),
        photo=torch.tensor(photo),
    )


def target_of(batch: DetectionBatch) -> AnchorTarget:
    return coder().target(batch, coder().anchors(SHAPES, torch.device("cpu")))


def zeros(images: int = 1) -> AnchorPrediction:
    return AnchorPrediction(
        *(torch.zeros(images, 16_800, *n, requires_grad=True) for n in ((2,), (4,), (5, 2))), SHAPES
    )


def test_anchor_loss_equals_the_reference_code() -> None:
    """Would catch another matching, encoding, sum, divisor or number of negatives than that of the reference code."""
    target = target_of(faces_in([0] * 5))
    assert int((target.match >= 0).sum()) == 66
    assert int(target.points.isfinite().all(dim=-1).all(dim=-1).sum()) == 28
    terms = loss()(zeros(), target)
    assert terms["box"].item() == pytest.approx(3.78164, abs=1e-5)
    assert terms["landmark"].item() == pytest.approx(17.52296, abs=1e-5)
    assert terms["class"].item() == pytest.approx(8 * math.log(2), abs=1e-5)  # 66 matched and 462 others, over 66
    weighted = loss(class_weight=3, box_weight=2, landmark_weight=0.5)(zeros(), target)
    assert {name: weighted[name].item() / terms[name].item() for name in terms} == pytest.approx(
        {"class": 3, "box": 2, "landmark": 0.5}
    )


def test_target_belongs_to_the_image_of_each_face() -> None:
    """Would catch faces of a batch that are learned in the wrong image, or that must be sorted by image."""
    target = target_of(faces_in([2, 0, 2, 0, 0], images=3))
    owners = [set(row[row >= 0].tolist()) for row in target.match]
    assert owners == [{1, 4}, set(), {0, 2}]
    alone = target_of(faces_in([0] * 5))
    assert sorted(target.boxes.sum(dim=1).tolist()) == pytest.approx(sorted(alone.boxes.sum(dim=1).tolist()))


def small_target(match: list[list[int]], points: Tensor | None = None) -> AnchorTarget:
    rows = torch.tensor(match)
    matched = int((rows >= 0).sum())
    return AnchorTarget(rows, torch.zeros(matched, 4), torch.zeros(matched, 5, 2) if points is None else points)


def prediction_of(match: list[list[int]], face: Tensor) -> AnchorPrediction:
    shape = torch.tensor(match).shape
    logits = torch.stack([torch.zeros_like(face), face], dim=-1).requires_grad_()
    return AnchorPrediction(logits, torch.zeros(*shape, 4), torch.zeros(*shape, 5, 2), ())


def test_hard_examples_are_the_worst_background_of_the_same_image() -> None:
    """Would catch mining over the whole batch, easy negatives, or ignored anchors that are learned as background."""
    match = [[0, *[BACKGROUND] * 3, UNUSED], [BACKGROUND] * 5]
    prediction = prediction_of(match, torch.tensor([[0.0, 3, 1, 2, 9], [9, 9, 9, 9, 9]]))
    loss(negatives=2)(prediction, small_target(match))["class"].backward()
    assert prediction.logits.grad is not None
    assert (prediction.logits.grad != 0).any(dim=-1).tolist() == [[True, True, False, True, False], [False] * 5]


def test_hard_examples_are_no_more_than_the_background() -> None:
    """Would catch matched or ignored anchors that fill up the negatives where an image has too few."""
    match = [[0, 1, 2, BACKGROUND, UNUSED]]
    entropy = torch.tensor([[5.0, 5, 5, 1, 5]])
    assert loss(negatives=7).hardest(entropy, torch.tensor(match)).tolist() == [[False, False, False, True, False]]


def test_missing_landmarks_have_no_gradient_and_count_in_part() -> None:
    """Would catch NaN targets that spoil the loss, or a divisor that counts landmarks nobody annotated."""
    match = [[0, 1, 2, BACKGROUND]]
    points = torch.ones(3, 5, 2)
    points[1, 2:] = torch.nan  # two of five are annotated
    points[2] = torch.nan
    prediction = prediction_of(match, torch.zeros(1, 4))._replace(points=torch.zeros(1, 4, 5, 2, requires_grad=True))
    value = loss()(prediction, small_target(match, points))["landmark"]
    value.backward()
    assert value.item() == pytest.approx(0.5 * 2 * 7 / 1.4)  # smooth L1 of 1 is 0.5, in x and y of seven landmarks
    gradient = prediction.points.grad
    assert gradient is not None
    assert (gradient != 0).all(dim=-1).tolist() == [[[True] * 5, [True] * 2 + [False] * 3, [False] * 5, [False] * 5]]


def test_batch_without_a_face_has_the_loss_zero_and_finite_gradients() -> None:
    """Would catch a division by zero, or parameters without a gradient, at which DDP stops."""
    prediction = zeros(2)
    empty = AnchorTarget(torch.full((2, 16_800), BACKGROUND), torch.zeros(0, 4), torch.zeros(0, 5, 2))
    terms = loss()(prediction, empty)
    sum(terms.values(), torch.zeros(())).backward()
    assert [term.item() for term in terms.values()] == [0, 0, 0]
    assert all(part.grad is not None and not part.grad.any() for part in prediction[:3])


def test_anchor_loss_is_computed_in_float32() -> None:
    """Would catch losses in the precision of a mixed training, whose classes would be off by percents."""
    torch.manual_seed(0)
    target = target_of(faces_in([0] * 5))
    exact = AnchorPrediction(*(torch.randn(1, 16_800, *n).bfloat16() for n in ((2,), (4,), (5, 2))), SHAPES)
    expected = loss()(AnchorPrediction(*(part.float() for part in exact[:3]), SHAPES), target)
    for name, value in loss()(exact, target).items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-6)


def test_divisors_are_means_over_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a gradient under DDP that differs from that of one large batch."""
    target = target_of(faces_in([0] * 5))
    alone = loss()(zeros(), target)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda counts: counts.add_(torch.tensor([34.0, 72.0])))
    shared = loss()(zeros(), target)
    factors = {"class": 66 / 50, "box": 66 / 50, "landmark": 28 / 50}
    assert {name: shared[name].item() / alone[name].item() for name in alone} == pytest.approx(factors)
