"""Datamodule and augmentation of PFLD."""

from collections.abc import Sequence
from typing import Annotated, Literal

import albumentations
import numpy as np
import torch
from annotated_types import Le
from torch import Tensor

from datamodules.augmentation import UNCHANGED, Augmentation, Warp
from datamodules.landmark import FaceDataset, LandmarkDataModule
from datamodules.reading import MissingBoxError
from facelab.bounds import Angle, Count, Processes, Share
from facelab.errors import ConfigError, ImageError
from facelab.faces.crop import Crop
from facelab.faces.face import Annotations, Split
from facelab.faces.geometry import Array, affine_about_centre, bounding_box, flip_image, from_cells, transform_points
from facelab.faces.pose import estimate_pose, official_pnp

PoseTarget = Literal["labelled", "estimated", "official_pnp"]
"""Sources of the pose that the pose branch learns, see :class:`PFLDDataModule`."""
MAX_DRAWS = 512
"""Maximum number of draws per face. If no square contains all its points, the face stays unchanged. About 3 of 10
squares contain all points."""
DRAWS_PER_ROUND = 16
"""Number of draws computed at once; single draws are slow."""


class SquaresAroundFace(Augmentation):
    """Augmentation of the public codes of PFLD, which write copies of photos before training; here drawn per sample.

    A face is unchanged with ``clean_probability``. Otherwise a random point near the centre of its points is drawn. The
    face is rotated about this point and cut out by a square around it. The side of the square is uniform between
    ``smallest`` times the shorter and ``largest`` times the longer side of the box of the rotated points. A square that
    does not contain all points is drawn again. Then the face is flipped with ``flip_probability``.

    Departures from polarisZhao/PFLD-pytorch: angles and pixels are not rounded to whole numbers; the photo is
    interpolated once, not twice; that code cuts off a rotated photo outside a canvas of 1.1 times its size.

    Args:
        clean_probability: probability of no change.
        flip_probability: probability of a horizontal flip of a changed face.
        shift_limit: largest distance of the point from the centre of the box of the points, independent in x and y, as
            a fraction of the longer side of that box.
        smallest: factor of the smallest square, see above.
        largest: factor of the largest square, see above.
        rotation_limit: degrees; the angle is uniform in +-``rotation_limit``.
        pixels: see :class:`Augmentation`.

    Raises:
        ConfigError: a probability or a factor is out of range, or as in :class:`Augmentation`.
    """

    def __init__(
        self,
        clean_probability: float,
        flip_probability: float,
        shift_limit: Share,
        smallest: float,
        largest: Annotated[float, Le(10)],
        rotation_limit: Angle,
        pixels: Sequence[albumentations.BasicTransform | albumentations.BaseCompose],
    ) -> None:
        super().__init__(flip_probability, 0.0, shift_limit, 0.0, 0.0, 0.0, rotation_limit, pixels)
        if not 0 <= clean_probability <= 1:
            raise ConfigError("clean_probability", f"={clean_probability} must be in [0, 1]")
        if not 0 < smallest <= largest:
            raise ConfigError("smallest", f"={smallest} must be over 0 and not over largest={largest}")
        if largest <= 1:
            raise ConfigError("largest", f"={largest} must be over 1: no square would contain all points")
        self.clean_probability, self.smallest, self.largest = clean_probability, smallest, largest

    def draw(self, rng: np.random.Generator, size: int, points: Array) -> Warp:
        """Draw the affine map of a crop of ``size`` x ``size`` pixels with ``points`` ``(N, 2)``."""
        clean, flip = rng.random(2)
        annotated = points[np.isfinite(points).all(axis=1)].astype(np.float64)
        if clean < self.clean_probability or len(annotated) < 2:
            return UNCHANGED
        corner, far = bounding_box(annotated).reshape(2, 2).astype(np.float64)
        reach = self.shift_limit * (far - corner).max()
        middle = from_cells(np.full(2, 0.5), size)
        for _ in range(MAX_DRAWS // DRAWS_PER_ROUND):
            degrees = rng.uniform(-1, 1, DRAWS_PER_ROUND) * self.rotation_limit
            centres = (corner + far) / 2 + rng.uniform(-reach, reach, (DRAWS_PER_ROUND, 2))
            rotated = _rotate(annotated, centres, degrees)  # (T, n, 2) relative to the centres
            sides = np.ptp(rotated, axis=1)  # (T, 2)
            least, most = self.smallest * sides.min(axis=1), self.largest * sides.max(axis=1)
            side = least + rng.random(DRAWS_PER_ROUND) * (most - least)
            accepted = np.flatnonzero(2 * np.abs(rotated).max(axis=(1, 2)) <= side)
            if len(accepted) and side[accepted[0]] > 0:
                draw = accepted[0]
                to_middle = affine_about_centre(size, shift=tuple(middle - centres[draw]))
                matrix = affine_about_centre(size, float(degrees[draw]), float(size / side[draw])) @ to_middle
                if flip < self.flip_probability:
                    # a rotation followed by a flip is a flip followed by the opposite rotation
                    return Warp(flip_image(size) @ matrix, True, -float(degrees[draw]))
                return Warp(matrix, False, float(degrees[draw]))
        return UNCHANGED


def _rotate(points: Array, centres: Array, degrees: Array) -> Array:
    """Rotate points ``(n, 2)`` clockwise about each of the centres ``(T, 2)``.

    Returns:
        ``(T, n, 2)`` relative to the centres.
    """
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    rotation = np.stack([np.stack([c, s], -1), np.stack([-s, c], -1)], -2)  # (T, 2, 2), multiplies rows from the right
    return (points - centres[:, None]) @ rotation


class PFLDDataModule(LandmarkDataModule):
    """Faces for PFLD, whose pose branch learns labelled or estimated angles.

    ``pose`` changes only the training faces. Validation and test use the labels of the dataset, if it has them.

    Args:
        data: see :class:`LandmarkDataModule`.
        crop: see :class:`LandmarkDataModule`.
        augment: see :class:`LandmarkDataModule`.
        batch_size: see :class:`LandmarkDataModule`.
        num_workers: see :class:`LandmarkDataModule`.
        seed: see :class:`LandmarkDataModule`.
        test_split: see :class:`LandmarkDataModule`.
        max_unreadable: see :class:`LandmarkDataModule`.
        pose: pose of the training faces. ``labelled``: the label, or an estimate if there is none; ``estimated``: the
            estimate (a fit of 14 points) for all faces; ``official_pnp``: the estimate that the public codes of PFLD
            intend, in the crop before augmentation.
    """

    def __init__(
        self,
        data: Annotations,
        crop: Crop,
        augment: Augmentation | None,
        batch_size: Count,
        num_workers: Processes,
        seed: int,
        test_split: Split,
        max_unreadable: float,
        pose: PoseTarget,
    ) -> None:
        super().__init__(data, crop, augment, batch_size, num_workers, seed, test_split, max_unreadable)
        self.pose = pose

    def setup(self, stage: str) -> None:
        """Read the annotations that this stage needs; see :class:`LandmarkDataModule`."""
        new = "train" not in self.faces
        super().setup(stage)
        if new and "train" in self.faces and self.pose != "labelled":
            train = self.faces["train"]
            train.pose = self._estimated_poses(train)
            train.pose_source = "none" if np.isnan(train.pose).all() else "estimated"

    def _estimated_poses(self, train: FaceDataset) -> Array:
        """Estimate the poses ``(F, 3)`` in degrees from the landmarks."""
        if self.pose == "estimated":
            return estimate_pose(np.stack([face.points for face in train.faces]), train.layout)
        return official_pnp(np.stack([_in_crop(train, row) for row in range(len(train))]), train.layout, self.crop.size)

    def annotations(self) -> tuple[Sequence[str], Tensor, Tensor]:
        """Return the annotations of the training faces except their points.

        Returns:
            Names of the tags, ``(F, T)`` bool tags, and ``(F, 3)`` yaw, pitch, roll in degrees.
        """
        train = self.faces["train"]
        return self.data.tags, train.tags, torch.from_numpy(train.pose)


def _in_crop(train: FaceDataset, row: int) -> Array:
    """Return the points ``(N, 2)`` of a face in pixels of its unaugmented crop; NaN if it cannot be cut out."""
    try:
        return transform_points(train.to_crop(row), train.faces[row].points.astype(np.float64))
    except (MissingBoxError, ImageError):
        return np.full(
            (train.layout.num_points, 2), np.nan
        )  # the face is logged and left out when its sample is loaded
