"""Head of PIPNet (Jin, Liao, Shao, IJCV 2021)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from facelab.bounds import Channels
from facelab.coders.pipnet import PIPMaps
from facelab.errors import ConfigError
from facelab.networks.backbone import PIPMobileNetV3, TimmBackbone
from facelab.networks.official import OfficialLayers

RESAMPLED_CHANNELS = 512
"""Output channels of the layers that change the stride, as in the reference code."""


class PIPHead(nn.Module):
    """Head that predicts scores and offsets of all landmarks from the coarsest feature map by a 1x1 convolution.

    One convolution replaces the five of the reference code (jhb86253817/PIPNet: ``cls x y nb_x nb_y``), with the same
    initialisation; a CPU is up to a third faster with it on a single image. Its output channels are those of
    the five convolutions one after the other: the weight is ``torch.cat`` of their weights.

    Departure from the reference code: that code has learned layers that change the stride only for ResNet, crashes with
    them for ResNet-50 and 101, and ignores the stride for MobileNet. Here they work with every backbone.

    Args:
        channels: number of channels of each feature map, fine to coarse.
        strides: stride of each feature map in pixels; only the last map is used.
        classifier: the backbone's last 1x1 convolution, or None if it has none.
        num_points: N.
        num_neighbours: C.
        stride: stride of the grid in pixels. Half the stride of the last feature map (one transposed convolution), the
            same, twice or four times (one or two 3x3 convolutions of stride 2), each with 512 output channels.
        trunk: layers between the backbone and the change of stride. ``"classifier"`` uses the backbone's last 1x1
            convolution with its pretrained weights, if there is one, as the reference code does (MobileNetV2: 1280
            channels); a number adds a new 1x1 convolution with so many output channels; None adds nothing.

    Raises:
        ConfigError: ``stride`` or ``trunk`` is not one of these.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classifier: nn.Sequential | None,
        num_points: int,
        num_neighbours: int,
        stride: int,
        trunk: Literal["classifier"] | Channels | None,
    ) -> None:
        super().__init__()
        self.num_points, self.num_neighbours = num_points, num_neighbours
        self.trunk, width = _trunk(channels[-1], classifier, trunk)
        self.resample, width = _resample(width, strides[-1], stride)
        self.sizes = (num_points, 2 * num_points, 2 * num_points * num_neighbours)
        self.predict = nn.Conv2d(width, sum(self.sizes), 1)
        for module in (*self.resample.modules(), self.predict):
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.001)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> PIPMaps:
        """Predict.

        Args:
            features: feature maps of the backbone, fine to coarse, ``(B, C, h, w)`` each.

        Returns:
            Maps that are views of one tensor.
        """
        last = self.resample(self.trunk(features[-1]))
        # No autocast for coordinates: bfloat16 would round a neighbour's offset of 3 cells to half a pixel.
        with torch.autocast(last.device.type, enabled=False):
            maps = self.predict(last.to(self.predict.weight.dtype))
        score, offset, neighbour = maps.split(self.sizes, dim=1)
        offset = offset.unflatten(1, (2, self.num_points)).transpose(1, 2)
        neighbour = neighbour.unflatten(1, (2, self.num_points, self.num_neighbours)).permute(0, 2, 3, 1, 4, 5)
        return PIPMaps(score, offset, neighbour)


def _trunk(channels: int, classifier: nn.Sequential | None, trunk: str | int | None) -> tuple[nn.Module, int]:
    """Build the layers between the backbone and the change of the stride.

    Returns:
        The layers and their number of output channels.

    Raises:
        ConfigError: see :class:`PIPHead`.
    """
    if trunk == "classifier" and classifier is not None:
        convolution = classifier[0]
        assert isinstance(convolution, nn.Conv2d)
        return classifier, convolution.out_channels
    if trunk is None or trunk == "classifier":
        return nn.Identity(), channels
    if isinstance(trunk, str) or trunk < 1:
        raise ConfigError("trunk", f"={trunk}: must be classifier, a number of channels, or null")
    layers = (nn.Conv2d(channels, trunk, 1, bias=False), nn.BatchNorm2d(trunk), nn.ReLU6(inplace=True))
    return nn.Sequential(*layers), trunk


