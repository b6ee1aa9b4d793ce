"""Losses of PFLD (Guo et al., arXiv 1902.10859): landmark errors weighted by pose error and rarity of the face."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, distributed, nn

from facelab.bounds import Amount, Angle
from facelab.errors import ConfigError, DatasetError
from facelab.losses.regression import LandmarkLoss

CLASSES = ("profile", "frontal", "head_up", "head_down", "expression", "occlusion")
"""Names of the paper's classes of faces. A face may be in several."""


class FaceClasses(nn.Module):
    """Classifier of faces into the paper's six classes.

    A tag with the name of a class defines that class. Without the tag, the four pose classes follow from the angles,
    and no face is in ``expression`` or ``occlusion``. The paper does not define the classes. Here ``profile`` is
    a yaw beyond ``profile_yaw``, ``frontal`` a yaw within it and a pitch within ``level_pitch``, ``head_up`` and
    ``head_down`` a pitch beyond that. Without such tags every face of known pose is in at least one class.

    Args:
        profile_yaw: limit of the absolute yaw in degrees.
        level_pitch: limit of the absolute pitch in degrees.
    """

    def __init__(self, profile_yaw: Angle, level_pitch: Angle) -> None:
        super().__init__()
        self.profile_yaw, self.level_pitch = profile_yaw, level_pitch
        self.columns: dict[str, int] = {}  # class to column of its tag, if the dataset has the tag

    def resolve(self, names: Sequence[str]) -> None:
        """Find the columns of ``tags`` that are classes, by the names of the dataset's tags."""
        self.columns = {name: list(names).index(name) for name in CLASSES if name in names}

    def forward(self, tags: Tensor, pose: Tensor) -> Tensor:
        """Classify.

        Args:
            tags: ``(B, T)`` bool, columns as in :meth:`resolve`.
            pose: ``(B, 3)`` yaw, pitch, roll in degrees; a face with NaN is in no class of pose.

        Returns:
            ``(B, 6)`` bool, in the order of :data:`CLASSES`.
        """
        yaw, pitch = pose[:, 0].abs(), pose[:, 1]
        by_pose = {
            "profile": yaw > self.profile_yaw,
            "frontal": (yaw <= self.profile_yaw) & (pitch.abs() <= self.level_pitch),
            "head_up": pitch > self.level_pitch,
            "head_down": pitch < -self.level_pitch,
        }
        none = torch.zeros_like(yaw, dtype=torch.bool)
        tagged = {name: tags[:, column] for name, column in self.columns.items()}
        return torch.stack([(by_pose | tagged).get(name, none) for name in CLASSES], 1)


class ClassWeight(Protocol):
    """Weight W of a face in :class:`PFLDLoss`."""

    def count(self, classes: Tensor) -> None:
        """Compute statistics from the classes ``(F, 6)`` bool of all training faces."""
        ...

    def __call__(self, classes: Tensor, distance: Tensor) -> Tensor:
        """Compute weights ``(B,)`` from the classes ``(B, 6)`` bool and the mean errors ``(B,)`` of faces."""
        ...


class InverseFrequencyWeight(nn.Module):
    """Sum of 1 / share of the training faces over the classes of a face, as in the paper.

    The shares are computed on the training set and stored in the checkpoint. A class without a training face has weight
    0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", torch.full((len(CLASSES),), math.nan))  # until count()

    def count(self, classes: Tensor) -> None:
        """Compute the weights from the classes ``(F, 6)`` bool of all training faces."""
        counts = classes.double().sum(0)
        self.weight.copy_(torch.where(counts > 0, self.rarity(counts, len(classes)), 0))

    def rarity(self, counts: Tensor, faces: int) -> Tensor:
        """Compute the weights of the classes.

        Args:
            counts: ``(6,)`` float64, number of training faces in each class.
            faces: number of training faces.

        Returns:
            ``(6,)`` float64; any value for a class without a face.
        """
        return faces / counts

    def forward(self, classes: Tensor, distance: Tensor) -> Tensor:
        """Compute the weights of faces.

        Args:
            classes: ``(B, 6)`` bool.
            distance: not used; ``(B,)`` mean error of each face.

        Returns:
            ``(B,)`` weights.
        """
        return (classes * self.weight).sum(1)


class EffectiveNumberWeight(InverseFrequencyWeight):
    """Sum of 1 / effective number over the classes of a face (Cui et al., CVPR 2019); rare classes count for less.

    The weight of a class of n faces is ``(1 - beta) / (1 - beta ** n)``, scaled so that the weights of all classes with
    a face sum to the number of these classes.

    Args:
        beta: in [0, 1). 0: equal weights; close to 1: as :class:`InverseFrequencyWeight` except for the scale.

    Raises:
        ConfigError: ``beta`` is out of range.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        if not 0 <= beta < 1:
            raise ConfigError("beta", f"={beta} must be in [0, 1)")
        self.beta = beta

    def rarity(self, counts: Tensor, faces: int) -> Tensor:
        """Compute the weights of the classes, see :meth:`InverseFrequencyWeight.rarity`."""
        present = counts > 0
        weight = (1 - self.beta) / (1 - self.beta ** counts.clamp(min=1))
        return weight * present.sum() / torch.where(present, weight, 0).sum().clamp(min=1e-12)


