"""Tests of the detection of faces on photos without annotations."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from composing import compose_config
from PIL import Image
from torch import Tensor

from facelab.errors import ImageError
from facelab.faces.batch import Detections
from facelab.faces.detections import Candidates, DetectionRule
from facelab.faces.geometry import Array
from facelab.faces.pose import MODEL_OF_FIVE, rotation, turned
from facelab.faces.search import search_photos
from facelab.inference import detections
from facelab.inference.photos import Photos, PredictedPhoto, find_photos
from facelab.runs.build import build
from lightning_modules.detector import DetectorModule

RULE = DetectionRule("original", 0.5, 5000, 0.4, 750, False)
POSE = np.array([30.0, -10.0, 5.0])
"""Yaw, pitch and roll of the faces that :class:`Marks` finds; those with a score below 0.8 are turned by 90 degrees."""


class Marks(DetectorModule[DetectionRule]):
    """Detector of red pixels: each is the centre of a face of 6 px, and its blue is its score, 255 for 1."""

    def __init__(self, rule: DetectionRule = RULE, box: float = 3.0, points: float = 0.1) -> None:
        super().__init__(rule, None, None, None)
        face = points * (MODEL_OF_FIVE @ rotation(POSE).T)[:, :2]
        self.box, self.face = torch.tensor([-box, -box, box, box]), torch.as_tensor(face, dtype=torch.float32)
        self.searched: list[tuple[int, ...]] = []  # shapes of the images

    def search(self, image: Tensor) -> tuple[Candidates, Tensor]:
        """Return a candidate for each red pixel."""
        self.searched.append(tuple(image.shape))
        photo, y, x = ((image[:, 0] > 200) & (image[:, 1] < 50)).nonzero().unbind(1)
        centre, scores = torch.stack([x, y], dim=1).float(), image[photo, 2, y, x] / 255
        kept = scores >= self.detection.threshold
        lying = self.face.flip(1) * self.face.new_tensor([-1, 1])  # by 90 degrees clockwise
        points = centre[:, None] + torch.where((scores < 0.8)[:, None, None], lying, self.face)
        found = Candidates(centre.repeat(1, 2) + self.box, scores, points, photo).take(kept)
        return found, torch.empty(0, dtype=torch.int64)

    def detect(self, image: Tensor, size: Tensor, rule: DetectionRule | None = None) -> Detections:
        return search_photos(self.search, image, size, rule or self.detection)


def marked(height: int, width: int, marks: Sequence[tuple[int, int, int]] = ()) -> Array:
    """Return a grey image with marks ``(x, y, blue)``."""
    image = np.full((height, width, 3), 128, np.uint8)
    for x, y, blue in marks:
        image[y, x] = (255, 0, blue)
    return image


def centres(faces: Sequence[detections.DetectedFace]) -> list[list[float]]:
    """Return the centres of the boxes."""
    return [((face.box[:2] + face.box[2:]) / 2).tolist() for face in faces]


def predict(module: DetectorModule, folder: Path, batch_size: int = 32) -> dict[str, PredictedPhoto[Any]]:
    """Search the photos of a folder."""
    with ThreadPoolExecutor(2) as pool:
        chunks = list(detections.predict(module, find_photos(str(folder)), batch_size, pool))
    assert all(len(chunk) <= batch_size for chunk in chunks)
    return {photo.name: photo for chunk in chunks for photo in chunk}


@pytest.fixture(scope="module")
def retinaface() -> DetectorModule:
    """Return a RetinaFace with random weights."""
    torch.manual_seed(0)
    words = ["model=retinaface", "backbone.pretrained=false"]
    module: DetectorModule = build(compose_config(words), "model").eval()
    return module


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_search_keeps_faces_with_their_image(batch_size: int) -> None:
    """Would catch faces that change places between images of different sizes, or an order other than by score."""
    images = [
        marked(40, 50, [(10, 12, 200), (30, 20, 250)]),
        marked(40, 30),
        marked(40, 50, [(25, 5, 150)]),
        marked(50, 40, [(9, 40, 255)]),
        marked(40, 50, [(40, 30, 100), (3, 3, 130)]),
    ]
    module = Marks()
    found = detections.search(module, images, batch_size)
    if batch_size == 32:
        assert len(module.searched) == 3  # images of one size together
    expected = [[[30, 20], [10, 12]], [], [[25, 5]], [[9, 40]], [[3, 3]]]
    assert [centres(each.faces) for each in found] == expected
    assert [face.score for face in found[0].faces] == pytest.approx([250 / 255, 200 / 255])
    assert [face.face for face in found[0].faces] == [0, 1]
    assert not any(each.left_out for each in found)


def test_search_estimates_the_pose_from_the_points() -> None:
    """Would catch angles of another face, or of points in another order."""
    (found,) = detections.search(Marks(), [marked(40, 50, [(9, 9, 150), (20, 20, 255)])], 1)
    np.testing.assert_allclose([face.pose for face in found.faces], [POSE, turned(POSE, 90)], atol=0.01)
    assert found.faces[0].points is not None and found.faces[0].points.shape == (5, 2)


@pytest.mark.parametrize(("points", "has_points"), [(np.nan, False), (0.0, True)])
def test_search_returns_no_pose_without_usable_points(points: float, has_points: bool) -> None:
    """Would catch a NaN of a detector without points, and an angle of five points in one place."""
    (found,) = detections.search(Marks(points=points), [marked(40, 50, [(20, 20, 255)])], 1)
    assert found.faces[0].pose is None
    assert (found.faces[0].points is not None) == has_points


def test_search_finds_300_faces_and_reports_a_limit() -> None:
    """Would catch a crowd that is cut off without a message."""
    tile = marked(10, 10, [(5, 5, 255)])
    crowd = np.tile(tile, (15, 20, 1))
    (found,) = detections.search(Marks(), [crowd], 8)
    assert len(found.faces) == 300 and not found.left_out
    assert {tuple(each) for each in centres(found.faces)} == {
        (10 * x + 5, 10 * y + 5) for x in range(20) for y in range(15)
    }
    crowd_of_200, nobody = detections.search(Marks(replace(RULE, most=200)), [crowd, np.zeros_like(crowd)], 8)
    assert len(crowd_of_200.faces) == 200
    assert [(face, "detection.most=200" in reason) for face, reason in crowd_of_200.left_out] == [(None, True)]
    assert nobody == ([], [])


def test_search_leaves_out_boxes_that_are_not_finite() -> None:
    """Would catch files full of infinite boxes from a diverged network."""
    (found,) = detections.search(Marks(box=np.inf), [marked(40, 50, [(20, 20, 255)])], 1)
    assert found.faces == []
    assert [(face, "diverge" in reason) for face, reason in found.left_out] == [(0, True)]


def test_search_survives_a_small_device_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch one huge photo after which the results of all others are lost."""

    def out_of_memory(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Marks, "search", out_of_memory)
    (found,) = detections.search(Marks(), [marked(40, 50)], 1)
    assert found.faces == [] and "detection.scale=original" in found.left_out[0][1]


