"""Rules of detection: size of the searched image, thresholds, suppression and voting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypeAlias

import torch
from annotated_types import Ge, Interval
from torch import Tensor
from torch.nn import functional
from torchvision.ops import batched_nms

from facelab.bounds import Count, Share
from facelab.faces import boxes

Scale: TypeAlias = Literal["original", "vga", "large", "multiple"]
"""Size at which a photo is searched; see :class:`DetectionRule`."""
VGA = 640
"""Longer side in pixels of a photo that is searched at ``vga``, as in the papers that report this size."""
SHORTER, LONGER = 1600, 2150
"""Shorter side in pixels of a photo that is searched at ``large``, unless its longer side would exceed the second
number; as in the official code of RetinaFace."""
PNET_SIDE = 12
"""Side in pixels of the square that P-Net of MTCNN sees."""
CHUNK = 1024
"""Number of candidates whose overlaps are computed at a time, which limits the memory."""
SHORTER_SIDES = (500, 800, 1100, 1400, 1700)
"""Shorter sides in pixels of the searches of ``multiple``, as in the paper of RetinaFace."""


class Candidates(NamedTuple):
    """D possible faces in B photos, in flat arrays."""

    boxes: Tensor  # (D, 4) float32 x0 y0 x1 y1 in pixels of the image
    scores: Tensor  # (D,) float32
    points: Tensor  # (D, 5, 2) float32 in pixels of the image
    photo: Tensor  # (D,) int64: row of its photo in the batch

    def take(self, rows: Tensor) -> "Candidates":
        """Return some of the candidates, by index or mask."""
        return Candidates(*(column[rows] for column in self))


@dataclass(frozen=True)
class DetectionRule:
    """How a detector searches a photo. Two results are comparable only if their rules are equal.

    Args:
        scale: size of the searched image. ``original``: that of the photo; ``vga``: longer side 640 pixels; ``large``:
            shorter side 1600 pixels, or longer side 2150 if that is smaller; ``multiple``: shorter sides 500, 800,
            1100, 1400 and 1700 pixels, each also flipped, joined by box voting.
        threshold: smallest score of a detection.
        candidates: largest number of detections of an image before the suppression; those of the highest scores.
        nms_iou: smallest IoU of two detections at which the one of the lower score is suppressed, or joined by voting.
        most: largest number of detections of an image.
        official_areas: whether the suppression adds 1 to both sides of each box, as the reference code does. It keeps
            and removes other boxes among small faces.
    """

    scale: Scale
    threshold: Share
    candidates: Count
    nms_iou: Share
    most: Count
    official_areas: bool

    @property
    def votes(self) -> bool:
        """Return whether detections of several searches are joined by voting."""
        return self.scale == "multiple"

    def searches(self, height: int, width: int) -> list[tuple[int, int, bool]]:
        """Return the searches of a photo: height and width in pixels, and whether it is flipped."""
        shorter, longer = min(height, width), max(height, width)
        if self.scale == "original":
            return [(height, width, False)]
        if self.scale == "multiple":
            factors = [side / shorter for side in SHORTER_SIDES]
        else:
            factors = [VGA / longer if self.scale == "vga" else min(SHORTER / shorter, LONGER / longer)]
        sizes = [(max(round(factor * height), 1), max(round(factor * width), 1)) for factor in factors]
        return [(*size, flipped) for size in sizes for flipped in (False, True)[: 1 + self.votes]]

    def largest(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width in pixels of the largest image in which a photo is searched."""
        return max(((h, w) for h, w, _ in self.searches(height, width)), key=lambda sides: sides[0] * sides[1])


