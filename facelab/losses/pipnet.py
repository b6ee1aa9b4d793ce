"""The loss of PIPNet (Jin, Liao, Shao, IJCV 2021)."""

import torch
from torch import Tensor, nn

from facelab.bounds import Amount
from facelab.coders.pipnet import PIPMaps, at_cell


class PIPLoss(nn.Module):
    """Squared error of the scores in all cells, absolute error of the offsets in the cell that holds the landmark.

    Landmarks that are not annotated, and neighbours that are not, count neither in the sums nor in the means; with
    all annotated this is the loss of the reference code (jhb86253817/PIPNet), where the score's weight is 10 and the
    others are 1. Computed in float32 also under autocast.

    Args:
        score_weight: of the mean squared error over all cells.
        offset_weight: of the mean absolute error of x plus that of y.
        neighbour_weight: of the same for the neighbours' offsets.
    """

    def __init__(self, score_weight: Amount, offset_weight: Amount, neighbour_weight: Amount) -> None:
        super().__init__()
        self.score_weight, self.offset_weight, self.neighbour_weight = score_weight, offset_weight, neighbour_weight

    def forward(self, prediction: PIPMaps, target: PIPMaps, valid: Tensor) -> dict[str, Tensor]:
        """Compare.

        Args:
            prediction: of the network.
            target: of :meth:`facelab.coders.pipnet.PIPCoder.encode`.
            valid: ``(B, N)`` bool, annotated.

        Returns:
            The weighted terms ``score``, ``offset`` and ``neighbour``, scalars; 0 where nothing is annotated.
        """
        index = target.score.flatten(2).argmax(-1)  # (B, N)
        offset, neighbour = at_cell(target.offset, index), at_cell(target.neighbour, index)  # (B, N, 2), (B, N, C, 2)
        known = valid & offset.isfinite().all(-1)  # (B, N)
        known_neighbour = known[..., None] & neighbour.isfinite().all(-1)  # (B, N, C)
        score = (prediction.score.float() - target.score).square().mean((2, 3))  # (B, N)
        return {
            "score": self.score_weight * _mean(score, known),
            "offset": self.offset_weight * _distance(at_cell(prediction.offset, index), offset, known),
            "neighbour": self.neighbour_weight
            * _distance(at_cell(prediction.neighbour, index), neighbour, known_neighbour),
        }


def _distance(prediction: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean of abs(dx) + abs(dy)."""
    return _mean((prediction - target).abs().sum(-1), known)


def _mean(error: Tensor, known: Tensor) -> Tensor:
    # Selected, not multiplied: what is not known is NaN in the target.
    return torch.where(known, error, 0.0).sum() / known.sum().clamp(min=1)
