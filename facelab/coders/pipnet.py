"""Coder of PIPNet: a cell of a coarse grid and an offset from its corner per landmark (Jin, Liao, Shao, IJCV 2021).

"Pixel-in-Pixel Net: Towards Efficient Facial Landmark Detection in the Wild", arXiv 2003.03771.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from facelab.errors import ConfigError
from facelab.faces.geometry import from_cells, to_cells
from facelab.faces.layouts import Layout


class PIPMaps(NamedTuple):
    """Output and target of PIPNet per landmark and cell. Offsets are in cells, from the cell's upper left edge."""

    score: Tensor  # (B, N, h, w) 1 in the landmark's cell, 0 elsewhere; predicted without a sigmoid
    offset: Tensor  # (B, N, 2, h, w) x and y of the landmark
    neighbour: Tensor  # (B, N, C, 2, h, w) x and y of its nearest landmarks, from the same cell


class PIPCoder(nn.Module):
    """Conversion between points and :class:`PIPMaps`, with the paper's neighbour regression module (NRM).

    Each landmark also predicts its C nearest neighbours. The decoded point is the mean of the landmark's own prediction
    and these votes for it. :meth:`set_mean_shape` finds the neighbours once, in the mean shape of the training set; the
    checkpoint stores them. Before that call each landmark is its own neighbour, and only its own prediction counts.

    Departures from the reference code (jhb86253817/PIPNet): batches of any size; the mean is over the existing votes.
    The reference code repeats each list of votes up to the length of the longest list, so the weights of a landmark's
    own prediction and of its first votes depend on the list lengths.

    Args:
        layout: layout of the landmarks.
        stride: side of a cell in pixels of the image.
        num_neighbours: C; 0 disables the neighbour regression.
        official_merge: weight the votes exactly as the reference code does.

    Raises:
        ConfigError: ``num_neighbours`` is negative or not below the number of landmarks.
    """

    def __init__(self, layout: Layout, stride: int, num_neighbours: int, official_merge: bool) -> None:
        super().__init__()
        if not 0 <= num_neighbours < layout.num_points:
            raise ConfigError(
                "num_neighbours", f"={num_neighbours} must be below the {layout.num_points} points of {layout.name}"
            )
        self.stride, self.num_neighbours, self.official_merge = stride, num_neighbours, official_merge
        n, c = layout.num_points, num_neighbours
        self.neighbours: Tensor
        self.register_buffer("neighbours", torch.arange(n)[:, None].repeat(1, c))  # (N, C), nearest first
        self.votes: Tensor
        self.register_buffer("votes", torch.zeros(n, n * c))  # (N, N C) weight of a vote in a landmark's mean

    def set_mean_shape(self, mean_shape: Tensor) -> None:
        """Compute the neighbours and the weights of the votes.

        Args:
            mean_shape: ``(N, 2)`` mean of the training points in pixels of the crop.

        Raises:
            ValueError: the shape is wrong, or a point is not finite.
            ConfigError: with ``official_merge`` a landmark is nobody's neighbour; the reference code does not handle
                this case.
        """
        n, c = self.neighbours.shape
        if mean_shape.shape != (n, 2):
            raise ValueError(f"the mean shape must be ({n}, 2), got {tuple(mean_shape.shape)}")
        if not mean_shape.isfinite().all():
            missing = (~mean_shape.isfinite().all(1)).nonzero()[:, 0].tolist()
            raise ValueError(f"the landmarks {missing} are missing from the mean shape: no training face has them")
        points = mean_shape.double()
        distance = (points[:, None] - points).square().sum(-1)  # (N, N)
        neighbours = distance.fill_diagonal_(float("inf")).argsort(dim=1, stable=True)[:, :c]
        voters = nn.functional.one_hot(neighbours.flatten(), n).mT  # (N, N C) 1 where the vote is for the landmark
        self.neighbours.copy_(neighbours)
        self.votes.copy_(self._official_weights(voters) if self.official_merge else voters / (1 + voters.sum(1, True)))

    def _official_weights(self, voters: Tensor) -> Tensor:
        """Weight the votes as the reference code does: repeat each list of votes up to the length of the longest one.

        Args:
            voters: ``(N, N C)`` 1 where the vote is for the landmark.

        Returns:
            ``(N, N C)`` weights.

        Raises:
            ConfigError: a landmark is nobody's neighbour.
        """
        lengths = voters.sum(1, keepdim=True)  # (N, 1)
        if not lengths.all():
            without_votes = (lengths[:, 0] == 0).nonzero()[:, 0].tolist()
            raise ConfigError(
                "coder.official_merge",
                f": the landmarks {without_votes} are nobody's neighbour; raise coder.num_neighbours or set "
                "coder.official_merge=false",
                mounted=True,
            )
        longest = lengths.max()
        rank = voters.cumsum(1) - 1  # position of a vote in the list of its landmark
        return voters * (longest // lengths + (rank < longest % lengths)) / (1 + longest)

    def encode(self, points: Tensor, valid: Tensor, image_size: int) -> PIPMaps:
        """Compute the target maps.

        The cell is clamped to the grid, the offset is not: a point outside the image belongs to the nearest cell and
        has an offset below 0 or above 1. Every cell contains the offsets of the landmark's own cell, as a view without
        extra memory; the loss and :meth:`decode` read only the landmark's own cell.

        Args:
            points: ``(B, N, 2)`` in pixels of the crop.
            valid: ``(B, N)`` bool. A landmark that is not valid or not finite has score 0 everywhere and NaN offsets,
                also as a neighbour.
            image_size: side of the crop in pixels.

        Raises:
            ConfigError: ``image_size`` is not a multiple of the stride.
        """
        side, rest = divmod(image_size, self.stride)
        if rest or not side:
            raise ConfigError(
                "crop.size", f"={image_size} must be a multiple of coder.stride={self.stride}", mounted=True
            )
        annotated = valid & points.isfinite().all(-1)  # (B, N)
        position = to_cells(points.float(), self.stride).masked_fill(~annotated[..., None], float("nan"))  # (B, N, 2)
        cell = position.floor().clamp(0, side - 1)
        index = (cell[..., 1] * side + cell[..., 0]).nan_to_num(0).long()  # (B, N)
        score = position.new_zeros(*annotated.shape, side * side).scatter_(
            2, index[..., None], annotated[..., None].float()
        )
        offset = position - cell
        neighbour = position[:, self.neighbours] - cell[:, :, None]  # (B, N, C, 2)
        return PIPMaps(
            score.unflatten(2, (side, side)),
            offset[..., None, None].expand(*offset.shape, side, side),
            neighbour[..., None, None].expand(*neighbour.shape, side, side),
        )

    def decode(self, maps: PIPMaps) -> tuple[Tensor, Tensor]:
        """Decode each landmark from its best cell and the offset there, then average it with its neighbours' votes.

        The mean is computed as the landmark's own prediction plus the weighted differences of the votes from it. The
        result is the same, but the factors are differences of a pixel or two; half precision or TF32 would round full
        coordinates.

        Args:
            maps: of the network, or of :meth:`encode`.

        Returns:
            points: ``(B, N, 2)`` in pixels of the crop.
            confidence: ``(B, N)`` score of the best cell, clamped to [0, 1]. The network regresses scores without a
                bound; the reference code returns them unclamped.
        """
        with torch.autocast(maps.score.device.type, enabled=False):
            confidence, index = maps.score.float().flatten(2).max(-1)  # (B, N)
            width = maps.score.shape[-1]
            cell = torch.stack((index % width, index // width), -1)  # (B, N, 2)
            predicted = cell + at_cell(maps.offset, index)
            votes = cell[:, :, None] + at_cell(maps.neighbour, index)  # (B, N, C, 2)
            difference = votes - predicted[:, self.neighbours]
            # Only an encoded target contains NaN here, for landmarks without an annotation: they do not vote.
            difference = torch.where(difference.isnan(), 0.0, difference)
            return from_cells(predicted + self.votes @ difference.flatten(1, 2), self.stride), confidence.clamp(0, 1)


def at_cell(maps: Tensor, index: Tensor) -> Tensor:
    """Read each landmark's map at one cell.

    Args:
        maps: ``(B, N, ..., h, w)``.
        index: ``(B, N)`` int64, cell index in row-major order.

    Returns:
        ``(B, N, ...)`` float32.

    >>> maps = torch.tensor([[[[0.1, 0.2], [0.3, 0.4]]]])
    >>> at_cell(maps, torch.tensor([[2]]))
    tensor([[0.3000]])
    """
    cells = maps.flatten(-2)  # (B, N, ..., h w)
    index = index.view(*index.shape, *[1] * (cells.ndim - 2)).expand(*cells.shape[:-1], 1)
    return cells.gather(-1, index)[..., 0].float()
