"""Losses of networks that regress coordinates: a penalty on the error of each coordinate, summed over a face."""

import math

import torch
from torch import Tensor, nn

from facelab.bounds import Positive
from facelab.errors import ConfigError


class LandmarkLoss(nn.Module):
    """Penalty of each coordinate, summed over the points of a face and averaged over the faces of a batch.

    This is the reduction of PFLD's loss (Guo et al., arXiv 1902.10859), whose penalty is the square. Points without an
    annotation add nothing; a face without any annotated point does not count. Computed in float32, also under autocast.

    Args:
        penalty: elementwise function of prediction and target, such as torch's losses with ``reduction="none"``.
        scale: factor on the coordinates before the penalty, for penalties whose form depends on the size of the error.
            The side of the crop converts fractions of the crop to pixels.

    Raises:
        ConfigError: ``penalty`` reduces the coordinates to one number.
    """

    def __init__(self, penalty: nn.Module, scale: Positive) -> None:
        super().__init__()
        self.penalty, self.scale = penalty, scale
        probe = torch.zeros(2)
        if penalty(probe, probe).shape != probe.shape:
            raise ConfigError("penalty", " must return one value per coordinate; set loss.penalty.reduction=none")

    def per_face(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Compute the summed penalties of each face, ``(B,)``; arguments as in :meth:`forward`."""
        prediction = prediction.float()
        # where() and not a product with 0: a target without an annotation is NaN, and its gradient would be NaN too.
        target = torch.where(valid[..., None], target, prediction.detach())
        penalty = self.penalty(self.scale * prediction, self.scale * target)  # (B, N, 2)
        return torch.where(valid[..., None], penalty, 0.0).sum((1, 2))

    def forward(
        self, prediction: Tensor, target: Tensor, valid: Tensor, weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the loss.

        Args:
            prediction: ``(B, N, 2)`` in any unit.
            target: ``(B, N, 2)`` in the same unit, ignored where not ``valid``.
            valid: ``(B, N)`` bool, True where annotated.
            weight: ``(B,)`` factor on each face; the sum is divided by the number of faces and not by the sum of the
                weights, so a larger weight also makes a larger step.

        Returns:
            The scalar term ``points``; 0 if nothing is annotated.
        """
        error = self.per_face(prediction, target, valid)  # (B,)
        faces = valid.any(1).sum().clamp(min=1)
        return {"points": (error if weight is None else weight * error).sum() / faces}


class WingLoss(nn.Module):
    """Wing penalty (Feng et al., CVPR 2018): ``width * log(1 + |x| / curvature)`` up to ``width``.

    Above ``width`` it is ``|x|`` minus a constant that makes the penalty continuous. Small errors then have a larger
    gradient than with L1.

    Args:
        width: w of the paper, in the unit of the coordinates.
        curvature: epsilon of the paper, in the same unit.

    Raises:
        ConfigError: ``width`` or ``curvature`` is not positive.

    >>> penalty = WingLoss(width=10.0, curvature=2.0)
    >>> penalty(torch.tensor([0.0, 2.0, 20.0]), torch.zeros(3))
    tensor([ 0.0000,  6.9315, 27.9176])
    """

    def __init__(self, width: float, curvature: float) -> None:
        super().__init__()
        for key, value in (("width", width), ("curvature", curvature)):
            if not value > 0:
                raise ConfigError(key, f"={value} must be over 0")
        self.width, self.curvature = width, curvature
        self.offset = width - width * math.log1p(width / curvature)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the penalty of each difference."""
        error = (prediction - target).abs()
        return torch.where(error < self.width, self.width * torch.log1p(error / self.curvature), error - self.offset)
