"""Tests of the crop: the part of a photo that a network receives."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import ROOT
from hydra.utils import instantiate
from omegaconf import OmegaConf

from facelab.errors import ConfigError
from facelab.faces.crop import BoxSource, Crop, ShapeCrop
from facelab.faces.face import Face
from facelab.faces.geometry import Array, bounding_box, image_box, transform_points
from facelab.faces.image import PhotoFile, image_size

CONF = ROOT / "conf" / "crop"
NAN = np.nan


def cut_out(path: Path, matrix: Array, size: int) -> Array:
    """Cut a square crop of the stored pixels of a photo."""
    return PhotoFile(path, "stored").cut_out(matrix, size)


def crop(**changes: Any) -> Crop:
    options: dict[str, Any] = {"size": 100, "scale": 1.0, "square": False, "shift": (0.0, 0.0), "box": "points"}
    return Crop(**options | changes)


def face(points: Array, box: Array) -> Face:
    return Face(box, points, np.ones(len(points), bool), np.full(3, NAN), frozenset())


def visible_part(crop: Crop, box: list[float]) -> Array:
    """Return the part of the photo that fills the crop, x0 y0 x1 y1."""
    corners = image_box(crop.size, crop.size).reshape(2, 2)
    return transform_points(np.linalg.inv(crop.matrix(np.array(box))), corners).ravel()


def test_crop_matrix_stretches_the_box_to_the_crop() -> None:
    """Would catch a box that is squared although the method stretches it."""
    np.testing.assert_allclose(visible_part(crop(), [10, 20, 60, 40]), [10, 20, 60, 40])


def test_crop_matrix_scales_about_the_centre_of_the_box() -> None:
    """Would catch a scale that keeps the top-left corner, and 1.1 read as 10 % a side."""
    np.testing.assert_allclose(visible_part(crop(scale=1.1), [0, 100, 200, 200]), [-10, 95, 210, 205])


def test_crop_matrix_of_a_square_keeps_proportions() -> None:
    """Would catch the shorter side taken for both, which cuts off faces."""
    np.testing.assert_allclose(visible_part(crop(square=True, scale=1.5), [0, 0, 40, 20]), [-10, -20, 50, 40])


def test_crop_matrix_takes_two_scales_and_a_shift() -> None:
    """Would catch a shift by the scaled box: PIPNet's demo moves the top edge down by 0.1 and the others out by 0.1."""
    box = [100.0, 200, 200, 400]
    np.testing.assert_allclose(visible_part(crop(scale=(1.2, 1.0), shift=(0, 0.1)), box), [90, 220, 210, 420])
    np.testing.assert_allclose(visible_part(crop(scale=1.2, shift=(0.1, 0)), box), [100, 180, 220, 420])


@pytest.mark.parametrize(
    ("source", "box"), [("points", [1, 2, 30, 40]), ("given", [0, 0, 50, 50]), ("image", [-0.5, -0.5, 639.5, 479.5])]
)
def test_reference_box_follows_the_source(source: BoxSource, box: list[float]) -> None:
    """Would catch sources mixed up, and missing points that spoil the box."""
    points = np.array([[1.0, 40], [30, 2], [NAN, NAN]])
    one_face = face(points, np.array([0.0, 0, 50, 50]))
    np.testing.assert_allclose(crop(box=source).reference_box(one_face, image_box(640, 480)), box)


