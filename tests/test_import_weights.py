"""Tests of import_weights.py: networks of the public codes, written again in this file, and runs of their weights."""

import json
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision
from composing import SMALL_FACES, compose_config
from conftest import metrics_of, open_door
from dan_reference import lasagne_arrays, public_dan
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.init import kaiming_normal_

from facelab.errors import CheckpointError
from facelab.networks.official import OfficialLayers, match_tensors
from facelab.runs.build import build
from facelab.runs.checkpoint import load_run

POINTS, NEIGHBOURS = 68, 10
PRECISION = 1e-4
"""Largest error of an output, as a share of the largest output. The networks run in float64, but normalise the image
with float32 constants in another order (a relative error of 1e-7), which random weights amplify up to 200 times."""
PFLD_POINTS = ("data=synthetic98", *SMALL_FACES[1:])
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)


class PublicPIPNet(nn.Module):
    """Trunk and five 1x1 convolutions, with the names and the order of execution of jhb86253817/PIPNet."""

    def __init__(self, trunk: Mapping[str, nn.Module], channels: int, extra: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.order = list(trunk) + list(extra)
        for name, module in {**trunk, **extra}.items():
            self.add_module(name, module)
        for name in ("cls", "x", "y", "nb_x", "nb_y"):
            many = NEIGHBOURS if name.startswith("nb") else 1
            self.add_module(f"{name}_layer", nn.Conv2d(channels, many * POINTS, 1))

    def forward(self, image: Tensor) -> list[Tensor]:
        x = (image / 255 - MEAN) / STD
        for name in self.order:
            x = getattr(self, name)(x)
            if name == "bn1" or name.startswith("bn_") or name in ("bn5", "bn6"):
                x = functional.relu(x)
        return [getattr(self, f"{name}_layer")(x) for name in ("cls", "x", "y", "nb_x", "nb_y")]


class Squeeze(nn.Module):
    """Squeeze-and-excitation with linear layers and a hard sigmoid."""

    def __init__(self, channels: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, inner, bias), nn.ReLU(), nn.Linear(inner, channels, bias), nn.Hardsigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[..., None, None]


class Block(nn.Module):
    """Inverted residual of the public codes, whose layers are in ``conv``."""

    def __init__(self, layers: list[nn.Module], skip: bool) -> None:
        super().__init__()
        self.conv, self.skip = nn.Sequential(*layers), skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)


