"""Tests of the displacement measure: transforms with a known displacement, and all of albumentations."""

import inspect
import random
from typing import Any

import albumentations
import numpy as np
import pytest

from datamodules.augmentation import MAX_DISPLACEMENT
from datamodules.displacement import displacement

MOVERS = {"Downscale", "Emboss", "GlassBlur", "MotionBlur", "ZoomBlur"}
"""Image-only transforms that displace the image with their default arguments."""
NEEDY = {"FDA", "HistogramMatching", "ImageOnlyTransform", "PixelDistributionAdaptation", "TextImage"}
"""Transforms that need more than an image, and the base class."""
ALL = {
    name
    for name, kind in vars(albumentations).items()
    if inspect.isclass(kind) and issubclass(kind, albumentations.ImageOnlyTransform)
}


def shift(x: float, y: float) -> Any:
    return albumentations.Affine(translate_px={"x": (x, x), "y": (y, y)}, interpolation=2)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (1, 0), (-1, -2), (8, 6)])
def test_displacement_is_the_length_of_a_shift(x: int, y: int) -> None:
    """Would catch a measure in other units than pixels, or one of a single axis."""
    assert displacement(shift(x, y)) == pytest.approx(np.hypot(x, y), abs=0.02)


def test_displacement_detects_scale_and_rotation() -> None:
    """Would catch the mean over the image, which is zero for a change of size and for a rotation."""
    assert displacement(albumentations.Affine(scale=(1.05, 1.05))) == pytest.approx(0.05 * np.hypot(48, 48), abs=0.4)
    assert displacement(albumentations.Rotate((2, 2))) == pytest.approx(np.deg2rad(2) * np.hypot(48, 48), abs=0.1)


@pytest.mark.parametrize(
    "harsh",
    [
        albumentations.GaussianBlur(blur_limit=0, sigma_limit=(8, 8)),
        albumentations.Blur(blur_limit=(21, 21)),
        albumentations.MotionBlur(blur_limit=(21, 21), allow_shifted=False, direction_range=(0, 0)),
        albumentations.MedianBlur(blur_limit=(15, 15)),
        albumentations.GaussNoise(std_range=(0.5, 0.8)),
        albumentations.ImageCompression(quality_range=(5, 5)),
        albumentations.Posterize(num_bits=1),
        albumentations.RandomFog(fog_coef_range=(0.9, 1.0), alpha_coef=0.2),
        albumentations.RandomRain(rain_type="heavy"),
        albumentations.RandomSnow(method="texture"),
        albumentations.RandomSunFlare(src_radius=20),
        albumentations.Spatter(mode="mud"),
        albumentations.Downscale((0.125, 0.125), interpolation_pair={"downscale": 3, "upscale": 0}),
    ],
    ids=lambda harsh: type(harsh).__name__,
)
def test_displacement_is_small_for_strong_pixel_changes(harsh: Any) -> None:
    """Would catch a strong change of the pixels that is measured as a movement and refused."""
    assert displacement(harsh) < MAX_DISPLACEMENT / 2


@pytest.mark.parametrize("name", sorted(ALL - NEEDY))
def test_displacement_classifies_every_image_transform(name: str) -> None:
    """Would catch a transform of a new version that displaces, and a probe image with false displacements."""
    measured = displacement(getattr(albumentations, name)())
    assert measured > 2 * MAX_DISPLACEMENT - 0.01 if name in MOVERS else measured < MAX_DISPLACEMENT / 2


def test_displacement_is_deterministic() -> None:
    """Would catch a random result, with which the ranks of one run would disagree."""
    assert len({displacement(albumentations.MotionBlur(blur_limit=(3, 5))) for _ in range(3)}) == 1


@pytest.mark.parametrize("name", ["GaussianBlur", "MotionBlur", "RandomFog", "Spatter"])
def test_displacement_keeps_every_rng_state(name: str) -> None:
    """Would catch a training whose draws depend on whether its transforms were measured."""
    transform = getattr(albumentations, name)(p=0.5)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)

    def draws(measured: bool) -> list[Any]:
        transform.set_random_state(np.random.default_rng(7), random.Random(7))
        np.random.seed(5)  # noqa: NPY002
        random.seed(5)
        if measured:
            displacement(transform)
        return [*(transform(image=image)["image"] for _ in range(9)), np.random.rand(), random.random()]  # noqa: NPY002

    for before, after in zip(draws(False), draws(True), strict=True):
        np.testing.assert_array_equal(before, after)
    assert transform.p == 0.5
