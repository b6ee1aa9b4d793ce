"""Points as heatmaps: one map per landmark with a Gaussian peak at its position.

Decoders: "Distribution-Aware Coordinate Representation for Human Pose Estimation" (DARK; Zhang et al., CVPR 2020, arXiv
1910.06278), the quarter offset of HRNet/HRNet-Facial-Landmark-Detection, and the centre of gravity.
"""

from math import ceil
from typing import Annotated, Literal, NamedTuple, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor, nn

from facelab.bounds import Count
from facelab.errors import ConfigError
from facelab.faces.geometry import from_grid, to_cells, to_grid

Decoder: TypeAlias = Literal["dark", "quarter", "soft_argmax"]
Sigma: TypeAlias = Annotated[float, Interval(ge=0.8, le=16)]
"""Standard deviation of a peak in cells. Below 0.8 too few cells show the peak: decoded points are more than 0.05
pixels off. A larger peak would fill the maps of every method."""
REACH = 3.0
"""Half width of the reference target, the smoothing and the centre of gravity, in standard deviations of the peak."""
MIN_HEAT = 1e-10
"""Lower bound of a cell's value before its logarithm, as in the reference code of DARK."""
QUARTER = 0.25
"""Cells between a cell's centre and the decoded point, as in the reference code of HRNet."""
NEWTON_STEPS = 3
"""Steps after which the centre of a Gaussian at the border is exact to 0.003 pixels of the crop."""
MIN_SPREAD = 0.05
"""Lower bound of the variance of the visible part of a peak, as a fraction of that of the whole peak. It limits a
Newton step at the border."""
MIN_CELLS = 3
"""Cells per side of the smallest map: a parabola needs three."""


class Heatmaps(NamedTuple):
    """Prediction and target of the heatmap methods."""

    maps: Tensor  # (B, N, h, w) 1 at the landmark's position, falling to 0; raw, without a sigmoid


