"""Tests of the cascade of MTCNN: crops, pyramid, squares of cells, batches, limits, and what costs a wait."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from facelab.faces.boxes import iom
from facelab.faces.detections import Candidates, CascadeRule, leaders_by_iom, leaders_of_groups
from facelab.networks.cascade import Cascade, Photos, _correct, squares
from facelab.networks.mtcnn import FacePrediction, ONet, PNet, RNet


def rule(**changes: Any) -> CascadeRule:
    values: dict[str, Any] = {"min_face": 20, "factor": 0.709, "thresholds": (0.6, 0.7, 0.7), "nms_iom": 0.7}
    values |= {"nms_iou": (0.5, 0.7, 0.7), "cells": 50_000, "candidates": 5_000, "most": 1_000, "resize": "area"}
    return CascadeRule(**values | {"official_pixels": False} | changes)


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    """Return a small cascade with random weights and varied scores."""
    torch.manual_seed(0)
    networks = PNet(False, 0.5), RNet(False, 0.25), ONet(0.25, 0.25)
    for network in networks:
        torch.nn.init.normal_(network.predict.weight, std=0.2)
    return Cascade(*networks).eval()


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def batch_of(sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Return photos of noise in one batch; the padding is noise too."""
    height, width = (max(side) for side in zip(*sizes, strict=True))
    return noise(len(sizes), 3, height, width), torch.tensor(sizes)


# Levels and crops


@pytest.mark.parametrize("new", [(9, 13), (40, 71)], ids=["smaller", "larger"])
def test_level_of_area_is_that_of_torch(new: tuple[int, int]) -> None:
    """Would catch a table of sums that is shifted, exchanged axes, and padding that is a part of the mean."""
    image, size = batch_of([(30, 40), (23, 61), (30, 40)])
    level = Photos(image, size, rule()).level(torch.tensor([0, 2]), 30, 40, *new)
    expected = functional.interpolate(image[[0, 2], :, :30, :40].float(), new, mode="area")
    torch.testing.assert_close(level, expected)


@pytest.mark.parametrize("resize", ["area", "bilinear"])
def test_crops_are_resized_squares_of_their_photo(resize: str) -> None:
    """Would catch a crop of another photo or place, and an interpolation that is shifted by half a pixel."""
    image, size = batch_of([(30, 40), (60, 61)])
    boxes = torch.tensor([[3.7, 2.2, 20.9, 19.4], [10.0, 5, 50, 45], [1, 1, 5, 5]])
    found = Photos(image, size, rule(resize=resize)).crops(boxes, torch.tensor([0, 1, 1]), 24)
    for crop, (photo, x0, y0, x1, y1) in zip(
        found, [(0, 3, 2, 20, 19), (1, 10, 5, 50, 45), (1, 1, 1, 5, 5)], strict=True
    ):
        part = image[photo : photo + 1, :, y0:y1, x0:x1].float()
        if resize == "area":
            torch.testing.assert_close(crop[None], functional.interpolate(part, (24, 24), mode="area"))
        else:  # pixels around the square take part, so only the inner ones are those of the square alone
            expected = functional.interpolate(part, (24, 24), mode="bilinear", align_corners=False)
            border = math.ceil(12 / (x1 - x0)) + 1
            inner = (..., slice(border, 24 - border), slice(border, 24 - border))
            torch.testing.assert_close(crop[None][inner], expected[inner], atol=0.01, rtol=0)


@pytest.mark.parametrize("resize", ["area", "bilinear"])
def test_crops_are_filled_with_zeros_outside_of_their_photo(resize: str) -> None:
    """Would catch pixels of the padding or of the next photo, and a crop that is stretched to fit in."""
    image, size = batch_of([(30, 40), (60, 61)])
    boxes = torch.tensor([[-12.0, -12, 12, 12], [28, 18, 52, 42], [100, 100, 124, 124], [-9e9, 0, 9e9, 24]])
    photos = torch.zeros(4, dtype=torch.int64)
    crops = Photos(image, size, rule(resize=resize)).crops(boxes, photos, 24)
    inside = image[0].float()
    torch.testing.assert_close(crops[0], functional.pad(inside[:, :12, :12], (12, 0, 12, 0)))
    torch.testing.assert_close(crops[1], functional.pad(inside[:, 18:30, 28:40], (0, 12, 0, 12)))
    assert not crops[2].any()
    assert crops.isfinite().all()


