"""PFLD: A Practical Facial Landmark Detector (Guo et al., arXiv 1902.10859)."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from facelab.coders.regression import RegressionCoder
from facelab.errors import ConfigError, DatasetError
from facelab.faces.batch import LandmarkBatch
from facelab.faces.layouts import Layout
from facelab.losses.pfld import angle_errors
from facelab.networks.official import OfficialLayers
from facelab.networks.pfld import AuxiliaryNet, LiteHead, MultiScaleHead, SeparatePose, SharedPose, match_pfld_layers
from lightning_modules.landmark import LandmarkModule, Prediction

log = logging.getLogger(__name__)


@runtime_checkable
class PoseAwareLoss(Protocol):
    """Loss that needs the pose and the tags of a face besides its points."""

    uses_angles: bool
    """Whether the loss needs predicted angles."""
    trains_angles: bool
    """Whether the loss supervises the predicted angles."""

    def fit(self, names: Sequence[str], tags: Tensor, pose: Tensor) -> None:
        """Compute statistics from the tags ``(F, T)`` and the pose ``(F, 3)`` of all training faces."""
        ...


class HasAnnotations(Protocol):
    """Datamodule with the annotations that PFLD needs."""

    def annotations(self) -> tuple[Sequence[str], Tensor, Tensor]:
        """Return tag names, tags ``(F, T)`` bool and pose ``(F, 3)`` in degrees of the training faces."""
        ...


class PFLD(LandmarkModule):
    """Method that regresses landmarks from three scales, with a pose branch in training.

    The loss weights the faces by the errors of the pose branch. The landmarks do not depend on the branch: it is not
    part of :meth:`forward`, of an exported graph or of the measured cost of a face. The branch is not built if nothing
    would train it: the loss does not use angles and ``angle_weight`` is 0.

    Args:
        layout: layout of the predicted landmarks.
        backbone: network that returns a pyramid of feature maps.
        head: function of the backbone's channels and strides and the number of points that returns the head.
        pose: function of the backbone's channels and strides and the length of the head's vector that returns the pose
            branch; None for no branch.
        coder: conversion between points and fractions of the crop.
        loss: loss of the points, or a :class:`PoseAwareLoss`.
        angle_weight: weight of an additional term, the mean absolute error of the angles in radians; no effect without
            a branch; 0 in the paper.
        optimizer: see :class:`LandmarkModule`.
        scheduler: see :class:`LandmarkModule`.
        flip_test: see :class:`LandmarkModule`.

    Raises:
        ConfigError: the loss needs angles and there is no pose branch, or ``angle_weight`` is negative.
    """

    def __init__(
        self,
        layout: Layout,
        backbone: nn.Module,
        head: Callable[..., MultiScaleHead | LiteHead],
        pose: Callable[..., AuxiliaryNet | SharedPose | SeparatePose] | None,
        coder: RegressionCoder,
        loss: nn.Module | None,
        angle_weight: float,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        flip_test: bool,
    ) -> None:
        super().__init__(layout, coder, loss, optimizer, scheduler, flip_test)
        if angle_weight < 0:
            raise ConfigError("angle_weight", f"={angle_weight} must not be negative")
        parts: dict[str, Any] = {"channels": backbone.channels, "strides": backbone.strides}
        self.backbone, self.angle_weight = backbone, angle_weight
        self.head: Any = head(**parts, num_points=layout.num_points)
        needed = isinstance(loss, PoseAwareLoss) and loss.uses_angles
        if needed and pose is None:
            raise ConfigError(
                "pose",
                "=none: the loss weights faces by predicted angles; choose a branch (pose=auxiliary) or another loss "
                "(loss=l2, or loss.by_pose=false)",
            )
        if pose is not None and not needed and not angle_weight:
            log.info("the pose branch is not built: the loss does not use angles; model.angle_weight=1 would train it")
            pose = None
        if pose is None and angle_weight:
            log.info("model.angle_weight=%s has no effect: there is no pose branch", angle_weight)
        self.pose = None if pose is None else pose(**parts, vector_size=self.head.vector_size)
        self.predicts_pose = bool(angle_weight) or (isinstance(loss, PoseAwareLoss) and loss.trains_angles)

    def fit_statistics(self, datamodule: HasAnnotations) -> None:
        """Compute the statistics of the loss from the annotations of the training faces.

        Raises:
            DatasetError: there is a pose branch and no training face has a pose.
        """
        names, tags, pose = datamodule.annotations()
        if self.pose is not None and not pose.isfinite().any():
            raise DatasetError(
                "no training face has a pose, neither labelled nor estimated from its points; use pose=none "
                "and a loss that needs no angles, such as loss=l2"
            )
        if isinstance(self.loss, PoseAwareLoss):
            self.loss.fit(names, tags, pose)

    def official(self) -> OfficialLayers:
        """Return the correspondence of the layers and those of the public codes; see :func:`match_pfld_layers`."""
        return match_pfld_layers(self.backbone, self.head)

    def forward(self, image: Tensor) -> Tensor:
        """Predict the landmarks ``(B, N, 2)`` of crops ``(B, 3, H, W)`` uint8 as fractions of the crop."""
        points, _ = self.head(self.backbone(image))
        return points

    def training_step(self, batch: LandmarkBatch, batch_index: int) -> Tensor:
        """Compute the sum of the loss terms of a batch and, if ``angle_weight`` is set, the error of the angles."""
        target = self.coder.encode(batch.points, batch.valid, batch.image.shape[-1])
        features = self.backbone(batch.image.contiguous(memory_format=self.memory_format))
        points, vector = self.head(features)
        angles = None if self.pose is None else self.pose(features, vector)
        extra = (angles, batch.pose, batch.tags) if isinstance(self.loss, PoseAwareLoss) else ()
        terms = dict(self.loss(points, target, batch.valid, *extra))
        if self.angle_weight and angles is not None:
            has_pose = batch.valid.any(1, keepdim=True) & batch.pose.isfinite()  # (B, 3)
            errors = torch.where(has_pose, angle_errors(angles, batch.pose).abs(), 0.0)
            terms["angles"] = self.angle_weight * errors.sum() / has_pose.sum().clamp(min=1)
        return self.total(terms, batch)

    def predict(self, image: Tensor) -> Prediction:
        """Predict landmarks and pose, see :meth:`LandmarkModule.predict`. The flip test does not change the pose.

        The pose is None without a pose branch, or if the loss does not supervise its angles.
        """
        if self.pose is None or not self.predicts_pose:
            return self.predict_points(image)
        image = image.contiguous(memory_format=self.memory_format)
        features = self.backbone(image)
        points, vector = self.head(features)
        prediction = self.with_flip_test(Prediction(*self.coder.decode(points)), image)
        return prediction._replace(pose=self.pose(features, vector).float().rad2deg())
