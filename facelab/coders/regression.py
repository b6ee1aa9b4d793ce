"""Points as a network regresses them directly: fractions of the crop."""

import torch
from torch import Tensor, nn

from facelab.bounds import Pixels
from facelab.errors import ConfigError
from facelab.faces.geometry import from_cells, to_cells


class RegressionCoder(nn.Module):
    """Between points in pixels and the same as fractions of the crop, 0 and 1 at its outer edges.

    For every method that predicts coordinates and no maps.

    Args:
        size: side of the crop in pixels.
    """

    def __init__(self, size: Pixels) -> None:
        super().__init__()
        self.size = size

    def encode(self, points: Tensor, valid: Tensor, image_size: int) -> Tensor:
        """What a perfect network would give. A point outside the crop stays there, below 0 or above 1.

        Args:
            points: ``(B, N, 2)`` in pixels of the crop.
            valid: ``(B, N)`` bool.
            image_size: side of the crop in pixels.

        Returns:
            ``(B, N, 2)`` float32 x and y; NaN for a landmark that is not valid, or not finite.

        Raises:
            ConfigError: the crop is not the one that :meth:`decode` knows.
        """
        if image_size != self.size:
            raise ConfigError(
                "coder.size", f"={self.size} must be the crop's side, which is {image_size}", mounted=True
            )
        known = valid & points.isfinite().all(-1)  # (B, N)
        return to_cells(points.float(), self.size).masked_fill(~known[..., None], float("nan"))

    def decode(self, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Points of a prediction.

        Args:
            prediction: ``(B, N, 2)`` x and y as fractions of the crop.

        Returns:
            points: ``(B, N, 2)`` float32 in pixels of the crop.
            confidence: ``(B, N)`` 1, for coordinates do not say how sure they are.
        """
        points = from_cells(prediction.float(), self.size)
        return points, torch.ones_like(points[..., 0])
