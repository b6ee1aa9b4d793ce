"""Networks of MTCNN (Zhang, Zhang, Li, Qiao, IEEE Signal Processing Letters 2016, arXiv 1604.02878).

The layers are those of the authors' Caffe files: convolutions without padding, PReLU with one slope per channel, and
poolings that round up. The features are flattened as ``(C, H, W)``; the published weights have other orders, see
:func:`match_mtcnn`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple, TypeAlias

from annotated_types import Interval
from torch import Tensor, nn

from facelab.bounds import Share
from facelab.faces.detections import PNET_SIDE
from facelab.networks.official import OfficialLayers, match_tensors

Width: TypeAlias = Annotated[float, Interval(ge=0.1, le=16)]
"""Factor on the channels of all layers; 1 in the paper."""
POINTS = 5
"""Landmarks of a face."""
MEAN, DEVIATION = 127.5, 128.0
"""Grey levels that are subtracted from an image, and by which the difference is divided."""
SLOPE = 0.25
"""Negative slope of PReLU before the training."""


class FacePrediction(NamedTuple):
    """What a network says about B squares of an image; of P-Net, about all squares of a grid h x w.

    The grid's axes are the last ones: ``(B, 2, h, w)`` and so on.
    """

    logits: Tensor  # (B, 2) no face, face
    offsets: Tensor  # (B, 4) from the edges x0 y0 x1 y1 of the square to those of the face, in sides of the square
    points: Tensor | None  # (B, 5, 2) x and y from the top-left corner, in sides of the square; None without that head


class CascadeNetwork(nn.Module):
    """Layers of one of the three networks.

    Args:
        channels: channels of the convolutions.
        kernels: sides of their kernels.
        pools: side of the pooling after each convolution; 0 for none. Its stride is 2.
        cells: H = W of the last feature map of a square of the size :attr:`side`.
        hidden: neurons of the fully connected layer; 0 for none, then the network is fully convolutional.
        dropout: share of these neurons that training sets to 0.
        landmarks: whether the network predicts landmarks.
        width: factor on all channels and neurons.

    Attributes:
        side: side in pixels of the squares that the network sees.
        landmarks: see above.
    """

    side: int

    def __init__(
        self,
        channels: Sequence[int],
        kernels: Sequence[int],
        pools: Sequence[int],
        cells: int,
        hidden: int,
        dropout: float,
        landmarks: bool,
        width: float,
    ) -> None:
        super().__init__()
        self.landmarks = landmarks
        self.features, inputs = nn.Sequential(), 3
        for outputs, kernel, pool in zip(channels, kernels, pools, strict=True):
            outputs = max(1, round(width * outputs))
            self.features.extend([nn.Conv2d(inputs, outputs, kernel), nn.PReLU(outputs)])
            if pool:
                self.features.append(nn.MaxPool2d(pool, 2, ceil_mode=True))
            inputs = outputs
        numbers = 2 + 4 + 2 * POINTS * landmarks
        if hidden:
            hidden = max(1, round(width * hidden))
            dense = nn.Linear(cells**2 * inputs, hidden)
            self.hidden = nn.Sequential(nn.Flatten(), dense, nn.Dropout(dropout), nn.PReLU(hidden))
            self.predict: nn.Conv2d | nn.Linear = nn.Linear(hidden, numbers)
        else:
            self.hidden = nn.Sequential()
            self.predict = nn.Conv2d(inputs, numbers, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            elif isinstance(layer, nn.PReLU):
                nn.init.constant_(layer.weight, SLOPE)

    def forward(self, image: Tensor) -> FacePrediction:
        """Predict class, box and landmarks of squares ``(B, 3, side, side)`` of grey levels 0 to 255, RGB."""
        output = self.predict(self.hidden(self.features((image.to(self.predict.weight.dtype) - MEAN) / DEVIATION)))
        points = None
        if self.landmarks:  # five x, then five y, as in the published weights
            points = output[:, 6:].unflatten(1, (2, POINTS)).transpose(1, 2)
        return FacePrediction(output[:, :2], output[:, 2:6], points)


class PNet(CascadeNetwork):
    """Proposal network. On an image, it sees squares of 12 x 12 pixels at every second pixel.

    Args:
        landmarks: whether it predicts landmarks, as in the paper. The published weights have no such head.
        width: see :class:`CascadeNetwork`.
    """

    side = PNET_SIDE

    def __init__(self, landmarks: bool, width: Width) -> None:
        super().__init__((10, 16, 32), (3, 3, 3), (2, 0, 0), 1, 0, 0.0, landmarks, width)


class RNet(CascadeNetwork):
    """Refinement network, for squares of 24 x 24 pixels.

    Args:
        landmarks: see :class:`PNet`.
        width: see :class:`CascadeNetwork`.
    """

    side = 24

    def __init__(self, landmarks: bool, width: Width) -> None:
        super().__init__((28, 48, 64), (3, 3, 2), (3, 3, 0), 3, 128, 0.0, landmarks, width)


class ONet(CascadeNetwork):
    """Output network, for squares of 48 x 48 pixels. It always predicts landmarks.

    Args:
        dropout: see :class:`CascadeNetwork`.
        width: see :class:`CascadeNetwork`.
    """

    side = 48

    def __init__(self, dropout: Share, width: Width) -> None:
        super().__init__((32, 64, 64, 128), (3, 3, 3, 2), (3, 3, 2, 0), 3, 256, dropout, True, width)


# Published weights


def match_mtcnn(networks: Mapping[str, CascadeNetwork], file: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of published files under the names of networks.

    The authors passed images with exchanged axes to Caffe. Two layouts are understood, of each network on its own:

    * facenet-pytorch: convolutions as here, features flattened as ``(W, H, C)``; layers ``dense4``, ``conv4_1``, ...
    * The blobs of the authors' ``.caffemodel`` files: kernels ``(out, in, W, H)``, features flattened as ``(C, W, H)``;
      layers ``conv4``, ``conv4-1``, ... with ``.weight`` and ``.bias`` after each name.

    Args:
        networks: by name.
        file: tensors of the files, each with the name of its network and a dot before its own.

    Returns:
        One tensor for each of the networks, by the name of the network, a dot and its own name.

    Raises:
        CheckpointError: see :func:`facelab.networks.official.match_tensors`.
    """
    tensors = {name.lower(): tensor for name, tensor in file.items()}  # the slopes of P-Net are PReLU1 in Caffe
    matched: dict[str, Tensor] = {}
    for name, network in networks.items():
        own = {f"{name}.{key}": value for key, value in network.state_dict().items()}
        theirs = {key: value for key, value in tensors.items() if key.startswith(f"{name}.")}
        is_caffe = any("-" in key for key in theirs)
        matched |= match_tensors(own, theirs, _match_layers(name, network, is_caffe=is_caffe))
    return matched


