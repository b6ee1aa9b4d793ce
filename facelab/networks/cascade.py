"""Cascade of MTCNN (Zhang et al., IEEE Signal Processing Letters 2016, arXiv 1604.02878): photos in, faces out.

P-Net searches the levels of an image pyramid; R-Net and O-Net look again at what the stage before found. Each step
takes the candidates of all photos of a batch at once, and each stage can be called on its own: its result is what a
cascade that ends there has found, and what the next stage sees and is trained on.

Coordinates in this module are **pixels counted from the edge of the first pixel** (a pixel covers [c, c + 1)), the
result of :meth:`Cascade.forward` excepted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from facelab.faces.boxes import square
from facelab.faces.detections import (
    Candidates,
    CascadeRule,
    first_of_each,
    leaders_by_iom,
    leaders_of_groups,
    order,
)
from facelab.faces.geometry import from_cells
from facelab.networks.mtcnn import POINTS, CascadeNetwork, ONet, PNet, RNet

STRIDE = 2
"""Pixels between the squares that P-Net sees."""
CHUNK = 256
"""Crops that a network sees at a time, which limits the memory: O-Net's first feature maps take 0.3 MB per crop."""
PIXELS = 2**19
"""Pixels that P-Net sees at a time, unless one photo has more; on a CPU, two million at once take twice as long."""
FAR = 2.0**20
"""Largest coordinate in pixels of a crop; only weights without a training lead to larger ones."""


