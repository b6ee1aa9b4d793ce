"""Networks of PFLD: trunks, multi-scale heads and pose branches.

"PFLD: A Practical Facial Landmark Detector" (Guo et al., arXiv 1902.10859). Its authors published no training code. The
trunks follow the paper's Table 1 and two public codes: polarisZhao/PFLD-pytorch (the default has the same layers) and
Hsintao/pfld_106_face_landmarks (the lighter trunks). Those codes have a fixed input of 112 pixels; here every part
adapts to the side of the crop and equals theirs at 112.

A trunk returns two feature maps of ``strides`` 4 and 8: the input of the pose branch and the input of the head. The
second is the paper's S1, except in the lite trunk. Layers have torch's default initialisation, as in both codes.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, TypeAlias

import torch
from annotated_types import Interval
from timm.layers import SqueezeExcite, make_divisible
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops.misc import Conv2dNormActivation

from facelab.bounds import Channels, Pixels
from facelab.errors import ConfigError
from facelab.networks.official import OfficialLayers

Width: TypeAlias = Annotated[float, Interval(gt=0, le=8)]
"""Factor on the channels of a trunk; a layer with a larger one would fill the memory."""
Scales: TypeAlias = tuple[Channels, Channels, Channels]
"""Number of channels of S1, S2 and S3."""
S1_STRIDE = 8
"""Stride of S1 in pixels of the crop (Table 1)."""
MAX_KERNEL = 7
"""Largest side in cells of a convolution that covers a whole map: the side of S2 in a crop of 112 pixels (Table 1)."""


class InvertedResidual(nn.Module):
    """MobileNet's block: 1x1 convolution to more channels, depthwise convolution, 1x1 convolution without activation.

    The blocks of timm and torchvision do not fit: the reference code omits one residual connection that they add by
    rule, and has squeeze-and-excitation before the activation, without biases.

    Args:
        channels: number of input channels.
        expanded: number of channels of the depthwise convolution.
        outputs: number of output channels.
        kernel: side of the depthwise convolution in cells.
        stride: stride of the depthwise convolution.
        activation: class of the activation after the first two convolutions.
        squeeze: whether to add squeeze-and-excitation, with a reduction to a quarter of the channels.
        skip: whether to add the input to the output.
    """

    def __init__(
        self,
        channels: int,
        expanded: int,
        outputs: int,
        kernel: int,
        stride: int,
        activation: type[nn.Module],
        squeeze: bool,
        skip: bool,
    ) -> None:
        super().__init__()
        self.skip = skip
        excite = SqueezeExcite(expanded, rd_channels=expanded // 4, bias=False, gate_layer=nn.Hardsigmoid)
        self.layers = nn.Sequential(
            Conv2dNormActivation(channels, expanded, 1, activation_layer=activation),
            Conv2dNormActivation(expanded, expanded, kernel, stride, groups=expanded, activation_layer=None),
            excite if squeeze else nn.Identity(),
            activation(),
            Conv2dNormActivation(expanded, outputs, 1, activation_layer=None),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C', h, w)``."""
        return features + self.layers(features) if self.skip else self.layers(features)