def test_search_limits_the_pixels_of_a_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch 32 large photos in one pass, which fill the memory, or a photo above the limit that is lost."""
    monkeypatch.setattr(detections, "SEARCHED_PIXELS", 5000)
    module = Marks()
    found = detections.search(module, [marked(40, 50)] * 5 + [marked(90, 90, [(5, 5, 255)])], 4)
    assert sorted(module.searched) == [(1, 3, 40, 50), (1, 3, 90, 90), (2, 3, 40, 50), (2, 3, 40, 50)]
    assert centres(found[-1].faces) == [[5, 5]]
    module = Marks(replace(RULE, scale="vga"))
    detections.search(module, [marked(40, 50)] * 2, 4)  # 512 x 640 where they are searched
    assert [shape[0] for shape in module.searched] == [1, 1]


def test_predict_limits_the_photos_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a chunk of 32 photos of a camera that are decoded at once, or a photo that is lost between parts."""
    for number in range(6):
        Image.fromarray(marked(40, 50, [(5 + number, 9, 255)])).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_text("no picture")
    monkeypatch.setattr(detections, "DECODED_PIXELS", 4000)
    sizes, search = [], detections.search

    def counted(module: DetectorModule, images: Sequence[Array], batch_size: int) -> list[detections.DetectedFaces]:
        sizes.append(sum(image.shape[0] * image.shape[1] for image in images))
        return search(module, images, batch_size)

    monkeypatch.setattr(detections, "search", counted)
    found = predict(Marks(), tmp_path)
    assert max(sizes) <= 4000 and sum(sizes) == 10_000
    expected = {f"{number}.png": [[5 + number, 9]] if number != 3 else [] for number in range(6)}
    assert {name: centres(photo.faces) for name, photo in found.items()} == expected


