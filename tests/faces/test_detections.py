"""Tests of the rules of detection: sizes of the searches, suppression, voting, order and limits."""

from typing import Any

import pytest
import torch

from facelab.faces.boxes import iou
from facelab.faces.detections import Candidates, DetectionRule, first_of_each, order, resize, suppress, vote


def rule(**changes: Any) -> DetectionRule:
    values: dict[str, Any] = {"scale": "original", "threshold": 0.02, "candidates": 5000, "nms_iou": 0.4, "most": 750}
    values["official_areas"] = False
    return DetectionRule(**values | changes)


def detections(boxes: list[list[float]], scores: list[float], photo: list[int]) -> Candidates:
    corners = torch.tensor(boxes).reshape(-1, 4)
    points = corners[:, None, :2].expand(-1, 5, 2)
    return Candidates(corners, torch.tensor(scores), points, torch.tensor(photo, dtype=torch.int64))


@pytest.mark.parametrize(
    ("scale", "height", "width", "expected"),
    [
        ("original", 333, 517, [(333, 517, False)]),
        ("vga", 768, 1024, [(480, 640, False)]),
        ("vga", 100, 50, [(640, 320, False)]),
        ("large", 768, 1024, [(1600, 2133, False)]),
        ("large", 500, 1024, [(1050, 2150, False)]),
        ("vga", 1, 5000, [(1, 640, False)]),
    ],
)
def test_rule_searches_a_photo_at_its_size(
    scale: Any, height: int, width: int, expected: list[tuple[int, int, bool]]
) -> None:
    """Would catch exchanged sides, a longer side above its limit, or a side of no pixel."""
    assert rule(scale=scale).searches(height, width) == expected


def test_rule_of_several_sizes_also_searches_flipped_photos() -> None:
    """Would catch a size that is left out, or photos of one size that are not flipped."""
    searches = rule(scale="multiple").searches(100, 200)
    assert searches[:2] == [(500, 1000, False), (500, 1000, True)]
    assert [height for height, _, flipped in searches if flipped] == [500, 800, 1100, 1400, 1700]


def test_resize_keeps_the_edges_of_the_image() -> None:
    """Would catch an image that is moved by half a pixel, or rounded down."""
    ramp = torch.arange(8, dtype=torch.uint8).mul(10).expand(1, 3, 4, 8)
    assert resize(ramp, 4, 4)[0, 0, 0].tolist() == [5, 25, 45, 65]
    assert resize(torch.full((1, 3, 2, 2), 201, dtype=torch.uint8), 5, 3).unique().tolist() == [201]


def test_order_is_by_photo_and_score_and_keeps_equal_scores() -> None:
    """Would catch an unstable sort, or photos that are mixed."""
    photo = torch.tensor([1, 0, 1, 0, 1])
    assert order(photo, torch.tensor([0.5, 0.2, 0.9, 0.7, 0.5])).tolist() == [3, 1, 2, 0, 4]


def test_first_of_each_counts_within_each_photo() -> None:
    """Would catch a limit over the whole batch, or a crash without detections."""
    assert first_of_each(torch.tensor([0, 0, 0, 2, 2]), 2).tolist() == [True, True, False, True, True]
    assert first_of_each(torch.empty(0, dtype=torch.int64), 2).tolist() == []


def test_suppress_removes_only_overlapping_boxes_of_the_same_photo() -> None:
    """Would catch a suppression between photos, or the removal of the higher score."""
    box = [0.0, 0, 10, 10]
    found = detections([box, [1, 0, 11, 10], [50, 0, 60, 10], box], [0.9, 0.8, 0.7, 0.6], [0, 0, 0, 1])
    kept = suppress(found, rule())
    assert kept.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert kept.photo.tolist() == [0, 0, 1]


def test_suppress_with_official_areas_counts_the_last_pixel() -> None:
    """Would catch an option without effect: two small boxes overlap by 0.33, and by 0.41 with a pixel more."""
    found = detections([[0.0, 0, 8, 8], [4.0, 0, 12, 8]], [0.9, 0.8], [0, 0])
    assert len(suppress(found, rule(nms_iou=0.35)).scores) == 2
    assert len(suppress(found, rule(nms_iou=0.35, official_areas=True)).scores) == 1


def test_suppress_of_a_batch_equals_that_of_each_photo() -> None:
    """Would catch boxes that are rounded by the offsets that separate photos."""
    pair = [[2000.0, 2000, 2010, 2010], [2000.0, 2004.2857, 2010, 2014.2857]]  # IoU 0.4 up to rounding
    alone = len(suppress(detections(pair, [0.9, 0.8], [0, 0]), rule()).scores)
    many = detections(pair * 40, [0.9, 0.8] * 40, [photo for photo in range(40) for _ in pair])
    assert len(suppress(many, rule()).scores) == 40 * alone


def test_suppress_of_boxes_outside_their_photos() -> None:
    """Would catch a box left of a photo that overlaps one of the photo before."""
    found = detections([[0.0, 0, 100, 100], [-100.0, -100, 100, 100]], [0.9, 0.8], [0, 1])
    assert len(suppress(found, rule(nms_iou=0.2)).scores) == 2


def greedy(found: Candidates, areas: bool) -> list[list[float]]:
    """Return the boxes of a vote, computed one group after the other."""
    joined = []
    for photo in range(3):
        rest = found.take(found.photo == photo)
        while len(rest.scores):
            corners = rest.boxes.double() + torch.tensor([0, 0, 1, 1]) * areas
            group = iou(corners[:1], corners)[0] > 0.4
            group[0] = True
            weight = rest.scores[group] / rest.scores[group].sum()
            joined.append((rest.boxes[group] * weight[:, None]).sum(dim=0).tolist())
            rest = rest.take(~group)
    return joined


@pytest.mark.parametrize("areas", [False, True])
def test_vote_equals_a_greedy_loop(areas: bool) -> None:
    """Would catch a member that joins another group than that of the first leader that overlaps it."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        low = torch.rand(60, 2, generator=generator) * 20
        boxes = torch.cat([low, low + 3 + 6 * torch.rand(60, 2, generator=generator)], dim=1)
        photo = torch.randint(0, 3, (60,), generator=generator)
        found = Candidates(boxes, torch.rand(60, generator=generator), boxes[:, None, :2].expand(-1, 5, -1), photo)
        found = found.take(order(found.photo, found.scores))
        joined = vote(found, rule(official_areas=areas))
        joined = joined.take(order(joined.photo, joined.scores))
        assert torch.allclose(joined.boxes, torch.tensor(greedy(found, areas)), atol=1e-4)


def test_vote_averages_boxes_and_points_by_score() -> None:
    """Would catch a lower score for the group, a group of one that vanishes, or points that are not joined."""
    found = detections([[0.0, 0, 10, 10], [2.0, 0, 12, 10], [50.0, 0, 60, 10]], [0.6, 0.2, 0.1], [0, 0, 0])
    joined = vote(found, rule())
    assert joined.scores.tolist() == pytest.approx([0.6, 0.1])
    assert joined.boxes.tolist() == [pytest.approx([0.5, 0, 10.5, 10]), pytest.approx([50, 0, 60, 10])]
    assert joined.points[0, 0].tolist() == pytest.approx([0.5, 0])
    assert len(vote(detections([], [], []), rule()).scores) == 0