class PFLDTrunk(nn.Module):
    """Trunk of the paper's Table 1, up to S1.

    With ``depthwise`` and ``skip`` false it is the trunk of polarisZhao/PFLD-pytorch, with both true the paper's. Both
    have ReLU; the paper does not specify the activation. The input is RGB; those codes have BGR, which makes no
    difference for training from random weights.

    Args:
        width: factor on the 64 and 128 channels of the stem and the blocks, rounded to multiples of 8. The paper's
            "0.25X" scales the MobileNet blocks, without further detail. The channels of S1 and of the head are not
            scaled; AnthonyF333/FaceLandmark_PFLD_UltraLight scales them too (here: ``outputs`` and the head's
            ``sizes``).
        outputs: number of channels of S1.
        depthwise: whether the second convolution is depthwise, as in the paper.
        skip: whether the first of the six blocks of 128 channels has a residual connection too.

    Attributes:
        channels: number of channels of the two feature maps.
        strides: strides of the two feature maps in pixels of the image.
        classifier: None: a trunk has no layers after its feature maps.
    """

    strides = (4, S1_STRIDE)
    classifier = None

    def __init__(self, width: Width, outputs: Channels, depthwise: bool, skip: bool) -> None:
        super().__init__()
        narrow, wide = _scaled(64, width), _scaled(128, width)
        block = partial(InvertedResidual, kernel=3, activation=nn.ReLU, squeeze=False)
        self.fine = nn.Sequential(
            Conv2dNormActivation(3, narrow, 3, stride=2),
            Conv2dNormActivation(narrow, narrow, 3, groups=narrow if depthwise else 1),
            block(narrow, 2 * narrow, narrow, stride=2, skip=False),
            *(block(narrow, 2 * narrow, narrow, stride=1, skip=True) for _ in range(4)),
        )
        self.coarse = nn.Sequential(
            block(narrow, 2 * narrow, wide, stride=2, skip=False),
            block(wide, 4 * wide, wide, stride=1, skip=skip),
            *(block(wide, 4 * wide, wide, stride=1, skip=True) for _ in range(5)),
            block(wide, 2 * wide, outputs, stride=1, skip=False),
        )
        self.channels = (narrow, outputs)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the feature maps.

        Args:
            image: ``(B, 3, H, W)`` uint8, RGB.

        Returns:
            The input of the pose branch ``(B, C, H/4, W/4)`` and S1 ``(B, outputs, H/8, W/8)``.
        """
        fine = self.fine(_pixels(image, self.fine))
        return fine, self.coarse(fine)


_V3_FINE = (
    # kernel, expanded, outputs, squeeze, activation, stride: arguments of InvertedResidual
    (3, 16, 16, False, nn.ReLU, 1),
    (3, 64, 24, False, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 1),
    (5, 72, 40, True, nn.ReLU, 2),
    (5, 120, 40, True, nn.ReLU, 1),
    (5, 120, 40, True, nn.ReLU, 1),
)
_V3_COARSE = (
    (3, 240, 80, False, nn.ReLU, 2),
    (3, 200, 80, False, nn.Hardswish, 1),
    (3, 480, 112, True, nn.Hardswish, 1),
    (3, 672, 112, True, nn.Hardswish, 1),
    (3, 672, 160, True, nn.Hardswish, 1),
)


class PFLDV3Trunk(nn.Module):
    """Trunk "v3" of Hsintao/pfld_106_face_landmarks: blocks of MobileNetV3, the first of them at full resolution.

    That code has a linear head on this trunk: ``head=multiscale_linear``.

    Args:
        width: factor on all channels except those of S1, rounded to multiples of 8.
        outputs: number of channels of S1.

    Attributes:
        channels: number of channels of the two feature maps.
        strides: strides of the two feature maps in pixels of the image.
        classifier: None: a trunk has no layers after its feature maps.
    """

    strides = (4, S1_STRIDE)
    classifier = None

    def __init__(self, width: Width, outputs: Channels) -> None:
        super().__init__()
        stem, middle, last = _scaled(16, width), _scaled(_V3_FINE[-1][2], width), _scaled(_V3_COARSE[-1][2], width)
        self.fine = nn.Sequential(
            Conv2dNormActivation(3, stem, 3, activation_layer=nn.Hardswish), *_v3_blocks(stem, _V3_FINE, width)
        )
        self.coarse = nn.Sequential(
            *_v3_blocks(middle, _V3_COARSE, width),
            InvertedResidual(last, 2 * last, outputs, 3, 1, nn.Hardswish, squeeze=False, skip=False),
        )
        self.channels = (middle, outputs)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the feature maps, see :meth:`PFLDTrunk.forward`."""
        fine = self.fine(_pixels(image, self.fine))
        return fine, self.coarse(fine)


def _v3_blocks(
    channels: int, rows: Sequence[tuple[int, int, int, bool, type[nn.Module], int]], width: float
) -> list[nn.Module]:
    """Build the blocks of a table. A block that keeps the shape has a residual connection."""
    blocks: list[nn.Module] = []
    for kernel, expanded, outputs, squeeze, activation, stride in rows:
        expanded, outputs = _scaled(expanded, width), _scaled(outputs, width)
        skip = stride == 1 and channels == outputs
        blocks.append(InvertedResidual(channels, expanded, outputs, kernel, stride, activation, squeeze, skip))
        channels = outputs
    return blocks


