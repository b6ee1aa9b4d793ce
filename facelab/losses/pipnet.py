"""Loss of PIPNet (Jin, Liao, Shao, IJCV 2021)."""

import torch
from torch import Tensor, nn

from facelab.bounds import Amount
from facelab.coders.pipnet import PIPMaps, at_cell


class PIPLoss(nn.Module):
    """Squared error of the scores in all cells plus absolute error of the offsets in the cell of the landmark.

    Landmarks and neighbours without an annotation are left out of the sums and means. If all are annotated, this is the
    loss of the reference code (jhb86253817/PIPNet), with weight 10 for the scores and 1 for the others. Computed in
    float32, also under autocast.

    Args:
        score_weight: weight of the mean squared error over all cells.
        offset_weight: weight of the mean absolute error of x plus that of y, in cells.
        neighbour_weight: weight of the same for the offsets of the neighbours.
    """

    def __init__(self, score_weight: Amount, offset_weight: Amount, neighbour_weight: Amount) -> None:
        super().__init__()
        self.score_weight, self.offset_weight, self.neighbour_weight = score_weight, offset_weight, neighbour_weight

    def forward(self, prediction: PIPMaps, target: PIPMaps, valid: Tensor) -> dict[str, Tensor]:
        """Compute the weighted terms.

        Args:
            prediction: output of the network.
            target: output of :meth:`facelab.coders.pipnet.PIPCoder.encode`.
            valid: ``(B, N)`` bool, True where annotated.

        Returns:
            The weighted scalar terms ``score``, ``offset`` and ``neighbour``; 0 if nothing is annotated.
        """
        index = target.score.flatten(2).argmax(-1)  # (B, N)
        offset, neighbour = at_cell(target.offset, index), at_cell(target.neighbour, index)  # (B, N, 2), (B, N, C, 2)
        annotated = valid & offset.isfinite().all(-1)  # (B, N)
        annotated_neighbour = annotated[..., None] & neighbour.isfinite().all(-1)  # (B, N, C)
        score = (prediction.score.float() - target.score).square().mean((2, 3))  # (B, N)
        return {
            "score": self.score_weight * _mean(score, annotated),
            "offset": self.offset_weight * _distance(at_cell(prediction.offset, index), offset, annotated),
            "neighbour": self.neighbour_weight
            * _distance(at_cell(prediction.neighbour, index), neighbour, annotated_neighbour),
        }


def _distance(prediction: Tensor, target: Tensor, annotated: Tensor) -> Tensor:
    """Return the mean of abs(dx) + abs(dy) over the selected entries."""
    return _mean((prediction - target).abs().sum(-1), annotated)


def _mean(error: Tensor, annotated: Tensor) -> Tensor:
    """Return the mean over the selected entries; 0 if there is none."""
    # where() and not a product: the error of an entry without an annotation is NaN.
    return torch.where(annotated, error, 0.0).sum() / annotated.sum().clamp(min=1)
