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
from facelab.networks.official import Official
from facelab.networks.pfld import AuxiliaryNet, LiteHead, MultiScaleHead, SeparatePose, SharedPose, official_pfld
from lightning_modules.landmark import LandmarkModule, Prediction

log = logging.getLogger(__name__)


@runtime_checkable
class PoseAwareLoss(Protocol):
    """A loss that wants to know more of a face than its points."""

    uses_angles: bool
    teaches_angles: bool

    def count(self, names: Sequence[str], tags: Tensor, pose: Tensor) -> None:
        """Take the tags ``(F, T)`` and the pose ``(F, 3)`` of all training faces."""
        ...


class HasAnnotations(Protocol):
    """The datamodule that PFLD trains with."""

    def annotations(self) -> tuple[Sequence[str], Tensor, Tensor]:
        """Names of the tags, tags ``(F, T)`` bool and pose ``(F, 3)`` in degrees of the training faces."""
        ...


class PFLD(LandmarkModule):
    """Landmarks regressed from three scales, and in training a branch that predicts the head's angles.

    By its errors the loss weighs the faces. Landmarks do not depend on it: it is no part of :meth:`forward`, and so
    neither of an exported graph nor of what is counted as the cost of a face. With a loss that does not use angles and
    ``angle_weight`` 0 nothing would train the branch, and it is not built.

    Args:
        layout: the layout that is predicted.
        backbone: a pyramid of features.
        head: finished with the backbone's channels and strides and the number of points.
        pose: the branch, finished with the backbone's channels and strides and the length of the head's vector; None
            for none.
        coder: landmarks to fractions of the crop and back.
        loss: of the points alone, or one that :class:`PoseAwareLoss`.
        angle_weight: of the mean absolute error of the angles, in radians, as a term of its own where there is a
            branch; the paper has 0.
        optimizer: see :class:`LandmarkModule`.
        scheduler: see :class:`LandmarkModule`.
        flip_test: see :class:`LandmarkModule`.

    Raises:
        ConfigError: the loss asks for angles that nothing predicts; a negative weight.
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
            raise ConfigError("angle_weight", f"={angle_weight} must not be under 0")
        parts: dict[str, Any] = {"channels": backbone.channels, "strides": backbone.strides}
        self.backbone, self.angle_weight = backbone, angle_weight
        self.head: Any = head(**parts, num_points=layout.num_points)
        needed = isinstance(loss, PoseAwareLoss) and loss.uses_angles
        if needed and pose is None:
            raise ConfigError(
                "pose",
                "=none: the loss weighs faces by predicted angles; choose a branch (pose=auxiliary) or another loss "
                "(loss=l2, or loss.by_pose=false)",
            )
        if pose is not None and not needed and not angle_weight:
            log.info("the pose branch is left out: the loss does not use angles; model.angle_weight=1 would train it")
            pose = None
        if pose is None and angle_weight:
            log.info("model.angle_weight=%s weighs nothing: there is no pose branch", angle_weight)
        self.pose = None if pose is None else pose(**parts, vector_size=self.head.vector_size)
        self.tells_pose = bool(angle_weight) or (isinstance(loss, PoseAwareLoss) and loss.teaches_angles)

    def fit_statistics(self, datamodule: HasAnnotations) -> None:
        """Show the loss what is annotated of the training faces.

        Raises:
            DatasetError: angles are to be learned, and no training face has any.
        """
        names, tags, pose = datamodule.annotations()
        if self.pose is not None and not pose.isfinite().any():
            raise DatasetError(
                "no training face has a pose, neither labelled nor from its points; use pose=none "
                "and a loss that needs no angles, such as loss=l2"
            )
        if isinstance(self.loss, PoseAwareLoss):
            self.loss.count(names, tags, pose)

    def official(self) -> Official:
        """Return the correspondence of the layers and those of the public codes; see :func:`official_pfld`."""
        return official_pfld(self.backbone, self.head)

    def forward(self, image: Tensor) -> Tensor:
        """Landmarks of crops ``(B, 3, H, W)`` uint8, ``(B, N, 2)`` as fractions of the crop."""
        points, _ = self.head(self.backbone(image))
        return points

    def training_step(self, batch: LandmarkBatch, batch_index: int) -> Tensor:
        """One step: the sum of the loss's terms and, if asked for, the error of the angles."""
        target = self.coder.encode(batch.points, batch.valid, batch.image.shape[-1])
        features = self.backbone(batch.image.contiguous(memory_format=self.memory_format))
        points, vector = self.head(features)
        angles = None if self.pose is None else self.pose(features, vector)
        more = (angles, batch.pose, batch.tags) if isinstance(self.loss, PoseAwareLoss) else ()
        terms = dict(self.loss(points, target, batch.valid, *more))
        if self.angle_weight and angles is not None:
            known = batch.valid.any(1, keepdim=True) & batch.pose.isfinite()  # (B, 3)
            errors = torch.where(known, angle_errors(angles, batch.pose).abs(), 0.0)
            terms["angles"] = self.angle_weight * errors.sum() / known.sum().clamp(min=1)
        return self.total(terms, batch)

    def predict(self, image: Tensor) -> Prediction:
        """As :meth:`LandmarkModule.predict`; the flip test does not change the pose.

        There is none without a branch, nor from one that only a loss has trained by which angles are not learned.
        """
        if self.pose is None or not self.tells_pose:
            return self.predict_points(image)
        image = image.contiguous(memory_format=self.memory_format)
        features = self.backbone(image)
        points, vector = self.head(features)
        found = self.with_flip_test(Prediction(*self.coder.decode(points)), image)
        return found._replace(pose=self.pose(features, vector).float().rad2deg())
