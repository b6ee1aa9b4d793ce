"""The losses of PFLD (Guo et al., arXiv 1902.10859): landmarks, with faces weighed by pose error and rarity."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, distributed, nn

from facelab.bounds import Amount, Angle
from facelab.errors import ConfigError, DatasetError
from facelab.losses.regression import LandmarkLoss

CLASSES = ("profile", "frontal", "head_up", "head_down", "expression", "occlusion")
"""The paper's. A face may be in several."""


class FaceClasses(nn.Module):
    """Which of the paper's six classes a face is in.

    A class that the dataset tags is what the tag says. Where it does not, the four of pose come from the angles, and
    nobody is in ``expression`` or ``occlusion``. The paper does not define the classes: profile is yaw beyond
    ``profile_yaw``; frontal is yaw within it and pitch within ``level_pitch``; head up and head down are pitch beyond.
    So every face of known pose is in one class at least.

    Args:
        profile_yaw: degrees.
        level_pitch: degrees.
    """

    def __init__(self, profile_yaw: Angle, level_pitch: Angle) -> None:
        super().__init__()
        self.profile_yaw, self.level_pitch = profile_yaw, level_pitch
        self.columns: dict[str, int] = {}  # class to the column of its tag, where the dataset has that tag

    def resolve(self, names: Sequence[str]) -> None:
        """Look up which columns of ``tags`` say a class, by the names of the dataset's tags."""
        self.columns = {name: list(names).index(name) for name in CLASSES if name in names}

    def forward(self, tags: Tensor, pose: Tensor) -> Tensor:
        """Classify.

        Args:
            tags: ``(B, T)`` bool, of the dataset that :meth:`resolve` was given.
            pose: ``(B, 3)`` yaw, pitch, roll in degrees; with NaN a face is in no class of pose.

        Returns:
            ``(B, 6)`` bool, in the order of :data:`CLASSES`.
        """
        yaw, pitch = pose[:, 0].abs(), pose[:, 1]
        of_pose = {
            "profile": yaw > self.profile_yaw,
            "frontal": (yaw <= self.profile_yaw) & (pitch.abs() <= self.level_pitch),
            "head_up": pitch > self.level_pitch,
            "head_down": pitch < -self.level_pitch,
        }
        nobody = torch.zeros_like(yaw, dtype=torch.bool)
        tagged = {name: tags[:, column] for name, column in self.columns.items()}
        return torch.stack([(of_pose | tagged).get(name, nobody) for name in CLASSES], 1)


class ClassWeight(Protocol):
    """What a face weighs besides its pose."""

    def count(self, classes: Tensor) -> None:
        """Take the classes of all training faces, ``(F, 6)`` bool."""
        ...

    def __call__(self, classes: Tensor, distance: Tensor) -> Tensor:
        """Weigh faces ``(B,)`` by their classes ``(B, 6)`` bool or their mean errors ``(B,)``."""
        ...


class InverseFrequencyWeight(nn.Module):
    """The sum over a face's classes of the reciprocal of their share of the training faces, as in the paper.

    The shares are those of the training set and stay with the checkpoint. A class without a face has no weight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", torch.full((len(CLASSES),), math.nan))  # until the training set is known

    def count(self, classes: Tensor) -> None:
        """Take the classes of all training faces, ``(F, 6)`` bool."""
        counts = classes.double().sum(0)
        self.weight.copy_(torch.where(counts > 0, self.rarity(counts, len(classes)), 0))

    def rarity(self, counts: Tensor, faces: int) -> Tensor:
        """The weight of classes with ``counts (6,)`` of so many faces, ``(6,)`` float64; of one without a face any."""
        return faces / counts

    def forward(self, classes: Tensor, distance: Tensor) -> Tensor:
        """Weigh.

        Args:
            classes: ``(B, 6)`` bool.
            distance: not used; ``(B,)`` mean error of each face.

        Returns:
            ``(B,)``.
        """
        return (classes * self.weight).sum(1)


class EffectiveNumberWeight(InverseFrequencyWeight):
    """The same by the reciprocal of a class's effective number (Cui et al., CVPR 2019): rarity counts for less.

    ``(1 - beta) / (1 - beta ** n)`` for n faces, scaled so that the weights of the classes that occur sum to their
    number.

    Args:
        beta: from 0, all alike, towards 1, as :class:`InverseFrequencyWeight` but for the scale.

    Raises:
        ConfigError: ``beta`` is out of range.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        if not 0 <= beta < 1:
            raise ConfigError("beta", f"={beta} must be in [0, 1)")
        self.beta = beta

    def rarity(self, counts: Tensor, faces: int) -> Tensor:
        """As in :class:`InverseFrequencyWeight`."""
        present = counts > 0
        weight = (1 - self.beta) / (1 - self.beta ** counts.clamp(min=1))
        return weight * present.sum() / torch.where(present, weight, 0).sum().clamp(min=1e-12)


