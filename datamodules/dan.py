"""Training data of DAN."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from datamodules.augmentation import UNCHANGED, Augmentation, Transform, Warp
from datamodules.landmark import LandmarkDataModule, collate
from datamodules.loading import SampleLoader, start_worker
from facelab.bounds import Angle, Share
from facelab.errors import DatasetError, FacelabError
from facelab.faces.crop import Crop
from facelab.faces.geometry import Array, affine_about_centre, bounding_box, flip_image, transform_points

MAX_ROUNDS = 100
"""Largest number of rounds in which shapes are aligned to their mean; ten are usual."""
CONVERGED = 1e-6
"""Largest change of the mean shape in a round, as a share of its size, that ends the alignment."""
MIN_DEVIATION = 1.0
"""Smallest deviation of a pixel in grey levels: a pixel that is black in all crops would be divided by 0."""
MIN_FACTOR = 0.25
"""Smallest factor on the size of a perturbed shape, three standard deviations of the reference code from 1."""


class DANDataModule(LandmarkDataModule):
    """Faces for DAN and their statistics: the mean shape, and mean and deviation of the crops."""

    def statistics(self) -> tuple[Array, Array, Array]:
        """Compute the statistics of the training faces; in a distributed training one process does it for all.

        Returns:
            shape: ``(N, 2)`` float32, the mean shape as :class:`ShapeCrop` puts it into the crop.
            mean: ``(S, S)`` float32, grey levels of the perturbed crops of the first epoch; of a few batches in a
                check of all parts (``trainer=check``).
            deviation: ``(S, S)`` float32, their standard deviation, at least 1.

        Raises:
            DatasetError: a landmark is annotated in no training face, or no photo can be read.
        """
        trainer: Any = self.trainer
        if trainer is None or trainer.world_size == 1:
            return self._compute_statistics()
        outcome: Any = None
        if trainer.is_global_zero:
            try:
                outcome = self._compute_statistics()
            except FacelabError as error:  # the other processes wait, and must raise it too
                outcome = error
        outcome = trainer.strategy.broadcast(outcome)
        if isinstance(outcome, FacelabError):
            raise outcome
        return outcome

    def _compute_statistics(self) -> tuple[Array, Array, Array]:
        """Compute the statistics in this process."""
        shapes = np.stack([face.points for face in self.faces["train"].faces]).astype(np.float64)
        try:
            shape = align_shapes(shapes)
        except ValueError as error:
            raise DatasetError(f"{self.data.name}: {error}") from error
        return place_shape(shape, self.crop).astype(np.float32), *self._image_statistics()

    def _image_statistics(self) -> tuple[Array, Array]:
        """Compute mean and deviation ``(S, S)`` float32 of the grey crops."""
        faces, trainer = self.faces["train"], self.trainer
        batches = trainer.fast_dev_run if trainer else False  # type: ignore[attr-defined]
        max_faces = batches * self.batch_size if batches else len(faces)
        loader: Any = SampleLoader(
            faces,
            batch_size=self.batch_size,
            sampler=[(0, row) for row in range(len(faces))][:max_faces],  # the draws of epoch 0
            num_workers=self.num_workers,
            collate_fn=collate,
            worker_init_fn=start_worker,
            generator=torch.Generator(),
        )
        sums, squares = torch.zeros(2, self.crop.size, self.crop.size, dtype=torch.float64)
        count = 0
        for batch in loader:
            grey = batch.image[batch.valid.any(1)].double().mean(1)  # (B, S, S)
            count, sums, squares = count + len(grey), sums + grey.sum(0), squares + grey.square().sum(0)
        if not count:
            raise DatasetError(f"{self.data.name}: no training face can be read and cut out")
        mean = sums / count
        deviation = (squares / count - mean.square()).clamp(min=MIN_DEVIATION**2).sqrt()
        return mean.float().numpy(), deviation.float().numpy()


def align_shapes(shapes: Array) -> Array:
    """Compute the mean of shapes up to rotation, scale and position (generalised Procrustes analysis).

    Each shape is moved to the present mean by the similarity that fits its annotated points best.

    Args:
        shapes: ``(F, N, 2)``, NaN where not annotated. Shapes with fewer than two points are left out.

    Returns:
        ``(N, 2)`` float64 with centroid 0 and root mean square distance 1 to it, upright as the shapes are on average.

    Raises:
        ValueError: a point is annotated in no shape.
    """
    annotated = np.asarray(np.isfinite(shapes).all(-1))  # (F, N)
    usable = annotated.sum(1) >= 2
    shapes, annotated = shapes[usable], annotated[usable]
    if not annotated.any(0).all():
        missing = np.flatnonzero(~annotated.any(0)).tolist() if len(shapes) else "at all"
        raise ValueError(f"no training face has the landmarks {missing}; use a layout without them")
    shown = annotated[..., None]
    corners = bounding_box(shapes).reshape(-1, 2, 2)
    size = np.maximum((corners[:, 1] - corners[:, 0]).max(-1), np.finfo(float).tiny)
    start = _standardise(np.nanmean((shapes - corners.mean(1)[:, None]) / size[:, None, None], axis=0))
    mean = start
    for _ in range(MAX_ROUNDS):
        aligned = np.where(shown, _align(shapes, shown, mean), np.nan)
        new = _standardise(_align(np.nanmean(aligned, axis=0)[None], np.ones((1, len(mean), 1), bool), start)[0])
        change, mean = np.abs(new - mean).max(), new
        if change < CONVERGED:
            break
    return mean


def _standardise(shape: Array) -> Array:
    """Move the centroid of a shape ``(N, 2)`` to 0 and scale its root mean square distance to 1."""
    centred = shape - shape.mean(0)
    return centred / np.sqrt(np.square(centred).sum(-1).mean())


def _align(shapes: Array, shown: Array, target: Array) -> Array:
    """Move shapes ``(F, N, 2)`` by similarities nearest to a target ``(N, 2)``, using the points ``shown``."""
    points, goal = np.where(shown, shapes, 0.0), np.where(shown, target, 0.0)
    count = shown.sum(1, keepdims=True)
    centre, goal_centre = points.sum(1, keepdims=True) / count, goal.sum(1, keepdims=True) / count
    p, q = np.where(shown, points - centre, 0.0), np.where(shown, goal - goal_centre, 0.0)
    spread = np.maximum(np.square(p).sum((1, 2)), np.finfo(float).tiny)
    a = (p * q).sum((1, 2)) / spread
    b = (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]).sum(1) / spread
    matrix = np.stack([np.stack([a, b], -1), np.stack([-b, a], -1)], -2)  # (F, 2, 2), multiplies rows from the right
    return p @ matrix + goal_centre


def place_shape(shape: Array, crop: Crop) -> Array:
    """Put a shape into the crop as if its box were the reference box.

    Args:
        shape: ``(N, 2)`` in any unit.
        crop: crop of the faces.

    Returns:
        ``(N, 2)`` in pixels of the crop.
    """
    box = bounding_box(shape)
    to_crop = crop.matrix(box)
    corners = transform_points(to_crop, box.reshape(2, 2))
    sides, own = corners[1] - corners[0], box[2:] - box[:2]
    scale = (sides / own).mean()  # equal in x and y unless the crop is stretched
    return (shape - (box[:2] + box[2:]) / 2) * scale + corners.mean(0)


class ShapePerturbation(Augmentation):
    """Perturbation of the initial shape, which is a change of the crop because the network starts from one shape.

    The initial shape is shifted, scaled about its centroid and rotated about it, each by a normally distributed amount;
    the crop follows the shape. Before, the face may be flipped. Departures from MarekKowalski/DeepAlignmentNetwork:
    the shift is relative to the box of the true landmarks, where that code shifts photos of all sizes by the same
    number of pixels (0.2 of the mean shape in the crop); the factor on the size is at least 0.25; a flip moves x to
    ``width - 1 - x``.

    Args:
        flip_probability: probability of a left-right flip.
        shift_deviation: standard deviation of the shift, as a fraction of the width and height of the face.
        scale_deviation: standard deviation of the factor on the size.
        rotation_deviation: standard deviation of the angle in degrees.
        pixels: see :class:`Augmentation`.

    Raises:
        ConfigError: as in :class:`Augmentation`.
    """

    def __init__(
        self,
        flip_probability: float,
        shift_deviation: Share,
        scale_deviation: Share,
        rotation_deviation: Angle,
        pixels: Sequence[Transform],
    ) -> None:
        super().__init__(flip_probability, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, pixels)
        self.shift_deviation, self.scale_deviation = shift_deviation, scale_deviation
        self.rotation_deviation = rotation_deviation

    def draw(self, rng: np.random.Generator, size: int, points: Array) -> Warp:
        """Draw the affine map of a crop of ``size`` x ``size`` pixels with ``points`` ``(N, 2)``."""
        flipped = bool(rng.random() < self.flip_probability)
        x, y, scale, angle = rng.standard_normal(4).tolist()
        corners = bounding_box(points).astype(np.float64).reshape(2, 2)
        if not np.isfinite(corners).all():
            return UNCHANGED
        sides = corners[1] - corners[0]
        shift_x, shift_y = (self.shift_deviation * sides * (x, y)).tolist()
        factor = max(MIN_FACTOR, 1 + self.scale_deviation * scale)
        degrees = -self.rotation_deviation * angle  # the crop turns the face back by the rotation of the shape
        matrix = affine_about_centre(size, degrees, 1 / factor) @ affine_about_centre(size, shift=(-shift_x, -shift_y))
        if flipped:
            matrix = matrix @ flip_image(size)
        return Warp(matrix, flipped, degrees)
