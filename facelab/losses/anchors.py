"""Loss of detectors that predict class, box and landmarks of anchors (RetinaFace, after SSD)."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from facelab.bounds import Amount, Positive
from facelab.coders.anchors import BACKGROUND, AnchorTarget


class Prediction(Protocol):
    """What a network predicts for A anchors of B images."""

    logits: Tensor  # (B, A, 2) background, face
    boxes: Tensor  # (B, A, 4) encoded
    points: Tensor  # (B, A, N, 2) encoded


class Counts(NamedTuple):
    """Divisors of the sums, means over all ranks, at least 1."""

    faces: Tensor  # () matched anchors
    landmarks: Tensor  # () matched anchors with landmarks; one of which only k of N are annotated counts k / N


class AnchorLoss(nn.Module):
    """Cross-entropy of the classes, smooth L1 of the offsets of boxes and landmarks (Deng et al., section 3.1).

    As in the reference code (biubug6/Pytorch_Retinaface): boxes and landmarks count where an anchor is matched, the
    classes there and in the background anchors of the highest loss, ``negatives`` of them per matched anchor of the
    same image. Sums are divided by the number of matched anchors of the batch, those of landmarks by the number of
    matched anchors with landmarks. An image without a matched anchor contributes nothing.

    Departures: a landmark that is not annotated, or outside of the image, is left out, where the reference code moves
    it to the edge of the image and learns it there; anchors on ignored faces are left out. With several processes the
    divisors are means over the ranks, so that the gradient is that of one large batch; the batches of an accumulated
    gradient each have their own divisor. Computed in float32 also under autocast.

    Args:
        class_weight: weight of the classes; 1 in the reference code.
        box_weight: weight of the boxes; 2 in the reference code.
        landmark_weight: weight of the landmarks; 1 in the reference code.
        negatives: background anchors per matched anchor of an image; 7 in the reference code.
    """

    def __init__(self, class_weight: Amount, box_weight: Amount, landmark_weight: Amount, negatives: Positive) -> None:
        super().__init__()
        self.class_weight, self.box_weight, self.landmark_weight = class_weight, box_weight, landmark_weight
        self.negatives = negatives

    def forward(self, prediction: Prediction, target: AnchorTarget) -> dict[str, Tensor]:
        """Compute the weighted terms.

        Args:
            prediction: output of the network.
            target: output of :meth:`facelab.coders.anchors.AnchorCoder.target`.

        Returns:
            The weighted scalar terms ``class``, ``box`` and ``landmark``; 0 in a batch without a face.
        """
        matched = target.match >= 0  # (B, A)
        annotated = target.points.isfinite().all(dim=-1)  # (P, N)
        count = self.count(matched, annotated)
        box = functional.smooth_l1_loss(prediction.boxes[matched].float(), target.boxes, reduction="sum")
        # Selected, not multiplied: the error of a point without an annotation is NaN.
        points = prediction.points[matched][annotated].float()
        landmark = functional.smooth_l1_loss(points, target.points[annotated], reduction="sum")
        entropy = functional.cross_entropy(
            prediction.logits.float().flatten(0, 1), matched.flatten().long(), reduction="none"
        ).view_as(matched)  # (B, A)
        chosen = matched | self.hardest(entropy.detach(), target.match)
        return {
            "class": self.class_weight * torch.where(chosen, entropy, 0.0).sum() / count.faces,
            "box": self.box_weight * box / count.faces,
            "landmark": self.landmark_weight * landmark / count.landmarks,
        }

    def hardest(self, entropy: Tensor, match: Tensor) -> Tensor:
        """Choose the background anchors of the highest loss in each image.

        Args:
            entropy: ``(B, A)`` loss of the classes.
            match: ``(B, A)`` see :class:`AnchorTarget`.

        Returns:
            ``(B, A)`` mask.
        """
        background = match == BACKGROUND
        most = (self.negatives * (match >= 0).sum(dim=1, keepdim=True)).long()  # (B, 1)
        by_loss = torch.where(background, entropy, -torch.inf).argsort(dim=1, descending=True)
        place = torch.arange(match.shape[1], device=match.device).expand_as(match)
        return torch.zeros_like(background).scatter_(1, by_loss, place < most) & background

    def count(self, matched: Tensor, annotated: Tensor) -> Counts:
        """Count the matched anchors ``(B, A)`` and their annotated landmarks ``(P, N)``."""
        counts = torch.stack([matched.sum().float(), annotated.float().mean(dim=-1).sum()])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(counts)
            counts = counts / distributed.get_world_size()
        return Counts(*counts.clamp(min=1))
