"""Random augmentation of a training sample: one affine map, then transforms of the pixels."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import albumentations
import numpy as np
from albumentations.augmentations.dropout.transforms import BaseDropout

from datamodules.displacement import DRAWS, displacement
from facelab.bounds import Angle, Share
from facelab.errors import ConfigError
from facelab.faces.geometry import Array, affine_about_centre, flip_image

Transform: TypeAlias = albumentations.BasicTransform | albumentations.BaseCompose
PIXEL_TRANSFORMS = (albumentations.ImageOnlyTransform, BaseDropout, albumentations.PixelDropout, albumentations.NoOp)
"""Classes of transforms that change or mask pixels in place; all others may move the face."""
MAX_DISPLACEMENT = 0.5
"""Largest displacement of the face by a transform of ``pixels``, in pixels. With default arguments transforms measure
either at most 0.2 or at least 1.0, see :func:`displacement`."""
REMEDIES = {
    "MotionBlur": "allow_shifted: false with direction_range: [0, 0] blurs symmetrically",
    "Downscale": "interpolation_pair: {downscale: 3, upscale: 1} averages pixels; nearest neighbours shift them",
}
"""Arguments that keep the face in place, by the class name of a transform."""


class Warp(NamedTuple):
    """Affine map drawn for one crop, with the flip and the rotation that the labels need."""

    matrix: Array  # (3, 3) float64, pixels of the crop to pixels of the augmented crop
    flipped: bool
    degrees: float  # clockwise, after the flip


UNCHANGED = Warp(np.eye(3), flipped=False, degrees=0.0)
"""Identity map: the crop is not changed."""


class PixelChanges:
    """Random changes of the pixels of a training image that leave the face in place.

    Args:
        transforms: albumentations transforms (each with its own ``p``) or compositions that change only the image.
            :func:`displacement` measures how far each moves the face.

    Raises:
        ConfigError: a transform moves pixels or needs other inputs than an image.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        _check_pixels(transforms)
        self.transforms = albumentations.Compose(list(transforms)) if transforms else None

    def change(self, rng: np.random.Generator, image: Array) -> Array:
        """Apply the transforms to an RGB image ``(H, W, 3)`` uint8.

        Raises:
            TypeError: the result has another shape or dtype.
        """
        if self.transforms is None:
            return image
        # Without a new state per sample all forked workers would repeat the parent's draws in every epoch, because
        # albumentations 2.0.8 seeds itself once. All transforms share one generator: ``set_random_seed`` gives each
        # transform a generator of the same seed, and all would make the same draws.
        self.transforms.set_random_state(rng, random.Random(int(rng.integers(2**32))))
        changed = np.asarray(self.transforms(image=image)["image"])
        if changed.shape != image.shape or changed.dtype != np.uint8:
            raise TypeError(
                f"augment.pixels convert an image {image.shape} uint8 to {changed.shape} {changed.dtype}; leave out "
                f"normalisation and resizing: networks normalise by themselves"
            )
        return changed