class HardExampleWeight(nn.Module):
    """Weight by difficulty instead of class, similar to the focal loss (Lin et al., ICCV 2017).

    The weight is the mean error of the face divided by the running mean over faces, to the power of ``exponent``. It
    has no gradient.

    Args:
        exponent: 0 or more; with 0 all weights are 1.
        momentum: factor in [0, 1) on the old running mean; the mean of a batch has the factor ``1 - momentum``.

    Raises:
        ConfigError: ``exponent`` or ``momentum`` is out of range.
    """

    def __init__(self, exponent: float, momentum: float) -> None:
        super().__init__()
        if exponent < 0:
            raise ConfigError(
                "exponent", f"={exponent} must not be negative, because easy faces would then have the largest weights"
            )
        if not 0 <= momentum < 1:
            raise ConfigError("momentum", f"={momentum} must be in [0, 1)")
        self.exponent, self.momentum = exponent, momentum
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(()))  # 0 until the first batch

    def count(self, classes: Tensor) -> None:
        """Do nothing: the weight does not depend on classes."""

    @torch.no_grad()
    def forward(self, classes: Tensor, distance: Tensor) -> Tensor:
        """Compute the weights of faces. In training mode, update the running mean first.

        Args:
            classes: not used.
            distance: ``(B,)`` mean error of each face; NaN without an annotated point.

        Returns:
            ``(B,)`` weights.
        """
        if self.training:
            self._update_mean(distance)
        relative = distance.nan_to_num() / self.mean.clamp(min=torch.finfo(distance.dtype).tiny)
        return torch.where(self.mean > 0, relative, 1.0) ** self.exponent

    def _update_mean(self, distance: Tensor) -> None:
        """Update the running mean with the mean over the batches of all processes."""
        annotated = distance.isfinite()
        total = torch.stack([torch.where(annotated, distance, 0.0).sum(), annotated.sum()])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(total)  # otherwise each process would have a different mean
        mean = total[0] / total[1].clamp(min=1)
        updated = torch.where(self.mean > 0, self.momentum * self.mean + (1 - self.momentum) * mean, mean)
        self.mean.copy_(torch.where(total[1] > 0, updated, self.mean))


