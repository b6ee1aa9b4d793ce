"""Tests of the networks of PFLD: size, adaptation to the crop size, and the exported graph."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import compose_config
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from facelab.errors import ConfigError
from facelab.faces.layouts import LAPA106, WFLW98
from facelab.networks.backbone import TimmBackbone
from facelab.networks.pfld import (
    AuxiliaryNet,
    InvertedResidual,
    LiteHead,
    MultiScaleHead,
    PFLDLiteTrunk,
    PFLDTrunk,
    PFLDV3Trunk,
    SeparatePose,
    SharedPose,
)
from facelab.profiling.cost import cost
from facelab.runs.build import build

SIZES = (64, 80, 96, 112, 128, 160)
WIDTHS = (0.25, 0.5, 1.0)
S1_TO_S3 = (16, 32, 128)
TINY = "test_resnet"


def trunk(name: str, width: float = 1.0) -> Any:
    """Build the trunk of PFLD with this option name, or a network of timm."""
    trunks: dict[str, Callable[[], nn.Module]] = {
        "pfld": lambda: PFLDTrunk(width, 16, depthwise=False, skip=False),
        "pfld_paper": lambda: PFLDTrunk(width, 16, depthwise=True, skip=True),
        "pfld_v3": lambda: PFLDV3Trunk(width, 16),
        "pfld_lite": lambda: PFLDLiteTrunk(width),
    }
    return trunks[name]() if name in trunks else TimmBackbone(name, pretrained=False, weights=None, norm_epsilon=None)


def head_on(body: Any, num_points: int, size: int, linear: bool = False) -> MultiScaleHead:
    return MultiScaleHead(body.channels, body.strides, num_points, size, S1_TO_S3, linear)


def branch(name: str, body: Any, head: Any, size: int) -> nn.Module:
    """Build the pose branch with this option name."""
    parts = (body.channels, body.strides, head.vector_size)
    if name == "auxiliary":
        return AuxiliaryNet(*parts, size)
    return SharedPose(*parts) if name == "shared" else SeparatePose(*parts, 64)


def random_image(batch: int, size: int = 112) -> Tensor:
    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def multiply_adds(net: nn.Module, size: int) -> int:
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    return counter.get_total_flops() // 2


def _channels_and_strides(body: Any) -> list[tuple[int, int]]:
    return list(zip(body.channels, body.strides, strict=True))


def without_gradient(*modules: nn.Module) -> list[str]:
    return [name for module in modules for name, parameter in module.named_parameters() if parameter.grad is None]


ROWS = (
    # Parameters (weights and normalisation) and multiply-adds at 112 pixels, by row of Table 1 as built by
    # polarisZhao/PFLD-pytorch.
    (3 * 64 * 9 + 2 * 64, 3 * 64 * 9 * 56**2),
    (64 * 64 * 9 + 2 * 64, 64 * 64 * 9 * 56**2),
    (128 * (64 + 9 + 64) + 4 * 128 + 2 * 64, 128 * (64 * 56**2 + (9 + 64) * 28**2)),
    (4 * (128 * (64 + 9 + 64) + 4 * 128 + 2 * 64), 4 * 128 * (64 + 9 + 64) * 28**2),
    (128 * (64 + 9 + 128) + 4 * 128 + 2 * 128, 128 * (64 * 28**2 + (9 + 128) * 14**2)),
    (6 * (512 * (128 + 9 + 128) + 4 * 512 + 2 * 128), 6 * 512 * (128 + 9 + 128) * 14**2),
    (256 * (128 + 9 + 16) + 4 * 256 + 2 * 16, 256 * (128 + 9 + 16) * 14**2),
    (16 * 32 * 9 + 2 * 32, 16 * 32 * 9 * 7**2),
    (32 * 128 * 49 + 128, 32 * 128 * 49),
)


@pytest.mark.parametrize("layout", [WFLW98, LAPA106], ids=lambda layout: layout.name)
def test_pfld_has_the_size_of_the_reference(layout: Any) -> None:
    """Would catch a wrong layer or bias: 1.265 and 1.267 million parameters, 386.6 million multiply-adds.

    The reference code has 256 more, in a normalisation that it builds and never calls.
    """
    outputs = 2 * layout.num_points
    with FakeTensorMode():
        body = trunk("pfld")
        net = nn.Sequential(body, head_on(body, layout.num_points, 112))
        assert parameters(net) == sum(row[0] for row in ROWS) + 176 * outputs + outputs
        assert multiply_adds(net, 112) == sum(row[1] for row in ROWS) + 176 * outputs
    assert parameters(net) in (1_264_548, 1_267_380)


def test_pfld_paper_trunk_matches_table_1() -> None:
    """Would catch a second convolution that is not depthwise, or a missing residual connection for n=6 of Table 1."""
    with torch.device("meta"):
        paper, reference = trunk("pfld_paper"), trunk("pfld")
        assert parameters(reference) - parameters(paper) == 64 * 64 * 9 - 64 * 9
        skips = [
            [part.skip for part in net.modules() if isinstance(part, InvertedResidual)] for net in (reference, paper)
        ]
        features = paper(torch.zeros(1, 3, 112, 112, dtype=torch.uint8))
    assert skips[0] == [False, *[True] * 4, False, False, *[True] * 5, False]
    assert skips[1] == [False, *[True] * 4, False, True, *[True] * 5, False]
    assert [feature.shape for feature in features] == [(1, 64, 28, 28), (1, 16, 14, 14)]


@pytest.mark.parametrize(("name", "weights", "macs"), [("pfld_v3", 1_446_268, 192.4), ("pfld_lite", 265_604, 77.4)])
def test_pfld_variants_match_the_reference(name: str, weights: int, macs: float) -> None:
    """Would catch a layer that differs from Hsintao/pfld_106_face_landmarks, or biases that it does not have."""
    points = LAPA106.num_points
    with FakeTensorMode():
        body = trunk(name)
        head = (
            LiteHead(body.channels, body.strides, points, (16, 64, 128), 64)
            if name == "pfld_lite"
            else head_on(body, points, 112, linear=True)
        )
        net = nn.Sequential(body, head)
        assert net(torch.zeros(1, 3, 112, 112, dtype=torch.uint8))[0].shape == (1, points, 2)
        assert multiply_adds(net, 112) / 1e6 == pytest.approx(macs, abs=0.05)
    assert parameters(net) == weights


def test_pfld_multiply_adds_grow_with_the_area() -> None:
    """Would catch a layer with another resolution than that of the crop: 96 pixels cost 0.735 of 112."""
    costs = {}
    with FakeTensorMode():
        body = trunk("pfld")
        for size in SIZES:
            costs[size] = multiply_adds(nn.Sequential(body, head_on(body, WFLW98.num_points, size)), size)
    for size in SIZES:
        assert costs[size] / costs[112] == pytest.approx((size / 112) ** 2, rel=0.005)


@pytest.mark.parametrize("name", ["pfld", "pfld_paper", "pfld_v3", "pfld_lite", TINY, "mobilenetv2_100"])
def test_pfld_trains_all_parameters_for_every_trunk_and_crop(name: str) -> None:
    """Would catch a layer that needs 112 pixels, and layers of a backbone or branch that nothing uses."""
    # The width is one of PFLD's trunks; those of timm are built for every second size.
    sizes = SIZES if name.startswith("pfld") else SIZES[::2]
    for size, width in zip(sizes, WIDTHS * 2, strict=False):
        body = trunk(name, width)
        head = head_on(body, 19, size)
        features = body(random_image(2, size))
        expected = [(2, channels, *[math.ceil(size / stride)] * 2) for channels, stride in _channels_and_strides(body)]
        assert [feature.shape for feature in features] == expected
        points, vector = head(features)
        assert points.shape == (2, 19, 2)
        assert vector.shape == (2, head.vector_size) == (2, 176)
        poses = [branch(option, body, head, size) for option in ("auxiliary", "shared", "separate")]
        angles = [pose(features, vector) for pose in poses]
        assert [angle.shape for angle in angles] == [(2, 3)] * 3
        (points.sum() + torch.stack(angles).sum()).backward()
        assert without_gradient(body, head, *poses) == []


def test_pfld_trunk_width_leaves_s1_unchanged() -> None:
    """Would catch a width that also narrows the features that the head needs, or that narrows nothing."""
    with torch.device("meta"):
        assert [trunk("pfld", width).channels for width in WIDTHS] == [(16, 16), (32, 16), (64, 16)]
        assert [parameters(trunk("pfld", width)) for width in WIDTHS] == [75_632, 271_552, 1_024_352]
        assert PFLDTrunk(0.25, 4, depthwise=True, skip=False).channels == (16, 4)


@pytest.mark.parametrize(
    ("size", "kernel", "cells"), [(64, 4, 1), (80, 5, 1), (96, 6, 1), (112, 7, 1), (128, 7, 2), (160, 7, 4)]
)
def test_multi_scale_head_computes_s3_from_all_of_s2(size: int, kernel: int, cells: int) -> None:
    """Would catch a kernel unequal to S2 up to 112 pixels, and one that grows beyond Table 1's."""
    body = trunk("pfld", 0.25)
    head = head_on(body, 19, size)
    outputs: list[Tensor] = []
    head.to_s3.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    head.eval()
    _, vector = head(body.eval()(random_image(2, size)))
    assert head.to_s3[0].kernel_size == (kernel, kernel)
    assert outputs[0].shape == (2, 128, cells, cells)
    torch.testing.assert_close(vector[:, 48:], outputs[0].mean((2, 3)))


