"""Network of DAN: stages that see the whole face, and the layers that connect them.

"Deep Alignment Network: A convolutional neural network for robust face alignment" (Kowalski, Naruniec, Trzcinski, CVPR
Workshops 2017, arXiv 1706.01789), as in the authors' code, MarekKowalski/DeepAlignmentNetwork. All layers work on a
whole batch, on any device, and can be differentiated and exported. Points are in pixels of the crop.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional

from facelab.bounds import Pixels, Positive, Share
from facelab.errors import CheckpointError, ConfigError
from facelab.faces.geometry import to_cells, transform_points

Width: TypeAlias = Annotated[int, Interval(ge=1, le=1024)]
"""Channels of the first convolutions; the last have 8 times as many."""
STRIDE = 16
"""Stride of the last feature maps, after four poolings."""
FEATURE_STRIDE = 2
"""Crop pixels per cell of the feature image; a dense layer at full resolution would have four times the weights."""
BLOCK_FACTORS = (1, 2, 4, 8)
"""Channels of the four pairs of convolutions as multiples of the width."""
HIDDEN_FACTOR = 4
"""Length of the hidden vector as a multiple of the width."""
MIN_RADIUS = 0.01
"""Root mean square distance of a shape to its centroid in pixels; a smaller shape has no size and direction."""
MIN_FACTOR = 0.001
"""Smallest factor of a similarity; a smaller one has no usable inverse."""
CONFIDENCE_SHAPES = [(256, 2), (2,)]
"""Shapes of the last layer of a published network for tracking, a confidence that is not used here."""
DISTANCE_EPSILON = 1e-6
"""Added to the squared distance of a heatmap, whose root then has a gradient at 0; as in the reference code."""


def fit_similarity(points: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the similarity (rotation, scale, translation; no reflection) that moves shapes nearest to a target.

    The least-squares solution in closed form. Computed at least in float32: in float16 the squares overflow. A shape
    without a size or direction (all points equal, or nearest to the target at scale 0) is only moved.

    Args:
        points: ``(B, N, 2)``.
        target: ``(N, 2)``.

    Returns:
        to_target: ``(B, 3, 3)``.
        back: ``(B, 3, 3)``, its inverse.
    """
    points, target = _precise(points), _precise(target)
    centre, target_centre = points.mean(-2), target.mean(-2)  # (B, 2), (2,)
    p, q = points - centre[:, None], target - target_centre
    spread = p.square().sum((-2, -1))  # (B,)
    smallest = points.shape[-2] * MIN_RADIUS**2
    a = (p * q).sum((-2, -1)) / spread.clamp(min=smallest)
    b = (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]).sum(-1) / spread.clamp(min=smallest)
    usable = (spread >= smallest) & (a.square() + b.square() >= MIN_FACTOR**2)
    a, b = torch.where(usable, a, torch.ones_like(a)), torch.where(usable, b, torch.zeros_like(b))
    determinant = a.square() + b.square()
    # The inverse is written out, because exporters refuse torch.linalg.inv.
    return _similarity(a, b, centre, target_centre), _similarity(
        a / determinant, -b / determinant, target_centre, centre
    )


