"""Tests of the networks of MTCNN: sizes, published weights of both layouts, output of the authors' weights."""

import os
from pathlib import Path

import pytest
import torch
from mtcnn_weights import LAYERS, published
from torch import Tensor

from facelab.errors import CheckpointError
from facelab.networks.mtcnn import CascadeNetwork, ONet, PNet, RNet, match_mtcnn

WEIGHTS = Path(os.environ.get("FACE_DATA", "none"), "..", "weights", "mtcnn")
"""Folder of facenet-pytorch's files."""
EXPECTED = {
    "pnet": ([0.179639, -0.193359], [-0.145285, 0.183616, 0.25445, -0.150713], 0.184510),
    "rnet": ([-0.179117, 0.01626], [-0.320903, 0.290476, 0.099771, -0.54367], 0.241699),
    "onet": ([0.495221, -0.051931], [-0.084934, 0.027293, 0.130166, -0.053087], 0.182032),
}
"""Output of facenet-pytorch's networks for the image of :func:`ramp` with the weights of :func:`published`, in double
precision: logits, offsets, mean absolute value of all numbers."""
AUTHORS = {
    "pnet": ([3.1377, -5.1860], [0.0950, -0.2450, 0.1194, 0.0218]),
    "rnet": ([3.2959, -3.2951], [-0.0693, -0.3194, 0.0570, 0.1738]),
    "onet": ([2.8356, -2.8340], [0.0550, -0.1012, 0.0070, 0.0053]),
}
"""Logits and offsets of facenet-pytorch with the authors' weights for the image of :func:`ramp`."""
AUTHORS_POINTS = [[0.3152, 0.3752], [0.6496, 0.1819], [0.5505, 0.6079], [0.5190, 0.8423], [0.7998, 0.6850]]
"""Landmarks of facenet-pytorch with the authors' weights for the same image."""


def networks() -> dict[str, CascadeNetwork]:
    """Return the networks of the published weights."""
    made: dict[str, CascadeNetwork] = {"pnet": PNet(False, 1.0), "rnet": RNet(False, 1.0), "onet": ONet(0.25, 1.0)}
    return {name: network.eval() for name, network in made.items()}


def ramp(side: int) -> Tensor:
    """Return an image whose channels grow to the right, downwards and to both; it shows exchanged axes."""
    x = torch.linspace(-1, 1, side, dtype=torch.float64).expand(side, side)
    return (torch.stack([x, x.T, (x + x.T) / 2]) * 128 + 127.5)[None]


def to_caffe(file: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of facenet-pytorch as the blobs of the authors' Caffe files."""
    blobs = {}
    for key, tensor in file.items():
        name, layer, kind = key.split(".")
        if kind == "weight" and "dense" in layer and "_" not in layer:
            tensor = tensor.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2).flatten(1)  # (W, H, C) to (C, W, H)
        elif tensor.ndim == 4:
            tensor = tensor.transpose(2, 3)
        own = layer.replace("dense", "conv").replace("_", "-")
        blobs[f"{name}.{own.replace('prelu', 'PReLU') if name == 'pnet' else own}.{kind}"] = tensor
    blobs["rnet.conv5-3.weight"], blobs["rnet.conv5-3.bias"] = torch.zeros(10, 128), torch.zeros(10)  # without a use
    return blobs


def load(file: dict[str, Tensor]) -> dict[str, CascadeNetwork]:
    """Return the networks with published weights, in double precision."""
    made = networks()
    matched = match_mtcnn(made, file)
    for name, network in made.items():
        own = {key.removeprefix(f"{name}."): value for key, value in matched.items() if key.startswith(f"{name}.")}
        network.load_state_dict(own)
        network.double()
    return made


def count(network: CascadeNetwork) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_networks_have_the_parameters_of_the_published_ones() -> None:
    """Would catch a pooling that rounds down, PReLU with one slope, or another width."""
    assert [count(network) for network in networks().values()] == [6_632, 100_178, 389_040]
    assert [count(PNet(True, 1.0)), count(RNet(True, 1.0))] == [6_962, 101_468]


