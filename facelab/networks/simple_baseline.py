"""Head of Simple Baselines for heatmaps of any backbone (Xiao, Wu, Wei, ECCV 2018, arXiv 1804.06208)."""

from collections.abc import Sequence
from math import log2
from typing import Annotated, TypeAlias

from annotated_types import Interval
from torch import Tensor, nn

from facelab.coders.heatmap import Heatmaps
from facelab.errors import ConfigError
from facelab.networks.hrnet import predict_without_autocast

Width: TypeAlias = Annotated[int, Interval(ge=1, le=2**11)]
"""Channels of a transposed convolution; two layers of 2048 share 270 MB of weights."""
INIT_STD = 0.001
"""Standard deviation of new convolution weights, as in the reference code (microsoft/human-pose-estimation.pytorch)."""


class SimpleBaselineHead(nn.Module):
    """Transposed convolutions of kernel 4 and stride 2 on the coarsest feature map, then a 1x1 convolution.

    The paper has three transposed convolutions, from ResNet's stride of 32 to 4. Here their number follows from both
    strides.

    Args:
        channels: number of channels of the backbone's feature maps, fine to coarse; only the last map is used.
        strides: strides of these maps.
        num_points: N.
        stride: stride of the heatmaps: that of the last map divided by 1, 2, 4, ...
        width: channels of the transposed convolutions, 256 in the paper.

    Raises:
        ConfigError: no number of layers gives this stride.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], num_points: int, stride: int, width: Width
    ) -> None:
        super().__init__()
        coarsest = strides[-1]
        possible = [coarsest // 2**count for count in range(int(log2(coarsest)) + 1)]
        if stride not in possible:
            raise ConfigError(
                "coder.stride",
                f"={stride}: head=simple_baseline on features of stride {coarsest} has one of {sorted(possible)}",
                mounted=True,
            )
        layers: list[nn.Module] = []
        inputs = channels[-1]
        for _ in range(possible.index(stride)):
            layers += [nn.ConvTranspose2d(inputs, width, 4, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            inputs = width
        self.enlarge = nn.Sequential(*layers)
        self.predict = nn.Conv2d(inputs, num_points, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(layer.weight, std=INIT_STD)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> Heatmaps:
        """Predict.

        Args:
            features: of the backbone, fine to coarse, ``(B, C, h, w)`` each.

        Returns:
            Heatmaps ``(B, N, h, w)``.
        """
        return predict_without_autocast(self.predict, self.enlarge(features[-1]))