def _similarity(a: Tensor, b: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Build the maps ``(B, 3, 3)`` of x, y to a x - b y, b x + a y that move the point ``source`` to ``target``."""
    x, y = source[..., 0], source[..., 1]
    zero = torch.zeros_like(a)
    rows = (
        torch.stack([a, -b, target[..., 0] - a * x + b * y], -1),
        torch.stack([b, a, target[..., 1] - b * x - a * y], -1),
        torch.stack([zero, zero, zero + 1], -1),
    )
    return torch.stack(rows, -2)


def warp(image: Tensor, to_source: Tensor) -> Tensor:
    """Warp images bilinearly.

    Source positions are limited to all columns and rows but the last, as in the reference code.

    Args:
        image: ``(B, C, S, S)``.
        to_source: ``(B, 3, 3)`` from pixels of the result to pixels of ``image``.

    Returns:
        ``(B, C, S, S)``.
    """
    size = image.shape[-1]
    side = torch.arange(size, dtype=to_source.dtype, device=image.device)
    pixels = torch.stack([side.expand(size, size), side[:, None].expand(size, size)], -1)  # (S, S, 2) x and y
    source = transform_points(to_source[:, None], pixels).clamp(0, size - 2)
    grid = 2 * to_cells(source, size) - 1  # torch's coordinates: -1 and 1 at the outer edges
    return functional.grid_sample(image, grid.to(image.dtype), padding_mode="border", align_corners=False)


def draw_heatmap(points: Tensor, size: int, radius: int) -> Tensor:
    """Draw all landmarks of a face into one image: 1 / (1 + distance to the nearest landmark).

    A landmark is drawn into the square of ``2 radius + 1`` pixels around its truncated position; elsewhere it is 0. A
    landmark nearer than ``radius`` to the border is first moved away from it. (The paper draws discs of radius 16.)

    Args:
        points: ``(B, N, 2)``.
        size: S, side of the image in pixels.
        radius: half the side of the square in pixels.

    Returns:
        ``(B, 1, S, S)`` in [0, 1).
    """
    points = _precise(points).clamp(radius, size - 1 - radius)
    pixels = torch.arange(size, dtype=points.dtype, device=points.device)
    far = torch.full((), torch.inf, dtype=points.dtype, device=points.device)
    # The squared distance is that of the column plus that of the row; outside of the square one of them is infinite.
    inside = (pixels - points.detach().trunc()[..., None]).abs() <= radius  # (B, N, 2, S)
    squared = torch.where(inside, (pixels - points[..., None]).square(), far)
    nearest = (squared[:, :, 1, :, None] + squared[:, :, 0, None, :]).amin(1, keepdim=True)  # (B, 1, S, S)
    return 1 / (1 + (nearest + DISTANCE_EPSILON).sqrt())


class DANStage(nn.Module):
    """Stage of DAN: a network like VGG that maps the whole face to a correction of its landmarks.

    Every stage but the first also sees the heatmap of the present landmarks and an image that a dense layer makes from
    the hidden vector of the stage before. Weights start as in the reference code (Glorot's uniform distribution).

    Args:
        num_points: N.
        first: whether this is the first stage, which sees only the image.
        size: S, side of the crop in pixels, a multiple of 16; 112 in the paper.
        width: channels of the first convolutions; 64 in the paper. The hidden vector has 4 times as many numbers.
        dropout: share of the last features that training sets to 0; 0.5 in the paper.
        norm_epsilon: added to the variance in normalisations; 1e-4 in the reference code.

    Raises:
        ConfigError: ``size`` is not a multiple of 16.
    """

    def __init__(
        self, num_points: int, first: bool, size: Pixels, width: Width, dropout: Share, norm_epsilon: Positive
    ) -> None:
        super().__init__()
        if size % STRIDE:
            raise ConfigError("size", f"={size} must be a multiple of {STRIDE}")
        hidden, self.size, self.later = HIDDEN_FACTOR * width, size, not first
        if self.later:
            self.feature = nn.Linear(hidden, (size // FEATURE_STRIDE) ** 2)
            self.norm = nn.BatchNorm2d(3, norm_epsilon)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((1 if first else 3, *(factor * width for factor in BLOCK_FACTORS))):
            for channels in (inputs, outputs):
                layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False)]
                layers += [nn.BatchNorm2d(outputs, norm_epsilon), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        self.trunk = nn.Sequential(*layers)
        # Flattened by channel, row and column, as in the reference code.
        self.hidden = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(BLOCK_FACTORS[-1] * width * (size // STRIDE) ** 2, hidden, bias=False),
            nn.BatchNorm1d(hidden, norm_epsilon),
            nn.ReLU(),
        )
        self.points = nn.Linear(hidden, 2 * num_points)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                gain = 1.0 if layer is self.points else nn.init.calculate_gain("relu")
                nn.init.xavier_uniform_(layer.weight, gain)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(
        self, image: Tensor, heatmap: Tensor | None = None, hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict corrections.

        Args:
            image: ``(B, 1, S, S)`` normalised.
            heatmap: ``(B, 1, S, S)``; None for the first stage.
            hidden: ``(B, D)`` hidden vector of the stage before; None for the first stage.

        Returns:
            corrections: ``(B, N, 2)`` in pixels.
            hidden: ``(B, D)`` hidden vector.
        """
        dtype = self.points.weight.dtype
        x = image.to(dtype)
        if heatmap is not None and hidden is not None:
            side = x.shape[-1] // FEATURE_STRIDE
            feature = self.feature(hidden).relu().view(-1, 1, side, side)
            feature = functional.interpolate(feature, scale_factor=FEATURE_STRIDE, mode="nearest")
            x = self.norm(torch.cat([x, heatmap.to(dtype), feature.to(dtype)], 1))
        vector = self.hidden(self.trunk(x))
        return self.points(vector).unflatten(-1, (-1, 2)), vector


def match_dan_arrays(stages: Sequence[DANStage], arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the arrays of a file of the reference code under the names of the module.

    That code numbers the arrays of its network (Lasagne). Convolutions there flip their kernels, dense weights are
    (inputs, outputs), and a normalisation has the inverse of its deviation instead of the variance.

    Args:
        stages: the stages of the module.
        arrays: content of the file: ``arr_0`` and following, ``meanImg``, ``stdDevImg`` and ``initLandmarks``.

    Raises:
        CheckpointError: the file belongs to another network, or has values that are not finite.
    """
    numbered = [arrays[name] for name in map("arr_{}".format, range(len(arrays))) if name in arrays]
    expected = [entry for number, stage in enumerate(stages) for entry in _list_arrays(f"stages.{number}.", stage)]
    extra = [tuple(array.shape) for array in numbered[len(expected) :]]
    if len(numbered) < len(expected) or extra not in ([], CONFIDENCE_SHAPES):
        raise CheckpointError(
            f"the file has {len(numbered)} arrays, and a network of {len(stages)} stages has {len(expected)}; does the "
            "number of model.stage_shares fit? One stage is model.stage_shares=[1.0]"
        )
    found: dict[str, Tensor] = {}
    for number, (name, convert) in enumerate(expected):
        try:
            found[name] = convert(numbered[number].float())
        except (IndexError, RuntimeError) as error:  # it has too few dimensions
            shape = tuple(numbered[number].shape)
            raise CheckpointError(f"arr_{number} has the shape {shape}, and cannot be {name}") from error
    for name, key in (("mean_shape", "initLandmarks"), ("image_mean", "meanImg"), ("image_deviation", "stdDevImg")):
        if key not in arrays:
            raise CheckpointError(f"the file has no array {key}")
        found[name] = arrays[key].float() if name == "mean_shape" else arrays[key].float()[0]
    if faulty := [name for name, value in found.items() if not value.isfinite().all()]:
        raise CheckpointError(f"{faulty[0]} has values that are not finite")
    if not (found["image_deviation"] > 0).all():
        raise CheckpointError("stdDevImg has values that are not over 0")
    return found


def _list_arrays(prefix: str, stage: DANStage) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Yield the tensors of a stage in the order of the reference code, with the functions that convert its arrays."""
    parts: list[tuple[str, nn.Module]] = [("feature", stage.feature), ("norm", stage.norm)] if stage.later else []
    parts += [(f"trunk.{name}", layer) for name, layer in stage.trunk.named_children()]
    parts += [(f"hidden.{name}", layer) for name, layer in stage.hidden.named_children()] + [("points", stage.points)]
    for name, layer in parts:
        if isinstance(layer, nn.Conv2d):
            yield f"{prefix}{name}.weight", lambda array: array.flip(-2, -1)
        elif isinstance(layer, nn.Linear):
            yield f"{prefix}{name}.weight", lambda array: array.mT
            if layer.bias is not None:
                yield f"{prefix}{name}.bias", lambda array: array
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in ("bias", "weight", "running_mean"):
                yield f"{prefix}{name}.{tensor}", lambda array: array
            yield f"{prefix}{name}.running_var", partial(_variance, epsilon=layer.eps)


def _variance(inverse_deviation: Tensor, epsilon: float) -> Tensor:
    """Compute the variance whose normalisation divides by the given inverse deviation."""
    return (inverse_deviation.double().pow(-2) - epsilon).clamp(min=0).float()


def _precise(x: Tensor) -> Tensor:
    """Convert to float32 what has fewer bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
