"""Tests of the search of photos by a detector."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from facelab.coders.anchors import AnchorCoder
from facelab.faces.batch import Detections
from facelab.faces.detections import Candidates, DetectionRule
from facelab.faces.search import search_photos
from facelab.metrics.detection import example
from facelab.metrics.wider import LISTS
from facelab.networks.retinaface import MobileNetV1, RetinaFaceHead
from lightning_modules.detector import DetectorModule
from lightning_modules.retinaface import RetinaFace


def rule(**changes: Any) -> DetectionRule:
    values: dict[str, Any] = {"scale": "original", "threshold": 0.02, "candidates": 5000, "nms_iou": 0.4, "most": 750}
    values["official_areas"] = False
    return DetectionRule(**values | changes)


class BrightDetector(DetectorModule[DetectionRule]):
    """Detector that finds the brightest pixel of an image as a face of half its width, with its eyes at both sides."""

    def search(self, image: Tensor) -> tuple[Candidates, Tensor]:
        place = image[:, 0].flatten(1).argmax(dim=1)
        centre = torch.stack([place % image.shape[-1], place // image.shape[-1]], dim=-1).float()
        eyes = torch.tensor([[-1.0, 0], [1, 0], [0, 0], [-1, 1], [1, 1]])
        rows = torch.arange(len(image))
        scores = torch.full((len(image),), 0.9)
        half = image.shape[-1] / 4
        corners = torch.cat([centre - half, centre + half], dim=1)
        return Candidates(corners, scores, centre[:, None] + eyes * half / 2, rows), rows[:0]

    def detect(self, image: Tensor, size: Tensor, rule: DetectionRule | None = None) -> Detections:
        return search_photos(self.search, image, size, rule or self.detection)


def bright_photo(height: int, width: int, x: int, y: int) -> Tensor:
    """Return a photo with a bright spot of 5 x 5 pixels around x, y, so that each scale has its peak there."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for reach, value in ((2, 100), (1, 180), (0, 255)):
        image[:, y - reach : y + reach + 1, x - reach : x + reach + 1] = value
    return image


@pytest.fixture(scope="module")
def retinaface() -> RetinaFace:
    """Return a small RetinaFace with random weights and varied scores."""
    torch.manual_seed(0)
    coder = AnchorCoder((8, 16, 32), ((16, 32), (64, 128), (256, 512)), (0.1, 0.2), 0.35, 0.2)
    backbone = MobileNetV1(0.25, pretrained=False, weights=None)
    module = RetinaFace(backbone, partial(RetinaFaceHead, width=16), coder, rule(), "original", None, None, None)
    for predict in module.head.predict:
        torch.nn.init.normal_(predict.weight, std=0.5)
    return module.eval()


def test_metrics_and_protocol_follow_the_rounding(retinaface: RetinaFace) -> None:
    """Would catch a rounding that is named and not done, or done and not named."""
    table = example(LISTS)
    table = table._replace(
        boxes=np.array([[-0.5, 9.99, 31.5, 25.01]]),  # 16 of 33 rows of the face, 17 if rounded
        true_boxes=np.array([[-0.5, -0.5, 31.5, 31.5]]),
        tags=np.ones((1, 3), np.bool_),
    )
    values = {}
    with pytest.MonkeyPatch.context() as patch:
        for rounded in (False, True):
            patch.setattr(retinaface, "wider_rounded", rounded)
            values[rounded] = (retinaface.metrics(table)["wider_easy"].value(), retinaface.protocol().get("wider"))
    assert values == {False: (0, None), True: (1, "rounded as in Matlab")}


def found_in(found: Detections, photo: int) -> list[Tensor]:
    rows = found.photo == photo
    return [found.boxes[rows], found.scores[rows], found.points[rows]]


