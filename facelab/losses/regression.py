"""Losses of networks that predict coordinates: a penalty of each coordinate's error, summed over a face."""

import math

import torch
from torch import Tensor, nn

from facelab.bounds import Positive
from facelab.errors import ConfigError


class LandmarkLoss(nn.Module):
    """The mean over the faces of a batch of the summed penalties of their points' x and y.

    As in the loss of PFLD (Guo et al., arXiv 1902.10859), where the penalty is the square, the points of a face are
    summed and the faces averaged. Points that are not annotated add nothing, and a face without any is
    as good as no face. Computed in float32 also under autocast.

    Args:
        penalty: two tensors to the penalty of each of their differences, as torch's losses with ``reduction="none"``.
        scale: factor on the coordinates before the penalty, for penalties that bend at a certain error: the crop's
            side makes pixels of coordinates that are fractions of the crop.

    Raises:
        ConfigError: ``penalty`` gives one number for all coordinates.
    """

    def __init__(self, penalty: nn.Module, scale: Positive) -> None:
        super().__init__()
        self.penalty, self.scale = penalty, scale
        two = torch.zeros(2)
        if penalty(two, two).shape != two.shape:
            raise ConfigError("penalty", " must keep the coordinates apart; set loss.penalty.reduction=none")

    def per_face(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """The summed penalties of each face, ``(B,)``; see :meth:`forward`."""
        prediction = prediction.float()
        # Not multiplied with 0: what is not annotated is NaN in the target, and so would be its gradient.
        target = torch.where(valid[..., None], target, prediction.detach())
        penalty = self.penalty(self.scale * prediction, self.scale * target)  # (B, N, 2)
        return torch.where(valid[..., None], penalty, 0.0).sum((1, 2))

    def forward(
        self, prediction: Tensor, target: Tensor, valid: Tensor, weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compare.

        Args:
            prediction: ``(B, N, 2)`` in any unit.
            target: ``(B, N, 2)`` in the same, ignored where not ``valid``.
            valid: ``(B, N)`` bool, annotated.
            weight: ``(B,)`` factor on each face; the sum is still divided by the number of faces, so that a weight
                also says how much is learned.

        Returns:
            The term ``points``, a scalar; 0 where nothing is annotated.
        """
        error = self.per_face(prediction, target, valid)  # (B,)
        faces = valid.any(1).sum().clamp(min=1)
        return {"points": (error if weight is None else weight * error).sum() / faces}


class WingLoss(nn.Module):
    """The wing penalty (Feng et al., CVPR 2018): ``width * log(1 + |x| / curvature)`` up to ``width``.

    Beyond it is ``|x|`` less a constant that makes both meet. Small errors then count for more than under L1.

    Args:
        width: w of the paper, in the unit of the coordinates that are compared.
        curvature: epsilon of the paper, in the same unit.

    Raises:
        ConfigError: one of them is not over 0.
    """

    def __init__(self, width: float, curvature: float) -> None:
        super().__init__()
        for key, value in (("width", width), ("curvature", curvature)):
            if not value > 0:
                raise ConfigError(key, f"={value} must be over 0")
        self.width, self.curvature = width, curvature
        self.offset = width - width * math.log1p(width / curvature)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The penalty of each difference."""
        error = (prediction - target).abs()
        return torch.where(error < self.width, self.width * torch.log1p(error / self.curvature), error - self.offset)
