"""Tests of the augmentation: kinds, frequencies and ranges of the random changes of a training crop."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import albumentations
import cv2
import numpy as np
import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from datamodules.augmentation import REMEDIES, Augmentation, Warp
from facelab.errors import ConfigError
from facelab.faces.geometry import Array, affine_about_centre, flip_image, transform_points

CONF = ROOT / "conf"
SIZE = 256
DRAWS = 4000
NOBODY = np.empty((0, 2))


@cache
def option(name: str) -> Augmentation:
    """Build ``augment=name``."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        built: Augmentation = instantiate(compose(f"augment/{name}").augment, _convert_="all")
    return built


def augmentation(pixels: Sequence[Any] = (), **changes: float) -> Augmentation:
    names = ("flip_probability", "shift_probability", "shift_limit", "scale_probability", "scale_limit")
    defaults: dict[str, Any] = dict.fromkeys((*names, "rotation_probability", "rotation_limit"), 0.0)
    return Augmentation(**defaults | changes, pixels=pixels)


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed or 0)


@cache
def paper_warps() -> list[Warp]:
    generator = rng(1)
    return [option("pipnet").draw(generator, SIZE, NOBODY) for _ in range(DRAWS)]


def share(flags: Any) -> float:
    return float(np.mean(flags))


def test_augment_none_changes_nothing() -> None:
    """Would catch a change that happens although its probability is 0."""
    image = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)
    for seed in range(50):
        warp = option("none").draw(rng(seed), 12, NOBODY)
        np.testing.assert_allclose(warp.matrix, np.eye(3), atol=1e-12)
        assert (warp.flipped, warp.degrees) == (False, 0.0)
        np.testing.assert_array_equal(option("none").pixels.change(rng(seed), image), image)