@torch.inference_mode()
def test_detect_of_a_batch_equals_single_photos(retinaface: RetinaFace) -> None:
    """Would catch features that grow from the padding into a photo, or detections of another photo."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, 3, 96, 128), dtype=torch.uint8, generator=generator)
    size = torch.tensor([[96, 128], [50, 70], [96, 128]])
    batch = retinaface.detect(image, size)
    assert batch.photo.tolist() == sorted(batch.photo.tolist())
    for row, (height, width) in enumerate(size.tolist()):
        alone = retinaface.detect(image[row : row + 1, :, :height, :width], size[row : row + 1])
        assert len(alone.scores) > 3
        for one, other in zip(found_in(alone, 0), found_in(batch, row), strict=True):
            assert torch.allclose(one, other, atol=1e-4)


@torch.inference_mode()
def test_detect_reports_photos_in_which_a_limit_applied(retinaface: RetinaFace) -> None:
    """Would catch a limit that drops detections without a trace."""
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    size = torch.tensor([[64, 64]])
    before = retinaface.detection
    try:
        assert not retinaface.detect(image, size).cut.any()
        for limit in ({"candidates": 1}, {"most": 1}):
            retinaface.detection = rule(**limit)
            found = retinaface.detect(image, size)
            assert found.cut.tolist() == [True]
            assert len(found.scores) == 1
    finally:
        retinaface.detection = before


def test_detect_reports_the_photo_of_a_limit() -> None:
    """Would catch the photo of the same place among those of its size, in a batch of several sizes."""

    class Limited(BrightDetector):
        def search(self, image: Tensor) -> tuple[Candidates, Tensor]:
            found, _ = super().search(image)
            return found, torch.tensor([len(image) - 1])

    image = torch.zeros(3, 3, 60, 80, dtype=torch.uint8)
    found = Limited(rule(), None, None, None).detect(image, torch.tensor([[60, 80], [40, 50], [60, 80]]))
    assert found.cut.tolist() == [False, True, True]


@pytest.mark.parametrize("scale", ["original", "vga", "large", "multiple"])
def test_detect_returns_pixels_of_the_photo(scale: str) -> None:
    """Would catch detections in pixels of the resized or flipped image, or points of a flipped face not exchanged."""
    module = BrightDetector(rule(scale=scale), None, None, None)
    image = torch.zeros(2, 3, 60, 80, dtype=torch.uint8)
    image[0], image[1, :, :40, :50] = bright_photo(60, 80, 30, 20), bright_photo(40, 50, 10, 25)
    found = module.detect(image, torch.tensor([[60, 80], [40, 50]]))
    assert found.photo.tolist() == [0, 1]
    spots = [(30, 20, 80), (10, 25, 50)]
    for (x, y, width), box, points in zip(spots, found.boxes, found.points, strict=True):
        centre = (box[:2] + box[2:]) / 2
        assert centre.tolist() == pytest.approx([x, y], abs=0.8)
        assert points[2].tolist() == pytest.approx([x, y], abs=0.8)
        assert (points[1] - points[0]).tolist() == pytest.approx([width / 4, 0], abs=0.8), "exchanged"


def test_detect_searches_at_the_scale_of_a_given_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a validation at the scale of the test, whatever rule it has."""
    module = BrightDetector(rule(), None, None, None)
    searched = []
    search = module.search
    monkeypatch.setattr(module, "search", lambda image: searched.append(tuple(image.shape[-2:])) or search(image))
    image, size = bright_photo(60, 80, 30, 20)[None], torch.tensor([[60, 80]])
    module.detect(image, size, rule(scale="vga"))
    module.detect(image, size)
    assert searched == [(480, 640), (60, 80)]


def test_detect_of_photos_without_a_face() -> None:
    """Would catch a crash where nothing is found, or where there is no photo."""
    coder = AnchorCoder((8, 16, 32), ((16,), (64,), (256,)), (0.1, 0.2), 0.35, 0.2)
    backbone = MobileNetV1(0.25, pretrained=False, weights=None)
    strict = rule(threshold=1.0)
    module = RetinaFace(backbone, partial(RetinaFaceHead, width=8), coder, strict, "original", None, None, None).eval()
    for photos in (0, 1):
        image, size = torch.zeros(photos, 3, 1, 1, dtype=torch.uint8), torch.ones(photos, 2, dtype=torch.int64)
        found = module.detect(image, size)
        assert [tuple(column.shape) for column in found[:4]] == [(0, 4), (0,), (0, 5, 2), (0,)]
        assert found.cut.tolist() == [False] * photos
