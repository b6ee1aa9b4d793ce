"""Tests of the networks of HRNet: size, output of the reference code, published weights, heads on other backbones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from facelab.errors import ConfigError
from facelab.networks import hrnet
from facelab.networks.backbone import TimmBackbone
from facelab.networks.hrnet import HRNetHead, HRNetTrunk
from facelab.networks.simple_baseline import SimpleBaselineHead

PAPER = (1, 4, 3)
SMALL = (1, 1, 1)


def network(width: int, num_points: int, modules: tuple[int, int, int] = PAPER) -> nn.Sequential:
    """Build trunk and head with random weights."""
    trunk = HRNetTrunk(width, modules, 0.01, pretrained=False, weights=None)
    return nn.Sequential(trunk, HRNetHead(trunk.channels, trunk.strides, num_points, 4, 0.01))


def fill(net: nn.Module) -> nn.Module:
    """Set all tensors by a formula, so that both codes have the same weights; return the network."""
    for key, value in sorted(net.state_dict().items()):
        if value.is_floating_point():
            place = torch.arange(value.numel(), dtype=torch.float64) + len(key)
            wave = torch.sin(place * place * 0.37)
            if key.endswith("running_var"):
                wave = 1 + wave / 2
            elif value.ndim == 4:
                wave = wave * (2 / value[0].numel()) ** 0.5
            else:
                wave = wave / 4 + float(key.endswith("weight")) / 2
            value.copy_(wave.reshape(value.shape))
    return net


def parameters(net: nn.Module) -> float:
    """Return the number of parameters in millions."""
    return sum(parameter.numel() for parameter in net.parameters()) / 1e6


@pytest.mark.parametrize(("width", "expected"), [(18, 9.663), (32, 29.585), (48, 65.916)])
def test_hrnet_has_the_parameters_of_the_reference_code(width: int, expected: float) -> None:
    """Would catch another network than in the reference code; counts in millions, for 98 landmarks."""
    with torch.device("meta"):
        assert parameters(network(width, 98)) == pytest.approx(expected, abs=5e-4)


HEADS = ((19, 9.641, 4606), (29, 9.644, 4617), (68, 9.654, 4660), (98, 9.663, 4694), (106, 9.665, 4703))
"""Landmarks, parameters and MACs in millions of HRNet-W18 in the reference code."""


def test_hrnet_has_the_macs_of_the_reference_code() -> None:
    """Would catch layers of another resolution, or a head that depends on the landmarks in another way.

    The MACs are those of a crop of 256 pixels.
    """
    with FakeTensorMode():
        trunk = HRNetTrunk(18, PAPER, 0.01, pretrained=False, weights=None)
        with FlopCounterMode(display=False) as of_trunk:
            features = trunk(torch.zeros(1, 3, 256, 256, dtype=torch.uint8))
        for num_points, expected, operations in HEADS:
            head = HRNetHead(trunk.channels, trunk.strides, num_points, 4, 0.01)
            with FlopCounterMode(display=False) as of_head:
                maps = head(features).maps
            assert parameters(trunk) + parameters(head) == pytest.approx(expected, abs=5e-4)
            total = of_trunk.get_total_flops() + of_head.get_total_flops()
            assert total / 2e6 == pytest.approx(operations, rel=1e-3)
            assert maps.shape == (1, num_points, 64, 64)


def test_hrnet_equals_the_output_of_the_reference_code() -> None:
    """Would catch another enlargement or sum of the branches.

    The values are those of HighResolutionNet in HRNet-Facial-Landmark-Detection (commit f776dbe) with the same tensors.
    """
    net = fill(network(4, 5)).eval()
    image = (torch.arange(3 * 64 * 64).reshape(1, 3, 64, 64) * 7 % 256).to(torch.uint8)
    with torch.no_grad():
        maps = net(image).maps[0]
    assert maps.shape == (5, 16, 16)
    torch.testing.assert_close(maps[:, ::5, ::5], GOLDEN, rtol=1e-5, atol=1e-3)


GOLDEN = torch.tensor(
    [
        [
            [48.56635, 61.93019, 75.01495, 51.82606],
            [34.82984, 43.12715, 60.16514, 54.36563],
            [31.40405, 37.7702, 48.62929, 45.70794],
            [28.21206, 30.41739, 31.58731, 27.72349],
        ],
        [
            [31.02274, 42.05082, 63.17233, 56.81643],
            [27.26886, 38.21317, 57.10073, 59.77005],
            [15.19083, 21.35687, 35.40957, 35.31181],
            [8.17236, 11.81711, 21.30548, 19.77432],
        ],
        [
            [39.60702, 20.62443, -0.97715, -4.97042],
            [19.45903, 14.65605, -7.53135, -9.44179],
            [15.52932, 13.97278, -9.67863, -10.05363],
            [9.9792, 7.72911, -4.71166, -9.06717],
        ],
        [
            [44.93167, 42.37729, 66.98837, 87.79692],
            [36.203, 48.65062, 63.28832, 75.53264],
            [27.09791, 33.69012, 40.47659, 49.93678],
            [26.99754, 36.33154, 28.67641, 34.94215],
        ],
        [
            [1.87912, -7.99448, 5.11286, 21.1463],
            [1.40102, -1.57632, 19.6301, 32.59895],
            [1.16246, -4.91084, 17.01471, 15.81564],
            [4.85985, 0.79955, 9.47847, 4.60573],
        ],
    ]
)
"""Every fifth row and column of each map of the reference code."""


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Return random weights with the names of timm's published weights, which replace them in timm."""
    from timm.models.hrnet import HighResolutionNet

    torch.manual_seed(0)
    trunk = HRNetTrunk(4, SMALL, 0.01, pretrained=False, weights=None)
    whole = HighResolutionNet(hrnet._describe_trunk(trunk.channels, SMALL))
    monkeypatch.setattr(hrnet, "published_network", lambda name: whole)
    monkeypatch.setattr(hrnet, "_published_name", lambda *_: "hrnet_w4.test")
    return whole.state_dict()