def test_augmentation_is_determined_by_its_generator() -> None:
    """Would catch draws from a global generator."""
    image = rng().integers(0, 256, (32, 32, 3)).astype(np.uint8)
    first, second = ([option("pipnet").draw(rng(s), SIZE, NOBODY).matrix for s in range(20)] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len({matrix.tobytes() for matrix in first}) > 15
    first, second = ([option("pipnet").pixels.change(rng(s), image) for s in range(20)] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_augmentation_flip_is_its_own_inverse() -> None:
    """Would catch a flip about another axis than the crop's middle."""
    flip = augmentation(flip_probability=1.0).draw(rng(), SIZE, NOBODY)
    assert flip.flipped
    np.testing.assert_allclose(flip.matrix @ flip.matrix, np.eye(3))
    image = rng().integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    np.testing.assert_array_equal(cv2.warpAffine(image, flip.matrix[:2], (SIZE, SIZE)), image[:, ::-1])


def test_augmentation_scales_and_rotates_about_the_centre() -> None:
    """Would catch a centre at size / 2, and a scale drawn on one side of 1 only."""
    resize = augmentation(scale_probability=1.0, scale_limit=0.2, rotation_probability=1.0, rotation_limit=40.0)
    warps = [resize.draw(rng(seed), SIZE, NOBODY) for seed in range(500)]
    centre = np.array([[(SIZE - 1) / 2] * 2])
    for warp in warps:
        np.testing.assert_allclose(transform_points(warp.matrix, centre), centre)
    factors = np.sqrt([np.linalg.det(warp.matrix[:2, :2]) for warp in warps])
    assert 0.8 <= factors.min() < 0.82
    assert 1.18 < factors.max() <= 1.2
    degrees = np.rad2deg([np.arctan2(warp.matrix[1, 0], warp.matrix[0, 0]) for warp in warps])
    np.testing.assert_allclose(degrees, [warp.degrees for warp in warps], atol=1e-6)


def test_augment_pipnet_warps_match_the_reference_code() -> None:
    """Would catch other frequencies and ranges than the reference code's, and a change of size, which it lacks.

    Flip in half of the samples, shift by up to 30 of 256 pixels in half, rotation by up to 30 degrees in half.
    """
    warps = paper_warps()
    degrees = np.array([warp.degrees for warp in warps])
    flipped = np.array([warp.flipped for warp in warps])
    shifts = np.array([shift_of(warp) for warp in warps])
    moved, turned = np.abs(shifts).max(axis=1) > 1e-6, degrees != 0
    tolerance = 4 * 0.5 / np.sqrt(DRAWS)  # four standard deviations
    for flags in (flipped, moved, turned, flipped == moved, moved == turned, turned == flipped):
        assert share(flags) == pytest.approx(0.5, abs=tolerance)  # drawn independently
    for values, limit in ((degrees[turned], 30), (shifts[moved, 0], 30), (shifts[moved, 1], 30)):
        assert 0.99 * limit < np.abs(values).max() <= 1.001 * limit
        assert np.mean(values) == pytest.approx(0, abs=1.5)
        assert np.std(values) == pytest.approx(limit / np.sqrt(3), rel=0.05)  # uniform
    assert abs(np.corrcoef(shifts[moved].T)[0, 1]) < 0.1


def shift_of(warp: Warp) -> Array:
    """Return the shift of a warp in pixels without its rotation and flip, and check that only a shift remains."""
    flip = flip_image(SIZE) if warp.flipped else np.eye(3)
    shift = np.linalg.inv(affine_about_centre(SIZE, degrees=warp.degrees) @ flip) @ warp.matrix
    np.testing.assert_allclose(shift[:2, :2], np.eye(2), atol=1e-9)
    return np.asarray(shift[:2, 2])


def test_augment_pipnet_pixels_match_the_reference_code() -> None:
    """Would catch other frequencies than the reference code's, and draws that depend on each other.

    A rectangle of one colour with sides up to 0.4 in half of the samples, blur in 30 %, grey in 20 %. With one seed for
    all transforms, as albumentations sets it, every grey image would also be blurred and partly hidden.
    """
    paper, generator, side, count = option("pipnet"), rng(2), 80, 3000
    stripes = np.zeros((side, side, 3), np.uint8)
    stripes[:, ::2] = (220, 40, 120)
    contrasts = (220, int(albumentations.ToGray(p=1.0)(image=stripes)["image"].max()))
    grey, blurred, hidden, sides = [], [], [], []
    for _ in range(count):
        image = paper.pixels.change(generator, stripes.copy()).astype(int)
        grey.append(bool((np.ptp(image, axis=2) == 0).all()))
        steps = np.abs(np.diff(image[..., 0], axis=1))
        blurred.append((steps == contrasts[grey[-1]]).mean() < 0.5)
        if grey[-1] or blurred[-1]:
            continue
        other = (image != stripes).any(axis=2)
        hidden.append(other.any())
        if hidden[-1]:
            rows, columns = np.flatnonzero(other.any(axis=1)), np.flatnonzero(other.any(axis=0))
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert other.sum() == height * width  # one rectangle
            assert len(np.unique(image[other], axis=0)) == 1  # of one colour
            sides.append((height / side, width / side))
    is_grey, is_blurred = np.array(grey), np.array(blurred)
    assert share(is_grey) == pytest.approx(0.2, abs=0.03)
    assert share(is_blurred) == pytest.approx(
        0.3 * (1 - 0.2 / 4.9), abs=0.035
    )  # a sigma below 0.3 has no visible effect
    assert share(is_grey[is_blurred]) == pytest.approx(0.2, abs=0.055)
    assert share(hidden) == pytest.approx(0.5, abs=0.05)
    assert 0.37 < np.max(sides) <= 0.4
    np.testing.assert_allclose(np.mean(sides, axis=0), 0.2, atol=0.02)
    assert abs(np.corrcoef(np.array(sides).T)[0, 1]) < 0.15


def test_augment_pipnet_blur_has_the_width_of_its_sigma() -> None:
    """Would catch a blur whose kernel is cut short, as with a fixed ``blur_limit``."""
    pixels: Any = option("pipnet").pixels
    blur = next(t for t in pixels.transforms if isinstance(t, albumentations.GaussianBlur))
    dot = np.zeros((99, 99, 3), np.uint8)
    dot[49, 49] = 255
    widest = albumentations.GaussianBlur(blur_limit=blur.blur_limit, sigma_limit=(5.0, 5.0), p=1.0)
    spread = np.asarray(widest(image=dot.astype(np.float32) / 255)["image"])[..., 0]
    x = np.arange(99)
    assert np.sqrt((spread.sum(axis=0) * (x - 49) ** 2).sum() / spread.sum()) == pytest.approx(5, rel=0.05)
    assert tuple(blur.sigma_limit) == (0.1, 5.0)


@pytest.mark.parametrize(
    "mover",
    [
        albumentations.HorizontalFlip(p=0.1),
        albumentations.Affine(p=1.0),
        albumentations.OneOf([albumentations.ToGray(), albumentations.Rotate()]),
    ],
    ids=lambda mover: type(mover).__name__,
)
def test_augmentation_refuses_spatial_transforms(mover: Any) -> None:
    """Would catch images that are rotated while their points stay, which trains without an error."""
    with pytest.raises(ConfigError, match=f"{type(mover).__name__} would move the face"):
        augmentation([mover])


@pytest.mark.parametrize(
    ("mover", "message"),
    [
        (albumentations.MotionBlur(p=0.1), "MotionBlur moves the face .* by up to 1.5 px .*allow_shifted: false"),
        (albumentations.MotionBlur(allow_shifted=False), r"direction_range: \[0, 0\]"),
        (albumentations.Downscale(), "interpolation_pair"),
        (albumentations.OneOf([albumentations.Sequential([albumentations.ZoomBlur()])]), "ZoomBlur .* leave it out"),
        (albumentations.SomeOf([albumentations.GlassBlur(), albumentations.Emboss()], n=1), "GlassBlur .*; Emboss "),
    ],
    ids=["shifted", "to one side", "nearest", "nested", "several"],
)
def test_augmentation_refuses_image_transforms_that_displace(mover: Any, message: str) -> None:
    """Would catch a blur to one side, which displaces the face from its points, and a refusal without a remedy."""
    with pytest.raises(ConfigError, match=message) as error:
        augmentation([albumentations.ToGray(), mover])
    assert error.value.key == "pixels[1]"
    assert "ToGray" not in str(error.value)


@pytest.mark.parametrize(
    "mended",
    [
        albumentations.MotionBlur(allow_shifted=False, direction_range=[0, 0]),
        albumentations.Downscale(interpolation_pair={"downscale": 3, "upscale": 1}),
    ],
    ids=lambda mended: type(mended).__name__,
)
def test_remedies_are_accepted(mended: Any) -> None:
    """Would catch a suggested remedy that is itself refused, as ``allow_shifted: false`` alone."""
    assert type(mended).__name__ in REMEDIES
    augmentation([mended])


def test_augmentation_refuses_transforms_that_need_metadata() -> None:
    """Would catch a worker that fails in the first batch with a traceback of albumentations."""
    with pytest.raises(ConfigError, match=r"HistogramMatching cannot change an image alone: .*hm_metadata"):
        augmentation([albumentations.HistogramMatching(p=0.01)])


@pytest.mark.parametrize(
    "harmless",
    [
        albumentations.ColorJitter(p=1.0),
        albumentations.CoarseDropout(p=1.0),
        albumentations.PixelDropout(p=1.0),
        albumentations.SomeOf([albumentations.ToGray(), albumentations.GaussNoise()], n=1),
    ],
    ids=lambda harmless: type(harmless).__name__,
)
def test_augmentation_accepts_pixel_transforms(harmless: Any) -> None:
    """Would catch compositions and dropouts refused together with transforms that move pixels."""
    image = rng().integers(0, 256, (32, 32, 3)).astype(np.uint8)
    changed = augmentation([harmless]).pixels.change(rng(), image)
    assert changed.shape == image.shape
    assert (changed != image).any()


def test_augmentation_refuses_normalisation() -> None:
    """Would catch pixels that are normalised twice: here and again in the network."""
    with pytest.raises(TypeError, match="networks normalise by themselves"):
        augmentation([albumentations.Normalize()]).pixels.change(rng(), np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("fault", [{"scale_limit": 1.0}, {"scale_limit": -0.1}, {"flip_probability": 50.0}])
def test_augmentation_refuses_invalid_numbers(fault: dict[str, Any]) -> None:
    """Would catch percent given as fractions, and a scale that can shrink a face to nothing."""
    with pytest.raises(ConfigError, match=r"scale_limit must be|flip_probability=50.0 must be"):
        augmentation(**fault)
