"""Tests of the networks: size, weights and output."""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from facelab.coders.pipnet import PIPCoder, PIPMaps
from facelab.errors import ConfigError
from facelab.faces.geometry import to_cells
from facelab.faces.layouts import AFLW19, COFW29, IBUG68, LAPA106, WFLW98, Layout
from facelab.networks import backbone
from facelab.networks.backbone import TimmBackbone
from facelab.networks.pipnet import PIPHead

TINY = "test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def torchlm() -> Iterator[ModuleType]:
    """Yield the PIPNet module of torchlm 0.1.6.10, a port of the authors' code."""
    integrate = pytest.importorskip("scipy.integrate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integrate, "simps", integrate.simpson, raising=False)  # its name before SciPy 1.14
        pytest.importorskip("torchlm")  # "torchlm.models" is hidden behind a function of that name
        yield importlib.import_module("torchlm.models.pipnet")


def random_image(batch: int, size: int = 64) -> Tensor:
    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def build_pip_net(
    name: str, num_points: int, num_neighbours: int = 10, stride: int = 32, trunk: str | int | None = "classifier"
) -> Any:
    body = TimmBackbone(name, pretrained=False, weights=None, norm_epsilon=None)
    head = PIPHead(body.channels, body.strides, body.classifier, num_points, num_neighbours, stride, trunk)
    return nn.Sequential(body, head).eval()


# Backbones


def test_timm_backbone_normalises_and_keeps_the_memory_format() -> None:
    """Would catch pixels normalised with wrong statistics, and channels_last images made contiguous."""
    body = TimmBackbone(
        TINY, pretrained=False, weights=None, norm_epsilon=None
    )  # its weights need mean and standard deviation 0.5
    body.pyramid = nn.Flatten(0, 0)
    image = random_image(2).contiguous(memory_format=torch.channels_last)
    pixels = torch.stack(body(image))
    torch.testing.assert_close(pixels, image.float() / 255 * 2 - 1)
    body.pyramid = nn.ReLU()
    assert torch.addcmul(body.shift, image.float(), body.scale).is_contiguous(memory_format=torch.channels_last)
    assert not body.state_dict().keys() & {"scale", "shift"}


def test_timm_backbone_describes_its_features() -> None:
    """Would catch channels or strides that differ from those of the features, which every head is built from."""
    with torch.device("meta"):
        body = TimmBackbone("mobilenetv2_100", pretrained=False, weights=None, norm_epsilon=None)
        features = body(torch.zeros(1, 3, 128, 128, dtype=torch.uint8))
    assert body.channels == tuple(map_.shape[1] for map_ in features) == (16, 24, 32, 96, 320)
    assert body.strides == tuple(128 // map_.shape[-1] for map_ in features) == (2, 4, 8, 16, 32)


@pytest.mark.parametrize("form", ["torchvision", "timm", "safetensors"])
def test_timm_backbone_loads_a_weight_file(form: str, tmp_path: Path) -> None:
    """Would catch weights loaded into wrong layers or none: the output must equal that of the file's network."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    reference = models.mobilenet_v2().eval()
    state = reference.state_dict()
    if form != "torchvision":
        names = backbone.timm.create_model("mobilenetv2_100").state_dict()
        state = dict(zip(names, state.values(), strict=True))
    file = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    save_file(state, file) if form == "safetensors" else torch.save(state, file)
    body = TimmBackbone("mobilenetv2_100", pretrained=True, weights=str(file), norm_epsilon=None).eval()
    assert body.classifier is not None
    image = random_image(1)
    expected = reference.features(torch.addcmul(body.shift, image.float(), body.scale))
    torch.testing.assert_close(body.classifier.eval()(body(image)[-1]), expected)


def test_timm_backbone_refuses_weights_of_another_network(tmp_path: Path) -> None:
    """Would catch a file that fits in part and leaves the other weights random."""
    deeper = tmp_path / "resnet34.pth"
    torch.save(backbone.timm.create_model("resnet34").state_dict(), deeper)  # has all the names of resnet18
    with pytest.raises(ConfigError, match=r"weights=.*resnet34.pth: 182 tensors.*neither the names nor the"):
        TimmBackbone("resnet18", pretrained=False, weights=str(deeper), norm_epsilon=None)
    wider = tmp_path / "wider.pth"
    torch.save(backbone.timm.create_model("mobilenetv2_140").state_dict(), wider)
    with pytest.raises(ConfigError, match=r"the tensor for conv_stem.weight has shape \(48, 3, 3, 3\)"):
        TimmBackbone("mobilenetv2_100", pretrained=False, weights=str(wider), norm_epsilon=None)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("content", [b"not weights", b"hello", b"", b"\x89PNG\r\n\x1a\n0000", b"\x80\x02}q\x00."])
def test_timm_backbone_refuses_a_file_without_weights(content: bytes, ending: str, tmp_path: Path) -> None:
    """Would catch a KeyError or IndexError from torch for a text, an empty file or a picture."""
    file = tmp_path / f"weights.{ending}"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^weights=.*: not a file of tensors"):
        TimmBackbone(TINY, pretrained=False, weights=str(file), norm_epsilon=None)
    for path in (tmp_path, tmp_path / "absent.pth"):
        with pytest.raises(ConfigError, match=r"^weights=.*: there is no such file"):
            TimmBackbone(TINY, pretrained=False, weights=str(path), norm_epsilon=None)


@pytest.mark.parametrize("name", ["test_vit", "mixer_s32_224"])
def test_timm_backbone_refuses_a_network_without_a_pyramid(name: str) -> None:
    """Would catch feature maps of one size, which fail in the first step or pass for those of fine strides."""
    with pytest.raises(ConfigError, match=f"^name={name}: its feature maps have the strides .* and are no pyramid"):
        TimmBackbone(name, pretrained=False, weights=None, norm_epsilon=None)


def test_timm_backbone_loads_weights_with_other_classes(tmp_path: Path) -> None:
    """Would catch a refused network with another number of classes, although its classifier is not used."""
    other: Any = backbone.timm.create_model(TINY, num_classes=7)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "weights.pth")
    body = TimmBackbone(TINY, pretrained=False, weights=str(tmp_path / "weights.pth"), norm_epsilon=None)
    assert torch.equal(body.state_dict()["pyramid.layer4.0.conv1.weight"], other.layer4[0].conv1.weight)


def test_timm_backbone_reports_a_missing_network_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch random weights used silently, or a minute of retries, on a machine without a network."""

    class NoNetwork:
        def head(self, url: str, timeout: float) -> None:
            raise TimeoutError("no route to host")

    monkeypatch.setattr(backbone, "get_session", NoNetwork)
    monkeypatch.setattr(backbone, "try_to_load_from_cache", lambda repo, file: None)
    with pytest.raises(ConfigError, match=r"(?s)no route to host.*backbone\.weights=FILE.*backbone\.pretrained=false"):
        TimmBackbone("resnet18", pretrained=True, weights=None, norm_epsilon=None)


def test_timm_backbone_suggests_names_for_an_unknown_network() -> None:
    """Would catch an error without a suggestion, so that the user must search a thousand names."""
    with pytest.raises(ConfigError, match=r"name=mobilenet_v2_100: .*mobilenetv2_100"):
        TimmBackbone("mobilenet_v2_100", pretrained=False, weights=None, norm_epsilon=None)
    with pytest.raises(ConfigError, match=r"\(B, h, w, C\)"):
        TimmBackbone("swin_tiny_patch4_window7_224", pretrained=False, weights=None, norm_epsilon=None)


def test_timm_backbone_refuses_a_pyramid_with_other_tensor_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a bare KeyError if the tensors of a pyramid and its network have different names."""
    create = backbone.timm.create_model

    def renamed(name: str, **options: Any) -> nn.Module:
        network = create(name, **options)
        if options.get("features_only"):
            network.trunk = network.layer1
            del network.layer1
        return network

    monkeypatch.setattr(backbone.timm, "create_model", renamed)
    with pytest.raises(ConfigError, match=r"name=test_resnet: .* trunk\.0.* choose another network"):
        TimmBackbone("test_resnet", pretrained=False, weights=None, norm_epsilon=None)


# PIPNet


@pytest.mark.parametrize(
    ("name", "layout", "parameters", "macs"),
    [
        pytest.param("resnet18", AFLW19, 11.40, 2383, marks=pytest.mark.slow),
        pytest.param("resnet18", COFW29, 11.52, 2391, marks=pytest.mark.slow),
        pytest.param("resnet18", IBUG68, 11.98, 2420, marks=pytest.mark.slow),
        pytest.param("resnet18", WFLW98, 12.33, 2443, marks=pytest.mark.slow),
        ("resnet18", LAPA106, 12.43, 2449),
        ("resnet50", WFLW98, 28.13, 5634),
        pytest.param("resnet50", LAPA106, 28.50, 5658, marks=pytest.mark.slow),
        pytest.param("resnet101", WFLW98, 47.12, 10482, marks=pytest.mark.slow),
        pytest.param("resnet101", LAPA106, 47.50, 10507, marks=pytest.mark.slow),
        pytest.param("mobilenetv2_100", WFLW98, 5.11, 576, marks=pytest.mark.slow),
        ("mobilenetv2_100", LAPA106, 5.35, 591),
        pytest.param("mobilenetv3_large_100", WFLW98, 5.14, 418, marks=pytest.mark.slow),
        ("mobilenetv3_large_100", LAPA106, 5.32, 429),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_pip_net_has_the_size_of_the_reference(name: str, layout: Layout, parameters: float, macs: float) -> None:
    """Would catch a missing or additional layer: millions of parameters and of multiply-adds at 256 pixels."""
    with FakeTensorMode():
        net = build_pip_net(name, layout.num_points)
        with FlopCounterMode(display=False) as counter:
            net(torch.zeros(1, 3, 256, 256, dtype=torch.uint8))
    assert sum(parameter.numel() for parameter in net.parameters()) / 1e6 == pytest.approx(parameters, rel=0.002)
    assert counter.get_total_flops() / 2e6 == pytest.approx(macs, rel=0.002)


@pytest.mark.parametrize(("trunk", "channels", "conv_head"), [("classifier", 1280, 1), (640, 640, 0), (None, 320, 0)])
def test_pip_head_uses_the_chosen_trunk(trunk: str | int | None, channels: int, conv_head: int) -> None:
    """Would catch MobileNetV2's last convolution used or counted where the trimmed head drops it."""
    with torch.device("meta"):
        net = build_pip_net("mobilenetv2_100", 98, trunk=trunk)
        bare = TimmBackbone("mobilenetv2_100", pretrained=False, weights=None, norm_epsilon=None)
    head = sum(parameter.numel() for parameter in net[1].predict.parameters())
    assert head == channels * 98 * 23 + 98 * 23
    total = sum(parameter.numel() for parameter in net.parameters())
    body = sum(parameter.numel() for parameter in bare.parameters())
    assert total - body - head == (0 if trunk is None else (320 + 2) * channels)
    assert sum(parameter.shape == (1280, 320, 1, 1) for parameter in net.parameters()) == conv_head


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2_100"])
def test_pip_head_predicts_at_the_chosen_stride(name: str) -> None:
    """Would catch a stride that only fits some backbones, or a head with the number of channels before resampling."""
    with FakeTensorMode():
        body = TimmBackbone(name, pretrained=False, weights=None, norm_epsilon=None)
        features = body(torch.zeros(2, 3, 256, 256, dtype=torch.uint8))
        for stride in (16, 32, 64, 128):
            head = PIPHead(body.channels, body.strides, body.classifier, 19, 5, stride, "classifier")
            maps, side = head(features), 256 // stride
            assert maps.score.shape == (2, 19, side, side)
            assert maps.offset.shape == (2, 19, 2, side, side)
            assert maps.neighbour.shape == (2, 19, 5, 2, side, side)
            assert head.predict.in_channels == 512 or stride == 32


def test_pip_head_initialises_as_the_reference() -> None:
    """Would catch torch's default initialisation, with which initial offsets are some hundred times larger."""
    net = build_pip_net(TINY, 68, stride=64)
    for convolution in (net[1].predict, net[1].resample[0]):
        assert convolution.weight.std().item() == pytest.approx(0.001, rel=0.02)
        assert not convolution.bias.any()


def test_pip_head_refuses_an_invalid_stride_or_trunk() -> None:
    """Would catch an invalid stride or trunk that only fails in the first step, far from its cause."""
    with torch.device("meta"):
        with pytest.raises(ConfigError, match=r"coder\.stride=8: on features of stride 32 .* \[16, 32, 64, 128\]"):
            build_pip_net(TINY, 19, stride=8)
        with pytest.raises(ConfigError, match=r"trunk=clasifier"):
            build_pip_net(TINY, 19, trunk="clasifier")


def test_pip_head_computes_in_float32_under_autocast() -> None:
    """Would catch offsets in bfloat16, which represents 3 cells only to half a pixel."""
    net = build_pip_net(TINY, 19, 4)
    net[0] = nn.Identity()
    features = [torch.rand(1, net[1].predict.in_channels, 8, 8)]
    expected = net(features)
    with torch.autocast("cpu", torch.bfloat16):
        maps = net(features)
    assert all(torch.equal(*pair) for pair in zip(maps, expected, strict=True))


def test_pip_head_trains_without_neighbours() -> None:
    """Would catch a head that requires neighbour regression, and parameters without a gradient."""
    for num_neighbours in (0, 4):
        net = build_pip_net(TINY, 19, num_neighbours)
        sum(maps.sum() for maps in net(random_image(2))).backward()
        assert all(parameter.grad is not None for parameter in net.parameters())


def test_pip_net_matches_the_reference_network(torchlm: ModuleType) -> None:
    """Would catch any difference from pixels to points, with equal weights in a port of the authors' code."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = torchlm.pipnet.PIPNetResNet(
        models.resnet18(), num_nb=10, num_lms=98, input_size=256, net_stride=32, expansion=1, meanface_type="WFLW"
    ).eval()
    layers = [getattr(theirs, f"{name}_layer") for name in ("cls", "x", "y", "nb_x", "nb_y")]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.1)  # scores that differ by more than rounding
        nn.init.normal_(layer.bias)
    ours = build_pip_net("resnet18", 98)
    ours[0].pyramid.load_state_dict({key: theirs.state_dict()[key] for key in ours[0].pyramid.state_dict()})
    ours[1].predict.load_state_dict(
        {key: torch.cat([layer.state_dict()[key] for layer in layers]) for key in ("weight", "bias")}
    )
    mean_face = torch.tensor([float(value) for value in torchlm.DEFAULT_MEANFACE_STRINGS["WFLW"].split()])
    coder = PIPCoder(WFLW98, 32, 10, True)
    coder.set_mean_shape(mean_face.view(-1, 2))
    image = random_image(2, 256)
    with torch.no_grad():
        points, _ = coder.decode(ours(image))
    for mine, picture in zip(points, image, strict=True):
        expected = torch.from_numpy(theirs.apply_detecting(picture.permute(1, 2, 0).numpy()))
        torch.testing.assert_close(to_cells(mine, 1), expected, atol=0.02, rtol=0)


class Detector(nn.Module):
    """Network and coder in one module, from pixels to points, as for deployment."""

    def __init__(self, net: nn.Module, coder: PIPCoder) -> None:
        super().__init__()
        self.net, self.coder = net, coder

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        maps: PIPMaps = self.net(image)
        return self.coder.decode(maps)


@pytest.mark.slow
@pytest.mark.parametrize("official", [False, True])
def test_pip_net_exports_to_onnx(official: bool, tmp_path: Path) -> None:
    """Would catch operations that differ in ONNX (integer division), and a fixed batch size in the graph."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    net = build_pip_net(TINY, AFLW19.num_points, 5)
    nn.init.normal_(net[1].predict.weight, std=1 / math.sqrt(net[1].predict.in_channels))
    coder = PIPCoder(AFLW19, 32, 5, official)
    coder.set_mean_shape(torch.rand(19, 2))
    detector = Detector(net, coder).eval()
    batch = torch.export.Dim("batch")
    program: Any = torch.onnx.export(
        detector, (random_image(2, 128),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    file = tmp_path / "pipnet.onnx"
    program.save(str(file))
    session = onnxruntime.InferenceSession(str(file))
    for size in (1, 3):
        image = random_image(size, 128)
        with torch.no_grad():
            points, confidence = detector(image)
        exported = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        torch.testing.assert_close(torch.from_numpy(exported[0]), points, atol=1e-3, rtol=0)
        torch.testing.assert_close(torch.from_numpy(exported[1]), confidence, atol=1e-5, rtol=0)
