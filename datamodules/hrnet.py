"""Training data of HRNet."""

from collections.abc import Sequence

import albumentations
import numpy as np

from datamodules.augmentation import Augmentation, Warp
from datamodules.landmark import LandmarkDataModule
from facelab.bounds import Angle
from facelab.faces.geometry import Array, affine_about_centre, flip_image


class HRNetDataModule(LandmarkDataModule):
    """Datamodule of HRNet and other heatmap networks, which need no statistics of the training set."""


class ResizedCrop(Augmentation):
    """Augmentation of the reference code: a random side of the crop, a rotation and a flip.

    The side is multiplied by a factor uniform in 1 +- ``scale_limit``, for every face; the face becomes smaller where
    the crop becomes larger. (:class:`Augmentation` draws the size of the face uniformly.) Departure from
    HRNet/HRNet-Facial-Landmark-Detection: the photo is flipped about its centre, where that code shifts it by one pixel
    against its points, and all changes are one interpolation.

    Args:
        flip_probability: probability of a left-right flip.
        scale_limit: largest relative change of the side; below 1.
        rotation_probability: probability of a rotation about the crop's centre, uniform in +-``rotation_limit``.
        rotation_limit: largest angle in degrees.
        pixels: see :class:`Augmentation`.

    Raises:
        ConfigError: as in :class:`Augmentation`.
    """

    def __init__(
        self,
        flip_probability: float,
        scale_limit: float,
        rotation_probability: float,
        rotation_limit: Angle,
        pixels: Sequence[albumentations.BasicTransform | albumentations.BaseCompose],
    ) -> None:
        super().__init__(
            flip_probability=flip_probability,
            shift_probability=0.0,
            shift_limit=0.0,
            scale_probability=1.0,
            scale_limit=scale_limit,
            rotation_probability=rotation_probability,
            rotation_limit=rotation_limit,
            pixels=pixels,
        )

    def draw(self, rng: np.random.Generator, size: int, points: Array) -> Warp:
        """Draw the change of a crop of ``size`` x ``size`` pixels; the points do not matter."""
        flip, turn = rng.random(2)
        side, angle = rng.uniform(-1, 1, 2)
        degrees = float(angle * self.rotation_limit) if turn < self.rotation_probability else 0.0
        matrix = affine_about_centre(size, degrees, 1 / (1 + float(side * self.scale_limit)))
        if flip < self.flip_probability:
            return Warp(matrix @ flip_image(size), True, degrees)
        return Warp(matrix, False, degrees)