def _match_layers(name: str, network: CascadeNetwork, *, is_caffe: bool) -> OfficialLayers:
    """Return the layers of a published network that belong to those of ``network``."""
    layers: dict[str, tuple[str, ...]] = {}
    arranged, number = {}, 0
    for part in ("features", "hidden"):
        for index, layer in getattr(network, part).named_children():
            own = f"{name}.{part}.{index}"
            if isinstance(layer, nn.PReLU):
                layers[own] = (f"{name}.prelu{number}",)
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                number += 1
                is_dense = isinstance(layer, nn.Linear) and not is_caffe
                layers[own] = (f"{name}.{'dense' if is_dense else 'conv'}{number}",)
                if isinstance(layer, nn.Linear):
                    arranged[own] = _arrange_caffe_columns if is_caffe else _arrange_columns
                elif is_caffe:
                    arranged[own] = _exchange_axes
    last = "conv" if is_caffe or isinstance(network.predict, nn.Conv2d) else "dense"
    heads = [f"{name}.{last}{number + 1}{'-' if is_caffe else '_'}{head}" for head in (1, 2, 3)]
    layers[f"{name}.predict"] = tuple(heads[: 2 + network.landmarks])
    # The authors' R-Net has a landmark layer without a use.
    return OfficialLayers(layers, arranged=arranged, unused=frozenset() if network.landmarks else frozenset(heads[2:]))


CELLS = 3
"""H and W of the last feature maps of R-Net and O-Net."""


def _arrange_columns(weight: Tensor) -> Tensor:
    """Exchange the columns of a dense layer for features flattened as (W, H, C) to those of (C, H, W)."""
    return weight.unflatten(1, (CELLS, CELLS, -1)).permute(0, 3, 2, 1).flatten(1)


def _arrange_caffe_columns(weight: Tensor) -> Tensor:
    """Exchange the columns of a dense layer for features flattened as (C, W, H) to those of (C, H, W)."""
    return weight.unflatten(1, (-1, CELLS, CELLS)).transpose(2, 3).flatten(1)


def _exchange_axes(weight: Tensor) -> Tensor:
    """Exchange the last two axes of kernels."""
    return weight.transpose(2, 3)
