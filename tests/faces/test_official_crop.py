"""Tests of the crops of the public codes, against their preparations written again in this file."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import scipy.ndimage
from conftest import face_data
from PIL import Image

from facelab.annotations.wflw98 import WFLW
from facelab.annotations.ytf68 import YTFaces
from facelab.errors import ConfigError
from facelab.faces.crop import BoxJitter
from facelab.faces.face import Face
from facelab.faces.geometry import Array, bounding_box, image_box, to_cells, transform_points
from facelab.faces.image import CropError, PhotoFile
from facelab.faces.layouts import IBUG68, WFLW98
from facelab.faces.official_crops import (
    OfficialCrop,
    OfficialDANCrop,
    OfficialHRNetCrop,
    OfficialPFLDCrop,
    OfficialPIPNetCrop,
)


class Prepared(NamedTuple):
    """Crop and labels of a face, as a public code stores them."""

    image: Array  # (S, S, 3) uint8
    labels: Array  # (N, 2) fractions of the crop


def resized(part: Array, size: int) -> Array:
    return cv2.resize(part, (size, size))


def pipnet_300w(image: Array, points: Array, box: Array, size: int) -> Prepared:
    """Prepare a face of 300W as PIPNet: truncated labels, margin and sides, without the last column and row."""
    whole = [[int(x), int(y)] for x, y in points]
    edges = []
    for axis, length in enumerate((image.shape[1], image.shape[0])):
        low, high = min(p[axis] for p in whole), max(p[axis] for p in whole)
        start = max(low - int((1.1 - 1) / 2 * (high - low)), 0)
        edges.append((start, min(int((high - low) * 1.1), length - start - 1)))
    (x, w), (y, h) = edges
    return Prepared(resized(image[y : y + h, x : x + w], size), (np.array(whole) - [x, y]) / [w, h])


def pipnet_wflw(image: Array, points: Array, box: Array, size: int) -> Prepared:
    """Prepare a face of WFLW as PIPNet: labels are fractions of the exact box, pixels those of the truncated box."""
    limits = np.array([image.shape[1] - 1, image.shape[0] - 1])
    sides = box[2:] - box[:2]
    low = np.maximum(box[:2] - sides * (1.2 - 1) / 2, 0)
    high = np.minimum(box[2:] + sides * (1.2 - 1) / 2, limits)
    (x0, y0), (x1, y1) = low.astype(int), high.astype(int)
    return Prepared(resized(image[y0:y1, x0:x1], size), (points - low) / (high - low))


def pfld(image: Array, points: Array, box: Array, size: int) -> Prepared:
    """Prepare a face as PFLD: a square of whole pixels, black outside the photo."""
    low, high = (math.trunc(v) for v in points.min(0)), (math.trunc(v) for v in points.max(0))
    first, last = np.array(list(low)), np.array(list(high))
    sides = last - first + 1
    side = int(sides.max() * 1.2)
    x, y = (first + sides / 2).astype(int) - side // 2
    height, width = image.shape[:2]
    padded = np.zeros((side, side, 3), np.uint8)
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, width), min(y + side, height)
    padded[y0 - y : y1 - y, x0 - x : x1 - x] = image[y0:y1, x0:x1]
    return Prepared(resized(padded, size), (points - [x, y]) / side)


def stretched(image: Array, size: tuple[int, int]) -> Array:
    """Stretch the contrast to 0..255 and resize by Pillow, as ``scipy.misc.imresize`` did, which SciPy removed."""
    low, high = image.min(), image.max()
    scaled = (image.astype(np.float32) - low) * np.float32(255.0 / (float(high) - float(low))) + np.float32(0.5)
    return np.asarray(Image.fromarray(scaled.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR))


def hrnet(image: Array, points: Array, box: Array, size: int) -> Prepared:
    """Prepare a face as HRNet: a square of whole pixels, of a shrunk photo if its side is twice that of the crop."""
    low, high = np.floor(points.min(0)), np.ceil(points.max(0))
    centre, side = (low + high) / 2, (high - low).max() / 200 * 1.25 * 200
    labels = (points - (centre - side / 2)) / side
    factor = side / size
    if factor >= 2:
        height, width = (int(length // factor) for length in image.shape[:2])
        image, centre, side = stretched(image, (width, height)), centre.astype(np.float32) / np.float32(factor), size
    forward = np.diag([size / side, size / side, 1.0])
    forward[:2, 2] = size * (-centre / side + 0.5)
    corners = [(np.linalg.inv(forward) @ [v - 1, v - 1, 1])[:2].astype(int) + 1 for v in (0, size)]
    (x0, y0), (x1, y1) = corners
    padded = np.zeros((y1 - y0, x1 - x0, 3), np.uint8)
    height, width = image.shape[:2]
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    padded[top - y0 : bottom - y0, left - x0 : right - x0] = image[top:bottom, left:right]
    return Prepared(stretched(padded, (size, size)), labels)


RULES: dict[str, tuple[OfficialCrop, Callable[..., Prepared]]] = {
    "300W": (OfficialPIPNetCrop(256, 1.1, False, (0.0, 0.0), "points", 0), pipnet_300w),
    "WFLW": (OfficialPIPNetCrop(256, 1.2, False, (0.0, 0.0), "given", 0), pipnet_wflw),
    "PFLD": (OfficialPFLDCrop(112, 1.2, True, (0.0, 0.0), "points", 0), pfld),
    "300W .pts": (OfficialPIPNetCrop(256, 1.1, False, (0.0, 0.0), "points", 1), pipnet_300w),
    "HRNet .pts": (OfficialHRNetCrop(256, 1.25, True, (0.0, 0.0), "points", 1), hrnet),
    "HRNet": (OfficialHRNetCrop(256, 1.25, True, (0.0, 0.0), "points", 0), hrnet),
}


def check(rule: str, path: Path, face: Face) -> None:
    """Compare image and labels of a face with those of the public code."""
    crop, prepare = RULES[rule]
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    height, width = image.shape[:2]
    points = face.points.astype(np.float64)
    numbers = points + crop.first_pixel  # of the annotation, as the public code reads them
    expected = prepare(image, numbers, face.box.astype(np.float64), crop.size)
    photo = image_box(width, height)
    box = crop.reference_box(face, photo)
    np.testing.assert_array_equal(crop.cut_out(PhotoFile(path, "stored"), box, photo), expected.image)
    labelled = np.trunc(numbers) if rule.startswith("300W") else numbers
    labels = to_cells(transform_points(crop.matrix(box, photo), labelled - crop.first_pixel), crop.size)
    np.testing.assert_allclose(labels, expected.labels, atol=1e-9)


def real_faces(rule: str) -> Iterator[tuple[Path, Face]]:
    """Yield photos and faces of the dataset whose rule is tested."""
    if rule.startswith("300W"):
        photos = YTFaces("ytf68", str(face_data("ytf68")), IBUG68, False).photos("test")[::9]
    else:
        photos = WFLW("wflw98", str(face_data("WFLW")), WFLW98, 0.1, True).photos("test")
    yield from ((photo.path, face) for photo in photos for face in photo.faces)


@pytest.mark.parametrize("rule", RULES)
def test_official_crop_equals_the_public_code_on_real_photos(rule: str) -> None:
    """Would catch a corner rounded instead of truncated, a crop beyond the border, and averaging in large photos."""
    for path, face in real_faces(rule):
        check(rule, path, face)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(6))
def test_official_crop_equals_the_public_code_on_noise(rule: str, seed: int, tmp_path: Path) -> None:
    """Would catch the same mistakes for faces at the borders of a photo, without a dataset."""
    rng = np.random.default_rng(seed)
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), rng.integers(0, 256, (301, 401, 3), np.uint8))
    centre = [(200, 150), (30, 40), (380, 280), (200, 20), (20, 150), (390, 30)][seed]
    points = (np.array(centre) + rng.uniform(-60, 60, (20, 2))).clip(1, [399, 299])
    box = bounding_box(points) + rng.uniform(-5, 5, 4)
    check(rule, path, Face(box, points, np.ones(20, bool), np.full(3, np.nan), frozenset()))


def test_official_crop_moves_the_image_right_of_and_below_the_labels() -> None:
    """Would catch exchanged maps: on WFLW the labels are about one photo pixel left of and above the image."""
    crop, photo = RULES["WFLW"][0], image_box(640, 480)
    rng, displacements = np.random.default_rng(0), []
    for _ in range(200):
        box = np.concatenate([rng.integers(80, 200, 2), rng.integers(250, 380, 2)]).astype(float)
        corner = np.array([[100.0, 100.0]])
        image, labels = (transform_points(m, corner) for m in (crop.image_matrix(box, photo), crop.matrix(box, photo)))
        displacements.append((image - labels)[0] / np.diag(crop.matrix(box, photo))[:2])
    assert 0.8 < np.mean(displacements) < 1.1
    whole, centre = RULES["PFLD"][0], np.zeros((1, 2))
    box = np.array([100.2, 80.7, 180.4, 190.1])
    moved = transform_points(whole.image_matrix(box), centre) - transform_points(whole.matrix(box), centre)
    np.testing.assert_allclose(moved / np.diag(whole.matrix(box))[:2], 0.5)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: OfficialPIPNetCrop(256, 1.1, True, (0.0, 0.0), "points", 0), "square=true"),
        (lambda: OfficialPFLDCrop(112, 1.2, False, (0.0, 0.0), "points", 0), "square=false"),
        (lambda: BoxJitter((1.3, 0.9), 0.1, 0), "scale"),
        (lambda: BoxJitter((1.0,), 0.1, 0), "scale"),
    ],
)
def test_official_crop_and_box_jitter_refuse_impossible_values(made: Callable[[], Any], words: str) -> None:
    """Would catch an option that a crop ignores, and a range with one number or in falling order."""
    with pytest.raises(ConfigError, match=words):
        made()


def test_official_crop_refuses_a_box_outside_the_photo() -> None:
    """Would catch an empty image, for which OpenCV raises an unclear error."""
    crop = RULES["WFLW"][0]
    with pytest.raises(CropError, match="not one whole pixel"):
        crop.matrix(np.array([700.0, 10, 800, 90]), image_box(640, 480))


def test_box_jitter_is_a_function_of_seed_and_row() -> None:
    """Would catch draws that depend on the order of the faces, and a factor or shift out of range."""
    jitter, box = BoxJitter((0.9, 1.3), 0.1, 7), np.array([10.0, 20.0, 60.0, 120.0])
    moved = np.stack([jitter.change(box, row) for row in range(500)])
    np.testing.assert_array_equal(moved[::-1], [jitter.change(box, row) for row in reversed(range(500))])
    factors = (moved[:, 2:] - moved[:, :2]) / [50, 100]
    shifts = ((moved[:, :2] + moved[:, 2:]) / 2 - [35, 70]) / [50, 100]
    np.testing.assert_allclose(factors[:, 0], factors[:, 1])
    assert 0.9 <= factors.min() < 0.91 and 1.29 < factors.max() <= 1.3
    assert 0.099 < np.abs(shifts).max() <= 0.1 and abs(shifts.mean()) < 0.01
    assert not np.array_equal(moved[0], BoxJitter((0.9, 1.3), 0.1, 8).change(box, 0))
    assert np.isnan(jitter.change(np.full(4, np.nan), 0)).all()
    assert jitter and not BoxJitter((1.0, 1.0), 0.0, 7)


@pytest.mark.parametrize("rule", RULES)
def test_official_crop_image_matrix_matches_the_cut_image(rule: str, tmp_path: Path) -> None:
    """Would catch training crops, which only the map cuts, that are shifted against those of an evaluation."""
    crop, path = RULES[rule][0], tmp_path / "photo.png"
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(noise, (400, 300), interpolation=cv2.INTER_CUBIC))
    box, photo, file = np.array([150.3, 90.8, 230.6, 200.1]), image_box(400, 300), PhotoFile(path, "stored")
    official = crop.cut_out(file, box, photo).astype(float)
    warped = file.cut_out(crop.image_matrix(box, photo), crop.size).astype(float)
    assert np.abs(official - warped)[4:-4, 4:-4].max() <= 3


@pytest.mark.parametrize("rule", ["HRNet", "HRNet .pts"])
def test_official_hrnet_crop_shrinks_large_photos(rule: str, tmp_path: Path) -> None:
    """Would catch another factor, centre or contrast of photos that the public code shrinks before it cuts them."""
    rng, path = np.random.default_rng(0), tmp_path / "photo.png"
    noise = rng.integers(20, 200, (22, 28, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(noise, (1400, 1100), interpolation=cv2.INTER_CUBIC))
    points = np.array([700.0, 560.0]) + rng.uniform(-300, 300, (20, 2))
    face = Face(bounding_box(points), points, np.ones(20, bool), np.full(3, np.nan), frozenset())
    check(rule, path, face)
    crop, photo = RULES[rule][0], image_box(1400, 1100)
    box, file = crop.reference_box(face, photo), PhotoFile(path, "stored")
    cut, warped = crop.cut_out(file, box, photo), file.cut_out(crop.image_matrix(box, photo), crop.size)
    stretched_again = (warped.astype(float) - warped.min()) * 255 / (int(warped.max()) - int(warped.min()))
    assert np.abs(cut - stretched_again)[4:-4, 4:-4].max() <= 6


def official_dan(grey: Array, initial: Array, mean_shape: Array) -> tuple[Array, Array]:
    """Cut the crop of a grey photo as DeepAlignmentNetwork's ``CropResizeRotate``; return it with its map ``(2, 3)``.

    Args:
        grey: ``(H, W)`` uint8.
        initial: ``(N, 2)`` initial shape in the photo.
        mean_shape: ``(N, 2)`` in any unit.
    """
    scaled = mean_shape * (112 * 0.5 / np.ptp(mean_shape, axis=0).max())
    destination = scaled - scaled.mean(0) + 56
    source_mean, destination_mean = initial.mean(0), destination.mean(0)
    p, q = initial - source_mean, destination - destination_mean
    a = (p * q).sum() / np.square(p).sum()
    b = (p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]).sum() / np.square(p).sum()
    linear = np.array([[a, b], [-b, a]])  # multiplies rows
    shift = destination_mean - source_mean @ linear
    back = np.linalg.inv(linear)
    offset = -shift @ back
    # The linear part is the same for x, y and y, x because of its form.
    crop = scipy.ndimage.affine_transform(grey, back, offset[[1, 0]], output_shape=(112, 112))
    return crop, np.concatenate([linear.T, shift[:, None]], axis=1)


@pytest.mark.parametrize("box", [[30.0, 40, 130, 150], [-40.5, 20, 60, 170], [50.0, 60, 300.25, 250]])
def test_official_dan_crop_equals_the_public_code(box: list[float], tmp_path: Path) -> None:
    """Would catch bilinear interpolation, luma, a centroid at the centre of the crop, or averaged pixels."""
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.integers(0, 256, (40, 50, 3), np.uint8), (260, 210), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "a.png"), noise)
    mean_shape = rng.normal(size=(68, 2)) * (1.0, 1.1)
    sides = np.ptp(mean_shape, axis=0)
    centre = (mean_shape.max(0) + mean_shape.min(0)) / 2
    corners = np.array(box).reshape(2, 2)
    initial = (mean_shape - centre) * ((corners[1] - corners[0]) / sides).mean() + corners.mean(0)
    shift = ((mean_shape.mean(0) - centre) / sides).tolist()
    crop = OfficialDANCrop(
        size=112, scale=2.0, square=True, shift=shift, box="given", aspect=float(sides[0] / sides[1])
    )
    grey = (noise[..., ::-1].astype(np.int64).sum(-1) // 3).astype(np.uint8)
    expected, matrix = official_dan(grey, initial, mean_shape)
    np.testing.assert_allclose(crop.matrix(np.array(box))[:2], matrix, atol=1e-9)
    image = crop.cut_out(PhotoFile(tmp_path / "a.png", "stored"), np.array(box))
    assert image.shape == (112, 112, 3) and (image == image[..., :1]).all()
    difference = np.abs(image[..., 0].astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.002


def test_official_dan_crop_refuses_a_box_outside_the_photo(tmp_path: Path) -> None:
    """Would catch a black crop whose points are reported as a face."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((50, 60, 3), np.uint8))
    crop = OfficialDANCrop(size=112, scale=2.0, square=True, shift=(0.0, -0.05), box="given", aspect=1.04)
    with pytest.raises(CropError, match="do not overlap"):
        crop.cut_out(PhotoFile(tmp_path / "a.png", "stored"), np.array([500.0, 500, 550, 560]))
