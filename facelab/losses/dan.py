"""Loss of DAN: the distance of the landmarks as a share of the distance of the pupils."""

import torch
from torch import Tensor, nn

from facelab.bounds import Positive
from facelab.faces.layouts import Layout


class PupilDistanceLoss(nn.Module):
    """Mean distance between predicted and true landmarks, divided by the distance of the true pupils.

    Section 3.3 of the DAN paper (arXiv 1706.01789). A pupil is the centroid of the points that the layout names; a
    layout without pupils uses the outer corners of the eyes. Faces whose eyes are not annotated do not count. Computed
    in float32, also under autocast. Departure from the reference code: ``smallest``; that code gives a profile, whose
    pupils nearly coincide, an unlimited weight.

    Args:
        layout: layout of the landmarks.
        smallest: lower limit of the distance of the pupils, in the unit of the points.
    """

    def __init__(self, layout: Layout, smallest: Positive) -> None:
        super().__init__()
        self.smallest = smallest
        eyes = layout.pupils if all(layout.pupils) else tuple((corner,) for corner in layout.eye_corners)
        self.left, self.right = list(eyes[0]), list(eyes[1])

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Compute the loss.

        Args:
            prediction: ``(B, N, 2)`` in any unit.
            target: ``(B, N, 2)`` in the same unit, ignored where not ``valid``.
            valid: ``(B, N)`` bool, True where annotated.

        Returns:
            The scalar term ``points``, a mean over faces; 0 if no face counts.
        """
        prediction, shown = prediction.float(), valid[..., None]
        # where() and not a product with 0: a target without an annotation is NaN, and its gradient would be NaN too.
        target = torch.where(shown, target.float(), prediction.detach())
        difference = prediction - target
        exact = (difference == 0).all(-1)  # the root of 0 has no gradient
        distance = torch.where(exact, 0.0, torch.where(exact[..., None], 1.0, difference).norm(dim=-1))  # (B, N)
        error = (distance * valid).sum(1) / valid.sum(1).clamp(min=1)  # (B,)
        pupils = (target[:, self.left].mean(1) - target[:, self.right].mean(1)).norm(dim=-1)
        counts = valid[:, [*self.left, *self.right]].all(1)
        normalised = torch.where(counts, error / pupils.clamp(min=self.smallest), 0.0)
        return {"points": normalised.sum() / counts.sum().clamp(min=1)}