class Augmentation:
    """Random augmentation of a training crop. Each transform is applied independently with its probability.

    Flip, rotation, scale and shift are one matrix, so the photo is interpolated once and the points are exact; points
    outside the crop keep their true position. Albumentations is used only for pixels: its geometric transforms do not
    swap left and right points, may drop points and do not return their matrix.

    Args:
        flip_probability: probability of a horizontal flip.
        shift_probability: probability of a shift, uniform in +-``shift_limit``, independent in x and y.
        shift_limit: fraction of the crop's side.
        scale_probability: probability of a scaling about the crop's centre, by a factor uniform in 1 +-
            ``scale_limit``.
        scale_limit: largest change of the factor, in [0, 1).
        rotation_probability: probability of a rotation about the crop's centre, uniform in +-``rotation_limit``.
        rotation_limit: degrees.
        pixels: see :class:`PixelChanges`.

    Raises:
        ConfigError: a probability or ``scale_limit`` is out of range, or as in :class:`PixelChanges`.
    """

    def __init__(
        self,
        flip_probability: float,
        shift_probability: float,
        shift_limit: Share,
        scale_probability: float,
        scale_limit: float,
        rotation_probability: float,
        rotation_limit: Angle,
        pixels: Sequence[Transform],
    ) -> None:
        if not 0 <= scale_limit < 1:
            raise ConfigError("scale_limit", f" must be in [0, 1), got {scale_limit}")
        for key, probability in (
            ("flip_probability", flip_probability),
            ("shift_probability", shift_probability),
            ("scale_probability", scale_probability),
            ("rotation_probability", rotation_probability),
        ):
            if not 0 <= probability <= 1:
                raise ConfigError(key, f"={probability} must be in [0, 1]")
        self.flip_probability = flip_probability
        self.shift_probability, self.shift_limit = shift_probability, shift_limit
        self.scale_probability, self.scale_limit = scale_probability, scale_limit
        self.rotation_probability, self.rotation_limit = rotation_probability, rotation_limit
        self.pixels = PixelChanges(pixels)

    def draw(self, rng: np.random.Generator, size: int, points: Array) -> Warp:
        """Draw the affine map of a crop of ``size`` x ``size`` pixels: shift, flip, scale and rotation in this order.

        Args:
            rng: random generator.
            size: side of the crop in pixels.
            points: ``(N, 2)`` pixels of the crop, NaN where not annotated. Not used here; subclasses may.
        """
        chances = rng.random(4)
        x, y, scale, angle = rng.uniform(-1, 1, 4)
        shifted, flipped, scaled, rotated = chances < (
            self.shift_probability,
            self.flip_probability,
            self.scale_probability,
            self.rotation_probability,
        )
        reach = self.shift_limit * size if shifted else 0.0
        matrix = affine_about_centre(size, shift=(x * reach, y * reach))
        if flipped:
            matrix = flip_image(size) @ matrix
        degrees = float(angle * self.rotation_limit) if rotated else 0.0
        factor = 1 + float(scale * self.scale_limit) if scaled else 1.0
        return Warp(affine_about_centre(size, degrees, factor) @ matrix, bool(flipped), degrees)


def _check_pixels(pixels: Sequence[Transform]) -> None:
    """Refuse transforms that move the face but not its points.

    Raises:
        ConfigError: a transform moves the face; the message contains its index, the displacement and the remedy.
    """
    for index, transform in enumerate(pixels):
        if not all(isinstance(leaf, PIXEL_TRANSFORMS) for leaf in _leaves(transform)):
            raise ConfigError(
                f"pixels[{index}]",
                f": {type(transform).__name__} would move the face but not its points; use flip, shift, scale and "
                "rotation of augment",
            )
        measured = (leaf for leaf in _leaves(transform) if isinstance(leaf, albumentations.ImageOnlyTransform))
        if faults := [fault for leaf in measured if (fault := _displacement_fault(leaf, f"pixels[{index}]"))]:
            raise ConfigError(f"pixels[{index}]", f": {'; '.join(faults)}")


def _leaves(transform: Transform) -> Iterator[albumentations.BasicTransform]:
    """Yield the transforms of a composition, at every depth."""
    if isinstance(transform, albumentations.BaseCompose):
        for inner in transform.transforms:
            yield from _leaves(inner)
    else:
        yield transform


def _displacement_fault(transform: albumentations.BasicTransform, key: str) -> str:
    """Describe the displacement of the face by a transform and its remedy; empty if the face stays in place.

    Raises:
        ConfigError: the transform fails on an image alone.
    """
    name = type(transform).__name__
    try:
        pixels = displacement(transform)
    except Exception as error:  # a transform may raise any type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(key, f": {name} cannot change an image alone: {reason}") from error
    if pixels <= MAX_DISPLACEMENT:
        return ""
    remedy = REMEDIES.get(name, f"leave it out, or give it arguments that move less than {MAX_DISPLACEMENT} px")
    return f"{name} moves the face under its points by up to {pixels:.1f} px (measured in {DRAWS} draws); {remedy}"