class HardExampleWeight(nn.Module):
    """A weight by difficulty instead of class, in the manner of the focal loss (Lin et al., ICCV 2017).

    A face's mean error over the running mean of all, to the power of ``exponent``; no gradient flows through it.

    Args:
        exponent: 0 makes all faces alike.
        momentum: of the running mean, which moves by the rest of 1 with every batch.

    Raises:
        ConfigError: one of them is out of range.
    """

    def __init__(self, exponent: float, momentum: float) -> None:
        super().__init__()
        if exponent < 0:
            raise ConfigError("exponent", f"={exponent} must not be under 0: easy faces would count most")
        if not 0 <= momentum < 1:
            raise ConfigError("momentum", f"={momentum} must be in [0, 1)")
        self.exponent, self.momentum = exponent, momentum
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(()))  # 0 until the first batch

    def count(self, classes: Tensor) -> None:
        """Classes do not matter here."""

    @torch.no_grad()
    def forward(self, classes: Tensor, distance: Tensor) -> Tensor:
        """Weigh; in training the running mean is moved first.

        Args:
            classes: not used.
            distance: ``(B,)`` mean error of each face; NaN for one without an annotated point.

        Returns:
            ``(B,)``.
        """
        if self.training:
            self._move(distance)
        relative = distance.nan_to_num() / self.mean.clamp(min=torch.finfo(distance.dtype).tiny)
        return torch.where(self.mean > 0, relative, 1.0) ** self.exponent

    def _move(self, distance: Tensor) -> None:
        known = distance.isfinite()
        total = torch.stack([torch.where(known, distance, 0.0).sum(), known.sum()])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(total)  # else each process would weigh by faces of its own
        mean = total[0] / total[1].clamp(min=1)
        moved = torch.where(self.mean > 0, self.momentum * self.mean + (1 - self.momentum) * mean, mean)
        self.mean.copy_(torch.where(total[1] > 0, moved, self.mean))