@pytest.mark.parametrize("name", ["pfld", "pfld_v3", "pfld_lite"])
def test_pfld_trunk_scales_pixels_to_0_to_1(name: str) -> None:
    """Would catch pixels of 0..255 or with a subtracted mean, and channels_last images made contiguous."""
    body = trunk(name, 0.25)
    seen: list[Tensor] = []
    body.fine.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    image = random_image(2, 64).contiguous(memory_format=torch.channels_last)
    body(image)
    torch.testing.assert_close(seen[0], image.float() / 255)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("activation", "squeeze", "skip"), [(nn.ReLU, False, False), (nn.ReLU, True, True), (nn.Hardswish, True, False)]
)
def test_inverted_residual_matches_its_definition(activation: type[nn.Module], squeeze: bool, skip: bool) -> None:
    """Would catch channel weights applied after the activation, as in other libraries, and a missing residual sum."""
    torch.manual_seed(0)
    block: Any = InvertedResidual(8, 16, 8, 5, 1, activation, squeeze, skip).eval()
    for layer in block.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.0  # an untrained normalisation then changes nothing
    features = 9 * torch.randn(2, 8, 6, 6)
    expand, depthwise, excite, _, project = block.layers
    maps = torch.einsum("oc,bchw->bohw", expand[0].weight[:, :, 0, 0], features)
    maps = nn.functional.conv2d(activation()(maps), depthwise[0].weight, padding=2, groups=16)
    if squeeze:
        inner = (maps.mean((2, 3)) @ excite.fc1.weight.flatten(1).T).relu() @ excite.fc2.weight.flatten(1).T
        assert inner.shape == (2, 16)
        assert excite.fc1.out_channels == 4
        maps = maps * (inner / 6 + 0.5).clamp(0, 1)[..., None, None]
    maps = torch.einsum("oc,bchw->bohw", project[0].weight[:, :, 0, 0], activation()(maps))
    torch.testing.assert_close(block(features), features + maps if skip else maps, atol=1e-4, rtol=1e-4)