class Photos:
    """Photos of a batch, from which levels of the pyramid and crops are made on their device.

    With the resizing ``area``, both are differences of entries of one table of sums (integral image). So their cost
    depends on their number of pixels and not on that of the photo, and the sums are exact: whole numbers of 32 bits,
    whose overflow in photos of over 8 million pixels cancels in the differences.

    Args:
        image: ``(B, 3, H, W)`` uint8 RGB, padded at the right and below; the padding has no influence.
        size: ``(B, 2)`` height and width of each photo; 0 for a photo that could not be read.
        rule: rule of the search.
    """

    def __init__(self, image: Tensor, size: Tensor, rule: CascadeRule) -> None:
        self.image, self.size, self.rule = image, size, rule
        sides: list[tuple[int, int]] = [(int(height), int(width)) for height, width in size.tolist()]
        self.groups = {side: [row for row, other in enumerate(sides) if other == side] for side in sorted({*sides})}
        self.table = _integrate(image) if rule.resize == "area" else image.permute(0, 2, 3, 1).contiguous()

    def level(self, photos: Tensor, height: int, width: int, new_height: int, new_width: int) -> Tensor:
        """Resize photos of one size.

        Args:
            photos: ``(b,)`` rows of the photos.
            height: of the photos in pixels.
            width: of the photos in pixels.
            new_height: of the result in pixels.
            new_width: of the result in pixels.

        Returns:
            ``(b, 3, new_height, new_width)`` float32 grey levels.
        """
        if self.rule.resize == "bilinear":
            image = self.image[photos, :, :height, :width].float()
            resized = functional.interpolate(image, (new_height, new_width), mode="bilinear", align_corners=False)
            return resized.contiguous(memory_format=torch.channels_last)
        y0, y1 = _bins(torch.tensor(height), new_height, self.image.device)
        x0, x1 = _bins(torch.tensor(width), new_width, self.image.device)
        rows = self.table[photos[:, None], y1, : width + 1] - self.table[photos[:, None], y0, : width + 1]
        sums = rows.index_select(2, x1) - rows.index_select(2, x0)  # (b, new_height, new_width, 3)
        area = (y1 - y0)[:, None] * (x1 - x0)
        return (sums / area[..., None]).permute(0, 3, 1, 2)

    def crops(self, squares: Tensor, photo: Tensor, side: int) -> Tensor:
        """Cut out squares of any photos and resize them.

        Args:
            squares: ``(D, 4)``; cut at whole pixels.
            photo: ``(D,)`` rows of their photos.
            side: of the crops in pixels.

        Returns:
            ``(D, 3, side, side)`` float32 grey levels, 0 outside of the photo.
        """
        corners = squares.clamp(-FAR, FAR).floor().long().unflatten(1, (2, 2))
        limit = self.size[photo].flip(1)  # (D, 2) width and height
        if self.rule.official_pixels:
            corners = torch.minimum(corners.clamp(min=0), limit[:, None])
        low, sides = corners[:, 0], (corners[:, 1] - corners[:, 0]).clamp(min=1)
        axes = [self._positions(low[:, axis], sides[:, axis], limit[:, axis], side) for axis in (0, 1)]
        (x0, x1, x_weight), (y0, y1, y_weight) = axes
        height, width = self.table.shape[1:3]
        table, first = self.table.view(-1, 3), (photo * height)[:, None]

        def entries(y: Tensor, x: Tensor) -> Tensor:
            rows = ((first + y) * width)[:, :, None] + x[:, None]
            return table.index_select(0, rows.flatten()).view(*rows.shape, 3)

        if self.rule.resize == "area":
            sums = entries(y1, x1) - entries(y0, x1) - entries(y1, x0) + entries(y0, x0)
            return (sums / (y_weight[:, :, None] * x_weight[:, None])[..., None]).permute(0, 3, 1, 2)
        upper, lower = (
            entries(y, x0) * x_weight[:, None, :, 0, None] + entries(y, x1) * x_weight[:, None, :, 1, None]
            for y in (y0, y1)
        )
        return (upper * y_weight[:, :, None, 0, None] + lower * y_weight[:, :, None, 1, None]).permute(0, 3, 1, 2)

    def _positions(self, low: Tensor, sides: Tensor, limit: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the two entries of the table for each pixel of a row of crops, and their divisor or weights.

        Args:
            low: ``(D,)`` first pixel of each crop.
            sides: ``(D,)`` pixels of the photo in each crop.
            limit: ``(D,)`` pixels of each photo.
            side: of the crops in pixels.
        """
        low, limit = low[:, None], limit[:, None]
        if self.rule.resize == "area":
            start, end = _bins(sides[:, None], side, low.device)
            return torch.clip(low + start, limit * 0, limit), torch.clip(low + end, limit * 0, limit), end - start
        places = (torch.arange(side, device=low.device) + 0.5) * (sides[:, None] / side) - 0.5 + low
        first = places.floor()
        both = torch.stack([first, first + 1], dim=-1).long()  # (D, side, 2)
        weights = torch.stack([first + 1 - places, places - first], dim=-1)
        weights = torch.where((both >= 0) & (both < limit[..., None]), weights, 0)
        clipped = torch.minimum(both.clamp(min=0), limit[..., None] - 1)
        return clipped[..., 0], clipped[..., 1], weights


def _integrate(image: Tensor) -> Tensor:
    """Return the table of sums ``(B, H + 1, W + 1, 3)`` int32: entry y, x is the sum of all pixels above and left."""
    batch, _, height, width = image.shape
    table = torch.zeros(batch, height + 1, width + 1, 3, dtype=torch.int32, device=image.device)
    # Sums along the last axis of a contiguous tensor: along others they are thirty times slower on a CPU.
    columns = image.transpose(2, 3).contiguous().cumsum(3, dtype=torch.int32)
    table[:, 1:, 1:] = columns.transpose(2, 3).contiguous().cumsum(3, dtype=torch.int32).permute(0, 2, 3, 1)
    return table


def _bins(length: Tensor, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first pixel, and that after the last, of each of ``count`` bins of ``length`` pixels."""
    index = torch.arange(count, device=device)
    return index * length // count, -(-(index + 1) * length // count)


class Level(NamedTuple):
    """Place of the cells of one level of the pyramids of some photos of one size, in the list of all cells."""

    first: int  # its first cell
    end: int  # the cell after its last
    photo: int  # its first photo in Cells.photos
    cells: int  # number of cells of a photo
    columns: int  # number of cells in a row
    number: int  # place of the level in the pyramid


class Cells(NamedTuple):
    """What P-Net says about all squares of the pyramids of a batch, level by level."""

    scores: list[Tensor]  # (b, h, w)
    offsets: list[Tensor]  # (b, h, w, 4)
    levels: list[Level]
    scales: list[tuple[float, float]]  # pixels of the level per pixel of the photo, in x and y
    photos: list[int]  # rows of the photos, those of one size one after the other


class Cascade(nn.Module):
    """P-Net, R-Net and O-Net, or the first of them, as one search.

    No pixel and no candidate is copied to the host. The host waits for the device where the number of rows of a result
    depends on its values: once for the sizes of the photos, 5 times in P-Net's stage, 2 in R-Net's, 3 and once per
    round of the last suppression in O-Net's (about 3 rounds), and once for the last limit, whatever the number of
    photos, levels and candidates. torchvision suppresses over 25,000 boxes at once group by group, which adds waits.

    P-Net sees the levels one by one. On a CPU, one image with all levels saves about 1 ms of a pyramid of 60,000 pixels
    and nothing reliable of a large one, and a level with an odd side would have other values at its border. On a GPU
    this was not measured.

    Args:
        pnet: network of the first stage.
        rnet: network of the second stage; None if the cascade ends before.
        onet: network of the third stage; None if the cascade ends before.
    """

    def __init__(self, pnet: PNet, rnet: RNet | None, onet: ONet | None) -> None:
        super().__init__()
        self.pnet, self.rnet, self.onet = pnet, rnet, onet

    def networks(self) -> dict[str, CascadeNetwork]:
        """Return the networks by name."""
        stages = {"pnet": self.pnet, "rnet": self.rnet, "onet": self.onet}
        return {name: network for name, network in stages.items() if network is not None}

    def forward(self, image: Tensor, size: Tensor, rule: CascadeRule) -> tuple[Candidates, Tensor]:
        """Find the faces of a batch of photos, which may have different sizes.

        Args:
            image: ``(B, 3, H, W)`` uint8 RGB, padded at the right and below.
            size: ``(B, 2)`` height and width of each photo in ``image``; 0 for a photo that could not be read.
            rule: rule of the search.

        Returns:
            Detections sorted by photo and falling score, in pixels of ``image`` in the coordinates of
            :mod:`facelab.faces.geometry`; and which photos ``(B,)`` a limit has cut.
        """
        # The precision of a mixed training would give many equal scores, and boxes off by pixels.
        with torch.autocast(image.device.type, enabled=False):
            photos = Photos(image, size, rule)
            found, cut = self.propose(photos)
            if self.rnet is not None:
                found = self.refine(photos, found)
            if self.onet is not None:
                found = self.finish(photos, found)
            rows, rest = _first_rows(found, rule.most, len(image))
        found = found.take(rows)
        return found._replace(boxes=from_cells(found.boxes, 1), points=from_cells(found.points, 1)), cut | rest

    def propose(self, photos: Photos) -> tuple[Candidates, Tensor]:
        """Search the pyramid with P-Net.

        Returns:
            Corrected boxes, sorted by photo and falling score, without points; and which photos ``(B,)`` a limit has
            cut.
        """
        rule = photos.rule
        cells = self._run_pyramid(photos)
        nothing = photos.image.new_zeros(0, 4, dtype=torch.float32)  # where all photos are smaller than a face
        score = torch.cat([nothing[:, 0], *(part.flatten() for part in cells.scores)])
        offset = torch.cat([nothing, *(part.flatten(0, 2) for part in cells.offsets)])
        cell = ((score >= rule.thresholds[0]) & offset.isfinite().all(dim=1)).nonzero().squeeze(1)
        boxes, photo, level = _locate(cells, cell, self.pnet.side, rule)
        found, offset = _without_points(boxes, score[cell], photo), offset[cell]
        rows, cut = _first_rows(found, rule.cells, len(photos.size))
        found, offset, level = found.take(rows), offset[rows], level[rows]
        corners = _corners(found.boxes, rule)
        rows = leaders_of_groups(corners, found.scores, found.photo * len(cells.levels) + level, rule.nms_iou[0])
        rows = rows[leaders_of_groups(corners[rows], found.scores[rows], found.photo[rows], rule.nms_iou[1])]
        found = found.take(rows)
        found = found._replace(boxes=_correct(found.boxes, offset[rows], corners[rows]))
        rows, rest = _first_rows(found, rule.candidates, len(photos.size))
        return found.take(rows), cut | rest

    def _run_pyramid(self, photos: Photos) -> Cells:
        """Run P-Net on all levels of the pyramid of all photos."""
        rule, device = photos.rule, photos.image.device
        cells = Cells([], [], [], [], [])
        for (height, width), group in photos.groups.items():
            rows = torch.tensor(group).to(device, non_blocking=True)
            for number, (new_height, new_width, scale) in enumerate(rule.levels(height, width)):
                exact = (new_width / width, new_height / height)
                at_a_time = max(1, PIXELS // (new_height * new_width))
                for start in range(0, len(group), at_a_time):
                    part = rows[start : start + at_a_time]
                    prediction = self.pnet(photos.level(part, height, width, new_height, new_width))
                    h, w = prediction.logits.shape[-2:]
                    first = cells.levels[-1].end if cells.levels else 0
                    end, photo = first + len(part) * h * w, len(cells.photos) + start
                    cells.levels.append(Level(first, end, photo, h * w, w, number))
                    cells.scales.append((scale, scale) if rule.official_pixels else exact)
                    cells.scores.append(_score(prediction.logits))
                    cells.offsets.append(prediction.offsets.permute(0, 2, 3, 1))
            cells.photos.extend(group)
        return cells

    def refine(self, photos: Photos, found: Candidates) -> Candidates:
        """Look at candidates of P-Net with R-Net; return those that it keeps, with corrected boxes."""
        assert self.rnet is not None, "the cascade ends before R-Net"
        rule = photos.rule
        found, offsets, _ = _look(self.rnet, photos, found, rule.thresholds[1])
        rows = leaders_of_groups(_corners(found.boxes, rule), found.scores, found.photo, rule.nms_iou[2])
        found, offsets = found.take(rows), offsets[rows]
        return found._replace(boxes=_correct(found.boxes, offsets, found.boxes))

    def finish(self, photos: Photos, found: Candidates) -> Candidates:
        """Look at candidates of R-Net with O-Net; return the faces, with corrected boxes and points."""
        assert self.onet is not None, "the cascade ends before O-Net"
        found, offsets, points = _look(self.onet, photos, found, photos.rule.thresholds[2])
        low, high = found.boxes[:, None, :2], found.boxes[:, None, 2:]
        assert points is not None
        found = found._replace(boxes=_correct(found.boxes, offsets, found.boxes), points=low + points * (high - low))
        found = found.take(order(found.photo, found.scores))
        return found.take(leaders_by_iom(found, photos.rule.nms_iom))


def squares(boxes: Tensor, rule: CascadeRule) -> Tensor:
    """Return the squares ``(D, 4)`` that the next stage sees of boxes ``(D, 4)``, at whole pixels."""
    squared = square(boxes)
    return squared if rule.official_pixels else squared.round()


def _look(
    network: CascadeNetwork, photos: Photos, found: Candidates, threshold: float
) -> tuple[Candidates, Tensor, Tensor | None]:
    """Look at candidates with R-Net or O-Net.

    Returns:
        Candidates of at least the threshold, whose boxes are the squares that the network saw; offsets and points of
        these squares.
    """
    seen = squares(found.boxes, photos.rule)
    scores, offsets, points = [], [], []
    for boxes, photo in zip(seen.split(CHUNK), found.photo.split(CHUNK), strict=True):
        prediction = network(photos.crops(boxes, photo, network.side))
        scores.append(_score(prediction.logits))
        offsets.append(prediction.offsets.float())
        points.append(prediction.points)
    score, offset = torch.cat(scores), torch.cat(offsets)
    rows = ((score >= threshold) & offset.isfinite().all(dim=1)).nonzero().squeeze(1)
    found = found._replace(boxes=seen, scores=score).take(rows)
    return found, offset[rows], torch.cat(points).float()[rows] if network.landmarks else None


def _score(logits: Tensor) -> Tensor:
    """Return the probability of a face ``(B, ...)`` of logits ``(B, 2, ...)``: softmax of two classes."""
    return (logits[:, 1].float() - logits[:, 0].float()).sigmoid()


def _locate(cells: Cells, cell: Tensor, side: int, rule: CascadeRule) -> tuple[Tensor, Tensor, Tensor]:
    """Return the squares of the photo that P-Net saw, the rows of the photos, and the levels of the pyramid.

    Args:
        cells: all cells.
        cell: ``(D,)`` places in the list of all cells.
        side: of the square in the level in pixels.
        rule: rule of the search.

    Returns:
        ``(D, 4)``, ``(D,)`` and ``(D,)``.
    """
    if not cells.levels:
        return cell.new_zeros(0, 4, dtype=torch.float32), cell, cell

    def on_device(values: Sequence[object]) -> Tensor:
        return torch.tensor(values).to(cell.device, non_blocking=True)

    table = on_device(cells.levels)
    row = torch.searchsorted(table[:, 0].contiguous(), cell, right=True) - 1
    first, _, first_photo, count, columns, number = table[row].unbind(1)
    photo = on_device(cells.photos)[first_photo + (cell - first) // count]
    place = (cell - first) % count
    low = STRIDE * torch.stack([place % columns, place // columns], dim=1)  # x and y in the level
    scale = on_device(cells.scales)[row]
    if not rule.official_pixels:
        return torch.cat([low / scale, (low + side) / scale], dim=1), photo, number
    # The code floors whole pixels counted from 1, of which the last belongs to the box.
    return torch.cat([((low + 1) / scale).floor() - 1, ((low + side) / scale).floor()], dim=1), photo, number


def _corners(boxes: Tensor, rule: CascadeRule) -> Tensor:
    """Return boxes for overlaps by IoU."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - 1], dim=1) if rule.official_pixels else boxes


def _correct(boxes: Tensor, offsets: Tensor, units: Tensor) -> Tensor:
    """Move the edges of boxes ``(D, 4)`` by offsets ``(D, 4)`` in sides of other boxes, ``units``."""
    return boxes + offsets * (units[:, 2:] - units[:, :2]).repeat(1, 2)


def _first_rows(found: Candidates, most: int, photos: int) -> tuple[Tensor, Tensor]:
    """Return the order by photo and falling score without what exceeds a limit, and which photos ``(B,)`` exceed it."""
    rows = order(found.photo, found.scores)
    photo = found.photo[rows]
    kept = first_of_each(photo, most)
    left_out = torch.zeros(photos, dtype=torch.int64, device=photo.device).index_add_(0, photo, (~kept).long())
    return rows[kept], left_out > 0


def _without_points(boxes: Tensor, scores: Tensor, photo: Tensor) -> Candidates:
    """Return candidates whose points are NaN."""
    return Candidates(boxes, scores, boxes.new_full((len(boxes), POINTS, 2), torch.nan), photo)
