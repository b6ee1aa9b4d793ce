"""Tests of the fusion of convolutions and normalisations."""

import pytest
import torch
from torch import nn

from facelab.networks.fusion import fuse_normalisations
from facelab.networks.retinaface import MobileNetV1, RetinaFaceHead


class Detector(nn.Module):
    """Small network of RetinaFace with varied statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = MobileNetV1(0.25, pretrained=False, weights=None)
        self.head = RetinaFaceHead(self.backbone.channels, self.backbone.strides, 2, 16)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean = torch.randn(layer.num_features) / 10
                layer.running_var = torch.rand(layer.num_features) + 0.5

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return list(self.head(self.backbone(image))[:3])


def test_fusion_keeps_the_outputs_and_leaves_no_normalisation() -> None:
    """Would catch a normalisation that is lost, applied twice, or merged with the wrong convolution."""
    network = Detector().eval()
    image = torch.randint(0, 256, (2, 3, 70, 90), dtype=torch.uint8)
    with torch.no_grad():
        expected = network(image)
        fuse_normalisations(network)
        found = network(image)
    for each, reference in zip(found, expected, strict=True):
        assert reference.std() > 1e-3
        torch.testing.assert_close(each, reference, atol=1e-5, rtol=1e-4)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


def test_fusion_leaves_parts_whose_order_is_not_known() -> None:
    """Would catch a merge of neighbours in a module that calls them in another order."""

    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.convolution(self.norm(image))
            return result

    network = Swapped().eval()
    fuse_normalisations(network)
    assert isinstance(network.norm, nn.BatchNorm2d)


def test_fusion_refuses_a_network_in_training_mode() -> None:
    """Would catch statistics that are frozen silently in a network that is still trained."""
    with pytest.raises(AssertionError):
        fuse_normalisations(Detector().train())