def mobile_v3() -> PublicPIPNet:
    """Build MobileNetV3-Large with squeeze-and-excitation before the activation, as PIPNet has it."""
    rows = """3 16 16 0 0 1, 3 64 24 0 0 2, 3 72 24 0 0 1, 5 72 40 1 0 2, 5 120 40 1 0 1, 5 120 40 1 0 1,
        3 240 80 0 1 2, 3 200 80 0 1 1, 3 184 80 0 1 1, 3 184 80 0 1 1, 3 480 112 1 1 1, 3 672 112 1 1 1,
        5 672 160 1 1 2, 5 960 160 1 1 1, 5 960 160 1 1 1"""
    features: list[nn.Module] = [nn.Sequential(conv(3, 16, 3, 2), nn.BatchNorm2d(16), nn.Hardswish())]
    inputs = 16
    for row in rows.split(","):
        kernel, hidden, outputs, squeeze, swish, stride = map(int, row.split())
        act: Callable[[], nn.Module] = nn.Hardswish if swish else nn.ReLU
        inner = max(8, int(hidden // 4 + 4) // 8 * 8)
        inner += 8 * (inner < 0.9 * (hidden // 4))
        excite = Squeeze(hidden, inner, True) if squeeze else nn.Identity()
        depth = [conv(hidden, hidden, kernel, stride, hidden), nn.BatchNorm2d(hidden)]
        first = [*depth, act(), excite] if inputs == hidden else None
        layers = first or [conv(inputs, hidden, 1), nn.BatchNorm2d(hidden), act(), *depth, excite, act()]
        skip = stride == 1 and inputs == outputs
        features.append(Block([*layers, conv(hidden, outputs, 1), nn.BatchNorm2d(outputs)], skip))
        inputs = outputs
    last = nn.Sequential(conv(160, 960, 1), nn.BatchNorm2d(960), nn.Hardswish())
    return PublicPIPNet({"features": nn.Sequential(*features), "conv": last}, 960, {})


def resnet(make: Callable[..., nn.Module], channels: int, extra: Mapping[str, nn.Module] = {}) -> PublicPIPNet:
    whole = dict(make(weights=None).named_children())
    order = ("conv1", "bn1", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return PublicPIPNet({name: whole[name] for name in order}, channels, extra)


def coarser() -> dict[str, nn.Module]:
    """Return the layers by which PIPNet reaches stride 64."""
    return {"layer5": nn.Conv2d(512, 512, 3, 2, 1), "bn5": nn.BatchNorm2d(512)}


def finer() -> dict[str, nn.Module]:
    """Return the layers by which PIPNet reaches stride 16."""
    return {"deconv1": nn.ConvTranspose2d(512, 512, 4, 2, 1, bias=False), "bn_deconv1": nn.BatchNorm2d(512)}


def mobile_v2() -> PublicPIPNet:
    return PublicPIPNet({"features": torchvision.models.mobilenet_v2(weights=None).features}, 1280, {})


PIPNETS: dict[str, tuple[Callable[[], PublicPIPNet], tuple[str, ...]]] = {
    "resnet18": (lambda: resnet(torchvision.models.resnet18, 512), ("backbone=resnet18",)),
    "resnet50": (lambda: resnet(torchvision.models.resnet50, 2048), ("backbone=resnet50",)),
    "stride 64": (
        lambda: resnet(torchvision.models.resnet18, 512, coarser()),
        ("backbone=resnet18", "coder.stride=64"),
    ),
    "stride 16": (lambda: resnet(torchvision.models.resnet18, 512, finer()), ("backbone=resnet18", "coder.stride=16")),
    "mbv2": (mobile_v2, ("backbone=mbv2",)),
    "mbv3": (mobile_v3, ("backbone=mbv3_pipnet",)),
}


class PublicPFLD(nn.Module):
    """Layers by name, in their order, and a linear layer on the means of three of their outputs."""

    def __init__(self, layers: Mapping[str, nn.Module], scales: Mapping[str, str], points: int, size: int) -> None:
        super().__init__()
        self.order, self.scales = list(layers), scales
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.fc = nn.Linear(size, 2 * points)

    def forward(self, image: Tensor) -> Tensor:
        x, outputs = image.flip(1) / 255, {}
        for name in self.order:
            layer = getattr(self, name)
            if name in ("bn8",):
                continue
            if name.startswith("side"):
                continue
            x = layer(x)
            if name in self.relu:
                x = functional.relu(x)
            outputs[name] = x
        vector = [outputs[name].mean((2, 3)) for name in self.scales.values()]
        return self.fc(torch.cat(vector, 1))

    relu: tuple[str, ...] = ("bn1", "bn2", "conv8")


def inverted(inputs: int, hidden: int, outputs: int, stride: int, skip: bool) -> Block:
    return Block(
        [
            *(conv(inputs, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU()),
            *(conv(hidden, hidden, 3, stride, hidden), nn.BatchNorm2d(hidden), nn.ReLU()),
            *(conv(hidden, outputs, 1), nn.BatchNorm2d(outputs)),
        ],
        skip,
    )


def pfld(points: int = 98) -> PublicPFLD:
    """Build the network of polarisZhao/PFLD-pytorch, which does not use its ``bn8``."""
    layers: dict[str, nn.Module] = {
        "conv1": conv(3, 64, 3, 2),
        "bn1": nn.BatchNorm2d(64),
        "conv2": conv(64, 64, 3),
        "bn2": nn.BatchNorm2d(64),
        "conv3_1": inverted(64, 128, 64, 2, False),
        **{f"block3_{i}": inverted(64, 128, 64, 1, True) for i in range(2, 6)},
        "conv4_1": inverted(64, 128, 128, 2, False),
        "conv5_1": inverted(128, 512, 128, 1, False),
        **{f"block5_{i}": inverted(128, 512, 128, 1, True) for i in range(2, 7)},
        "conv6_1": inverted(128, 256, 16, 1, False),
        "conv7": nn.Sequential(conv(16, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU()),
        "conv8": nn.Conv2d(32, 128, 7),
        "bn8": nn.BatchNorm2d(128),
    }
    return PublicPFLD(layers, {"s1": "conv6_1", "s2": "conv7", "s3": "conv8"}, points, 176)


def v3(points: int = 98) -> PublicPFLD:
    """Build the network v3 of Hsintao/pfld_106_face_landmarks."""
    rows = """conv_bn2 3 16 16 0 0 1, conv3_1 3 64 24 0 0 2, block3_2 3 72 24 0 0 1, block3_3 5 72 40 1 0 2,
        block3_4 5 120 40 1 0 1, block3_5 5 120 40 1 0 1, conv4_1 3 240 80 0 0 2, conv5_1 3 200 80 0 1 1,
        block5_2 3 480 112 1 1 1, block5_3 3 672 112 1 1 1, block5_4 3 672 160 1 1 1, conv6_1 3 320 16 0 1 1"""
    layers: dict[str, nn.Module] = {"conv_bn1": nn.Sequential(conv(3, 16, 3), nn.BatchNorm2d(16), nn.Hardswish())}
    inputs = 16
    for name, *row in map(str.split, rows.split(",")):
        kernel, hidden, outputs, squeeze, swish, stride = map(int, row)
        act: Callable[[], nn.Module] = nn.Hardswish if swish else nn.ReLU
        layers[name] = Block(
            [
                *(conv(inputs, hidden, 1), nn.BatchNorm2d(hidden), act()),
                *(conv(hidden, hidden, kernel, stride, hidden), nn.BatchNorm2d(hidden)),
                *(Squeeze(hidden, hidden // 4, False) if squeeze else nn.Identity(), act()),
                *(conv(hidden, outputs, 1), nn.BatchNorm2d(outputs)),
            ],
            stride == 1 and inputs == outputs,
        )
        inputs = outputs
    layers |= {"conv7": nn.Conv2d(16, 32, 3, 2, 1), "conv8": nn.Conv2d(32, 128, 7)}
    network = PublicPFLD(layers, {"s1": "conv6_1", "s2": "conv7", "s3": "conv8"}, points, 176)
    network.relu = ()
    return network


class PublicLite(nn.Module):
    """Network lite of Hsintao/pfld_106_face_landmarks."""

    def __init__(self, points: int) -> None:
        super().__init__()

        def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            depth = (conv(inputs, inputs, 3, stride, inputs), nn.BatchNorm2d(inputs), nn.ReLU())
            return nn.Sequential(*depth, conv(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU())

        self.model = nn.Sequential(
            nn.Sequential(conv(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
            *(separable(16, 32), separable(32, 32, 2), separable(32, 32), separable(32, 64, 2)),
            *(separable(64, 64) for _ in range(3)),
        )
        self.model1 = nn.Sequential(
            *(separable(64, 128, 2), separable(128, 128), separable(128, 128), separable(128, 256)), separable(256, 256)
        )
        narrow = nn.Sequential(conv(64, 64, 3, 2, 64, bias=True), nn.ReLU(), nn.Conv2d(64, 128, 1))
        self.extra = nn.Sequential(nn.Conv2d(256, 64, 1), nn.ReLU(), narrow)
        self.conv1, self.conv2, self.fc = conv(64, 16, 3, bias=True), nn.Conv2d(256, 64, 1), nn.Linear(208, 2 * points)

    def forward(self, image: Tensor) -> Tensor:
        fine = self.model(image.flip(1) / 255)
        last = self.model1(fine)
        return self.fc(torch.cat([m.mean((2, 3)) for m in (self.conv1(fine), self.conv2(last), self.extra(last))], 1))


PFLDS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "pfld": (pfld, ()),
    "v3": (v3, ("backbone=pfld_v3", "head=multiscale_linear")),
    "lite": (lambda: PublicLite(98), ("backbone=pfld_lite", "head=multiscale_lite")),
}


@pytest.fixture(autouse=True)
def zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build networks with zeros, as random numbers take long; `jittered` or a file then gives them their weights."""
    for name in ("kaiming_normal_", "kaiming_uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: nn.init.zeros_(tensor))


def jittered(network: nn.Module) -> nn.Module:
    """Set weights and normalisations so that the output depends on the image and on every layer; return the network."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                # torch's default shrinks the image in each layer, until the output depends on the biases only.
                kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                for value, low, high in (
                    *((module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 1.5)),
                    *((module.weight, 0.7, 1.3), (module.bias, -0.2, 0.2)),
                ):
                    value.uniform_(low, high, generator=generator)
    return network.eval()


def noise(side: int) -> Tensor:
    """Return the same two random images ``(2, 3, side, side)`` uint8 in every call."""
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def meanface(tmp_path: Path) -> Path:
    """Write a mean face of 68 random landmarks."""
    path = tmp_path / "meanface.txt"
    path.write_text(" ".join(f"{v:.6f}" for v in np.random.default_rng(0).random(2 * POINTS)))
    return path


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the weights of a PIPNet with ResNet-18."""
    path = tmp_path_factory.mktemp("resnet18") / "weights.pth"
    torch.save(resnet(torchvision.models.resnet18, 512).state_dict(), path)
    return path


def import_pipnet(file: Path, meanface: Path, folder: Path, *options: str) -> None:
    overrides = ("model=pipnet", *SMALL_FACES, f"weights={file}", f"meanface={meanface}", "hydra.run.dir=run", *options)
    open_door("import_weights", *overrides, folder=folder)


def load_imported(folder: Path) -> Any:
    """Open the run ``run`` in a folder."""
    paths = OmegaConf.create(
        {"data": "data", "cache": "data", "run": "x", "name": "x", "group": "x", "id": "x", "tags": []}
    )
    return load_run(folder / "run", paths)


@pytest.mark.parametrize(
    "name",
    # Those of the other strides contain all layers of this one.
    [pytest.param(name, marks=pytest.mark.slow if name == "resnet18" else ()) for name in PIPNETS],
)
def test_import_weights_keeps_the_output_of_pipnet(name: str, tmp_path: Path, meanface: Path) -> None:
    """Would catch exchanged layers or outputs, and squeeze-and-excitation in another place."""
    make, overrides = PIPNETS[name]
    network = jittered(make())
    torch.save(network.state_dict(), tmp_path / "epoch59.pth")
    import_pipnet(tmp_path / "epoch59.pth", meanface, tmp_path, *overrides)
    run = load_imported(tmp_path)
    assert run.cfg.coder.official_merge and run.cfg.crop._target_.endswith("OfficialPIPNetCrop")
    image = noise(64)
    with torch.inference_mode():
        cls, x, y, nb_x, nb_y = network.double()(image.double())
        maps = run.module.double()(image)
    scale = float(cls.abs().max())
    torch.testing.assert_close(maps.score, cls, atol=PRECISION * scale, rtol=0)
    torch.testing.assert_close(maps.offset, torch.stack([x, y], 2), atol=PRECISION * scale, rtol=0)
    neighbour = torch.stack([v.unflatten(1, (POINTS, NEIGHBOURS)) for v in (nb_x, nb_y)], 3)
    torch.testing.assert_close(maps.neighbour, neighbour, atol=PRECISION * scale, rtol=0)
    shape = torch.tensor([float(v) for v in meanface.read_text().split()]).view(-1, 2)
    nearest = torch.cdist(shape, shape).argsort(1)[:, 1 : 1 + NEIGHBOURS]
    assert torch.equal(run.module.coder.neighbours, nearest)


KEYS = ("pfld_backbone", "plfd_backbone", "")
"""Names of the state dict of PFLD in a file with two networks; empty for a file with one."""


@pytest.mark.parametrize(
    ("name", "key"),
    [
        # Each network once and each key once: the code that reads the key is the same for all networks.
        pytest.param(name, key, marks=() if row == column else pytest.mark.slow)
        for row, name in enumerate(PFLDS)
        for column, key in enumerate(KEYS)
    ],
)
def test_import_weights_keeps_the_output_of_pfld(name: str, key: str, tmp_path: Path) -> None:
    """Would catch RGB for BGR, exchanged layers, and the wrong state dict of a file with two networks."""
    make, options = PFLDS[name]
    network = jittered(make())
    state = {f"module.{k}": v for k, v in network.state_dict().items()} if not key else network.state_dict()
    content = {"epoch": 3, key: state, "auxiliarynet": nn.Linear(2, 2).state_dict()} if key else state
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    overrides = ("model=pfld", *PFLD_POINTS, *options, f"weights={tmp_path}/checkpoint.pth.tar", "hydra.run.dir=run")
    open_door("import_weights", *overrides, folder=tmp_path)
    # Channels of different brightness: noise looks almost the same with red and blue exchanged.
    image = noise(112) // 3 + torch.tensor([170, 85, 0], dtype=torch.uint8).view(3, 1, 1)
    with torch.inference_mode():
        network.double()
        expected, of_black = (network(each.double()).view(2, -1, 2) for each in (image, torch.zeros_like(image)))
        points = load_imported(tmp_path).module.double()(image)
    scale = float(expected.abs().max())
    assert (expected - of_black).abs().max() > 0.01 * scale, "the output does not depend on the image"
    torch.testing.assert_close(points, expected, atol=PRECISION * scale, rtol=0)


@pytest.mark.parametrize(
    ("prefix", "file"),
    [pytest.param("", "HR18.pth", marks=pytest.mark.slow), ("module.", "HR18.pth"), ("", "HR18.safetensors")],
    ids=str,
)
def test_import_weights_keeps_the_output_of_hrnet(prefix: str, file: str, tmp_path: Path) -> None:
    """Would catch exchanged layers of the head, and a refused file of a network in ``DataParallel``."""
    overrides = [
        "model=hrnet",
        *SMALL_FACES,
        "backbone.width=4",
        "backbone.modules=[1,1,1]",
        "backbone.pretrained=false",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACELAB_STAMP", "now")
        module = jittered(build(compose_config(overrides), "model"))
    names = {"backbone.pyramid.": "", "head.mix.0.": "head.0.", "head.mix.1.": "head.1.", "head.predict.": "head.3."}
    state = {}
    for name, value in module.state_dict().items():
        if part := next((part for part in names if name.startswith(part)), None):
            state[prefix + names[part] + name.removeprefix(part)] = value
    torch.save(state, tmp_path / file) if file.endswith(".pth") else save_file(state, tmp_path / file)
    open_door("import_weights", *overrides, f"weights={file}", "hydra.run.dir=run", folder=tmp_path)
    run = load_imported(tmp_path)
    assert run.cfg.crop._target_.endswith("OfficialHRNetCrop") and run.module.official_rounding
    image = noise(64)
    with torch.inference_mode():
        expected = module.double()(image).maps
        scale = float(expected.abs().max())
        torch.testing.assert_close(run.module.double()(image).maps, expected, atol=PRECISION * scale, rtol=0)


@pytest.mark.parametrize(("stages", "confidence"), [(1, False), (1, True), (2, False), (3, False)])
def test_import_weights_keeps_the_output_of_dan(stages: int, confidence: bool, tmp_path: Path) -> None:
    """Would catch kernels that are not flipped, exchanged arrays of a normalisation, and another order of layers."""
    arrays = lasagne_arrays(stages, width=4 if not confidence else 64, size=64, points=POINTS)
    content = dict(arrays)
    if confidence:  # of the published network for tracking
        content |= {f"arr_{len(arrays) - 5}": np.zeros((256, 2)), f"arr_{len(arrays) - 4}": np.zeros(2)}
    np.savez(tmp_path / "network.npz", **content)
    shares = f"model.stage_shares={[1 / stages] * stages}"
    overrides = ["model=dan", *SMALL_FACES, "crop.size=64", f"stage.width={64 if confidence else 4}", shares]
    open_door(
        "import_weights", *overrides, "weights=network.npz", "trust=[mypackage]", "hydra.run.dir=run", folder=tmp_path
    )
    run = load_imported(tmp_path)
    assert run.cfg.crop._target_.endswith("OfficialDANCrop") and int(run.module.trained_stages) == stages
    image = noise(64)
    grey = image.double().mean(1)
    expected, of_black = (public_dan(arrays, each.numpy(), stages) for each in (grey, torch.zeros_like(grey)))
    with torch.inference_mode():
        points = run.module.double().predict_points(image).points
    assert np.abs(expected - of_black).max() > 0.1, "the output does not depend on the image"
    np.testing.assert_allclose(points, expected, atol=PRECISION * np.abs(expected).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("arr_46"), r"has 46 arrays, and a network of 1 stages has 47; .*stage_shares"),
        (lambda arrays: arrays.update(arr_47=np.zeros(3)), "has 48 arrays"),
        (lambda arrays: arrays.pop("meanImg"), "has no array meanImg"),
        (
            lambda arrays: arrays.update(arr_0=np.zeros(4)),
            r"arr_0 has the shape \(4,\), and cannot be stages.0.trunk.0",
        ),
        (
            lambda arrays: arrays.update(arr_45=np.zeros(4)),
            r"arr_45 has the shape \(4,\), and cannot be stages.0.points",
        ),
        (lambda arrays: arrays.update(arr_45=np.zeros((16, 196))), r"points.weight has the shape \(196, 16\) instead"),
        (lambda arrays: arrays.update(arr_3=np.full(4, np.nan)), "running_mean has values that are not finite"),
        (lambda arrays: arrays.update(stdDevImg=np.zeros((1, 64, 64))), "stdDevImg has values that are not over 0"),
        (lambda arrays: arrays.update(arr_4=np.zeros(4)), "running_var has values that are not finite"),
        (lambda arrays: arrays.update(errors=np.array([{}], object)), "not a file of arrays written by numpy.savez"),
    ],
)
def test_import_weights_refuses_arrays_that_do_not_fit(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    """Would catch a traceback, and a network that is filled in part or with wrong arrays."""
    arrays: dict[str, Any] = dict(lasagne_arrays(1, width=4, size=64, points=POINTS))
    change(arrays)
    np.savez(tmp_path / "network.npz", **arrays)
    overrides = ["model=dan", *SMALL_FACES, "crop.size=64", "stage.width=4", "model.stage_shares=[1.0]"]
    with pytest.raises(SystemExit, match=message):
        open_door("import_weights", *overrides, "weights=network.npz", "hydra.run.dir=run", folder=tmp_path)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the weights ``pfld.pth`` and the run ``run`` imported from them."""
    folder = tmp_path_factory.mktemp("imported")
    torch.save(jittered(pfld()).state_dict(), folder / "pfld.pth")
    open_door("import_weights", "model=pfld", *PFLD_POINTS, "weights=pfld.pth", "hydra.run.dir=run", folder=folder)
    return folder


def test_import_weights_writes_a_run_that_every_script_opens(
    imported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a run folder without an entry that evaluate, predict, benchmark or compare reads."""
    status = json.loads((imported / "run" / "status.json").read_text())
    assert status["state"] == "finished" and status["imported"]["file"] == "pfld.pth"
    open_door("evaluate", "ckpt=run", "num_workers=0", "hydra.run.dir=measured", folder=imported)
    results = json.loads((imported / "measured" / "metrics.json").read_text())
    assert results["protocol"]["faces"] == 8 and "box_jitter" not in results["protocol"]
    (imported / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    cv2.imwrite(str(imported / "photos" / "a.png"), noise)
    (imported / "boxes.json").write_text('{"a.png": [[-20, -10, 70, 60], [30, 20, 80, 70]]}')
    overrides = ["images=photos", "landmarker=run", "boxes=boxes.json", "pictures=false", "hydra.run.dir=predicted"]
    open_door("predict", *overrides, folder=imported)
    faces = json.loads((imported / "predicted" / "landmarks.json").read_text())
    assert len(faces["images"]["a.png"]["faces"]) == 2
    quick = ("threads=1", "seconds=0", "repeats=1", "batch=1")
    open_door("benchmark", "ckpt=run", *quick, "hydra.run.dir=timed", folder=imported)
    open_door("compare", "measured", folder=imported)
    assert "synthetic98 test, 8 faces" in capsys.readouterr().out


def test_evaluate_records_box_jitter_in_the_protocol(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch results with and without jitter in one table, and a jitter that depends on the batch size."""
    jitter = "box_jitter={scale:[0.9,1.3],shift:0.1}"
    numbers = []
    for name, overrides in {
        "a": [jitter],
        "b": [jitter, "batch_size=3"],
        "c": [],
        "d": [jitter, "box_jitter.seed=1"],
    }.items():
        open_door("evaluate", "ckpt=run", "num_workers=0", *overrides, f"hydra.run.dir={name}", folder=imported)
        results = json.loads((imported / name / "metrics.json").read_text())
        numbers.append((results["protocol"].get("box_jitter"), metrics_of(imported / name)["nme_box"].value))
    assert numbers[0] == ("scale 0.9 to 1.3, shift 0.1, seed 0", pytest.approx(numbers[1][1], rel=1e-6))
    assert numbers[2][0] is None and numbers[3][0] == "scale 0.9 to 1.3, shift 0.1, seed 1"
    assert len({round(value, 2) for _, value in numbers}) == 3
    assert "box_jitter" not in OmegaConf.load(imported / "c" / "config.yaml").evaluate
    capsys.readouterr()
    open_door("compare", "a", "b", "c", "d", folder=imported)
    out = " ".join(capsys.readouterr().out.split())
    assert "Table 3" in out and "Table 4" not in out and "box_jitter" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["box_jitter.scale=[1.3,0.9]"], "box_jitter.scale"),
        (["box_jitter.scale=[0,1]"], "box_jitter.scale"),
        (["box_jitter.shift=-0.1"], "box_jitter.shift"),
        (["box_jitter=5"], "box_jitter"),
    ],
)
def test_evaluate_refuses_an_impossible_box_jitter(words: list[str], message: str, imported: Path) -> None:
    """Would catch a range that fails only when the first face is read."""
    with pytest.raises(SystemExit, match=message):
        open_door("evaluate", "ckpt=run", *words, "hydra.run.dir=refused", folder=imported)


def broken(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Return a function that writes changed weights of PFLD; ``change`` edits them or returns other content."""

    def write(file: Path) -> None:
        state = pfld().state_dict()
        changed = change(state)
        torch.save(state if changed is None else changed, file)

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (broken(lambda s: (s.pop("conv8.weight"), None)[1]), r"missing from the file: conv8.weight"),
        (broken(lambda s: s.update({"conv9.weight": torch.zeros(1)})), "left over in the file: conv9.weight"),
        (broken(lambda s: s.update({"fc.bias": torch.zeros(212)})), r"fc.bias \(212,\): the model needs \(196,\)"),
        (broken(lambda s: (s["fc.bias"].fill_(torch.nan), None)[1]), "not finite"),
        (broken(lambda s: OrderedDict(a=torch.zeros(3))), r"missing from the file: .* and \d+ more; left over .*: a$"),
        (broken(lambda s: {"state": 3}), "no tensors by name"),
        (broken(lambda s: nn.Linear(2, 2)), "saved as a whole"),
        (lambda file: file.write_bytes(pickle.dumps(3)), "not a file of tensors"),
        (lambda file: None, "no such file"),
    ],
)
def test_import_weights_refuses_a_file_that_does_not_fit(
    write: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    """Would catch a run with layers at random values, and an error without the names of the tensors."""
    write(tmp_path / "weights.pth")
    overrides = ("model=pfld", *PFLD_POINTS, "weights=weights.pth", "hydra.run.dir=run")
    with pytest.raises(SystemExit, match=message):
        open_door("import_weights", *overrides, folder=tmp_path)
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=pipnet", "backbone=resnet18"], "meanface=null: the weights do not contain the neighbours"),
        (["model=pipnet", "backbone=resnet18", "meanface=none.txt"], "meanface=none.txt"),
        (["model=pipnet", "backbone=resnet10"], "left over|missing|no published"),
        (["model=pfld", "meanface=a.txt"], "no neighbours to set"),
        (["model=pfld", "head=multiscale_lite"], "the public codes have"),
        (["model=pfld", "backbone=resnet18"], "the public codes have"),
        (["model=hrnet", "backbone=resnet18"], "HRNet-Facial-Landmark-Detection has backbone=hrnet_w18"),
        (["model=pipnet", "backbone=resnet18", "backbone.weights=a.pth"], "has no effect: the file of weights="),
        (["model=pipnet", "backbone=resnet18", "meanface=short.txt"], "short.txt: it has 3 numbers; 136 are needed"),
        (["model=pfld", "trainer.max_epochs=3"], "has no effect: an imported run is not trained"),
    ],
)
def test_import_weights_refuses_options_that_do_not_fit(
    words: list[str], message: str, imported: Path, resnet18: Path, tmp_path: Path
) -> None:
    """Would catch a PIPNet without its neighbours, and an option without effect."""
    points, file = (SMALL_FACES, resnet18) if "model=pipnet" in words else (PFLD_POINTS, imported / "pfld.pth")
    (tmp_path / "short.txt").write_text("0.1 0.2 0.3")
    with pytest.raises(SystemExit, match=message):
        open_door("import_weights", *points, f"weights={file}", "hydra.run.dir=run", *words, folder=tmp_path)


def test_fitted_lists_few_names_in_its_message() -> None:
    """Would catch an error message of hundreds of names."""
    state = {f"a{i}.weight": torch.zeros(1) for i in range(100)}
    official = OfficialLayers({f"a{i}": (f"b{i}",) for i in range(100)})
    with pytest.raises(CheckpointError) as raised:
        match_tensors(state, {f"c{i}.weight": torch.zeros(1) for i in range(100)}, official)
    assert str(raised.value).count("weight") == 16 and str(raised.value).count("92 more") == 2


def test_import_weights_keeps_the_epsilon_in_the_run(resnet18: Path, tmp_path: Path, meanface: Path) -> None:
    """Would catch an epsilon that is set by the import and lost when the checkpoint is opened."""
    import_pipnet(resnet18, meanface, tmp_path, "backbone=resnet18", "backbone.norm_epsilon=0.001")
    layers = [layer for layer in load_imported(tmp_path).module.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert layers and {layer.eps for layer in layers} == {0.001}
