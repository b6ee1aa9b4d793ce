"""How PFLD is fed."""

from collections.abc import Sequence
from typing import Annotated, Literal

import albumentations
import numpy as np
import torch
from annotated_types import Le
from torch import Tensor

from datamodules.augmentation import UNCHANGED, Augmentation, Warp
from datamodules.landmark import FaceDataset, LandmarkDataModule, MissingBoxError
from facelab.bounds import Angle, Count, Processes, Share
from facelab.errors import ConfigError, ImageError
from facelab.faces.crop import Crop
from facelab.faces.face import Annotations, Split
from facelab.faces.geometry import Array, affine_about_centre, bounding_box, flip_image, from_cells, transform_points
from facelab.faces.pose import estimate_pose, official_pnp

PoseTarget = Literal["labelled", "estimated", "official_pnp"]
ATTEMPTS = 512
"""Draws after which a face is left as it is. About three of ten hold all points."""
TOGETHER = 16
"""Draws made at a time, since one by one they are slow."""


class SquaresAroundFace(Augmentation):
    """The copies that the public codes of PFLD make of each photo before training, drawn anew each time instead.

    A face stays as it is, or is turned and cut out by another square: about a point near the middle of its points it
    is turned, and that point becomes the middle of a square whose side lies between ``smallest`` times the shorter and
    ``largest`` times the longer side of the box of the turned points. What does not hold all points is drawn again.
    Then it is flipped with a probability of its own.

    Departures from polarisZhao/PFLD-pytorch: angles and pixels are not whole numbers; there is one interpolation and
    not two; nothing is lost where the turned photo would leave a canvas of 1.1 times its size.

    Args:
        clean_probability: of no change at all.
        flip_probability: left-right, of the others.
        shift_limit: of that point from the middle of the box of the points, x and y apart, as a fraction of the longer
            side of that box.
        smallest: see above.
        largest: see above.
        rotation_limit: degrees, uniform to both sides.
        pixels: see :class:`Augmentation`.

    Raises:
        ConfigError: a probability or a side is out of range, or as in :class:`Augmentation`.
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
            raise ConfigError("largest", f"={largest} must be over 1: no square would hold all points")
        self.clean_probability, self.smallest, self.largest = clean_probability, smallest, largest

    def draw(self, rng: np.random.Generator, size: int, points: Array) -> Warp:
        """Draw the change of a crop of ``size`` x ``size`` pixels with ``points`` ``(N, 2)``."""
        clean, flip = rng.random(2)
        known = points[np.isfinite(points).all(axis=1)].astype(np.float64)
        if clean < self.clean_probability or len(known) < 2:
            return UNCHANGED
        corner, far = bounding_box(known).reshape(2, 2).astype(np.float64)
        reach = self.shift_limit * (far - corner).max()
        middle = from_cells(np.full(2, 0.5), size)
        for _ in range(ATTEMPTS // TOGETHER):
            degrees = rng.uniform(-1, 1, TOGETHER) * self.rotation_limit
            centres = (corner + far) / 2 + rng.uniform(-reach, reach, (TOGETHER, 2))
            turned = _turned(known, centres, degrees)  # (T, n, 2) seen from the centres
            sides = np.ptp(turned, axis=1)  # (T, 2)
            least, most = self.smallest * sides.min(axis=1), self.largest * sides.max(axis=1)
            side = least + rng.random(TOGETHER) * (most - least)
            holding = np.flatnonzero(2 * np.abs(turned).max(axis=(1, 2)) <= side)
            if len(holding) and side[holding[0]] > 0:
                one = holding[0]
                to_middle = affine_about_centre(size, shift=tuple(middle - centres[one]))
                matrix = affine_about_centre(size, float(degrees[one]), float(size / side[one])) @ to_middle
                if flip < self.flip_probability:
                    # turned one way and then flipped is flipped and then turned the other way
                    return Warp(flip_image(size) @ matrix, True, -float(degrees[one]))
                return Warp(matrix, False, float(degrees[one]))
        return UNCHANGED


def _turned(points: Array, centres: Array, degrees: Array) -> Array:
    """Points ``(n, 2)`` turned clockwise about each of the centres ``(T, 2)``, seen from there, ``(T, n, 2)``."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.stack([np.stack([c, s], -1), np.stack([-s, c], -1)], -2)  # (T, 2, 2), for rows from the right
    return (points - centres[:, None]) @ turn


class PFLDDataModule(LandmarkDataModule):
    """Faces for PFLD, whose branch for the pose learns labelled angles or angles found from the landmarks.

    Only what is learned changes: validation and test go by the dataset's labels, where it has them.

    Args:
        data: see :class:`LandmarkDataModule`, as all but ``pose``.
        crop: see there.
        augment: see there.
        batch_size: see there.
        num_workers: see there.
        seed: see there.
        test_split: see there.
        max_unreadable: see there.
        pose: of the training faces. ``labelled``: the dataset's, and an estimate where it has none; ``estimated``: that
            estimate for all (a fit of 14 points); ``official_pnp``: as the public codes of PFLD mean to find them, in
            the unchanged crop.
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
            train.pose = self._found(train)
            train.pose_source = "none" if np.isnan(train.pose).all() else "estimated"

    def _found(self, train: FaceDataset) -> Array:
        """Poses from the landmarks alone, ``(F, 3)`` degrees."""
        if self.pose == "estimated":
            return estimate_pose(np.stack([face.points for face in train.faces]), train.layout)
        return official_pnp(np.stack([_in_crop(train, row) for row in range(len(train))]), train.layout, self.crop.size)

    def annotations(self) -> tuple[Sequence[str], Tensor, Tensor]:
        """What is known of the training faces beside their points.

        Returns:
            Names of the tags, ``(F, T)`` bool tags, and ``(F, 3)`` yaw, pitch, roll in degrees.
        """
        train = self.faces["train"]
        return self.data.tags, train.tags, torch.from_numpy(train.pose)


def _in_crop(train: FaceDataset, row: int) -> Array:
    """The points of a face in pixels of its unchanged crop, ``(N, 2)``; NaN if it cannot be cut out."""
    try:
        return transform_points(train.to_crop(row), train.faces[row].points.astype(np.float64))
    except (MissingBoxError, ImageError):
        return np.full((train.layout.num_points, 2), np.nan)  # it is reported and left out when it is asked for