def test_pfld_trunks_have_the_activations_of_the_reference() -> None:
    """Would catch ReLU6, which MobileNets have and the reference does not, and v3's activations in wrong blocks."""
    kinds = {nn.ReLU: "R", nn.ReLU6: "6", nn.Hardswish: "H"}
    with torch.device("meta"):
        activations = {
            name: "".join(kinds.get(type(layer), "") for layer in trunk(name).modules())
            for name in ("pfld", "pfld_lite", "pfld_v3")
        }
    assert set(activations["pfld"] + activations["pfld_lite"]) == {"R"}
    within = "R"  # inside the squeeze-and-excitation
    assert activations["pfld_v3"] == ("H" + 3 * "RR" + 3 * f"R{within}R" + "RR" + "HH" + 3 * f"H{within}H" + "HH")


def test_multi_scale_head_joins_s1_s2_and_s3() -> None:
    """Would catch scales in another order than the reference's, and an additional pooling or activation."""
    head: Any = head_on(trunk("pfld", 0.25), 19, 112).eval()
    s1 = 3 * torch.randn(2, 16, 14, 14)
    features = (torch.zeros(2, 16, 28, 28), s1)
    s2 = nn.functional.conv2d(s1, head.to_s2[0].weight, stride=2, padding=1)
    s2 = nn.functional.batch_norm(s2, head.to_s2[1].running_mean, head.to_s2[1].running_var).relu()
    s3 = (s2.flatten(1) @ head.to_s3[0].weight.flatten(1).T + head.to_s3[0].bias).relu()
    vector = torch.cat([s1.mean((2, 3)), s2.mean((2, 3)), s3], 1)
    points, joined = head(features)
    torch.testing.assert_close(joined, vector)
    flat = vector @ head.predict.weight.T + head.predict.bias
    torch.testing.assert_close(points.flatten(1), flat)
    torch.testing.assert_close(points[:, :, 0], flat[:, ::2])


