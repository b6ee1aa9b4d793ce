"""A method and a loss outside of the project, which tests use through ``trust=[ownmethod]``."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from facelab.bounds import Positive
from facelab.coders.regression import RegressionCoder
from facelab.faces.layouts import Layout
from facelab.networks.pfld import MultiScaleHead
from lightning_modules.landmark import LandmarkModule


class OwnMethod(LandmarkModule):
    """Coordinates from several scales."""

    def __init__(
        self,
        layout: Layout,
        backbone: nn.Module,
        head: Callable[..., MultiScaleHead],
        coder: RegressionCoder,
        loss: nn.Module | None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        flip_test: bool,
    ) -> None:
        super().__init__(layout, coder, loss, optimizer, scheduler, flip_test)
        self.backbone = backbone
        self.head: Any = head(channels=backbone.channels, strides=backbone.strides, num_points=layout.num_points)

    def forward(self, image: Tensor) -> Tensor:
        """Predict from crops ``(B, 3, H, W)`` uint8; return ``(B, N, 2)`` fractions of the crop."""
        points, _ = self.head(self.backbone(image))
        return points


class OwnLoss(nn.Module):
    """Mean absolute error of the annotated coordinates, in fractions of the crop."""

    def __init__(self, weight: Positive) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Compare ``(B, N, 2)`` where ``valid`` ``(B, N)``."""
        error = torch.where(valid[..., None], prediction - target.nan_to_num(), 0.0)
        return {"points": self.weight * error.abs().sum() / valid.sum().clamp(min=1)}
