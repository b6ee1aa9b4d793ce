"""Network of HRNet: a trunk of parallel branches and the head that joins them.

"Deep High-Resolution Representation Learning for Visual Recognition" (Wang et al., TPAMI 2020, arXiv 1908.07919), as in
the code for facial landmarks, HRNet/HRNet-Facial-Landmark-Detection.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import timm
import torch
from annotated_types import Interval
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.hrnet import HighResolutionNetFeatures
from torch import Tensor, nn
from torch.nn import functional

from facelab.bounds import Share
from facelab.coders.heatmap import Heatmaps
from facelab.errors import ConfigError
from facelab.networks.backbone import published_network, read_tensors
from facelab.networks.official import OfficialLayers

Width: TypeAlias = Annotated[int, Interval(ge=1, le=128)]
"""Channels of the finest branch; the coarsest has 8 times as many. 64 is the largest published width."""
Modules: TypeAlias = Annotated[int, Interval(ge=1, le=16)]
"""Exchange modules of a stage; 4 is the largest published number."""
INIT_STD = 0.001
"""Standard deviation of new weights in the head, as in the reference code; their biases start as torch's."""
BLOCKS = 4
"""Residual blocks of each branch in each module."""
STEM_CHANNELS = 64
"""Channels before the branches, for every width."""
OTHER_PARTS = ("incre_modules", "downsamp_modules", "final_layer", "classifier", "head")
"""Layers of published files outside the trunk: the ImageNet classifier and the head of heatmaps."""