class HeatmapCoder(nn.Module):
    """Convert between points and :class:`Heatmaps`.

    A target is a Gaussian with peak 1 at the real-valued position. It is not cut off at a window, because the decoders
    need its exact shape. A landmark outside the crop has an empty map, which the network learns as "no peak".

    The reference code (HRNet/HRNet-Facial-Landmark-Detection) truncates positions to whole cells, which costs 0.38
    cells in the mean, and cuts the peak off at a window. It also empties the map of a landmark above the upper edge of
    the photo, which is not reproduced.

    Args:
        stride: side of a cell in pixels of the crop.
        sigma: standard deviation of the peak in cells.
        decoder: ``dark`` fits a parabola to the logarithm of the smoothed peak, which is exact for a Gaussian.
            Departures from the paper: the differences span 3 cells and not 5, and near the border, where the smoothing
            would include the outside, the peak is not smoothed.
            ``quarter`` moves a quarter of a cell from the highest cell towards its higher neighbours; as in the
            reference code it does not move in border cells, and a map without a positive value gives the point half a
            cell left of and above the crop.
            ``soft_argmax`` is the centre of gravity of the squared positive heat around the highest cell. Within
            ``3 * sigma`` cells of the border a part of the peak is missing, which would move the point inwards; there
            it is the centre of the Gaussian whose visible part has this centre of gravity.
        official_int_cell: encode as the reference code: peak at the centre of the cell, cut off at its window.
        official_border: also shift peaks in the first cells as the reference code does, by one cell for a sigma of 1.5.

    Raises:
        ConfigError: ``official_border`` without ``official_int_cell``.
    """

    def __init__(
        self, stride: Count, sigma: Sigma, decoder: Decoder, official_int_cell: bool, official_border: bool
    ) -> None:
        super().__init__()
        if official_border and not official_int_cell:
            raise ConfigError("official_border", "=true is a part of official_int_cell=true, which is false")
        self.stride, self.sigma, self.decoder = stride, sigma, decoder
        self.official_int_cell, self.official_border = official_int_cell, official_border
        self.radius = ceil(REACH * sigma)
        self.smoothing: Tensor
        self.register_buffer("smoothing", self._smoothing(), persistent=False)

    def _smoothing(self) -> Tensor:
        """Return the Gaussian weights of the three middle cells of a row, ``(3, 2 * radius + 3)``.

        Their standard deviation is that of the target.
        """
        offsets = torch.arange(-self.radius - 1, self.radius + 2)
        distance = offsets - torch.tensor([[-1], [0], [1]])
        weight = _gaussian(distance, self.sigma) * (distance.abs() <= self.radius)
        return weight / weight.sum(1, keepdim=True)

    def encode(self, points: Tensor, valid: Tensor, image_size: int) -> Heatmaps:
        """Compute the target maps.

        Args:
            points: ``(B, N, 2)`` in pixels of the crop.
            valid: ``(B, N)`` bool. The map of a landmark that is not valid, or not finite, is empty.
            image_size: side of the crop in pixels.

        Raises:
            ConfigError: the crop is not a whole number of cells, or of fewer than three.
        """
        side, rest = divmod(image_size, self.stride)
        if rest or side < MIN_CELLS:
            raise ConfigError(
                "crop.size",
                f"={image_size} must be a multiple of coder.stride={self.stride}, and {MIN_CELLS} cells or more",
                mounted=True,
            )
        points = points.float()
        known = valid & points.isfinite().all(-1)  # (B, N)
        cells = torch.arange(side, device=points.device)
        if self.official_int_cell:
            profile = self._official_profile(to_cells(points, self.stride), cells)
        else:
            profile = _gaussian(cells - to_grid(points, self.stride)[..., None], self.sigma)  # (B, N, 2, side)
            place = to_cells(points, self.stride)
            known = known & ((place >= 0) & (place < side)).all(-1)
        # Selected, not multiplied: the profile of an unknown point is NaN.
        across, down = torch.where(known[..., None, None], profile, 0.0).unbind(2)
        return Heatmaps(down[..., :, None] * across[..., None, :])

    def _official_profile(self, place: Tensor, cells: Tensor) -> Tensor:
        """Compute rows and columns of the reference target, ``(B, N, 2, side)``.

        Args:
            place: ``(B, N, 2)`` in cells.
            cells: ``(side,)`` numbers of the cells.
        """
        reach = REACH * self.sigma
        cell = place.trunc()[..., None]
        first = (cell - reach).trunc() if self.official_border else (cell - reach).floor()
        end = (cell + reach + 1).trunc()
        peak = first + (2 * reach + 1) // 2
        return _gaussian(cells - peak, self.sigma) * ((cells >= first) & (cells < end))

    def decode(self, heatmaps: Heatmaps) -> tuple[Tensor, Tensor]:
        """Find the peaks.

        Returns:
            points: ``(B, N, 2)`` float32 in pixels of the crop; NaN for a map with NaN or infinity.
            confidence: ``(B, N)`` the highest value, clamped to 0..1; 0 for a map of equal values.
        """
        with torch.autocast(heatmaps.maps.device.type, enabled=False):
            maps = heatmaps.maps.float()
            highest, flat = maps.flatten(2).max(-1)  # (B, N)
            width = maps.shape[-1]
            cell = torch.stack((flat % width, flat // width), -1)  # (B, N, 2)
            find = {"dark": self._dark, "quarter": self._quarter, "soft_argmax": self._centre_of_gravity}
            points = from_grid(find[self.decoder](maps, cell, highest), self.stride)
            confidence = torch.where(highest > maps.amin((2, 3)), highest.clamp(0, 1), 0.0)
            finite = highest.isfinite()  # the maximum of a map with NaN is NaN
            points, confidence = torch.where(finite[..., None], points, torch.nan), torch.where(finite, confidence, 0.0)
        return points, confidence

    def _quarter(self, maps: Tensor, cell: Tensor, highest: Tensor) -> Tensor:
        """Move a quarter of a cell towards the higher neighbours, ``(B, N, 2)`` on the grid."""
        patch, _ = _read_patch(maps, cell, 1)  # (B, N, 3, 3)
        difference = torch.stack((patch[..., 1, 2] - patch[..., 1, 0], patch[..., 2, 1] - patch[..., 0, 1]), -1)
        inside = ((cell >= 1) & (cell <= maps.shape[-1] - 2)).all(-1, keepdim=True)
        place = cell + torch.where(inside, QUARTER * difference.sign(), 0.0)
        return torch.where(highest[..., None] > 0, place, -1.0)

    def _centre_of_gravity(self, maps: Tensor, cell: Tensor, highest: Tensor) -> Tensor:
        """Average the cells around the highest, ``(B, N, 2)`` on the grid."""
        patch, inside = _read_patch(maps, cell, self.radius)
        highest = highest.clamp(min=torch.finfo(patch.dtype).tiny)[..., None, None]
        weight = torch.where(inside, (patch.relu() / highest).square(), 0.0)  # at most 1, whatever the scale
        offsets = torch.arange(-self.radius, self.radius + 1, device=maps.device)
        total = weight.sum((2, 3)).clamp(min=torch.finfo(weight.dtype).tiny)
        across, down = (weight.sum(2) * offsets).sum(-1), (weight.sum(3) * offsets).sum(-1)
        mean = torch.stack((across, down), -1) / total[..., None]
        return cell + self._correct_border(mean, cell, maps.shape[-1])

    def _correct_border(self, mean: Tensor, cell: Tensor, side: int) -> Tensor:
        """Compute the centre of a squared peak from the centre of gravity of its part on the map.

        Newton's method for the mean of a truncated Gaussian: the derivative of that mean by the centre is its variance
        divided by that of the whole peak. Far from the border both are equal, and nothing changes.

        Args:
            mean: ``(B, N, 2)`` centre of gravity in cells, relative to ``cell``.
            cell: ``(B, N, 2)`` highest cell.
            side: cells per side of the map.

        Returns:
            ``(B, N, 2)`` in cells relative to ``cell``, on the map.
        """
        # Twice the window, so that its own ends have no effect.
        offsets = torch.arange(-2 * self.radius, 2 * self.radius + 1, device=mean.device)
        on_map = ((cell[..., None] + offsets >= 0) & (cell[..., None] + offsets < side)).to(mean.dtype)  # (B, N, 2, p)
        variance = self.sigma**2 / 2  # of a squared Gaussian
        lowest, largest = -0.5 - cell, side - 0.5 - cell  # half a cell beyond the first and last centre
        centre = mean
        for _ in range(NEWTON_STEPS):
            weight = _gaussian(offsets - centre[..., None], variance**0.5) * on_map
            weight = weight / weight.sum(-1, keepdim=True)
            expected = (weight * offsets).sum(-1)
            spread = (weight * (offsets - expected[..., None]) ** 2).sum(-1).clamp(min=variance * MIN_SPREAD)
            step = (mean - expected) * variance / spread
            centre = torch.minimum(torch.maximum(centre + step, lowest), largest)
        return centre

    def _dark(self, maps: Tensor, cell: Tensor, highest: Tensor) -> Tensor:
        """Find the top of the parabola through the logarithms around the highest cell, ``(B, N, 2)`` on the grid."""
        last = maps.shape[-1] - 1
        middle = cell.clamp(1, last - 1)  # of the 3 x 3 cells; the parabola of a Gaussian is the same everywhere
        patch, _ = _read_patch(maps, middle, self.radius + 1)
        smooth = ((self.smoothing @ patch)[..., None, :] * self.smoothing).sum(-1)  # (B, N, 3, 3)
        far = self.radius + 1
        whole = ((middle >= far) & (middle <= last - far)).all(-1)[..., None, None]
        heat = torch.where(whole, smooth, patch[..., self.radius : self.radius + 3, self.radius : self.radius + 3])
        offset, is_peak = _find_top(heat.clamp(min=MIN_HEAT).log())
        place = torch.where(is_peak[..., None], middle + offset, cell.to(offset.dtype))
        return torch.minimum(torch.maximum(place, cell - 1.0), cell + 1.0)


def _gaussian(distance: Tensor, sigma: float) -> Tensor:
    """Compute a Gaussian with maximum 1."""
    return torch.exp(-(distance**2) / (2 * sigma**2))


def _read_patch(maps: Tensor, middle: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Read the cells around one cell of each map.

    Args:
        maps: ``(B, N, h, w)``.
        middle: ``(B, N, 2)`` int64, x and y of the cell.
        radius: cells to each side.

    Returns:
        patch: ``(B, N, p, p)``, cells outside the map repeat its border.
        inside: ``(B, N, p, p)`` bool, whether the cell is on the map.
    """
    height, width = maps.shape[-2:]
    offsets = torch.arange(-radius, radius + 1, device=maps.device)
    x, y = middle[..., :1] + offsets, middle[..., 1:] + offsets  # (B, N, p)
    flat = y.clamp(0, height - 1)[..., :, None] * width + x.clamp(0, width - 1)[..., None, :]
    on_map = ((y >= 0) & (y < height))[..., :, None] & ((x >= 0) & (x < width))[..., None, :]
    return maps.flatten(2).gather(2, flat.flatten(2)).unflatten(2, flat.shape[2:]), on_map


def _find_top(values: Tensor) -> tuple[Tensor, Tensor]:
    """Find the top of the parabola through 3 x 3 values (as in DARK).

    Args:
        values: ``(B, N, 3, 3)``, rows are y.

    Returns:
        offset: ``(B, N, 2)`` from the middle in cells; 0 where there is no top.
        is_peak: ``(B, N)`` bool, whether the parabola has a top.
    """
    centre = values[..., 1, 1]
    dx, dy = (values[..., 1, 2] - values[..., 1, 0]) / 2, (values[..., 2, 1] - values[..., 0, 1]) / 2
    dxx = values[..., 1, 2] - 2 * centre + values[..., 1, 0]
    dyy = values[..., 2, 1] - 2 * centre + values[..., 0, 1]
    dxy = (values[..., 2, 2] - values[..., 2, 0] - values[..., 0, 2] + values[..., 0, 0]) / 4
    determinant = dxx * dyy - dxy * dxy
    is_peak = (dxx < 0) & (dyy < 0) & (determinant > 0)
    divisor = torch.where(is_peak, determinant, 1.0)
    offset = torch.stack((dxy * dy - dyy * dx, dxy * dx - dxx * dy), -1) / divisor[..., None]
    return torch.where(is_peak[..., None], offset, 0.0), is_peak