@dataclass(frozen=True)
class CascadeRule:
    """How the cascade of MTCNN searches a photo. Two results are comparable only if their rules are equal.

    Args:
        min_face: side in pixels of the smallest face: the first level of the pyramid makes it 12 pixels.
        factor: side of a level of the pyramid as a fraction of that of the level before.
        thresholds: smallest scores of P-Net, R-Net and O-Net.
        nms_iou: IoU above which the candidate of the lower score is suppressed: among those of one level of the
            pyramid, among those of all levels, and among those that R-Net keeps.
        nms_iom: intersection over the smaller area above which the one of the lower score of two detections of O-Net
            is suppressed.
        cells: largest number of P-Net's cells of a photo before the suppression; those of the highest scores.
        candidates: largest number of candidates of a photo that R-Net sees; those of the highest scores.
        most: largest number of detections of a photo.
        resize: ``area``: each pixel of a level or a crop is the mean of the pixels that it touches; ``bilinear``:
            interpolation without smoothing.
        official_pixels: whether boxes are those of facenet-pytorch, with which the published weights are used: cells
            begin at whole pixels counted from 1, boxes are a pixel smaller in the first correction and in the
            suppressions by IoU, and crops are cut off at the borders of the photo and stretched. Otherwise a cell is
            the exact square that P-Net saw, candidates are rounded to whole pixels, and crops are filled with zeros
            outside of the photo, as in the authors' code.
    """

    min_face: Annotated[float, Ge(3)]
    factor: Annotated[float, Interval(ge=0.1, le=0.95)]
    thresholds: tuple[Share, Share, Share]
    nms_iou: tuple[Share, Share, Share]
    nms_iom: Share
    cells: Count
    candidates: Count
    most: Count
    resize: Literal["area", "bilinear"]
    official_pixels: bool

    def largest(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width in pixels of the largest level of the pyramid of a photo, if it has any."""
        scale = PNET_SIDE / self.min_face
        return int(height * scale + 1), int(width * scale + 1)

    def levels(self, height: int, width: int) -> list[tuple[int, int, float]]:
        """Return height, width and scale of the levels of the pyramid of a photo of a height and width in pixels."""
        levels, scale = [], PNET_SIDE / self.min_face
        while min(height, width) * scale >= PNET_SIDE:
            levels.append((int(height * scale + 1), int(width * scale + 1), scale))
            scale *= self.factor
        return levels


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize images by bilinear interpolation without smoothing, as the public codes of detectors do.

    Args:
        image: ``(B, 3, H, W)`` uint8.
        height: in pixels.
        width: in pixels.

    Returns:
        ``(B, 3, height, width)`` uint8.
    """
    if image.shape[-2:] == (height, width):
        return image
    resized = functional.interpolate(image.float(), (height, width), mode="bilinear", align_corners=False)
    return resized.round_().to(torch.uint8)


def order(photo: Tensor, scores: Tensor) -> Tensor:
    """Return the order ``(D,)`` by photo and falling score; equal scores keep their order."""
    by_score = scores.argsort(descending=True, stable=True)
    return by_score[photo[by_score].argsort(stable=True)]


def first_of_each(photo: Tensor, most: int) -> Tensor:
    """Return a mask of the first rows of each photo.

    Args:
        photo: ``(D,)`` sorted photos of the rows.
        most: largest number of rows of a photo.
    """
    place = torch.arange(len(photo), device=photo.device)
    return place - torch.searchsorted(photo, photo) < most  # searchsorted: first row of the same photo


def suppress(found: Candidates, rule: DetectionRule) -> Candidates:
    """Remove each detection that overlaps one of a higher score in the same photo (non-maximum suppression).

    Args:
        found: detections in the order of :func:`order`.
        rule: a candidate with a larger IoU than ``rule.nms_iou`` is removed.
    """
    return found.take(_leaders(found, rule))


def _leaders(found: Candidates, rule: DetectionRule) -> Tensor:
    """Return the rows that the suppression keeps, in their order."""
    return leaders_of_groups(_corners(found, rule), found.scores, found.photo, rule.nms_iou)


def leaders_of_groups(corners: Tensor, scores: Tensor, group: Tensor, iou: float) -> Tensor:
    """Return the boxes that no box of a higher score in the same group overlaps, in their order.

    Args:
        corners: ``(D, 4)``.
        scores: ``(D,)``.
        group: ``(D,)`` int64.
        iou: largest IoU that is no overlap.
    """
    # float64: the offsets that separate groups would round float32, and a batch would differ from single photos.
    corners = corners.double()
    if len(corners):
        corners = corners - corners.min()  # torchvision separates the groups by offsets, for which no number may be < 0
    return batched_nms(corners, scores.double(), group, iou).sort().values


def _corners(found: Candidates, rule: DetectionRule) -> Tensor:
    """Return the boxes for overlaps."""
    corners = found.boxes.double()
    return corners + corners.new_tensor([0, 0, 1, 1]) if rule.official_areas else corners


def leaders_by_iom(found: Candidates, iom: float) -> Tensor:
    """Return a mask of the detections that none of a higher score in the same photo covers or is covered by.

    The suppression in falling score is the only solution of "a row is kept if no kept row of a higher score overlaps
    it", which repetition reaches: the first t rows of a photo are right after t rounds, most photos after three.

    Args:
        found: detections in the order of :func:`order`.
        iom: largest intersection over the smaller area that is no overlap.

    Returns:
        ``(D,)`` bool.
    """
    if not len(found.photo):
        return torch.zeros_like(found.photo, dtype=torch.bool)
    place = torch.arange(len(found.photo), device=found.photo.device) - torch.searchsorted(found.photo, found.photo)
    photos, most = (torch.stack([found.photo[-1], place.amax()]) + 1).tolist()
    table = found.boxes.new_zeros(photos, most, 4).index_put_((found.photo, place), found.boxes)
    overlaps = (boxes.iom(table, table) > iom).triu(diagonal=1)  # [:, i, j]: i has the higher score
    kept = torch.ones(photos, most, dtype=torch.bool, device=place.device)
    while True:
        before, kept = kept, ~(overlaps & kept[:, :, None]).any(dim=1)
        if torch.equal(before, kept):
            return kept[found.photo, place]


def vote(found: Candidates, rule: DetectionRule) -> Candidates:
    """Join each group of overlapping detections of a photo to one: boxes and points are means weighted by the scores.

    As in the official code of RetinaFace, a group is the detection of the highest score and all others that overlap it,
    and keeps the highest score. Departures: a group of one stays, and the landmarks are joined as well.

    Args:
        found: candidates, in the order of :func:`order`.
        rule: candidates with a larger IoU than ``rule.nms_iou`` belong to a group.
    """
    leaders, corners = _leaders(found, rule), _corners(found, rule)
    leader = torch.empty_like(found.photo)  # place of each candidate's leader in `leaders`
    leader[leaders] = torch.arange(len(leaders), device=leader.device)
    led = torch.ones_like(found.photo, dtype=torch.bool)
    led[leaders] = False
    for photo in found.photo.unique():
        heads = (found.photo[leaders] == photo).nonzero().squeeze(1)
        for others in (led & (found.photo == photo)).nonzero().squeeze(1).split(CHUNK):
            overlaps = boxes.iou(corners[others], corners[leaders[heads]]) > rule.nms_iou
            leader[others] = heads[overlaps.int().argmax(dim=1)]  # the first that overlaps; the suppression found one
    weight = found.scores.new_zeros(len(leaders)).index_add_(0, leader, found.scores)
    share = found.scores / weight[leader]
    joined = found.take(leaders)
    return joined._replace(
        boxes=torch.zeros_like(joined.boxes).index_add_(0, leader, found.boxes * share[:, None]),
        points=torch.zeros_like(joined.points).index_add_(0, leader, found.points * share[:, None, None]),
    )


def concatenate(parts: Sequence[Candidates]) -> Candidates:
    """Concatenate detections."""
    return Candidates(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