class HRNetTrunk(nn.Module):
    """Branches of strides 4, 8, 16 and 32 that exchange features several times.

    The layers are timm's with the numerics of the reference code for faces: a coarser branch is enlarged bilinearly
    (``align_corners=False``); timm and the code for ImageNet repeat pixels. The tensors have the same names in all
    three. The image is normalised by the mean and standard deviation of ImageNet.

    Without published weights the layers are initialised as for ImageNet (He et al., ICCV 2015). Departure: a
    missing file is an error; the code for faces then starts from weights of standard deviation 0.001 without a message.

    Args:
        width: channels of the finest branch, 18, 32 or 48 in the paper; the others have 2, 4 and 8 times as many.
        modules: exchange modules of the stages with two, three and four branches; 1, 4 and 3 in the paper.
        pretrained: load the published ImageNet weights from the cache or the hub.
        norm_momentum: share of the newest batch in the running statistics of normalisations; 0.01 in the reference
            code.
        weights: file to load instead, ``.safetensors`` or a file for ``torch.load(weights_only=True)``: ImageNet
            weights of the HRNet authors or timm, or a file of HRNet-Facial-Landmark-Detection.

    Attributes:
        channels: number of channels of the four branches, fine to coarse.
        strides: stride of the four branches in pixels of the image.
        classifier: None, since the ImageNet classifier is not used.

    Raises:
        ConfigError: no weights are published for this network or they are not available; the file does not fit.
    """

    strides = (4, 8, 16, 32)
    classifier = None

    def __init__(
        self,
        width: Width,
        modules: tuple[Modules, Modules, Modules],
        norm_momentum: Share,
        pretrained: bool,
        weights: str | None,
    ) -> None:
        super().__init__()
        self.channels = tuple(width * 2**branch for branch in range(len(self.strides)))
        self.pyramid = HighResolutionNetFeatures(
            _describe_trunk(self.channels, modules), feature_location="", out_indices=(1, 2, 3, 4)
        )
        for layer in self.pyramid.modules():
            if isinstance(layer, nn.Upsample):
                layer.mode = "bilinear"
            elif isinstance(layer, nn.BatchNorm2d):
                layer.momentum = norm_momentum
        if weights is not None:
            self.pyramid.load_state_dict(_select_trunk(read_tensors(Path(weights)), self.pyramid.state_dict(), weights))
        elif pretrained:
            name = _published_name(width, modules)
            tensors = published_network(name).state_dict()
            self.pyramid.load_state_dict(_select_trunk(tensors, self.pyramid.state_dict(), name))
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        self.scale: Tensor
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.shift: Tensor
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            image: ``(B, 3, H, W)`` uint8, RGB; H and W are multiples of 32.

        Returns:
            One ``(B, C, h, w)`` per entry of :attr:`strides`.

        Raises:
            ConfigError: H or W is not a multiple of 32, so that the branches do not fit together.
        """
        check_size(image, self.strides[-1])
        return tuple(self.pyramid(torch.addcmul(self.shift, image.to(self.scale.dtype), self.scale)))


def check_size(image: Tensor, largest: int) -> None:
    """Raise ConfigError if the sides of the crops ``(B, 3, H, W)`` are not multiples of the largest stride."""
    if image.shape[-2] % largest or image.shape[-1] % largest:
        raise ConfigError(
            "crop.size",
            f"={image.shape[-1]} must be a multiple of {largest}, the largest stride of the backbone",
            mounted=True,
        )


class HRNetHead(nn.Module):
    """Head that enlarges all branches bilinearly, concatenates them and applies two 1x1 convolutions.

    Args:
        channels: number of channels of the backbone's feature maps, fine to coarse.
        strides: strides of these maps; maps that are finer than ``stride`` are not used.
        num_points: N.
        stride: stride of the heatmaps, equal to that of a feature map.
        norm_momentum: see :class:`HRNetTrunk`.

    Raises:
        ConfigError: no feature map has this stride.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], num_points: int, stride: int, norm_momentum: Share
    ) -> None:
        super().__init__()
        if stride not in strides:
            raise ConfigError(
                "coder.stride",
                f"={stride}: head=hrnet needs the stride of a feature map of the backbone, one of {sorted(strides)}; "
                "head=simple_baseline has others",
                mounted=True,
            )
        self.first = list(strides).index(stride)
        self.factors = [each // stride for each in strides[self.first :]]
        width = sum(channels[self.first :])
        mix, self.predict = nn.Conv2d(width, width, 1), nn.Conv2d(width, num_points, 1)
        for convolution in (mix, self.predict):
            nn.init.normal_(convolution.weight, std=INIT_STD)
        self.mix = nn.Sequential(mix, nn.BatchNorm2d(width, momentum=norm_momentum), nn.ReLU(inplace=True))

    def forward(self, features: Sequence[Tensor]) -> Heatmaps:
        """Predict.

        Args:
            features: of the backbone, fine to coarse, ``(B, C, h, w)`` each.

        Returns:
            Heatmaps ``(B, N, h, w)``.
        """
        enlarged = [
            functional.interpolate(each, scale_factor=float(factor), mode="bilinear", align_corners=False)
            if factor > 1
            else each
            for each, factor in zip(features[self.first :], self.factors, strict=True)
        ]
        return predict_without_autocast(self.predict, self.mix(torch.cat(enlarged, 1)))


def predict_without_autocast(predict: nn.Conv2d, features: Tensor) -> Heatmaps:
    """Compute the last layer without autocast, because bfloat16 rounds the top of a peak by 0.004 and so moves it."""
    with torch.autocast(features.device.type, enabled=False):
        return Heatmaps(predict(features.to(predict.weight.dtype)))


def match_hrnet_layers(backbone: nn.Module, head: nn.Module) -> OfficialLayers:
    """Return the correspondence of the layers and those of HRNet/HRNet-Facial-Landmark-Detection.

    Args:
        backbone: HRNet's trunk, whose layers have the same names in that code.
        head: HRNet's head.

    Returns:
        Layers with the prefixes ``backbone.`` and ``head.``.

    Raises:
        ConfigError: that code does not have this pair.
    """
    if not isinstance(backbone, HRNetTrunk) or not isinstance(head, HRNetHead):
        raise ConfigError(
            "backbone", ": HRNet-Facial-Landmark-Detection has backbone=hrnet_w18 and head=hrnet", mounted=True
        )
    names = dict.fromkeys(name.rpartition(".")[0] for name in backbone.pyramid.state_dict())
    layers = {f"backbone.pyramid.{name}": (name,) for name in names}
    return OfficialLayers(layers | {"head.mix.0": ("head.0",), "head.mix.1": ("head.1",), "head.predict": ("head.3",)})


def _describe_trunk(channels: Sequence[int], modules: Sequence[int]) -> dict[str, object]:
    """Describe the trunk in timm's terms."""
    stages = {
        f"stage{branches}": {
            "num_modules": count,
            "num_branches": branches,
            "block_type": "BASIC",
            "num_blocks": (BLOCKS,) * branches,
            "num_channels": tuple(channels[:branches]),
            "fuse_method": "SUM",
        }
        for branches, count in zip((2, 3, 4), modules, strict=True)
    }
    first = {"num_modules": 1, "num_branches": 1, "block_type": "BOTTLENECK", "num_blocks": (BLOCKS,)}
    first |= {"num_channels": (STEM_CHANNELS,), "fuse_method": "SUM"}
    return {"stem_width": STEM_CHANNELS, "stage1": first, **stages}


def _published_name(width: int, modules: Sequence[int]) -> str:
    """Return timm's name of the weights that the authors of HRNet trained on ImageNet.

    Raises:
        ConfigError: no weights are published for this width and these modules.
    """
    name = f"hrnet_w{width}.ms_in1k"
    if tuple(modules) != (1, 4, 3) or name not in timm.list_pretrained("hrnet_*"):
        raise ConfigError(
            "pretrained",
            f"=true: no ImageNet weights are published for width={width} and modules={list(modules)}; use width 18, 32 "
            "or 48 with modules=[1,4,3], a file with backbone.weights=FILE, or random weights with "
            "backbone.pretrained=false",
        )
    return name


def _select_trunk(tensors: dict[str, Tensor], wanted: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Select the tensors of the trunk.

    Raises:
        ConfigError: a tensor is missing, left over or of another shape.
    """
    given = {key.removeprefix("module."): value for key, value in tensors.items()}
    missing = [key for key in wanted if key not in given]
    extra = [key for key in given if key not in wanted and key.partition(".")[0] not in OTHER_PARTS]
    if missing or extra:
        parts = [
            f"{len(keys)} tensors are {fault}, the first is {keys[0]}"
            for keys, fault in ((missing, "missing"), (extra, "left over"))
            if keys
        ]
        raise ConfigError("weights", f": {source} is no file of an HRNet with these modules: {'; '.join(parts)}")
    for key, value in wanted.items():
        if given[key].shape != value.shape:
            raise ConfigError(
                "weights",
                f": {source} has another width: {key} has shape {tuple(given[key].shape)}, the network needs "
                f"{tuple(value.shape)}",
            )
    return {key: given[key] for key in wanted}