def test_crops_of_the_official_code_are_stretched_at_the_border() -> None:
    """Would catch zeros in the crops of facenet-pytorch, which change its scores at the border."""
    image, size = batch_of([(30, 40)])
    crop = Photos(image, size, rule(official_pixels=True)).crops(
        torch.tensor([[-6.0, 10, 18, 34]]), torch.tensor([0]), 24
    )
    expected = functional.interpolate(image[:, :, 10:30, :18].float(), (24, 24), mode="area")
    torch.testing.assert_close(crop, expected)


def test_levels_have_the_sizes_of_the_pyramid() -> None:
    """Would catch a level too many, or one of another size: the numbers of a 640 x 480 photo are published ones."""
    levels = rule().levels(480, 640)
    assert len(levels) == 10
    assert levels[0][:2] == (289, 385)
    assert sum(height * width for height, width, _ in levels) == 223_663
    assert len(rule(min_face=10, factor=0.79).levels(480, 640)) == 17
    assert rule().levels(19, 400) == []
    assert len(rule().levels(20, 400)) == 1


# Boxes


@pytest.mark.parametrize(
    ("official", "first", "last"),
    [(False, (0.0, 0.0, 20.0, 20.0), (20 / 1.2, 20.0, 80 / 1.5, 40.0)), (True, (0, 0, 19, 19), None)],
)
def test_propose_places_the_square_of_each_cell(official: bool, first: Any, last: Any) -> None:
    """Would catch exchanged axes, a shift by a cell, and a cell of another level or photo."""
    seen = []

    class Corners(PNet):
        """Network that finds a face in the first cell of the first photo, in the top-right one of the second."""

        def forward(self, image: Tensor) -> FacePrediction:
            seen.append(image.shape)
            b, _, h, w = image.shape
            h, w = -(-(h - 2) // 2) - 4, -(-(w - 2) // 2) - 4
            logits = torch.zeros(b, 2, h, w)
            logits[:, 0] = 9
            if len(seen) == 1:
                logits[0, 1, 0, 0] = 20
                logits[1, 1, 0, w - 1] = 30
            return FacePrediction(logits, torch.zeros(b, 4, h, w), None)

    image, size = batch_of([(40, 60), (40, 60), (100, 30)])
    found, cut = Cascade(Corners(False, 1.0), None, None)(image, size, rule(official_pixels=official))
    assert found.photo.tolist() == [0, 1]
    assert not cut.any()
    assert seen[0] == (2, 3, 25, 37)
    scale = (0.6, 0.6) if official else (37 / 60, 25 / 40)
    columns = [0, -(-35 // 2) - 5]
    for box, column in zip(found.boxes + 0.5, columns, strict=True):
        if official:
            expected = [math.floor((2 * column + 1) / 0.6) - 1, 0, math.floor((2 * column + 12) / 0.6), 20]
        else:
            expected = [2 * column / scale[0], 0, (2 * column + 12) / scale[0], 12 / scale[1]]
        assert box.tolist() == pytest.approx(expected, abs=1e-4)
    assert found.points.isnan().all()


def test_boxes_are_corrected_and_squared_as_in_the_paper() -> None:
    """Would catch offsets in other units or of the other sign, and a square about another centre."""
    box, offsets = torch.tensor([[100.0, 120, 160, 200]]), torch.tensor([[0.05, -0.1, 0.1, 0.2]])
    corrected = _correct(box, offsets, box)
    torch.testing.assert_close(corrected, torch.tensor([[103.0, 112, 166, 216]]))
    torch.testing.assert_close(squares(corrected, rule(official_pixels=True)), torch.tensor([[82.5, 112, 186.5, 216]]))
    torch.testing.assert_close(squares(corrected, rule()), torch.tensor([[82.0, 112, 186, 216]]))


def test_suppressions_keep_the_rows_of_the_worked_example() -> None:
    """Would catch an order by place, the smaller overlap, and rows of another photo that are suppressed."""
    boxes = torch.tensor(
        [[10.0, 10, 50, 50], [12, 12, 52, 52], [10, 10, 30, 30], [100, 100, 140, 150], [105, 100, 145, 150]]
    )
    boxes = torch.cat([boxes, torch.tensor([[60.0, 10, 100, 50]])]).repeat(2, 1)
    scores = torch.tensor([0.9, 0.8, 0.95, 0.7, 0.75, 0.6]).repeat(2)
    photo = torch.tensor([0, 2]).repeat_interleave(6)
    assert leaders_of_groups(boxes, scores, photo, 0.5).tolist() == [0, 2, 4, 5, 6, 8, 10, 11]
    rows = torch.tensor([2, 0, 1, 4, 3, 5, 8, 6, 7, 10, 9, 11])  # by photo and falling score
    found = Candidates(boxes, scores, torch.zeros(12, 5, 2), photo).take(rows)
    assert rows[leaders_by_iom(found, 0.7)].tolist() == [2, 4, 5, 8, 10, 11]


def test_leaders_by_iom_equals_the_suppression_one_by_one() -> None:
    """Would catch a suppression by a box that is suppressed itself, after any number of rounds."""
    generator = torch.Generator().manual_seed(2)
    corner = torch.rand(300, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 5 + torch.rand(300, 2, generator=generator) * 20], dim=1)
    found = Candidates(boxes, torch.linspace(1, 0, 300), torch.zeros(300, 5, 2), torch.zeros(300, dtype=torch.int64))
    kept: list[int] = []
    for row, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        for other in kept:
            a0, b0, a1, b1 = boxes[other].tolist()
            both = max(0.0, min(x1, a1) - max(x0, a0)) * max(0.0, min(y1, b1) - max(y0, b0))
            if both / min((x1 - x0) * (y1 - y0), (a1 - a0) * (b1 - b0)) > 0.4:
                break
        else:
            kept.append(row)
    assert leaders_by_iom(found, 0.4).nonzero().squeeze(1).tolist() == kept


# The whole search


@pytest.mark.parametrize("resize", ["area", "bilinear"])
@pytest.mark.parametrize("official", [False, True])
@torch.inference_mode()
def test_cascade_of_a_batch_equals_single_photos(cascade: Cascade, resize: str, official: bool) -> None:
    """Would catch a photo whose padding, size or neighbours change its result; also 1 x 1 photos and unread ones."""
    image, size = batch_of([(60, 80), (45, 90), (1, 1), (60, 80), (0, 0)])
    low = rule(thresholds=(0.0, 0.0, 0.0), resize=resize, official_pixels=official)
    found, cut = cascade(image, size, low)
    assert not cut.any() and cut.shape == (5,)
    counts = found.photo.bincount(minlength=5).tolist()
    assert min(counts[0], counts[1], counts[3]) > 5 and counts[2] == counts[4] == 0
    for row, (height, width) in enumerate(size.tolist()[:4]):
        alone, _ = cascade(image[row : row + 1, :, :height, :width], size[row : row + 1], low)
        for one, other in zip(alone[:3], found.take(found.photo == row)[:3], strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=0)
    assert found.photo.tolist() == sorted(found.photo.tolist())
    assert found.points.isfinite().all()


@pytest.mark.parametrize("photos", [0, 2])
@torch.inference_mode()
def test_cascade_finds_nothing_in_photos_without_a_face(cascade: Cascade, photos: int) -> None:
    """Would catch a crash where nothing is found after P-Net, R-Net or O-Net, or where there is no photo."""
    for thresholds in ((1.0, 1, 1), (0.0, 1, 1), (0.0, 0, 1)):
        found, cut = cascade(
            torch.zeros(photos, 3, 30, 40, dtype=torch.uint8),
            torch.tensor([30, 40]).expand(photos, 2),
            rule(thresholds=thresholds),
        )
        assert [tuple(part.shape) for part in found] == [(0, 4), (0,), (0, 5, 2), (0,)]
        assert cut.tolist() == [False] * photos


@torch.inference_mode()
def test_cascade_reports_photos_that_a_limit_cuts(cascade: Cascade) -> None:
    """Would catch faces that are left out without a trace, and a limit of the batch instead of the photo."""
    image, size = batch_of([(80, 90), (19, 30), (80, 90)])
    free = {"thresholds": (0.0, 0, 0), "nms_iou": (1.0, 1, 1), "nms_iom": 1.0}
    whole, cut = cascade(image, size, rule(**free))
    assert not cut.any()
    assert whole.photo.bincount(minlength=3)[0] > 300
    for limit in ("cells", "candidates", "most"):
        found, cut = cascade(image, size, rule(**free, **{limit: 40}))
        assert cut.tolist() == [True, False, True]
        assert found.photo.bincount(minlength=3).tolist() == [40, 0, 40]
    assert torch.equal(found.scores[:40], whole.scores[:40]), "the highest scores are kept"


@torch.inference_mode()
def test_finish_suppresses_by_the_scores_of_onet(cascade: Cascade) -> None:
    """Would catch a last suppression in the order of R-Net's scores, which removes the best detection."""
    image, size = batch_of([(80, 90)])
    every, _ = cascade(image, size, rule(thresholds=(0.0, 0, 0), nms_iom=1.0))
    found, _ = cascade(image, size, rule(thresholds=(0.0, 0, 0), nms_iom=0.5))
    covered = iom(every.boxes, found.boxes) > 0.5
    better = found.scores > every.scores[:, None]
    removed = ~torch.isin(every.scores, found.scores)
    assert 20 < removed.sum() < len(removed) - 3
    assert (covered & better)[removed].any(dim=1).all()


@torch.inference_mode()
def test_cascade_leaves_out_boxes_that_are_not_finite() -> None:
    """Would catch an infinite box of a diverged training, which keeps the suppression from all others."""
    torch.manual_seed(0)
    cascade = Cascade(PNet(False, 0.5), RNet(False, 0.25), ONet(0.25, 0.25)).eval()
    for network in cascade.networks().values():
        network.predict.bias[2] = math.inf
    found, _ = cascade(noise(1, 3, 40, 40), torch.tensor([[40, 40]]), rule(thresholds=(0.0, 0, 0)))
    assert len(found.scores) == 0


class Waits(TorchDispatchMode):
    """Count of the operations for which the host waits for a GPU: the size of their result depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += name in ("nonzero", "nms", "masked_select", "_local_scalar_dense", "_unique2")
        if name == "index":
            self.count += any(index is not None and index.dtype == torch.bool for index in args[1])
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(("end", "least", "most"), [(1, 6, 6), (2, 8, 8), (3, 10, 20)])
@torch.inference_mode()
def test_cascade_waits_as_often_for_a_batch_as_for_a_photo(cascade: Cascade, end: int, least: int, most: int) -> None:
    """Would catch a wait of the host for the device per photo, level or candidate.

    The sizes of the photos, and the size of the table in O-Net's stage, are two more on a GPU. The rounds of the last
    suppression vary.
    """
    networks: Any = [network if place < end else None for place, network in enumerate(cascade.networks().values())]
    few = rule(thresholds=(0.0, 0, 0), cells=200)  # torchvision suppresses many boxes group by group
    for sizes in ([(60, 80)], [(60, 80), (90, 50), (60, 80), (70, 85)]):
        image, size = batch_of(sizes)
        with Waits() as waits:
            Cascade(*networks)(image, size, few)
        assert least <= waits.count <= most