def test_lite_head_joins_its_scales() -> None:
    """Would catch scales in another order than the reference's, or an activation after them."""
    head: Any = LiteHead((64, 256), (4, 8), 19, (16, 64, 128), 64).eval()
    fine, last = torch.randn(2, 64, 28, 28), torch.randn(2, 256, 14, 14)
    s1 = nn.functional.conv2d(fine, head.to_s1.weight, head.to_s1.bias, padding=1)
    s2 = torch.einsum("oc,bchw->bohw", head.to_s2.weight[:, :, 0, 0], last) + head.to_s2.bias[:, None, None]
    first, _, middle, _, project = head.to_s3
    s3 = nn.functional.conv2d(last, first.weight, first.bias).relu()
    s3 = nn.functional.conv2d(s3, middle.weight, middle.bias, stride=2, padding=1, groups=64).relu()
    s3 = nn.functional.conv2d(s3, project.weight, project.bias)
    vector = torch.cat([s1.mean((2, 3)), s2.mean((2, 3)), s3.mean((2, 3))], 1)
    points, joined = head((fine, last))
    torch.testing.assert_close(joined, vector, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(points.flatten(1), vector @ head.predict.weight.T + head.predict.bias)


def test_multi_scale_head_is_linear_if_asked() -> None:
    """Would catch an activation after S1 where v3 has none, and an option `linear` without effect."""
    s1 = torch.randn(2, 16, 14, 14)
    for linear in (True, False):
        head = MultiScaleHead((40, 16), (4, 8), 19, 112, S1_TO_S3, linear).eval()
        zero, once, back = (head((s1, factor * s1))[0] for factor in (0, 1, -1))
        assert torch.allclose(zero - back, once - zero, atol=1e-5) is linear


def test_multi_scale_head_merges_coarse_features_into_s1() -> None:
    """Would catch backbone stages that are computed but not used, and an S1 on another grid than PFLD's."""
    body = trunk(TINY)
    head = head_on(body, 19, 112).eval()
    features = list(body.eval()(random_image(1)))
    seen: list[Tensor] = []
    head.to_s2.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    _, vector = head(features)
    assert seen[0].shape == (1, 16, 14, 14)
    assert parameters(head.lateral) == sum(16 * (channels + 2) for channels in body.channels[2:])  # with normalisation
    for index, stride in enumerate(body.strides):
        changed = [feature + (place == index) for place, feature in enumerate(features)]
        assert torch.equal(head(changed)[1], vector) is (stride < 8)


def test_multi_scale_head_computes_points_in_float32_under_autocast() -> None:
    """Would catch coordinates in bfloat16, which rounds a crop of 112 pixels to a quarter or half pixel."""
    body = trunk("pfld", 0.25)
    head = head_on(body, 19, 112).eval()
    with torch.autocast("cpu", torch.bfloat16):
        points, vector = head(body(random_image(2)))
    assert vector.dtype == torch.bfloat16
    assert torch.equal(points.flatten(1), head.predict(vector.float()))


def test_pfld_initialises_as_torch() -> None:
    """Would catch another initialisation than torch's default, which the reference code keeps."""
    torch.manual_seed(0)
    body = trunk("pfld_v3")
    for layer in [
        *body.modules(),
        *head_on(body, 98, 112).modules(),
        *branch("auxiliary", body, head_on(body, 98, 112), 112).modules(),
    ]:
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.numel() > 1000:
            inputs = layer.weight[0].numel()
            assert layer.weight.std().item() == pytest.approx((3 * inputs) ** -0.5, rel=0.1)
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()


def test_auxiliary_net_has_the_size_of_the_reference() -> None:
    """Would catch a wrong kernel, margin or pooling: 0.464 million parameters, 3 x 3 cells before the maximum."""
    with torch.device("meta"):
        pose = AuxiliaryNet((64, 16), (4, 8), 176, 112)
        layers = ((64, 128, 9), (128, 128, 9), (128, 32, 9), (32, 128, 49))
        norms = 2 * (128 + 128 + 32 + 128)
        assert parameters(pose) == sum(a * b * k for a, b, k in layers) + norms + 128 * 32 + 32 + 32 * 3 + 3 == 463_811
        sides = [pose.layers[:count](torch.zeros(1, 64, 28, 28, device="meta")).shape[-1] for count in range(1, 5)]
    assert sides == [14, 14, 7, 3]


def test_auxiliary_net_takes_the_maximum_over_cells() -> None:
    """Would catch a mean instead of the reference's maximum, and an activation between its linear layers."""
    pose: Any = AuxiliaryNet((4, 16), (4, 8), 176, 112).eval()
    feature = torch.randn(2, 4, 28, 28)
    largest = nn.functional.max_pool2d(pose.layers(feature), 3).flatten(1)
    first, second = pose.predict
    expected = (largest @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(pose((feature, torch.zeros(2, 16, 14, 14)), torch.zeros(2, 176)), expected)


@pytest.mark.parametrize(
    ("name", "fine", "s1"), [("auxiliary", True, False), ("shared", False, False), ("separate", False, True)]
)
def test_pose_branch_uses_only_its_features(name: str, fine: bool, s1: bool) -> None:
    """Would catch a branch on another feature than its option names; the three options are compared with each other."""
    torch.manual_seed(0)
    body = trunk("pfld", 0.25)
    pose = branch(name, body, head_on(body, 19, 112), 112)
    inputs = [torch.randn(2, 16, 28, 28), torch.randn(2, 16, 14, 14), torch.randn(2, 176)]
    for tensor in inputs:
        tensor.requires_grad_()
    pose(inputs[:2], inputs[2]).sum().backward()
    assert [tensor.grad is not None for tensor in inputs] == [fine, s1, name == "shared"]


def test_pose_branch_of_timm_backbone_uses_stride_4() -> None:
    """Would catch the finest feature used instead of that of stride 4, which costs four times as much."""
    with torch.device("meta"):
        body = trunk("mobilenetv2_100")
        head: Any = head_on(body, 19, 112)
        for name, channels in (("auxiliary", 24), ("separate", 32)):
            pose: Any = branch(name, body, head, 112)
            assert pose.layers[0][0].in_channels == channels


def build_pfld(*words: str) -> Any:
    """Build PFLD with its pose branch, as for training."""
    module = build(compose_config(["model=pfld", *words]), "model")
    assert module.pose is not None
    return module


def test_cost_of_pfld_excludes_the_pose_branch() -> None:
    """Would catch a pose branch that is counted, or run, where only landmarks are needed."""
    module = build_pfld("data=synthetic98")
    counted = cost(module, 112, pose=False)
    assert (counted["params"], counted["macs"]) == (1_264_548, 386_590_400)
    assert parameters(module) - counted["params"] == 463_811


class Points(nn.Module):
    """PFLD as a user exports it, from pixels to landmarks."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.module.predict_points(image)[:2]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [("pfld",), ("timm", f"backbone.name={TINY}", "backbone.pretrained=false")])
def test_pfld_exports_to_onnx_without_the_pose_branch(backbone: tuple[str, ...], tmp_path: Path) -> None:
    """Would catch a graph with another output, weights of the pose branch, or a fixed batch size."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    width = ["backbone.width=0.25"] if backbone == ("pfld",) else []
    module = build_pfld("crop.size=128", f"backbone={backbone[0]}", *backbone[1:], *width)
    detector = Points(module).eval()
    batches = ({0: torch.export.Dim("batch")},)
    exported: Any = torch.onnx.export(
        detector, (random_image(2, 128),), dynamo=True, dynamic_shapes=batches, verbose=False
    )
    file = tmp_path / "pfld.onnx"
    exported.save(str(file))
    exported_sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in onnx.load(str(file)).graph.initializer}
    assert not [tensor for tensor in exported_sizes if "pose" in tensor]
    # Normalisation may be folded into the convolutions, which saves one number per channel.
    assert sum(exported_sizes.values()) == pytest.approx(parameters(module.backbone, module.head), rel=0.03)
    session = onnxruntime.InferenceSession(str(file))
    for batch in (1, 3):
        image = random_image(batch, 128)
        with torch.no_grad():
            points, confidence = detector.eval()(image)
        outputs = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        torch.testing.assert_close(torch.from_numpy(outputs[0]), points, atol=1e-3, rtol=0)
        assert torch.equal(torch.from_numpy(outputs[1]), confidence)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: trunk("pfld", 0.0), r"width=0.0 must be over 0"),
        (lambda: head_on(trunk("pfld"), 19, 100), r"size=100 must be a multiple of 8, the stride"),
        (lambda: AuxiliaryNet((64, 16), (4, 8), 176, 110), r"size=110 must be a multiple of 4, the stride"),
    ],
)
def test_pfld_networks_refuse_invalid_sizes(build: Callable[[], nn.Module], message: str) -> None:
    """Would catch sizes that fail, or give wrong results, only in the first step."""
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build()
