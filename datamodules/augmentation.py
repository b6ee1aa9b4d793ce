"""Random changes of a training sample: one affine map, then changes of the pixels alone."""

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
IN_PLACE = (albumentations.ImageOnlyTransform, BaseDropout, albumentations.PixelDropout, albumentations.NoOp)
"""Classes of transforms that change the image alone or blank out a part; all others may carry pixels elsewhere."""
FARTHEST = 0.5
"""Pixels that a transform may move the face under its points. By default arguments those that stay measure 0.2 at
most and those that move 1.0 or more, see :func:`displacement`."""
REMEDIES = {
    "MotionBlur": "allow_shifted: false with direction_range: [0, 0] blurs to both sides alike",
    "Downscale": "interpolation_pair: {downscale: 3, upscale: 1} takes means, where nearest neighbours move",
}
"""Class of a transform to the arguments that keep the face in place."""


class Warp(NamedTuple):
    """A drawn affine change of a crop."""

    matrix: Array  # (3, 3) float64, crop to changed crop, both in pixels
    flipped: bool
    degrees: float  # clockwise, after the flip


UNCHANGED = Warp(np.eye(3), flipped=False, degrees=0.0)


class Augmentation:
    """What may happen to a training crop. Each change is drawn by its own coin.

    Flip, rotation, scale and shift are one matrix, so that the photo is interpolated once and the points follow
    exactly; points that leave the crop keep their true place. Albumentations then changes pixels only: it neither
    swaps left and right points nor keeps their number, nor tells its matrix.

    Args:
        flip_probability: left-right.
        shift_probability: of a shift, uniform in +-``shift_limit``, x and y apart.
        shift_limit: fraction of the crop's side.
        scale_probability: of a change of size about the crop's centre by a factor uniform in 1 +- ``scale_limit``.
        scale_limit: under 1.
        rotation_probability: of a rotation about the crop's centre, uniform in +-``rotation_limit``.
        rotation_limit: degrees.
        pixels: albumentations transforms of the image alone, each with its own ``p``; or compositions of such. How
            far each moves an image is measured on a probe.

    Raises:
        ConfigError: a probability or ``scale_limit`` is out of range, or a transform of ``pixels`` moves pixels or
            needs more than an image.
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
        _check_stays(pixels)
        self.flip_probability = flip_probability
        self.shift_probability, self.shift_limit = shift_probability, shift_limit
        self.scale_probability, self.scale_limit = scale_probability, scale_limit
        self.rotation_probability, self.rotation_limit = rotation_probability, rotation_limit
        self.pixels = albumentations.Compose(list(pixels)) if pixels else None

    def draw(self, rng: np.random.Generator, size: int, points: Array) -> Warp:
        """Draw the affine change of a crop of ``size`` x ``size`` pixels: shift, flip, scale and rotation in turn.

        Args:
            rng: where the draws come from.
            size: side of the crop in pixels.
            points: ``(N, 2)`` of the face in the crop, NaN where not annotated. Here they do not matter.
        """
        coins = rng.random(4)
        x, y, scale, angle = rng.uniform(-1, 1, 4)
        moved, flipped, scaled, turned = coins < (
            self.shift_probability,
            self.flip_probability,
            self.scale_probability,
            self.rotation_probability,
        )
        reach = self.shift_limit * size if moved else 0.0
        matrix = affine_about_centre(size, shift=(x * reach, y * reach))
        if flipped:
            matrix = flip_image(size) @ matrix
        degrees = float(angle * self.rotation_limit) if turned else 0.0
        factor = 1 + float(scale * self.scale_limit) if scaled else 1.0
        return Warp(affine_about_centre(size, degrees, factor) @ matrix, bool(flipped), degrees)

    def change_pixels(self, rng: np.random.Generator, image: Array) -> Array:
        """Change the pixels of an RGB image ``(H, W, 3)`` uint8; the points stay where they are.

        Raises:
            TypeError: a transform makes something else of it.
        """
        if self.pixels is None:
            return image
        # Forked workers would all repeat the parent's draws, epoch after epoch: albumentations 2.0.8 seeds itself once.
        # One generator for all: ``set_random_seed`` gives each transform one of its own of the same seed, and then they
        # all toss the same coin.
        self.pixels.set_random_state(rng, random.Random(int(rng.integers(2**32))))
        changed = np.asarray(self.pixels(image=image)["image"])
        if changed.shape != image.shape or changed.dtype != np.uint8:
            raise TypeError(
                f"augment.pixels make {changed.shape} {changed.dtype} of an image {image.shape} uint8; networks "
                f"normalise by themselves"
            )
        return changed


def _check_stays(pixels: Sequence[Transform]) -> None:
    """Refuse transforms that would move a face and leave its points behind.

    Raises:
        ConfigError: names the first, how far, and what to do.
    """
    for index, one in enumerate(pixels):
        if not all(isinstance(leaf, IN_PLACE) for leaf in _leaves(one)):
            raise ConfigError(
                f"pixels[{index}]",
                f": {type(one).__name__} would move the face and leave its points behind; use flip, shift, scale and "
                "rotation of augment",
            )
        measured = (leaf for leaf in _leaves(one) if isinstance(leaf, albumentations.ImageOnlyTransform))
        if faults := [fault for leaf in measured if (fault := _movement(leaf, f"pixels[{index}]"))]:
            raise ConfigError(f"pixels[{index}]", f": {'; '.join(faults)}")


def _leaves(transform: Transform) -> Iterator[albumentations.BasicTransform]:
    """List the transforms that a composition is made of."""
    if isinstance(transform, albumentations.BaseCompose):
        for inner in transform.transforms:
            yield from _leaves(inner)
    else:
        yield transform


def _movement(transform: albumentations.BasicTransform, place: str) -> str:
    """Say how far a transform moves the image, and what helps; empty where it stays.

    Raises:
        ConfigError: it cannot change an image alone.
    """
    name = type(transform).__name__
    try:
        pixels = displacement(transform)
    except Exception as error:  # what a transform raises is its own affair
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(place, f": {name} cannot change an image alone: {reason}") from error
    if pixels <= FARTHEST:
        return ""
    remedy = REMEDIES.get(name, f"leave it out, or give it arguments that move less than {FARTHEST} px")
    return f"{name} moves the face under its points by up to {pixels:.1f} px (measured in {DRAWS} draws); {remedy}"