def _resample(channels: int, feature_stride: int, stride: int) -> tuple[nn.Sequential, int]:
    """Build the layers that change the stride.

    Returns:
        The layers and their number of output channels.

    Raises:
        ConfigError: see :class:`PIPHead`.
    """
    steps = {feature_stride // 2: -1, feature_stride: 0, 2 * feature_stride: 1, 4 * feature_stride: 2}
    if stride not in steps:
        raise ConfigError(
            "coder.stride", f"={stride}: on features of stride {feature_stride} it must be one of {sorted(steps)}"
        )
    width = RESAMPLED_CHANNELS
    convolutions: list[nn.Conv2d | nn.ConvTranspose2d] = (
        [nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1, bias=False)]
        if steps[stride] < 0
        else [nn.Conv2d(width if step else channels, width, 3, stride=2, padding=1) for step in range(steps[stride])]
    )
    layers = [
        layer for convolution in convolutions for layer in (convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
    ]
    return nn.Sequential(*layers), width if layers else channels


OFFICIAL_HEAD = ("cls_layer", "x_layer", "y_layer", "nb_x_layer", "nb_y_layer")
"""Layers of jhb86253817/PIPNet that are one convolution here, in the order of its output channels."""
_MBV2_FIRST = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}
_MBV2 = {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "2", "bn3": "3"}
_MBV3_FIRST = {"conv_dw": "0", "bn1": "1", "conv_pw": "4", "bn2": "5"}
_MBV3 = {"conv_pw": "0", "bn1": "1", "conv_dw": "3", "bn2": "4", "conv_pwl": "7", "bn3": "8"}
_MBV3 |= {"se.0.conv_reduce": "5.fc.0", "se.0.conv_expand": "5.fc.2"}


def match_pipnet_layers(backbone: TimmBackbone, head: PIPHead) -> OfficialLayers:
    """Return the correspondence of the layers and those of jhb86253817/PIPNet.

    Args:
        backbone: ResNet, MobileNetV2, or its MobileNetV3.
        head: the head behind it.

    Returns:
        Layers with the prefixes ``backbone.`` and ``head.``.

    Raises:
        ConfigError: that code does not have this backbone.
    """
    own = list(dict.fromkeys(name.rpartition(".")[0] for name in backbone.pyramid.state_dict()))
    if isinstance(backbone, PIPMobileNetV3):
        trunk = _mobile_layers(own, _MBV3_FIRST, _MBV3) | {"blocks.6.0.conv": "conv.0", "blocks.6.0.bn1": "conv.1"}
    elif "layer4.0.conv1" in own:
        trunk = {name: name for name in own}
    elif backbone.classifier is not None and "conv_stem" in own:
        trunk = _mobile_layers(own, _MBV2_FIRST, _MBV2)
    else:
        raise ConfigError(
            "backbone", ": jhb86253817/PIPNet has resnet18, resnet50, resnet101, mbv2 and mbv3_pipnet", mounted=True
        )
    layers = {f"backbone.pyramid.{name}": (theirs,) for name, theirs in trunk.items()}
    layers |= {"head.trunk.0": ("features.18.0",), "head.trunk.1": ("features.18.1",)}
    transposed = len(head.resample) > 0 and isinstance(head.resample[0], nn.ConvTranspose2d)
    resampled = ("deconv1", "bn_deconv1") if transposed else ("layer5", "bn5", "", "layer6", "bn6")
    layers |= {f"head.resample.{index}": (theirs,) for index, theirs in enumerate(resampled) if theirs}
    return OfficialLayers(layers | {"head.predict": OFFICIAL_HEAD})


def _mobile_layers(own: Sequence[str], first: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    """Return the layers of a MobileNet of timm and those of the same network in torchvision's arrangement.

    Args:
        own: layers of timm's network, in their order.
        first: layers of the first block, which has no expansion.
        others: layers of the other blocks.
    """
    layers, blocks = {"conv_stem": "features.0.0", "bn1": "features.0.1"}, list[str]()
    for name in own:
        if name.startswith("blocks."):
            _, stage, index, part = name.split(".", 3)
            if (block := f"{stage}.{index}") not in blocks:
                blocks.append(block)
            table = first if len(blocks) == 1 else others
            # The last stage of MobileNetV3 is no block.
            if part in table:
                layers[name] = f"features.{len(blocks)}.conv.{table[part]}"
    return layers
