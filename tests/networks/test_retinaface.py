"""Tests of the network of RetinaFace: size, output of the reference code, published weights, backbones that fit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from facelab.errors import CheckpointError, ConfigError
from facelab.networks.backbone import TimmBackbone
from facelab.networks.official import OfficialLayers, match_tensors
from facelab.networks.retinaface import (
    AnchorPrediction,
    MeanSubtractingBackbone,
    MobileNetV1,
    RetinaFaceHead,
    match_retinaface_layers,
)

WIDTHS = {"mobilenet": 64, "resnet50": 256}
"""Channels of the pyramid by backbone."""
IMAGE = (torch.arange(3 * 93 * 131).reshape(1, 3, 93, 131) * 7919 % 251).to(torch.uint8)
"""Image whose sides are no multiples of a stride."""
EXPECTED = {
    "mobilenet": (
        [0.145997, -0.203755, -0.453576, -0.151964],
        [-0.160851, -0.054140],
        [-0.112420, 0.081535, -0.082262, -0.014488],
        (0.179001, 0.092772, 0.138363),
    ),
    "resnet50": (
        [0.367243, -0.270383, -0.476041, -0.510267],
        [-0.442489, -0.564862],
        [0.047642, 0.025744, 0.081409, 0.238406],
        (0.644690, 0.352764, 0.388679),
    ),
}
"""Output of the reference code with the weights of :func:`published`: box and logits of the first anchor, two landmarks
of the last, mean absolute values of boxes, logits and landmarks."""


class Network(nn.Module):
    """Backbone and head, under the names of the module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        backbone: nn.Module = (
            MobileNetV1(0.25, pretrained=False, weights=None)
            if name == "mobilenet"
            else MeanSubtractingBackbone(name, pretrained=False, weights=None, norm_epsilon=None)
        )
        self.backbone = backbone
        self.head = RetinaFaceHead(backbone.channels, backbone.strides, 2, WIDTHS[name])  # type: ignore[arg-type]

    def official(self) -> OfficialLayers:
        return match_retinaface_layers(self.backbone, self.head)

    def forward(self, image: Tensor) -> AnchorPrediction:
        prediction: AnchorPrediction = self.head(self.backbone(image))
        return prediction


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def fill(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the values of a tensor by a formula, so that both codes have the same weights."""
    place = torch.arange(torch.Size(shape).numel(), dtype=torch.float64) + len(name)
    wave = torch.sin(place * place * 0.37)
    if name.endswith("running_var"):
        wave = 1 + wave / 2
    elif len(shape) == 4:
        wave = wave * (2 / torch.Size(shape[1:]).numel()) ** 0.5
    else:
        wave = wave / 4 + float(name.endswith("weight")) / 2
    return wave.reshape(shape).float()


def published(network: Network) -> dict[str, Tensor]:
    """Return a state dict with the names and shapes of the reference code."""
    official, file = network.official(), {}
    for name, own in network.state_dict().items():
        layer, _, tensor = name.rpartition(".")
        if tensor == "num_batches_tracked":
            continue
        theirs = official.layers[layer]
        shares = [4, 8, 20] if len(theirs) == 3 else [len(own)]  # class, box and landmarks of two anchors
        for their, share in zip(theirs, shares, strict=True):
            file[f"{their}.{tensor}"] = fill(f"{their}.{tensor}", (share, *own.shape[1:]))
    return file


@pytest.mark.parametrize(
    ("name", "parts"),
    [("mobilenet", (426_608, 213_072, 103_040, 34_752)), ("resnet50", (27_293_600, 23_508_032, 2_099_712, 553_728))],
)
def test_retinaface_has_the_parameters_of_the_reference_code(name: str, parts: tuple[int, ...]) -> None:
    """Would catch a layer more or less, or another width: whole network, backbone, pyramid, one context module."""
    with torch.device("meta"):
        backbone = (
            MobileNetV1(0.25, pretrained=False, weights=None)
            if name == "mobilenet"
            else TimmBackbone(name, pretrained=False, weights=None, norm_epsilon=None)
        )
        head = RetinaFaceHead(backbone.channels, backbone.strides, 2, WIDTHS[name])
    assert (count(backbone) + count(head), count(backbone), count(head.pyramid), count(head.context[0])) == parts


@pytest.mark.parametrize("name", ["mobilenet", "resnet50"])
def test_retinaface_equals_the_output_of_the_reference_code(name: str) -> None:
    """Would catch another normalisation, order of channels or anchors, sum, slope, or correspondence of the layers.

    The reference code received the same image as BGR; the values are those of its double precision.
    """
    network = Network(name).eval()
    network.load_state_dict(match_tensors(network.state_dict(), published(network), network.official()))
    with torch.inference_mode():
        logits, boxes, points, shapes = network(IMAGE)
    assert shapes == ((12, 17), (6, 9), (3, 5))
    first_box, first_logits, last_points, means = EXPECTED[name]
    assert boxes[0, 0].tolist() == pytest.approx(first_box, abs=2e-5)
    assert logits[0, 0].tolist() == pytest.approx(first_logits, abs=2e-5)
    assert points[0, -1, :2].flatten().tolist() == pytest.approx(last_points, abs=2e-5)
    assert [float(part.abs().mean()) for part in (boxes, logits, points)] == pytest.approx(means, rel=1e-5)


def test_retinaface_refuses_weights_of_another_backbone() -> None:
    """Would catch a file that is loaded in part."""
    network = Network("mobilenet")
    file = published(network)
    file.pop("body.stage3.1.3.weight")
    file["body.layer1.0.conv1.weight"] = torch.zeros(1)
    message = "missing from the file: body.stage3.1.3.weight; left over in the file: body.layer1.0.conv1.weight"
    with pytest.raises(CheckpointError, match=message):
        match_tensors(network.state_dict(), file, network.official())


def test_mobilenet_loads_imagenet_weights_for_rgb(tmp_path: Path) -> None:
    """Would catch weights of BGR on an RGB image, or a wrapper's prefix or a classifier that is not understood."""
    trained = MobileNetV1(0.25, pretrained=False, weights=None)
    state = {f"module.{name}": value for name, value in trained.state_dict().items()}
    first = "module.stage1.0.0.weight"
    state |= {first: state[first].flip(1), "module.fc.weight": torch.zeros(9, 256), "module.fc.bias": torch.zeros(9)}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "net.tar")
    loaded = MobileNetV1(0.25, pretrained=True, weights=str(tmp_path / "net.tar"))
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_mobilenet_names_the_missing_or_wrong_file(tmp_path: Path) -> None:
    """Would catch a training that starts from random weights without a message."""
    with pytest.raises(ConfigError, match=r"mobilenetV1X0.25_pretrain.tar.*pretrained=false"):
        MobileNetV1(0.25, pretrained=True, weights=None)
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "net.pth")
    with pytest.raises(ConfigError, match=r"net.pth: missing from the file: "):
        MobileNetV1(0.25, pretrained=True, weights=str(tmp_path / "net.pth"))


def test_head_uses_the_features_of_its_strides() -> None:
    """Would catch a head that takes the first three feature maps of a backbone with five, or accepts a missing one."""
    channels, strides = (8, 12, 16, 20, 24), (2, 4, 8, 16, 32)
    head = RetinaFaceHead(channels, strides, 2, 8).eval()
    features = [torch.randn(1, c, 64 // s, 64 // s) for c, s in zip(channels, strides, strict=True)]
    assert head(features).shapes == ((8, 8), (4, 4), (2, 2))
    with pytest.raises(ConfigError, match="no features of stride 32"):
        RetinaFaceHead(channels[:4], strides[:4], 2, 8)
