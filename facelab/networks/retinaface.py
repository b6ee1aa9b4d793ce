"""Network of RetinaFace (Deng et al., CVPR 2020, arXiv 1905.00641) as in biubug6/Pytorch_Retinaface."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, TypeAlias

import torch
from annotated_types import Interval, MultipleOf
from torch import Tensor, nn
from torch.nn import functional

from facelab.bounds import Count
from facelab.errors import CheckpointError, ConfigError
from facelab.networks.backbone import Epsilon, TimmBackbone, read_tensors
from facelab.networks.official import OfficialLayers, match_tensors

STRIDES = (8, 16, 32)
"""Strides in pixels of the feature maps on which faces are searched."""
MEAN = (123.0, 117.0, 104.0)
"""Red, green and blue that the reference code subtracts from an image; it does not divide by a deviation."""
SLOPE = 0.1
"""Negative slope of the activations in narrow networks."""
WIDEST_LEAKY = 64
"""Channels above which the activations have no negative slope, as in the reference code."""
POINTS = 5
"""Landmarks of a face."""
Factor: TypeAlias = Annotated[float, Interval(ge=0.25, le=1)]
"""Factor on the channels of MobileNetV1; at 0.25 its first layer has 8."""
FeatureWidth: TypeAlias = Annotated[int, Interval(ge=8, le=1024), MultipleOf(4)]
"""Channels of the feature maps after the pyramid; a context module divides them by four."""


class AnchorPrediction(NamedTuple):
    """Prediction for the A anchors of an image, level by level from fine to coarse, row by row."""

    logits: Tensor  # (B, A, 2) background, face
    boxes: Tensor  # (B, A, 4) encoded by facelab.coders.anchors
    points: Tensor  # (B, A, 5, 2) encoded likewise
    shapes: tuple[tuple[int, int], ...]  # height and width of each level in cells


def _convolution(inputs: int, outputs: int, stride: int, slope: float | None, size: int = 3) -> nn.Sequential:
    """Build a convolution without bias, its normalisation and, unless ``slope`` is None, its activation."""
    layers = [nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([] if slope is None else [nn.LeakyReLU(slope, inplace=True)]))


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Build a depthwise 3x3 and a 1x1 convolution, each with normalisation and activation."""
    depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
    first = [depthwise, nn.BatchNorm2d(inputs), nn.LeakyReLU(SLOPE, inplace=True)]
    return nn.Sequential(*first, *_convolution(inputs, outputs, 1, SLOPE, size=1))