def test_hrnet_trunk_loads_published_weights(published: dict[str, Tensor], tmp_path: Path) -> None:
    """Would catch tensors under other names, and a refused file of a network in ``DataParallel``."""
    for prefix in ("", "module."):
        torch.save({f"{prefix}{key}": value for key, value in published.items()}, tmp_path / "weights.pth")
        of_file = HRNetTrunk(4, SMALL, 0.01, False, str(tmp_path / "weights.pth")).pyramid.state_dict()
        assert all(torch.equal(value, published[key]) for key, value in of_file.items())
    of_hub = HRNetTrunk(4, SMALL, 0.01, True, None).pyramid.state_dict()
    assert all(torch.equal(value, published[key]) for key, value in of_hub.items())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda state: {key: state[key] for key in state if not key.startswith("stage4")},
            "tensors are missing.*stage4",
        ),
        (
            lambda state: {**state, "stage9.weight": torch.zeros(1)},
            "1 tensors are left over, the first is stage9.weight",
        ),
        (
            lambda state: {**state, "conv1.weight": torch.zeros(3, 3, 3, 3)},
            r"another width: conv1.weight.*\(3, 3, 3, 3\)",
        ),
    ],
)
def test_hrnet_trunk_refuses_weights_that_do_not_fit(
    change: Any, told: str, published: dict[str, Tensor], tmp_path: Path
) -> None:
    """Would catch a file that fits in part, which leaves layers at random values."""
    torch.save(change(published), tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=told):
        HRNetTrunk(4, SMALL, 0.01, False, str(tmp_path / "weights.pth"))


def test_hrnet_trunk_refuses_a_width_without_published_weights() -> None:
    """Would catch a start from random weights without a message."""
    with pytest.raises(ConfigError, match=r"width=20 .*backbone.weights=FILE.*backbone.pretrained=false"):
        HRNetTrunk(20, PAPER, 0.01, pretrained=True, weights=None)


@pytest.mark.parametrize("width", [18, 32, 48])
def test_hrnet_trunk_finds_the_names_of_published_weights(width: int) -> None:
    """Would catch a name that timm does not have, which fails only with network access."""
    assert hrnet._published_name(width, PAPER) == f"hrnet_w{width}.ms_in1k"


def test_hrnet_trunk_refuses_images_that_its_branches_do_not_divide() -> None:
    """Would catch an error of timm about sizes of tensors, for instance of PFLD on this trunk with crops of 112 px."""
    trunk = HRNetTrunk(4, SMALL, 0.01, pretrained=False, weights=None)
    with pytest.raises(ConfigError, match=r"crop.size=112 must be a multiple of 32"):
        trunk(torch.zeros(1, 3, 112, 112, dtype=torch.uint8))


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_heatmap_heads_give_the_size_of_the_coder_on_any_backbone(stride: int) -> None:
    """Would catch heatmaps of another size than those of the coder."""
    backbone = TimmBackbone("test_resnet", pretrained=False, weights=None, norm_epsilon=None)
    features = backbone(torch.zeros(2, 3, 96, 96, dtype=torch.uint8))
    side = 96 // stride
    parts = (backbone.channels, backbone.strides, 7, stride)
    assert SimpleBaselineHead(*parts, width=8)(features).maps.shape == (2, 7, side, side)
    assert HRNetHead(*parts, 0.01)(features).maps.shape == (2, 7, side, side)


def test_heatmap_heads_refuse_strides_that_they_cannot_make() -> None:
    """Would catch an unclear error in the first step."""
    with pytest.raises(ConfigError, match=r"coder.stride=3: head=simple_baseline .*\[1, 2, 4, 8, 16, 32\]"):
        SimpleBaselineHead((8, 16), (16, 32), 7, 3, 8)
    with pytest.raises(ConfigError, match=r"coder.stride=2: head=hrnet .*\[4, 8\].*simple_baseline"):
        HRNetHead((8, 16), (4, 8), 7, 2, 0.01)


def test_simple_baseline_has_the_layers_of_the_paper() -> None:
    """Would catch another head than three transposed convolutions of kernel 4 and 256 channels on ResNet."""
    head = SimpleBaselineHead((64, 512), (4, 32), 17, 4, 256)
    shapes = [tuple(layer.weight.shape) for layer in head.modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert shapes == [(512, 256, 4, 4), (256, 256, 4, 4), (256, 256, 4, 4)]
    assert tuple(head.predict.weight.shape) == (17, 256, 1, 1)


def test_hrnet_head_computes_heatmaps_in_float32() -> None:
    """Would catch heatmaps in bfloat16, whose peaks move by a fraction of a cell."""
    net = network(4, 5, SMALL).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert net(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).maps.dtype == torch.float32