def test_predict_reads_unusual_photos(tmp_path: Path) -> None:
    """Would catch a photo that is searched sideways or in other colours, or one bad file that stops the others."""
    image = marked(40, 50, [(10, 12, 255)])
    Image.fromarray(image).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([image, image[..., 0]])).save(tmp_path / "rgba.png")
    Image.fromarray(image[..., 1]).save(tmp_path / "grey.png")
    exif = Image.Exif()
    exif[0x112] = 6  # the stored photo is shown after a rotation by 90 degrees clockwise
    Image.fromarray(np.rot90(image)).save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (tmp_path / "empty.png").touch()
    found = predict(Marks(), tmp_path, batch_size=2)
    sizes = {name: photo.size for name, photo in found.items()}
    readable = dict.fromkeys(("grey.png", "rgb.png", "rgba.png", "turned.png"), (50, 40))
    assert sizes == readable | {"broken.jpg": None, "empty.png": None}
    for name in ("rgb.png", "rgba.png", "turned.png"):
        assert centres(found[name].faces) == [[10, 12]], name
    assert found["grey.png"].faces == [] and found["grey.png"].skipped == []
    assert {name for name, photo in found.items() if photo.skipped} == {"broken.jpg", "empty.png"}
    assert "truncated" in found["broken.jpg"].skipped[0].reason


def test_predict_skips_a_photo_that_would_be_enlarged_too_much(tmp_path: Path) -> None:
    """Would catch a strip of 2 x 900 px, enlarged to 1700 px on its shorter side, that fills the memory."""
    Image.fromarray(marked(2, 900)).save(tmp_path / "strip.png")
    photo = predict(Marks(replace(RULE, scale="multiple")), tmp_path)["strip.png"]
    assert photo.size is None
    assert "enlarges 900 x 2 pixels to 765000 x 1700" in photo.skipped[0].reason
    with pytest.raises(ImageError, match=r"image 7: detection\.scale=multiple enlarges"):
        detections.check_searched(replace(RULE, scale="multiple"), marked(2, 900), "image 7")


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (9, 9), (15, 16)])
@pytest.mark.parametrize("scale", ["original", "vga"])
def test_search_accepts_photos_smaller_than_the_smallest_anchor(
    size: tuple[int, int], scale: Any, retinaface: DetectorModule
) -> None:
    """Would catch a feature map without a cell, or coordinates that are not those of the photo."""
    retinaface.detection = replace(RULE, scale=scale, threshold=0.0, most=3)
    (found,) = detections.search(retinaface, [marked(*size)], 1)
    assert 0 < len(found.faces) <= 3
    for face in found.faces:
        assert face.box.shape == (4,) and np.isfinite(face.box).all()


def test_search_in_a_batch_equals_single_searches(retinaface: DetectorModule) -> None:
    """Would catch the padding of a smaller photo, which changes its features."""
    rng = np.random.default_rng(0)
    images = [cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), size) for size in ((60, 44), (60, 44), (32, 71))]
    retinaface.detection = replace(RULE, threshold=0.0, most=5)
    together = detections.search(retinaface, images, 8)
    for image, batched in zip(images, together, strict=True):
        (alone,) = detections.search(retinaface, [image], 1)
        assert len(alone.faces) == len(batched.faces) == 5
        for one, other in zip(alone.faces, batched.faces, strict=True):
            np.testing.assert_allclose(one.box, other.box, atol=1e-3)
            assert one.score == pytest.approx(other.score, abs=1e-5)


def test_predict_accepts_no_photo() -> None:
    """Would catch a crash of an empty chunk."""
    with ThreadPoolExecutor(1) as pool:
        assert list(detections.predict(Marks(), Photos(Path(), {}, {}), 4, pool)) == []