class MobileNetV1(nn.Module):
    """MobileNetV1 (Howard et al., arXiv 1704.04861) with leaky activations, as in the reference code.

    Args:
        width: factor on all channels; 0.25 in the reference code.
        pretrained: start from ImageNet weights. There is no server for them: ``weights`` must name the file.
        weights: ImageNet weights of the reference code, ``mobilenetV1X0.25_pretrain.tar``.

    Attributes:
        channels: number of channels of the feature maps of stride 8, 16 and 32.
        strides: these strides.

    Raises:
        ConfigError: ``pretrained`` is true without a file, or the file does not fit.
    """

    strides = STRIDES

    def __init__(self, width: Factor, pretrained: bool, weights: str | None) -> None:
        super().__init__()
        if pretrained and weights is None:
            raise ConfigError(
                "weights",
                "=null: no server offers ImageNet weights of this network. Name mobilenetV1X0.25_pretrain.tar, to "
                "which the README of biubug6/Pytorch_Retinaface refers, or start from random weights with "
                "backbone.pretrained=false",
            )
        c8, c16, c32, c64, c128, c256 = (round(width * channels) for channels in (32, 64, 128, 256, 512, 1024))
        self.stage1 = nn.Sequential(
            _convolution(3, c8, 2, SLOPE),
            _separable(c8, c16, 1),
            _separable(c16, c32, 2),
            _separable(c32, c32, 1),
            _separable(c32, c64, 2),
            _separable(c64, c64, 1),
        )
        self.stage2 = nn.Sequential(_separable(c64, c128, 2), *(_separable(c128, c128, 1) for _ in range(5)))
        self.stage3 = nn.Sequential(_separable(c128, c256, 2), _separable(c256, c256, 1))
        self.channels = (c64, c128, c256)
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        if weights is not None:
            self._load(Path(weights))

    def _load(self, file: Path) -> None:
        """Load ImageNet weights.

        Raises:
            ConfigError: the file does not fit.
        """
        tensors = {name.removeprefix("module."): tensor for name, tensor in read_tensors(file).items()}
        layers = {layer: (layer,) for layer in _layers(self)}
        official = OfficialLayers(layers, bgr=frozenset({"stage1.0.0"}), unused=frozenset({"fc"}))
        try:
            self.load_state_dict(match_tensors(self.state_dict(), tensors, official))
        except CheckpointError as error:
            raise ConfigError("weights", f"={file}: {error}") from error

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the features.

        Args:
            image: ``(B, 3, H, W)`` uint8, RGB.

        Returns:
            Feature maps of stride 8, 16 and 32.
        """
        fine = self.stage1(image.to(self.mean.dtype) - self.mean)
        middle = self.stage2(fine)
        return fine, middle, self.stage3(middle)


class MeanSubtractingBackbone(TimmBackbone):
    """Network of timm that subtracts :data:`MEAN` from an image, as the reference code does with ResNet-50.

    Args:
        name: see :class:`TimmBackbone`.
        pretrained: see :class:`TimmBackbone`.
        weights: see :class:`TimmBackbone`.
        norm_epsilon: see :class:`TimmBackbone`.
    """

    def __init__(self, name: str, pretrained: bool, weights: str | None, norm_epsilon: Epsilon | None) -> None:
        super().__init__(name, pretrained, weights, norm_epsilon)
        self.scale.fill_(1.0)
        self.shift.copy_(-torch.tensor(MEAN).view(1, 3, 1, 1))


class Pyramid(nn.Module):
    """Feature pyramid (Lin et al., CVPR 2017): each map receives the next coarser one, enlarged to its size.

    The coarsest map is not convolved again, as in the reference code.

    Args:
        channels: channels of the three feature maps of the backbone, fine to coarse.
        width: channels of the three results.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        slope = _slope(width)
        self.lateral = nn.ModuleList(_convolution(inputs, width, 1, slope, size=1) for inputs in channels)
        self.merge = nn.ModuleList(_convolution(width, width, 1, slope) for _ in channels[1:])

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Compute the maps of the pyramid, fine to coarse, from those of the backbone."""
        maps = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        for level in reversed(range(len(maps) - 1)):
            above = functional.interpolate(maps[level + 1], size=maps[level].shape[-2:], mode="nearest")
            maps[level] = self.merge[level](maps[level] + above)
        return maps


class ContextModule(nn.Module):
    """Three branches with receptive fields of 3, 5 and 7 cells (SSH: Najibi et al., ICCV 2017).

    Args:
        width: channels of input and output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        slope, quarter = _slope(width), width // 4
        self.three = _convolution(width, width // 2, 1, None)
        self.first = _convolution(width, quarter, 1, slope)
        self.five = _convolution(quarter, quarter, 1, None)
        self.second = _convolution(quarter, quarter, 1, slope)
        self.seven = _convolution(quarter, quarter, 1, None)

    def forward(self, feature: Tensor) -> Tensor:
        """Compute the features with their context."""
        first = self.first(feature)
        branches = (self.three(feature), self.five(first), self.seven(self.second(first)))
        return functional.relu(torch.cat(branches, dim=1))


def _slope(width: int) -> float:
    """Return the negative slope of the activations for a width in channels."""
    return SLOPE if width <= WIDEST_LEAKY else 0.0


class RetinaFaceHead(nn.Module):
    """Pyramid, context modules and predictors.

    One 1x1 convolution per level replaces the three of the reference code, with the same initialisation. Its output
    channels are those of classes, boxes and landmarks one after the other.

    Args:
        channels: channels of the feature maps of the backbone, fine to coarse.
        strides: strides of the feature maps in pixels; those of 8, 16 and 32 are used.
        anchors: number of anchors of a cell.
        width: channels of the pyramid: 64 with MobileNetV1, 256 with ResNet-50.

    Raises:
        ConfigError: the backbone has no feature map of one of the strides.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], anchors: Count, width: FeatureWidth) -> None:
        super().__init__()
        if missing := [stride for stride in STRIDES if stride not in strides]:
            raise ConfigError(
                "backbone",
                f": it has no features of stride {missing[0]}, only {', '.join(map(str, strides))}; RetinaFace needs "
                f"{', '.join(map(str, STRIDES))}",
                mounted=True,
            )
        self.used = [list(strides).index(stride) for stride in STRIDES]
        self.anchors = anchors
        self.pyramid = Pyramid([channels[index] for index in self.used], width)
        self.context = nn.ModuleList(ContextModule(width) for _ in STRIDES)
        self.predict = nn.ModuleList(nn.Conv2d(width, anchors * (2 + 4 + 2 * POINTS), 1) for _ in STRIDES)

    def forward(self, features: Sequence[Tensor]) -> AnchorPrediction:
        """Predict class, box and landmarks of each anchor from all feature maps of the backbone."""
        maps = self.pyramid([features[index] for index in self.used])
        outputs = [
            predict(context(feature))
            for predict, context, feature in zip(self.predict, self.context, maps, strict=True)
        ]
        sizes = [self.anchors * numbers for numbers in (2, 4, 2 * POINTS)]
        logits, boxes, points = zip(*(output.split(sizes, dim=1) for output in outputs), strict=True)
        height_and_width = tuple((int(output.shape[-2]), int(output.shape[-1])) for output in outputs)
        joined = _join(points, 2 * POINTS)
        return AnchorPrediction(_join(logits, 2), _join(boxes, 4), joined.unflatten(-1, (POINTS, 2)), height_and_width)


def _join(maps: Sequence[Tensor], numbers: int) -> Tensor:
    """Join maps ``(B, A * numbers, h, w)`` of all levels to ``(B, all A, numbers)``."""
    return torch.cat([feature.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, numbers)) for feature in maps], dim=1)


def _layers(module: nn.Module) -> Iterator[str]:
    """Yield the names of the layers that have parameters of their own."""
    return (name for name, layer in module.named_modules() if next(layer.parameters(recurse=False), None) is not None)


def match_retinaface_layers(backbone: nn.Module, head: RetinaFaceHead) -> OfficialLayers:
    """Return the layers of biubug6/Pytorch_Retinaface that belong to those of a model with a backbone and a head.

    The first convolution of the file receives BGR.
    """
    layers: dict[str, tuple[str, ...]] = {
        f"backbone.{name}": (f"body.{name.removeprefix('pyramid.')}",) for name in _layers(backbone)
    }
    first = next(iter(layers))
    names: Mapping[str, str] = {
        "three": "conv3X3",
        "first": "conv5X5_1",
        "five": "conv5X5_2",
        "second": "conv7X7_2",
        "seven": "conv7x7_3",
    }
    for name in _layers(head):
        part, *rest = name.split(".")
        if part == "pyramid":
            kind, level, layer = rest
            theirs = f"{'output' if kind == 'lateral' else 'merge'}{int(level) + 1}.{layer}"
            layers[f"head.{name}"] = (f"fpn.{theirs}",)
        elif part == "context":
            level, branch, layer = rest
            layers[f"head.{name}"] = (f"ssh{int(level) + 1}.{names[branch]}.{layer}",)
        else:
            heads = ("ClassHead", "BboxHead", "LandmarkHead")
            layers[f"head.{name}"] = tuple(f"{theirs}.{rest[0]}.conv1x1" for theirs in heads)
    return OfficialLayers(layers, bgr=frozenset({first}))
