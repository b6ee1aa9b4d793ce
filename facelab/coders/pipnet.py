"""Points as PIPNet sees them: a cell of a coarse grid and offsets from its corner (Jin, Liao, Shao, IJCV 2021).

"Pixel-in-Pixel Net: Towards Efficient Facial Landmark Detection in the Wild", arXiv 2003.03771.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from facelab.errors import ConfigError
from facelab.faces.geometry import from_cells, to_cells
from facelab.faces.layouts import Layout


class PIPMaps(NamedTuple):
    """What PIPNet predicts and learns, per landmark and cell. Offsets are in cells, from the cell's upper left edge."""

    score: Tensor  # (B, N, h, w) 1 in the cell that holds the landmark, 0 elsewhere; raw, without a sigmoid
    offset: Tensor  # (B, N, 2, h, w) x and y of the landmark
    neighbour: Tensor  # (B, N, C, 2, h, w) x and y of its nearest landmarks, seen from the same cell


class PIPCoder(nn.Module):
    """Between points and :class:`PIPMaps`, with the paper's neighbour regression module (NRM).

    Every landmark is also predicted by the landmarks it is a neighbour of; the decoded point is the mean of its own
    prediction and theirs. Who is whose neighbour is measured on the mean shape of the training set, which
    :meth:`set_mean_shape` takes once and the checkpoint then carries. Until then a landmark is its own neighbour and
    its decoded point is its own prediction alone.

    Departures from the reference code (jhb86253817/PIPNet): batches of any size; the mean is over the votes that
    exist, where the reference repeats shorter lists of votes until all are as long as the longest, so that a
    landmark's own prediction and its first voters weigh more or less by the accident of list lengths.

    Args:
        layout: the layout.
        stride: side of a cell in pixels of the image.
        num_neighbours: C; 0 switches the neighbour regression off.
        official_merge: weigh the votes exactly as the reference code does.

    Raises:
        ConfigError: not fewer neighbours than landmarks.
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
        self.register_buffer("votes", torch.zeros(n, n * c))  # (N, N C) weight of each vote in each landmark's mean

    def set_mean_shape(self, mean_shape: Tensor) -> None:
        """Fill the tables.

        Args:
            mean_shape: ``(N, 2)``, the mean of the training points, each in pixels of its crop.

        Raises:
            ValueError: the wrong number of points, or a point that is not finite.
            ConfigError: with ``official_merge`` a landmark is nobody's neighbour, for which the reference code has no
                answer.
        """
        n, c = self.neighbours.shape
        if mean_shape.shape != (n, 2):
            raise ValueError(f"the mean shape must be ({n}, 2), it is {tuple(mean_shape.shape)}")
        if not mean_shape.isfinite().all():
            unknown = (~mean_shape.isfinite().all(1)).nonzero()[:, 0].tolist()
            raise ValueError(f"the landmarks {unknown} have no place in the mean shape: no training face has them")
        points = mean_shape.double()
        distance = (points[:, None] - points).square().sum(-1)  # (N, N)
        neighbours = distance.fill_diagonal_(float("inf")).argsort(dim=1, stable=True)[:, :c]
        voters = nn.functional.one_hot(neighbours.flatten(), n).mT  # (N, N C) 1 where this vote is for this landmark
        self.neighbours.copy_(neighbours)
        self.votes.copy_(self._official_weights(voters) if self.official_merge else voters / (1 + voters.sum(1, True)))

    def _official_weights(self, voters: Tensor) -> Tensor:
        """Votes counted as in the reference: each list is repeated from its start up to the longest list's length."""
        lengths = voters.sum(1, keepdim=True)  # (N, 1)
        if not lengths.all():
            silent = (lengths[:, 0] == 0).nonzero()[:, 0].tolist()
            raise ConfigError(
                "coder.official_merge",
                f": the landmarks {silent} are nobody's neighbour; raise coder.num_neighbours or set "
                "coder.official_merge=false",
                mounted=True,
            )
        longest = lengths.max()
        rank = voters.cumsum(1) - 1  # place of a vote in its landmark's list
        return voters * (longest // lengths + (rank < longest % lengths)) / (1 + longest)

    def encode(self, points: Tensor, valid: Tensor, image_size: int) -> PIPMaps:
        """The maps a perfect network would give.

        Only the cell is clamped to the grid: a point outside the image belongs to the nearest cell, with an offset
        below 0 or above 1. Offsets are those of the landmark's own cell, shown in every cell without using memory,
        since nothing reads another one.

        Args:
            points: ``(B, N, 2)`` in pixels of the crop.
            valid: ``(B, N)`` bool. A landmark that is not valid, or not finite, has a score of 0 everywhere and NaN
                offsets, also where it is a neighbour.
            image_size: side of the crop in pixels.

        Raises:
            ConfigError: the crop is not a whole number of cells.
        """
        side, rest = divmod(image_size, self.stride)
        if rest or not side:
            raise ConfigError(
                "crop.size", f"={image_size} must be a multiple of coder.stride={self.stride}", mounted=True
            )
        known = valid & points.isfinite().all(-1)  # (B, N)
        place = to_cells(points.float(), self.stride).masked_fill(~known[..., None], float("nan"))  # (B, N, 2)
        cell = place.floor().clamp(0, side - 1)
        index = (cell[..., 1] * side + cell[..., 0]).nan_to_num(0).long()  # (B, N)
        score = place.new_zeros(*known.shape, side * side).scatter_(2, index[..., None], known[..., None].float())
        offset = place - cell
        neighbour = place[:, self.neighbours] - cell[:, :, None]  # (B, N, C, 2)
        return PIPMaps(
            score.unflatten(2, (side, side)),
            offset[..., None, None].expand(*offset.shape, side, side),
            neighbour[..., None, None].expand(*neighbour.shape, side, side),
        )

    def decode(self, maps: PIPMaps) -> tuple[Tensor, Tensor]:
        """Points of the maps: the best cell of each landmark, its offset, and the mean with its neighbours' votes.

        The mean is computed as the own prediction plus the weighted disagreement of the voters: the same number, but
        what is multiplied is then a pixel or two and not a coordinate, which half precision or TF32 would round.

        Returns:
            points: ``(B, N, 2)`` in pixels of the crop.
            confidence: ``(B, N)`` the score of the best cell, cut off at 0 and 1. The network regresses scores
                without a bound; the reference code gives them out raw, also above 1.
        """
        with torch.autocast(maps.score.device.type, enabled=False):
            confidence, index = maps.score.float().flatten(2).max(-1)  # (B, N)
            width = maps.score.shape[-1]
            cell = torch.stack((index % width, index // width), -1)  # (B, N, 2)
            own = cell + at_cell(maps.offset, index)
            votes = cell[:, :, None] + at_cell(maps.neighbour, index)  # (B, N, C, 2)
            disagreement = votes - own[:, self.neighbours]
            # Only an encoded target has NaN here, for landmarks that were not annotated: they do not vote.
            disagreement = torch.where(disagreement.isnan(), 0.0, disagreement)
            return from_cells(own + self.votes @ disagreement.flatten(1, 2), self.stride), confidence.clamp(0, 1)


def at_cell(maps: Tensor, index: Tensor) -> Tensor:
    """Read each landmark's map at one cell.

    Args:
        maps: ``(B, N, ..., h, w)``.
        index: ``(B, N)`` int64, the cell counted row by row.

    Returns:
        ``(B, N, ...)`` float32.
    """
    cells = maps.flatten(-2)  # (B, N, ..., h w)
    place = index.view(*index.shape, *[1] * (cells.ndim - 2)).expand(*cells.shape[:-1], 1)
    return cells.gather(-1, place)[..., 0].float()
