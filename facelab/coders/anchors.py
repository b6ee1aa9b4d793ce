"""Faces as anchors: boxes of fixed sizes in the cells of three grids, of which a network predicts class and offsets.

RetinaFace (Deng et al., CVPR 2020) as in biubug6/Pytorch_Retinaface, after "SSD" (Liu et al., ECCV 2016).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from facelab.bounds import Count, Positive, Share
from facelab.errors import ConfigError
from facelab.faces.batch import DetectionBatch
from facelab.faces.boxes import iou
from facelab.faces.detections import Candidates, first_of_each, order
from facelab.faces.geometry import from_grid

Pair: TypeAlias = tuple[Positive, Positive]
"""Two positive numbers."""
CACHED = 8
"""Number of image sizes whose anchors are kept; a search at several sizes has five."""


BACKGROUND, UNUSED = -1, -2
"""Match of an anchor without a face: background, and neither face nor background, on an ignored face."""


class AnchorTarget(NamedTuple):
    """Faces of B images as their A anchors."""

    match: Tensor  # (B, A) int64 row of the matched face in the batch, or BACKGROUND or UNUSED
    boxes: Tensor  # (P, 4) encoded box of each matched anchor, in the order of match.nonzero()
    points: Tensor  # (P, N, 2) encoded landmarks of each matched anchor; NaN where not annotated


class AnchorCoder(nn.Module):
    """Convert between faces and the offsets of anchors. All anchors are squares.

    Args:
        strides: side of the cells of each grid in pixels, fine to coarse.
        sizes: sides in pixels of the anchors in each cell, for each grid.
        variances: divisors of the offsets of centres and of the logarithms of sides (0.1 and 0.2 in SSD).
        match_iou: smallest IoU of an anchor and its best face for a match.
        claim_iou: smallest IoU of a face and its best anchor with which this anchor is matched in any case.

    Raises:
        ConfigError: there are not as many lists of sizes as strides, or the lists have different lengths.
    """

    def __init__(
        self,
        strides: Sequence[Count],
        sizes: Sequence[Sequence[Positive]],
        variances: Pair,
        match_iou: Share,
        claim_iou: Share,
    ) -> None:
        super().__init__()
        if len(sizes) != len(strides) or len({len(each) for each in sizes}) != 1 or not sizes[0]:
            raise ConfigError(
                "sizes", f"={[list(each) for each in sizes]}: one list of equal length for each of {len(strides)} grids"
            )
        self.strides = tuple(strides)
        self.sizes = tuple(tuple(float(size) for size in each) for each in sizes)
        self.variances = (float(variances[0]), float(variances[1]))
        self.match_iou, self.claim_iou = match_iou, claim_iou

    @property
    def per_cell(self) -> int:
        """Return the number of anchors of a cell."""
        return len(self.sizes[0])

    def anchors(self, shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
        """Return all anchors of an image, grid by grid, row by row and size by size.

        Args:
            shapes: height and width of each grid in cells.
            device: device of the result.

        Returns:
            ``(A, 4)`` x and y of the centre, width and height, in pixels of the image.
        """
        return _anchors(self.strides, self.sizes, tuple(shapes), device)

    def target(self, batch: DetectionBatch, anchors: Tensor) -> AnchorTarget:
        """Match the anchors of all images of a batch with its faces, and encode these."""
        match = torch.full((len(batch.image), len(anchors)), BACKGROUND, device=anchors.device)
        rows = batch.photo.argsort(stable=True)  # faces of each image one after another
        for row, faces in zip(match, rows.split(batch.photo.bincount(minlength=len(match)).tolist()), strict=True):
            if len(faces):
                found = self.match(batch.boxes[faces], batch.ignore[faces], anchors)
                row[:] = torch.where(found >= 0, faces[found], found)
        _, anchor = (matched := match >= 0).nonzero(as_tuple=True)
        return AnchorTarget(
            match, *self.encode(batch.boxes[match[matched]], batch.points[match[matched]], anchors[anchor])
        )

    def encode(self, boxes: Tensor, points: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Encode faces as offsets from anchors, one face for each anchor.

        Args:
            boxes: ``(A, 4)`` x0 y0 x1 y1 in pixels of the image.
            points: ``(A, N, 2)`` in pixels of the image.
            anchors: ``(A, 4)`` result of :meth:`anchors`.

        Returns:
            Encoded boxes ``(A, 4)`` and points ``(A, N, 2)``.
        """
        low, high = boxes[..., :2], boxes[..., 2:]
        centres, sides = anchors[..., :2], anchors[..., 2:]
        shift = ((low + high) / 2 - centres) / (self.variances[0] * sides)
        stretch = ((high - low) / sides).log() / self.variances[1]
        offsets = (points - centres.unsqueeze(-2)) / (self.variances[0] * sides).unsqueeze(-2)
        return torch.cat([shift, stretch], dim=-1), offsets

    def decode(self, boxes: Tensor, points: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Decode the offsets of anchors, the inverse of :meth:`encode`.

        Args:
            boxes: ``(..., 4)`` encoded boxes.
            points: ``(..., N, 2)`` encoded points.
            anchors: ``(..., 4)`` their anchors.

        Returns:
            Boxes ``(..., 4)`` x0 y0 x1 y1 and points ``(..., N, 2)`` in pixels of the image.
        """
        centres, sides = anchors[..., :2], anchors[..., 2:]
        centre = centres + boxes[..., :2] * self.variances[0] * sides
        half = sides * (boxes[..., 2:] * self.variances[1]).exp() / 2
        decoded = centres.unsqueeze(-2) + points * (self.variances[0] * sides).unsqueeze(-2)
        return torch.cat([centre - half, centre + half], dim=-1), decoded

    def detect(
        self, logits: Tensor, boxes: Tensor, points: Tensor, anchors: Tensor, threshold: float, most: int
    ) -> tuple[Candidates, Tensor]:
        """Decode the anchors of the highest scores; the others are not decoded.

        Args:
            logits: ``(B, A, 2)`` background, face.
            boxes: ``(B, A, 4)`` encoded.
            points: ``(B, A, 5, 2)`` encoded.
            anchors: ``(A, 4)``.
            threshold: smallest score.
            most: largest number of anchors of an image.

        Returns:
            Candidates in pixels of the image, float32, sorted by image and falling score, without those whose box is
            not finite; images ``(I,)`` in which ``most`` left out anchors.
        """
        # The precision of a mixed training would give many equal scores, and boxes off by pixels.
        with torch.autocast(logits.device.type, enabled=False):
            score = (logits[..., 1].float() - logits[..., 0].float()).sigmoid()  # softmax of two classes
            image, anchor = (score >= threshold).nonzero(as_tuple=True)
            rows = order(image, score[image, anchor])
            kept = first_of_each(image[rows], most)
            cut = image[rows][~kept].unique()
            image, anchor = image[rows][kept], anchor[rows][kept]
            found = self.decode(boxes[image, anchor].float(), points[image, anchor].float(), anchors[anchor])
            finite = found[0].isfinite().all(dim=1)  # an infinite box would keep the suppression from all others
            return Candidates(found[0], score[image, anchor], found[1], image).take(finite), cut

    def match(self, boxes: Tensor, ignore: Tensor, anchors: Tensor) -> Tensor:
        """Match the anchors of one image with its faces.

        An anchor is matched with the face of the largest IoU if this is at least ``match_iou``. A face whose best
        anchor has at least ``claim_iou`` is matched with this anchor too; of several faces with the same best anchor,
        the last is. Departure from the reference code: faces below ``claim_iou`` do not change the matches of others.
        A box without area is not matched. An ignored face takes no anchor from another face.

        Args:
            boxes: ``(F, 4)`` x0 y0 x1 y1 in pixels of the image.
            ignore: ``(F,)`` bool: the face is neither a face nor background.
            anchors: ``(A, 4)``.

        Returns:
            ``(A,)`` int64 index of the face, or :data:`BACKGROUND` or :data:`UNUSED`.
        """
        match = torch.full(anchors.shape[:1], BACKGROUND, device=anchors.device)
        usable = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        half = anchors[:, 2:] / 2
        corners = torch.cat([anchors[:, :2] - half, anchors[:, :2] + half], dim=1)
        if len(ignored := (usable & ignore).nonzero().squeeze(1)):
            match[iou(corners, boxes[ignored]).amax(dim=1) >= self.match_iou] = UNUSED
        if not len(faces := (usable & ~ignore).nonzero().squeeze(1)):
            return match
        overlap = iou(corners, boxes[faces])  # (A, F)
        best, face = overlap.max(dim=1)
        match = torch.where(best >= self.match_iou, faces[face], match)
        best_of_face, anchor = overlap.max(dim=0)
        claims = best_of_face >= self.claim_iou
        return match.scatter_reduce_(0, anchor[claims], faces[claims], "amax", include_self=False)


@lru_cache(CACHED)
def _anchors(
    strides: tuple[int, ...],
    sizes: tuple[tuple[float, ...], ...],
    shapes: tuple[tuple[int, int], ...],
    device: torch.device,
) -> Tensor:
    """Compute the result of :meth:`AnchorCoder.anchors`."""
    grids = []
    with torch.inference_mode(False):  # a tensor of the inference mode could not be used in a later training
        for stride, sides, (height, width) in zip(strides, sizes, shapes, strict=True):
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            centre = from_grid(torch.stack([x, y], dim=-1).float(), stride)[:, :, None].expand(-1, -1, len(sides), -1)
            side = torch.tensor(sides)[:, None].expand(height, width, -1, 2)
            grids.append(torch.cat([centre, side], dim=-1).reshape(-1, 4))
        return torch.cat(grids).to(device)