@pytest.mark.parametrize("layout", ["facenet", "caffe"])
def test_networks_equal_the_output_of_facenet_pytorch(layout: str) -> None:
    """Would catch exchanged axes, another order of features or heads, or another normalisation, in both layouts."""
    file = {key: tensor for name in LAYERS for key, tensor in published(name).items()}
    for name, network in load(file if layout == "facenet" else to_caffe(file)).items():
        with torch.inference_mode():
            logits, offsets, points = network(ramp(network.side))
        expected_logits, expected_offsets, mean = EXPECTED[name]
        assert logits.flatten().tolist() == pytest.approx(expected_logits, abs=2e-6)
        assert offsets.flatten().tolist() == pytest.approx(expected_offsets, abs=2e-6)
        numbers = [part.flatten() for part in (logits, offsets, points) if part is not None]
        assert float(torch.cat(numbers).abs().mean()) == pytest.approx(mean, abs=2e-6)
        assert (points is None) == (name != "onet")


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="FACE_DATA has no published weights of MTCNN beside it")
def test_networks_with_the_authors_weights_equal_facenet_pytorch() -> None:
    """Would catch weights that are read wrong although their shapes fit."""
    state = {name: torch.load(WEIGHTS / f"{name}.pt", weights_only=True) for name in LAYERS}
    file = {f"{name}.{key}": tensor for name, tensors in state.items() for key, tensor in tensors.items()}
    for name, network in load(file).items():
        with torch.inference_mode():
            logits, offsets, points = network(ramp(network.side))
        assert logits.flatten().tolist() == pytest.approx(AUTHORS[name][0], abs=1e-4)
        assert offsets.flatten().tolist() == pytest.approx(AUTHORS[name][1], abs=1e-4)
    torch.testing.assert_close(points[0].float(), torch.tensor(AUTHORS_POINTS), atol=1e-4, rtol=0)


def test_match_mtcnn_refuses_files_that_do_not_fit() -> None:
    """Would catch a network that keeps random weights, and a traceback for a weight of another shape."""
    file = {key: tensor for name in LAYERS for key, tensor in published(name).items()}
    with pytest.raises(CheckpointError, match=r"missing from the file: rnet\.conv1\.bias, rnet\.conv1\.weight, .*more"):
        match_mtcnn(networks(), {key: tensor for key, tensor in file.items() if not key.startswith("rnet")})
    with pytest.raises(CheckpointError, match=r"dense4.weight \(128, 256\): the model needs \(128, 576\)"):
        match_mtcnn(networks(), file | {"rnet.dense4.weight": torch.zeros(128, 256)})  # of poolings that round down


def test_pnet_sees_a_square_at_every_second_pixel() -> None:
    """Would catch a grid of another size, and so boxes at other places."""
    pnet = PNet(True, 0.5)
    for size, grid in {(12, 12): (1, 1), (13, 13): (2, 2), (40, 57): (15, 24), (100, 101): (45, 46)}.items():
        logits, offsets, points = pnet(torch.zeros(2, 3, *size))
        assert points is not None
        assert (logits.shape, offsets.shape, points.shape) == ((2, 2, *grid), (2, 4, *grid), (2, 5, 2, *grid))


@pytest.mark.parametrize("network", [RNet(True, 0.25), ONet(0.25, 0.25)], ids=["rnet", "onet"])
def test_networks_predict_one_row_per_crop(network: CascadeNetwork) -> None:
    """Would catch a width with which the dense layer does not fit, and x and y of landmarks exchanged."""
    image = torch.rand(3, 3, network.side, network.side) * 255
    with torch.no_grad():
        network.predict.bias += torch.arange(16.0) * 100
    logits, offsets, points = network.eval()(image)
    assert (logits.shape, offsets.shape) == ((3, 2), (3, 4))
    assert points is not None
    assert (points[0, :, 0] / 100).round().tolist() == [6, 7, 8, 9, 10]
    assert (points[0, :, 1] / 100).round().tolist() == [11, 12, 13, 14, 15]