class PFLDLiteTrunk(nn.Module):
    """Trunk "lite" of Hsintao/pfld_106_face_landmarks: depthwise separable convolutions as in MobileNetV1.

    Its last feature map has 256 channels and is not S1. The head of that code is ``head=multiscale_lite``; the default
    head adds a 1x1 convolution to the channels of S1.

    Args:
        width: factor on all channels, rounded to multiples of 8.

    Attributes:
        channels: number of channels of the two feature maps.
        strides: strides of the two feature maps in pixels of the image.
        classifier: None: a trunk has no layers after its feature maps.
    """

    strides = (4, S1_STRIDE)
    classifier = None

    def __init__(self, width: Width) -> None:
        super().__init__()
        c16, c32, c64, c128, c256 = (_scaled(channels, width) for channels in (16, 32, 64, 128, 256))
        self.fine = nn.Sequential(
            Conv2dNormActivation(3, c16, 3),
            _separable(c16, c32, 1),
            _separable(c32, c32, 2),
            _separable(c32, c32, 1),
            _separable(c32, c64, 2),
            *(_separable(c64, c64, 1) for _ in range(3)),
        )
        self.coarse = nn.Sequential(
            _separable(c64, c128, 2),
            *(_separable(c128, c128, 1) for _ in range(2)),
            _separable(c128, c256, 1),
            _separable(c256, c256, 1),
        )
        self.channels = (c64, c256)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the feature maps, see :meth:`PFLDTrunk.forward`."""
        fine = self.fine(_pixels(image, self.fine))
        return fine, self.coarse(fine)


def _separable(channels: int, outputs: int, stride: int) -> nn.Sequential:
    """Build a depthwise 3x3 and a 1x1 convolution, each with normalisation and ReLU."""
    return nn.Sequential(
        Conv2dNormActivation(channels, channels, 3, stride, groups=channels),
        Conv2dNormActivation(channels, outputs, 1),
    )


def _scaled(channels: int, width: float) -> int:
    """Multiply a number of channels by the width, rounded to a multiple of 8 as in MobileNet.

    Raises:
        ConfigError: ``width`` is not positive.
    """
    if width <= 0:
        raise ConfigError("width", f"={width} must be over 0")
    return int(make_divisible(channels * width))


def _pixels(image: Tensor, layers: nn.Module) -> Tensor:
    """Convert pixels to numbers from 0 to 1 of the dtype of the layers."""
    return image.to(next(layers.parameters()).dtype) / 255


class MultiScaleHead(nn.Module):
    """The paper's fully connected layer over three scales (Table 1): S1, S2 with half its side, and S3 with one cell.

    S1 and S2 are averaged over their cells, as in all public codes; the paper does not mention it. S3 is the output of
    a convolution as large as S2, up to 7 x 7 cells; if S2 is larger, S3 is averaged too.

    The head works with any backbone. 1x1 convolutions convert its feature maps of stride 8 and coarser to the channels
    of S1; the maps are enlarged to the grid of stride 8 and summed, as in a feature pyramid (Lin et al., CVPR 2017).
    S1 then has the same cells as in PFLD, and every layer of the backbone is used. PFLD's trunks, except lite, return
    S1 itself.

    Args:
        channels: number of channels of the backbone's feature maps, fine to coarse.
        strides: strides of the backbone's feature maps in pixels.
        num_points: N.
        size: side of the crop in pixels, a multiple of S1's stride.
        sizes: number of channels of S1, S2 and S3.
        linear: no normalisation and no activation after S1, as in "v3" of Hsintao/pfld_106_face_landmarks.

    Attributes:
        vector_size: sum of ``sizes``, the length of the concatenated scales.

    Raises:
        ConfigError: ``size`` is not a multiple of the stride.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_points: int,
        size: Pixels,
        sizes: Scales,
        linear: bool,
    ) -> None:
        super().__init__()
        self.vector_size = sum(sizes)
        self.first = _feature_index(strides, S1_STRIDE)
        s1, s2, s3 = sizes
        self.lateral = nn.ModuleList(
            nn.Identity() if tuple(channels[self.first :]) == (s1,) else _projection(inputs, s1)
            for inputs in channels[self.first :]
        )
        kernel = min(MAX_KERNEL, _side_after_stride_2(_cells(size, strides[self.first])))
        self.to_s2: nn.Module = (
            nn.Conv2d(s1, s2, 3, stride=2, padding=1) if linear else Conv2dNormActivation(s1, s2, 3, stride=2)
        )
        self.to_s3 = nn.Sequential(nn.Conv2d(s2, s3, kernel), nn.Identity() if linear else nn.ReLU(inplace=True))
        self.predict = nn.Linear(self.vector_size, 2 * num_points)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Predict.

        Args:
            features: feature maps of the backbone, fine to coarse, ``(B, C, h, w)`` each.

        Returns:
            Points ``(B, N, 2)``, x and y as fractions of the crop (flattened, the reference code's output), and the
            concatenated scales ``(B, vector_size)``.
        """
        maps = [project(feature) for project, feature in zip(self.lateral, features[self.first :], strict=True)]
        s1 = maps[0]
        for coarser in maps[1:]:
            s1 = s1 + functional.interpolate(coarser, size=s1.shape[-2:])
        s2 = self.to_s2(s1)
        vector = _concatenated_means(s1, s2, self.to_s3(s2))
        return _points(self.predict, vector), vector


class LiteHead(nn.Module):
    """Head of "lite" in Hsintao/pfld_106_face_landmarks: three scales, each with a separate convolution.

    All scales are averaged over their cells, so the head works with every size of the crop; none is normalised.

    Args:
        channels: number of channels of the backbone's feature maps, fine to coarse. The head uses the map of stride 4
            (or the next coarser one) and the last map.
        strides: strides of the backbone's feature maps in pixels.
        num_points: N.
        sizes: number of channels of the three scales.
        hidden: number of channels between the last feature map and the third scale.

    Attributes:
        vector_size: sum of ``sizes``, the length of the concatenated scales.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_points: int,
        sizes: Scales,
        hidden: Channels,
    ) -> None:
        super().__init__()
        self.vector_size = sum(sizes)
        self.finer = _feature_index(strides, S1_STRIDE // 2)
        s1, s2, s3 = sizes
        self.to_s1 = nn.Conv2d(channels[self.finer], s1, 3, padding=1)
        self.to_s2 = nn.Conv2d(channels[-1], s2, 1)
        self.to_s3 = nn.Sequential(
            nn.Conv2d(channels[-1], hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride=2, padding=1, groups=hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, s3, 1),
        )
        self.predict = nn.Linear(self.vector_size, 2 * num_points)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Predict, see :meth:`MultiScaleHead.forward`."""
        finer, last = features[self.finer], features[-1]
        vector = _concatenated_means(self.to_s1(finer), self.to_s2(last), self.to_s3(last))
        return _points(self.predict, vector), vector


def _concatenated_means(*scales: Tensor) -> Tensor:
    """Average each map ``(B, C, h, w)`` over its cells and concatenate the means, ``(B, sum of C)``."""
    return torch.cat([scale.mean((2, 3)) for scale in scales], 1)


def _points(layer: nn.Linear, vector: Tensor) -> Tensor:
    """Predict points ``(B, N, 2)`` from a vector ``(B, vector_size)``."""
    # No autocast for coordinates: bfloat16 would round them to half a pixel of the crop.
    with torch.autocast(vector.device.type, enabled=False):
        return layer(vector.to(layer.weight.dtype)).unflatten(1, (-1, 2))


def _projection(channels: int, outputs: int) -> Conv2dNormActivation:
    """Build a 1x1 convolution with normalisation and without activation, as the last one of an inverted residual."""
    return Conv2dNormActivation(channels, outputs, 1, activation_layer=None)


def _feature_index(strides: Sequence[int], stride: int) -> int:
    """Find the feature map of this stride, or of the next coarser one; the last if all are finer."""
    return next((index for index, available in enumerate(strides) if available >= stride), len(strides) - 1)


def _cells(size: int, stride: int) -> int:
    """Compute the side of a feature map in cells.

    Raises:
        ConfigError: ``size`` is not a multiple of ``stride``.
    """
    side, rest = divmod(size, stride)
    if rest or not side:
        raise ConfigError("size", f"={size} must be a multiple of {stride}, the stride of the backbone's feature map")
    return side


def _side_after_stride_2(side: int) -> int:
    """Compute the side in cells after a 3x3 convolution of stride 2 with padding 1."""
    return (side + 1) // 2


class AuxiliaryNet(nn.Module):
    """The paper's auxiliary network: pose from the feature map of stride 4, for training.

    The layers are those of polarisZhao/PFLD-pytorch: its 7x7 convolution has padding 1, a max pooling over the 3 x 3
    output cells follows, then two linear layers without an activation between them. For smaller crops the kernel is as
    large as its input, which also gives 3 x 3 cells; for larger crops the output has more cells.

    Departures: the angles are radians in the order yaw, pitch, roll; the branch is the same for all trunks, while
    Hsintao/pfld_106_face_landmarks has a 3x3 instead of the 7x7 kernel with v3 and lite.

    Args:
        channels: number of channels of the backbone's feature maps, fine to coarse.
        strides: strides of the backbone's feature maps in pixels. The map of stride 4 is used, or the next coarser one.
        vector_size: not used; length of the head's vector.
        size: side of the crop in pixels, a multiple of that stride.

    Raises:
        ConfigError: ``size`` is not a multiple of the stride.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], vector_size: int, size: Pixels) -> None:
        super().__init__()
        self.index = _feature_index(strides, S1_STRIDE // 2)
        kernel = min(MAX_KERNEL, _side_after_stride_2(_side_after_stride_2(_cells(size, strides[self.index]))))
        self.layers = nn.Sequential(
            Conv2dNormActivation(channels[self.index], 128, 3, stride=2),
            Conv2dNormActivation(128, 128, 3),
            Conv2dNormActivation(128, 32, 3, stride=2),
            Conv2dNormActivation(32, 128, kernel, padding=1),
        )
        self.predict = nn.Sequential(nn.Linear(128, 32), nn.Linear(32, 3))

    def forward(self, features: Sequence[Tensor], vector: Tensor) -> Tensor:
        """Predict.

        Args:
            features: feature maps of the backbone, fine to coarse, ``(B, C, h, w)`` each.
            vector: ``(B, vector_size)`` vector of the head.

        Returns:
            ``(B, 3)`` yaw, pitch, roll in radians.
        """
        return self.predict(self.layers(features[self.index]).amax((2, 3)))


class SharedPose(nn.Module):
    """Pose branch with three more outputs of the fully connected layer, from the same vector as the landmarks.

    Args:
        channels: not used; number of channels of the backbone's feature maps.
        strides: not used; strides of the backbone's feature maps.
        vector_size: length of the head's vector.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], vector_size: int) -> None:
        super().__init__()
        self.predict = nn.Linear(vector_size, 3)

    def forward(self, features: Sequence[Tensor], vector: Tensor) -> Tensor:
        """Predict, see :meth:`AuxiliaryNet.forward`."""
        return self.predict(vector)


class SeparatePose(nn.Module):
    """Pose branch with two convolutions on the feature map of stride 8, which is S1 in PFLD's trunks except lite.

    Args:
        channels: number of channels of the backbone's feature maps, fine to coarse.
        strides: strides of the backbone's feature maps in pixels. The map of stride 8 is used, or the next coarser one.
        vector_size: not used; length of the head's vector.
        hidden: number of channels of the two convolutions.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], vector_size: int, hidden: Channels) -> None:
        super().__init__()
        self.index = _feature_index(strides, S1_STRIDE)
        self.layers = nn.Sequential(
            Conv2dNormActivation(channels[self.index], hidden, 3, stride=2),
            Conv2dNormActivation(hidden, hidden, 3, stride=2),
        )
        self.predict = nn.Linear(hidden, 3)

    def forward(self, features: Sequence[Tensor], vector: Tensor) -> Tensor:
        """Predict, see :meth:`AuxiliaryNet.forward`."""
        return self.predict(self.layers(features[self.index]).mean((2, 3)))


