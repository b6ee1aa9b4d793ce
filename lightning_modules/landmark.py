"""Base class of the landmark methods: training, validation, test and prediction steps."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from facelab.faces.batch import LandmarkBatch
from facelab.faces.geometry import flip_image, transform_points
from facelab.faces.layouts import Layout
from facelab.metrics import landmarks
from facelab.metrics.face_errors import FaceErrors
from facelab.metrics.face_table import FaceTable
from facelab.metrics.landmarks import Definition
from lightning_modules.method import MethodModule


class Prediction(NamedTuple):
    """Prediction of a landmark method for a batch of crops."""

    points: Tensor  # (B, N, 2) float32
    confidence: Tensor  # (B, N) in [0, 1]; the meaning depends on the coder
    pose: Tensor | None = None  # (B, 3) yaw, pitch, roll of the head in degrees; None if not requested or not predicted


class LandmarkModule(MethodModule):
    """Base class of the landmark methods. A method builds its network and may override ``training_step``.

    Training computes ``encode -> forward -> loss``, all other steps ``forward -> decode``. ``table`` contains the
    errors of every face.

    Args:
        layout: layout of the predicted landmarks.
        coder: conversion between points and the output of the network.
        loss: function of prediction, target and valid; see :class:`MethodModule`.
        optimizer: see :class:`MethodModule`.
        scheduler: see :class:`MethodModule`.
        flip_test: whether to average the points with those of the flipped crop.

    Attributes:
        predicts_pose: whether :meth:`predict` returns a pose.
    """

    in_progress_bar = "nme_box"  # also the metric that methods monitor, because every layout has it
    predicts_pose = False
    table: FaceTable
    flip: Tensor  # (N,) int64

    def __init__(
        self,
        layout: Layout,
        coder: nn.Module,
        loss: nn.Module | None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        flip_test: bool,
    ) -> None:
        super().__init__(loss, optimizer, scheduler)
        self.layout, self.flip_test = layout, flip_test
        self.coder: Any = coder  # nn.Module has no types for encode and decode
        self.register_buffer("flip", torch.tensor(layout.flip), persistent=False)

    def collector(self, tags: tuple[str, ...]) -> FaceErrors:
        """Build the metric that collects the errors of an epoch; see :class:`MethodModule`."""
        return FaceErrors(self.layout, tags)

    def training_step(self, batch: LandmarkBatch, batch_index: int) -> Tensor:
        """Compute the sum of the loss terms of a batch."""
        target = self.coder.encode(batch.points, batch.valid, batch.image.shape[-1])
        image = batch.image.contiguous(memory_format=self.memory_format)
        return self.total(self.loss(self(image), target, batch.valid), batch)

    def predict(self, image: Tensor) -> Prediction:
        """Predict all outputs of the method for crops.

        Args:
            image: ``(B, 3, H, W)`` uint8 RGB.

        Returns:
            Points in pixels of ``image``, and the pose if the method predicts it.
        """
        return self.predict_points(image)

    def predict_points(self, image: Tensor) -> Prediction:
        """Predict only the landmarks of crops. The export and the cost of a face contain this and nothing else.

        Args:
            image: ``(B, 3, H, W)`` uint8 RGB.

        Returns:
            Points in pixels of ``image``.
        """
        image = image.contiguous(memory_format=self.memory_format)
        return self.with_flip_test(Prediction(*self.coder.decode(self(image))), image)

    def with_flip_test(self, prediction: Prediction, image: Tensor) -> Prediction:
        """Average the points and confidence with those of the flipped crops if ``flip_test``; the pose is unchanged."""
        if not self.flip_test:
            return prediction
        return self.average(prediction, Prediction(*self.coder.decode(self(image.flip(-1)))), image.shape[-1])

    def average(self, prediction: Prediction, flipped: Prediction, width: int) -> Prediction:
        """Average the points and confidence of crops of a width in pixels with those predicted on the flipped crops."""
        back = torch.as_tensor(flip_image(width), dtype=torch.float32, device=flipped.points.device)
        points = transform_points(back, flipped.points)[:, self.flip]
        confidence = flipped.confidence[:, self.flip]
        return prediction._replace(
            points=(prediction.points + points) / 2, confidence=(prediction.confidence + confidence) / 2
        )

    def validation_step(  # type: ignore[override]
        self, batch: LandmarkBatch, batch_index: int
    ) -> Prediction:
        """Predict a batch and update the metric. Callbacks use the returned prediction."""
        prediction = self.predict(batch.image)
        self.errors.update(prediction.points, batch, prediction.pose)
        return prediction

    def test_step(  # type: ignore[override]
        self, batch: LandmarkBatch, batch_index: int
    ) -> Prediction:
        """Predict a batch and update the metric, see :meth:`validation_step`."""
        return self.validation_step(batch, batch_index)

    def example(self, tags: tuple[str, ...]) -> FaceTable:
        """Build a table of a few faces for the names of the metrics; see :class:`MethodModule`."""
        return landmarks.example(self.layout, tags, predicts_pose=self.predicts_pose)

    def metrics(self, table: FaceTable) -> dict[str, Definition]:
        """Define the metrics of a table by name. A method may add others that only it has."""
        return landmarks.definitions(table)

    def protocol(self) -> dict[str, Any]:
        """Return the settings of the method that must be equal for two results to be comparable."""
        return {"flip_test": self.flip_test}

    def predict_step(self, batch: LandmarkBatch, batch_index: int) -> Prediction:
        """Predict a batch in pixels of the photos."""
        prediction = self.predict(batch.image)
        return prediction._replace(points=self.map_to_photo(prediction.points, batch.to_photo))

    def map_to_photo(self, points: Tensor, to_photo: Tensor) -> Tensor:
        """Convert points from pixels of the crop to pixels of the photo.

        Args:
            points: ``(..., N, 2)``.
            to_photo: ``(..., 3, 3)``.

        Returns:
            ``(..., N, 2)``.
        """
        return transform_points(to_photo, points)