class PFLDLoss(nn.Module):
    """The error of each face's landmarks, times a weight by the error of its angles and one by its classes.

    ``(floor + W) (floor + A)`` with ``A = sum over yaw, pitch, roll of 1 - cos(error)`` and W of ``class_weight``. With
    floor 0 it is the paper's: the angles learn through this product alone, a face whose angles are perfect no longer
    teaches its landmarks, nor does a face without a class. With floor 1 both always teach.

    A factor that is switched off is 1. A face whose pose is not known has A = 0.

    Args:
        points: the error of the landmarks; the paper's is the sum of squares.
        by_pose: whether A is a factor.
        classes: what classes a face is in.
        class_weight: what W is; None without it.
        floor: 0 or 1.

    Attributes:
        uses_angles: whether angles must be predicted.
        teaches_angles: whether what predicts them learns them.

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
            raise ConfigError("floor", f"={floor} must not be under 0")
        self.points, self.floor = points, floor
        self.uses_angles = self.teaches_angles = by_pose
        self.classes, self.class_weight = classes, class_weight

    def count(self, names: Sequence[str], tags: Tensor, pose: Tensor) -> None:
        """Take what is annotated of the training set.

        Args:
            names: of the dataset's tags.
            tags: ``(F, T)`` bool, of all training faces.
            pose: ``(F, 3)`` degrees.

        Raises:
            DatasetError: no face would teach anything.
        """
        self.classes.resolve(names)
        classes = self.classes(tags, pose)
        if isinstance(self.class_weight, InverseFrequencyWeight) and not self.floor and not classes.any():
            raise DatasetError(
                f"loss: it weighs faces by their classes ({', '.join(CLASSES)}), and no training face is in one: "
                "nothing would be learned; choose loss=pfld_fixed or loss=l2"
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
        """Compare.

        Args:
            prediction: ``(B, N, 2)`` fractions of the crop.
            target: ``(B, N, 2)``.
            valid: ``(B, N)`` bool, annotated.
            angles: ``(B, 3)`` predicted yaw, pitch, roll in radians; None where no branch predicts them.
            pose: ``(B, 3)`` true yaw, pitch, roll in **degrees**, NaN where not known.
            tags: ``(B, T)`` bool, of the dataset that :meth:`count` was given.

        Returns:
            The term ``points``, a scalar; 0 where nothing is annotated.
        """
        weight = torch.ones(len(prediction), device=prediction.device)
        if angles is not None and self.uses_angles:
            weight = weight * (self.floor + (1 - angle_errors(angles, pose).cos()).sum(1))
        if self.class_weight is not None:
            distance = mean_distance(prediction, target, valid)
            weight = weight * (self.floor + self.class_weight(self.classes(tags, pose), distance))
        return self.points(prediction, target, valid, weight)


class OfficialPFLDLoss(nn.Module):
    """The loss of polarisZhao/PFLD-pytorch with its slips, to compare with it.

    Predicted angles are subtracted from true ones in degrees and the cosine is taken of this as radians, so that A is
    noise. Classes weigh the reciprocals of their shares of the batch, and a face without a flag weighs nothing. The
    angles that a branch learns by it mean nothing.

    Args:
        flags: the tags that count; all of WFLW but ``pose``, which the code skips. One that the dataset lacks is on for
            nobody.
        absent: in place of 1 / share for a flag that is on for nobody; the code has the nominal size of a batch.
    """

    uses_angles = True
    teaches_angles = False

    def __init__(self, flags: Sequence[str], absent: Amount) -> None:
        super().__init__()
        self.flags, self.absent = tuple(flags), absent
        self.columns: list[int] = []  # of the flags that the dataset has
        self.points = LandmarkLoss(nn.MSELoss(reduction="none"), 1.0)

    def count(self, names: Sequence[str], tags: Tensor, pose: Tensor) -> None:
        """See that some face has a flag.

        Raises:
            DatasetError: none has, and none would teach anything.
        """
        self.columns = [list(names).index(flag) for flag in self.flags if flag in names]
        if not tags[:, self.columns].any():
            raise DatasetError(
                f"loss: it weighs faces by their flags ({', '.join(self.flags)}), and no training face has one: "
                "nothing would be learned; choose loss=pfld_fixed or loss=l2"
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
        """As :meth:`PFLDLoss.forward`."""
        known = pose.isfinite()
        difference = torch.where(known, angles.float() - pose.nan_to_num(), 0.0)  # radians less degrees
        on = tags[:, self.columns].float()  # (B, flags)
        share = on.mean(0)
        rarity = torch.where(share > 0, 1 / share, self.absent)
        return self.points(prediction, target, valid, (1 - difference.cos()).sum(1) * (on * rarity).sum(1))


def angle_errors(angles: Tensor, pose: Tensor) -> Tensor:
    """How far predicted angles are off, ``(B, 3)`` radians, within pi; 0 where the truth is not known.

    Args:
        angles: ``(B, 3)`` predicted, in radians.
        pose: ``(B, 3)`` true, in degrees, NaN where not known.
    """
    true = torch.where(pose.isfinite(), pose, 0.0).deg2rad()
    difference = torch.where(pose.isfinite(), angles.float() - true, 0.0)
    return torch.remainder(difference + math.pi, 2 * math.pi) - math.pi


def mean_distance(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean distance of each face's annotated points, ``(B,)``, without a gradient; NaN where there is none."""
    with torch.no_grad():
        distance = torch.where(valid, (prediction.float() - target).norm(dim=-1), 0.0)
        return distance.sum(1) / valid.sum(1)
