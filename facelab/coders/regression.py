"""Coder of methods that regress coordinates: points as fractions of the crop."""

import torch
from torch import Tensor, nn

from facelab.bounds import Pixels
from facelab.errors import ConfigError
from facelab.faces.geometry import from_cells, to_cells


class RegressionCoder(nn.Module):
    """Conversion between points in pixels and fractions of the crop, 0 and 1 at its outer edges.

    For methods that predict coordinates instead of maps.

    Args:
        size: side of the crop in pixels.

    >>> coder = RegressionCoder(size=100)
    >>> fractions = coder.encode(torch.tensor([[[-0.5, 49.5]]]), torch.tensor([[True]]), image_size=100)
    >>> fractions
    tensor([[[0.0000, 0.5000]]])
    >>> points, confidence = coder.decode(fractions)
    >>> points
    tensor([[[-0.5000, 49.5000]]])
    """

    def __init__(self, size: Pixels) -> None:
        super().__init__()
        self.size = size

    def encode(self, points: Tensor, valid: Tensor, image_size: int) -> Tensor:
        """Convert points to fractions of the crop. A point outside the crop is below 0 or above 1.

        Args:
            points: ``(B, N, 2)`` in pixels of the crop.
            valid: ``(B, N)`` bool.
            image_size: side of the crop in pixels.

        Returns:
            ``(B, N, 2)`` float32 x and y; NaN for a landmark that is not valid or not finite.

        Raises:
            ConfigError: ``image_size`` differs from ``size``, which :meth:`decode` uses.
        """
        if image_size != self.size:
            raise ConfigError(
                "coder.size", f"={self.size} must be the crop's side, which is {image_size}", mounted=True
            )
        annotated = valid & points.isfinite().all(-1)  # (B, N)
        return to_cells(points.float(), self.size).masked_fill(~annotated[..., None], float("nan"))

    def decode(self, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Convert predicted fractions to pixels of the crop.

        Args:
            prediction: ``(B, N, 2)`` x and y as fractions of the crop.

        Returns:
            points: ``(B, N, 2)`` float32 in pixels of the crop.
            confidence: ``(B, N)`` always 1: coordinates carry no confidence.
        """
        points = from_cells(prediction.float(), self.size)
        return points, torch.ones_like(points[..., 0])