@pytest.mark.parametrize("box", [[NAN] * 4, [5, 5, 5, 9], [9, 5, 5, 9], [0, 0, np.inf, 9], [0, 0, 9, NAN]])
def test_crop_matrix_refuses_a_box_without_area(box: list[float]) -> None:
    """Would catch a division by zero that becomes NaN in the matrix and then a black crop."""
    with pytest.raises(ValueError, match="no area; a crop needs x0 < x1 and y0 < y1"):
        crop().matrix(np.array(box, np.float64))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"size": 0}, "size=0 must"),
        ({"scale": 0.0}, "scale=0.0"),
        ({"scale": [1.2, -1.0]}, "greater than 0"),
        ({"shift": [0.1]}, "two numbers, x and y"),
        ({"scale": [1.0, 1.0, 1.0]}, "one number or two"),
    ],
)
def test_crop_refuses_invalid_options(changes: dict[str, Any], word: str) -> None:
    """Would catch a wrong list that fails only face by face, where each face is skipped as if it had no box."""
    with pytest.raises(ConfigError, match=word):
        crop(**changes)


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_crop_configs_build(file: Path) -> None:
    """Would catch a file of conf/crop whose values the class refuses."""
    crop = instantiate(OmegaConf.load(file), _convert_="all")
    assert crop.matrix(np.array([0.0, 0, 64, 32])).shape == (3, 3)


@pytest.mark.parametrize(("width", "height"), [(200, 100), (200, 101), (97, 200), (256, 256), (300, 7)])
def test_letterbox_config_shows_the_whole_photo(tmp_path: Path, width: int, height: int) -> None:
    """Would catch a border rounded for the image but not for the points, which is half a pixel when it is odd."""
    letterbox: Crop = instantiate(OmegaConf.load(CONF / "letterbox.yaml"), _convert_="all")
    path = tmp_path / "white.png"
    cv2.imwrite(str(path), np.full((height, width, 3), 255, np.uint8))
    no_points = face(np.full((3, 2), NAN), np.full(4, NAN))
    matrix = letterbox.matrix(letterbox.reference_box(no_points, image_box(*image_size(path))))
    light = cut_out(path, matrix, letterbox.size)[..., 0] / 255
    shown = bounding_box(transform_points(matrix, image_box(width, height).reshape(2, 2)))
    np.testing.assert_allclose(shown[2:] + shown[:2], 255)  # centred
    assert max(shown[2:] - shown[:2]) == pytest.approx(256)
    # The bright part of the middle row and column has the length and the centre of the shown photo.
    for profile, low, high in ((light[128], shown[0], shown[2]), (light[:, 128], shown[1], shown[3])):
        # A side that fills the crop loses up to half a pixel at each end, where interpolation includes black pixels.
        assert profile.sum() == pytest.approx(high - low, abs=1.1)
        assert (profile * np.arange(256)).sum() / profile.sum() == pytest.approx((low + high) / 2, abs=0.1)


def test_shape_crop_matches_the_reference_code() -> None:
    """Would catch the larger of the two side ratios, or the box's centre in the middle instead of the centroid.

    A loop-free copy of the steps of MarekKowalski/DeepAlignmentNetwork: the mean shape is put into the box and the
    similarity from it to the canonical shape, whose longer side is half of the crop, is the map.
    """
    mean_sides, centroid = np.array([150.02, 144.52]), np.array([0.5, 0.446])  # of meanFaceShape.npz
    crop = ShapeCrop(
        size=112, scale=2.0, square=True, shift=(0.0, -0.054), box="given", aspect=mean_sides[0] / mean_sides[1]
    )
    for box in ([10.0, 20, 110, 120], [10.0, 20, 210, 120], [-5.0, 7, 45, 207]):
        corners = np.array(box).reshape(2, 2)
        scale = ((corners[1] - corners[0]) / mean_sides).mean()
        initial = corners.mean(0) + (np.array([[0, 0], [1, 1]]) - 0.5) * mean_sides * scale  # its box
        longer = mean_sides.max()
        canonical = 55.5 + (np.array([[0, 0], [1, 1]]) - centroid) * mean_sides * 56 / longer
        np.testing.assert_allclose(transform_points(crop.matrix(np.array(box)), initial), canonical, atol=1e-9)


def test_shape_crop_refuses_to_stretch() -> None:
    """Would catch a crop whose similarity to the mean shape is none."""
    with pytest.raises(ConfigError, match="square=false: the crop around a shape is square"):
        ShapeCrop(size=112, scale=2.0, square=False, shift=(0.0, 0.0), box="points", aspect=1.0)