class PFLDLoss(nn.Module):
    """Landmark error of each face, times a weight for the error of its angles and a weight for its classes.

    The weight of a face is ``(floor + W) (floor + A)`` with ``A = sum over yaw, pitch, roll of 1 - cos(error)`` and W
    from ``class_weight``. Floor 0 is the paper's loss, with two consequences: angles are trained only through this
    product; a face with exact angles or without a class does not train the landmarks. With floor 1 every face counts.

    A disabled factor is 1. A face of unknown pose has A = 0.

    Args:
        points: error of the landmarks; the paper's is the sum of squares.
        by_pose: whether A is a factor.
        classes: classifier of faces.
        class_weight: W; None disables the factor.
        floor: added to W and A; 0 or 1 are the useful values.

    Attributes:
        uses_angles: whether the loss needs predicted angles.
        trains_angles: whether the loss supervises the predicted angles.

    Raises:
        ConfigError: ``floor`` is negative.
    """

    def __init__(
        self,
        points: LandmarkLoss,
        by_pose: bool,
        classes: FaceClasses,
        class_weight: ClassWeight | None,
        floor: float,
    ) -> None:
        super().__init__()
        if floor < 0:
            raise ConfigError("floor", f"={floor} must not be negative")
        self.points, self.floor = points, floor
        self.uses_angles = self.trains_angles = by_pose
        self.classes, self.class_weight = classes, class_weight

    def fit(self, names: Sequence[str], tags: Tensor, pose: Tensor) -> None:
        """Compute the weights of the classes from the annotations of the training set.

        Args:
            names: names of the dataset's tags.
            tags: ``(F, T)`` bool, tags of all training faces.
            pose: ``(F, 3)`` yaw, pitch, roll in degrees.

        Raises:
            DatasetError: the weight of every training face would be 0.
        """
        self.classes.resolve(names)
        classes = self.classes(tags, pose)
        if isinstance(self.class_weight, InverseFrequencyWeight) and not self.floor and not classes.any():
            raise DatasetError(
                f"loss: it weights faces by their classes ({', '.join(CLASSES)}), and no training face has one: all "
                "weights would be 0; choose loss=pfld_fixed or loss=l2"
            )
        if self.class_weight is not None:
            self.class_weight.count(classes)

    def forward(
        self,
        prediction: Tensor,
        target: Tensor,
        valid: Tensor,
        angles: Tensor | None,
        pose: Tensor,
        tags: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the loss.

        Args:
            prediction: ``(B, N, 2)`` fractions of the crop.
            target: ``(B, N, 2)`` fractions of the crop.
            valid: ``(B, N)`` bool, True where annotated.
            angles: ``(B, 3)`` predicted yaw, pitch, roll in radians; None without a pose branch.
            pose: ``(B, 3)`` true yaw, pitch, roll in **degrees**, NaN if unknown.
            tags: ``(B, T)`` bool, columns as in :meth:`fit`.

        Returns:
            The scalar term ``points``; 0 if nothing is annotated.
        """
        weight = torch.ones(len(prediction), device=prediction.device)
        if angles is not None and self.uses_angles:
            weight = weight * (self.floor + (1 - angle_errors(angles, pose).cos()).sum(1))
        if self.class_weight is not None:
            distance = mean_distance(prediction, target, valid)
            weight = weight * (self.floor + self.class_weight(self.classes(tags, pose), distance))
        return self.points(prediction, target, valid, weight)


class OfficialPFLDLoss(nn.Module):
    """Loss of polarisZhao/PFLD-pytorch with its errors, for comparison with that code.

    The code subtracts predicted angles from true ones in degrees and takes the cosine of the difference as radians, so
    A is noise and the angles that a pose branch learns are meaningless. The weight of a class is 1 / its share of the
    batch, and a face without a flag has weight 0.

    Args:
        flags: tags that count: all of WFLW except ``pose``, which the code skips. A tag that the dataset does not have
            counts as not set for any face.
        absent: replacement of 1 / share for a flag that no face of the batch has; the nominal batch size in the code.
    """

    uses_angles = True
    trains_angles = False

    def __init__(self, flags: Sequence[str], absent: Amount) -> None:
        super().__init__()
        self.flags, self.absent = tuple(flags), absent
        self.columns: list[int] = []  # columns of the flags that the dataset has
        self.points = LandmarkLoss(nn.MSELoss(reduction="none"), 1.0)

    def fit(self, names: Sequence[str], tags: Tensor, pose: Tensor) -> None:
        """Find the columns of the flags.

        Args:
            names: names of the dataset's tags.
            tags: ``(F, T)`` bool, tags of all training faces.
            pose: not used.

        Raises:
            DatasetError: no training face has a flag, so the weight of every face would be 0.
        """
        self.columns = [list(names).index(flag) for flag in self.flags if flag in names]
        if not tags[:, self.columns].any():
            raise DatasetError(
                f"loss: it weights faces by their flags ({', '.join(self.flags)}), and no training face has one: all "
                "weights would be 0; choose loss=pfld_fixed or loss=l2"
            )

    def forward(
        self,
        prediction: Tensor,
        target: Tensor,
        valid: Tensor,
        angles: Tensor,
        pose: Tensor,
        tags: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the loss; arguments as in :meth:`PFLDLoss.forward`."""
        known = pose.isfinite()
        difference = torch.where(
            known, angles.float() - pose.nan_to_num(), 0.0
        )  # radians minus degrees, as in the code
        flagged = tags[:, self.columns].float()  # (B, flags)
        share = flagged.mean(0)
        rarity = torch.where(share > 0, 1 / share, self.absent)
        return self.points(prediction, target, valid, (1 - difference.cos()).sum(1) * (flagged * rarity).sum(1))


def angle_errors(angles: Tensor, pose: Tensor) -> Tensor:
    """Compute the errors of predicted angles.

    Args:
        angles: ``(B, 3)`` predicted angles in radians.
        pose: ``(B, 3)`` true angles in degrees, NaN if unknown.

    Returns:
        ``(B, 3)`` radians in [-pi, pi); 0 if the true angle is unknown.

    >>> angle_errors(torch.tensor([[0.0, 3.0, 0.5]]), torch.tensor([[90.0, -180.0, math.nan]]))
    tensor([[-1.5708, -0.1416,  0.0000]])
    """
    true = torch.where(pose.isfinite(), pose, 0.0).deg2rad()
    difference = torch.where(pose.isfinite(), angles.float() - true, 0.0)
    return torch.remainder(difference + math.pi, 2 * math.pi) - math.pi


def mean_distance(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Compute the mean distance ``(B,)`` over the annotated points of each face, without gradient; NaN if none is."""
    with torch.no_grad():
        distance = torch.where(valid, (prediction.float() - target).norm(dim=-1), 0.0)
        return distance.sum(1) / valid.sum(1)