_STAGE4 = ("conv3_1", "block3_2", "block3_3", "block3_4", "block3_5")
_STAGE8 = ("conv4_1", "conv5_1", "block5_2", "block5_3", "block5_4")


def match_pfld_layers(backbone: nn.Module, head: nn.Module) -> OfficialLayers:
    """Return the correspondence of the layers and those of polarisZhao's and Hsintao's PFLD.

    Both codes read images as BGR. Their pose branch is left out: its angles are degrees of a faulty estimate.

    Args:
        backbone: one of the trunks of PFLD.
        head: the head that the code has behind it.

    Returns:
        Layers with the prefixes ``backbone.`` and ``head.``.

    Raises:
        ConfigError: the codes do not have this pair.
    """
    unused: frozenset[str] = frozenset()
    if isinstance(backbone, PFLDTrunk) and isinstance(head, MultiScaleHead) and isinstance(head.to_s2, nn.Sequential):
        first, unused = {"fine.0": ("conv1", "bn1"), "fine.1": ("conv2", "bn2")}, frozenset({"bn8"})
        blocks = {f"fine.{index}": name for index, name in enumerate(_STAGE4, 2)}
        blocks |= {f"coarse.{index}": name for index, name in enumerate((*_STAGE8, "block5_5", "block5_6", "conv6_1"))}
        trunk = _pairs(first) | _residuals(blocks, "67")
        ends = {"to_s2.0": "conv7.0", "to_s2.1": "conv7.1", "to_s3.0": "conv8"}
    elif isinstance(backbone, PFLDV3Trunk) and isinstance(head, MultiScaleHead) and isinstance(head.to_s2, nn.Conv2d):
        first = {"fine.0": ("conv_bn1.0", "conv_bn1.1")}
        blocks = {f"fine.{index}": name for index, name in enumerate(("conv_bn2", *_STAGE4), 1)}
        blocks |= {f"coarse.{index}": name for index, name in enumerate((*_STAGE8, "conv6_1"))}
        trunk = _pairs(first) | _residuals(blocks, "78")
        ends = {"to_s2": "conv7", "to_s3.0": "conv8"}
    elif isinstance(backbone, PFLDLiteTrunk) and isinstance(head, LiteHead):
        first = {"fine.0": ("model.0.0", "model.0.1")}
        places = [("fine", "model", index) for index in range(1, 8)]
        places += [("coarse", "model1", index) for index in range(5)]
        for own, theirs, index in places:
            for half, (convolution, norm) in enumerate((("0", "1"), ("3", "4"))):
                prefix = f"{theirs}.{index}"
                first[f"{own}.{index}.{half}"] = (f"{prefix}.{convolution}", f"{prefix}.{norm}")
        trunk = _pairs(first)
        ends = {"to_s1": "conv1", "to_s2": "conv2"}
        ends |= {"to_s3.0": "extra.0", "to_s3.2": "extra.2.0", "to_s3.4": "extra.2.2"}
    else:
        raise ConfigError(
            "backbone",
            ": the public codes have backbone=pfld head=multiscale, backbone=pfld_v3 head=multiscale_linear, and "
            "backbone=pfld_lite head=multiscale_lite",
            mounted=True,
        )
    layers = {f"backbone.{name}": (theirs,) for name, theirs in trunk.items()}
    layers |= {f"head.{name}": (theirs,) for name, theirs in (ends | {"predict": "fc"}).items()}
    return OfficialLayers(layers, bgr=frozenset({"backbone.fine.0.0"}), unused=unused)


def _pairs(places: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Return the layers of convolutions with normalisation."""
    return {f"{own}.{index}": name for own, names in places.items() for index, name in enumerate(names)}


def _residuals(blocks: Mapping[str, str], last: str) -> dict[str, str]:
    """Return the layers of inverted residuals; ``last`` is the two digits of the last convolution and its norm."""
    parts = {"0.0": "0", "0.1": "1", "1.0": "3", "1.1": "4", "2.fc1": "5.fc.0", "2.fc2": "5.fc.2"}
    parts |= {"4.0": last[0], "4.1": last[1]}
    return {
        f"{own}.layers.{part}": f"{theirs}.conv.{name}"
        for own, theirs in blocks.items()
        for part, name in parts.items()
        if last == "78" or not part.startswith("2.")
    }
