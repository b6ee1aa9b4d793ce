"""Losses of networks that predict heatmaps."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from facelab.bounds import Amount, Positive
from facelab.coders.heatmap import Heatmaps
from facelab.errors import ConfigError

NEIGHBOURHOOD = 3
"""Side in cells of the neighbourhood whose maximum decides on a cell's weight of Adaptive Wing."""


class HeatmapMSE(nn.Module):
    """Mean squared error of all cells.

    With ``hidden_weight=1`` and all landmarks annotated this is the loss of the reference code
    (HRNet/HRNet-Facial-Landmark-Detection), the mean over B N h w values. Maps of landmarks that are not annotated are
    left out of sum and mean. Computed in float32 also under autocast.

    Args:
        hidden_weight: factor on the error of landmarks that are annotated and not visible.
    """

    def __init__(self, hidden_weight: Amount) -> None:
        super().__init__()
        self.hidden_weight = hidden_weight

    def forward(self, prediction: Heatmaps, target: Heatmaps, valid: Tensor, visible: Tensor) -> dict[str, Tensor]:
        """Compare.

        Args:
            prediction: of the network.
            target: of :meth:`facelab.coders.heatmap.HeatmapCoder.encode`.
            valid: ``(B, N)`` bool, annotated.
            visible: ``(B, N)`` bool, annotated and not hidden.

        Returns:
            The term ``maps``, a scalar; 0 where nothing is annotated.
        """
        error = (prediction.maps.float() - target.maps).square().mean((2, 3))  # (B, N)
        return {"maps": _mean(torch.where(visible, error, self.hidden_weight * error), valid)}


class AdaptiveWing(nn.Module):
    """Adaptive Wing loss with its weight map (Wang, Bo, Fuxin, ICCV 2019, arXiv 1904.07399).

    Where the target y is high the loss is like Wing, so that small errors count; where it is 0, it is like the squared
    error. For an error d up to ``theta`` it is ``omega * log(1 + (d / epsilon) ** (alpha - y))``, beyond it is a line
    with the same value and slope. Cells on and next to a peak have the weight ``foreground_weight + 1``, others 1.
    Computed in float32 also under autocast.

    Args:
        omega: factor of the logarithm; 14 in the paper.
        theta: error at which the line begins; 0.5 in the paper.
        epsilon: error at which the loss changes from a power to a logarithm; 1 in the paper.
        alpha: exponent for a target of 0; above 1, so that the loss is smooth at an error of 0; 2.1 in the paper.
        foreground_weight: added weight of cells on and next to a peak; 10 in the paper.
        threshold: height of the target from which a cell belongs to the peak; 0.2 in the paper.

    Raises:
        ConfigError: ``alpha`` is 2 or less, so that the exponent on a peak is 1 or less.
    """

    def __init__(
        self,
        omega: Positive,
        theta: Positive,
        epsilon: Positive,
        alpha: Positive,
        foreground_weight: Amount,
        threshold: Positive,
    ) -> None:
        super().__init__()
        if not alpha > 2:
            raise ConfigError("alpha", f"={alpha} must be over 2, so that alpha - 1, the exponent of a peak, is over 1")
        self.omega, self.theta, self.epsilon, self.alpha = omega, theta, epsilon, alpha
        self.foreground_weight, self.threshold = foreground_weight, threshold

    def forward(self, prediction: Heatmaps, target: Heatmaps, valid: Tensor, visible: Tensor) -> dict[str, Tensor]:
        """Compare.

        Args:
            prediction: of the network.
            target: of :meth:`facelab.coders.heatmap.HeatmapCoder.encode`.
            valid: ``(B, N)`` bool, annotated.
            visible: not used; ``(B, N)`` bool.

        Returns:
            The term ``maps``, a scalar; 0 where nothing is annotated.
        """
        peak = functional.max_pool2d(target.maps, NEIGHBOURHOOD, 1, NEIGHBOURHOOD // 2) >= self.threshold
        weight = torch.where(peak, self.foreground_weight + 1, 1.0)
        error = self.per_cell(prediction.maps.float(), target.maps)
        return {"maps": _mean((weight * error).mean((2, 3)), valid)}

    def per_cell(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of each cell without its weight, in the shape of ``target``."""
        error, exponent = (prediction - target).abs(), self.alpha - target
        power = (self.theta / self.epsilon) ** exponent
        slope = self.omega / (1 + power) * exponent * power / self.theta
        line = slope * (error - self.theta) + self.omega * torch.log1p(power)
        # Beyond theta the unused branch must not overflow: its gradient would be NaN times 0.
        curve = self.omega * torch.log1p((error.clamp(max=self.theta) / self.epsilon) ** exponent)
        return torch.where(error < self.theta, curve, line)


def _mean(error: Tensor, valid: Tensor) -> Tensor:
    """Average over the valid landmarks ``(B, N)``."""
    return torch.where(valid, error, 0.0).sum() / valid.sum().clamp(min=1)
