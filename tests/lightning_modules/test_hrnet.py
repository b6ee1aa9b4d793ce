"""Tests of HRNet: its training crops, the rounding of the reference code, other parts and parts that do not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from composing import compose_config, faults, small

from datamodules.hrnet import ResizedCrop
from facelab.errors import ConfigError
from facelab.faces.geometry import transform_points
from facelab.inference.landmarks import CropPrediction, FaceCrops, collect
from facelab.runs.build import build


@pytest.fixture(autouse=True)
def _stamped(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("FACELAB_STAMP", "now")
    monkeypatch.setenv("FACELAB_CACHE", str(cache))


def test_resized_crop_draws_as_the_reference_code() -> None:
    """Would catch another distribution of sizes or angles, and a flip that the points do not follow."""
    augment = ResizedCrop(0.5, 0.25, 0.6, 30.0, [])
    points = np.array([[100.0, 100.0], [150.0, 100.0]])
    warps = [augment.draw(np.random.default_rng(seed), 256, points) for seed in range(4000)]
    sides = np.array([1 / np.sqrt(abs(np.linalg.det(warp.matrix))) for warp in warps])
    assert (sides.min(), sides.max(), sides.mean()) == pytest.approx((0.75, 1.25, 1.0), abs=0.01)
    assert np.mean([warp.flipped for warp in warps]) == pytest.approx(0.5, abs=0.03)
    degrees = np.array([warp.degrees for warp in warps])
    assert np.mean(degrees != 0) == pytest.approx(0.6, abs=0.03)
    assert (np.abs(degrees).max(), np.abs(degrees[degrees != 0]).mean()) == pytest.approx((30, 15), abs=0.6)
    centre = np.full((1, 2), 127.5)
    for warp in warps[:20]:
        assert transform_points(warp.matrix, centre) == pytest.approx(centre)
        assert (np.linalg.det(warp.matrix) < 0) == warp.flipped
        # From the first point to the second: to the right, or to the left if flipped.
        x, y = np.diff(transform_points(warp.matrix, points), axis=0)[0]
        assert np.degrees(np.arctan2(y, x)) == pytest.approx(warp.degrees + (180 if warp.flipped else 0)) or (
            warp.flipped and np.degrees(np.arctan2(-y, -x)) == pytest.approx(warp.degrees)
        )


def test_hrnet_official_rounding_gives_whole_pixels_of_the_photo() -> None:
    """Would catch rounding in the prediction that is missing in the evaluation, or the reverse."""
    cfg = compose_config([*small("hrnet"), "model.official_rounding=true"])
    datamodule = build(cfg, "datamodule")
    datamodule.setup("test")
    batch = next(iter(datamodule.test_dataloader()))
    exact, rounded = (
        build(compose_config([*small("hrnet"), f"model.official_rounding={value}"]), "model") for value in (False, True)
    )
    rounded.load_state_dict(exact.state_dict())
    recorded = []
    with torch.no_grad():
        points = [each.eval().predict_step(batch, 0).points for each in (exact, rounded)]
        rounded.errors = type("Recorder", (), {"update": lambda _, points, *rest: recorded.append(points)})()
        rounded.validation_step(batch, 0)
    assert torch.equal(points[1], points[0].trunc() + 1)
    torch.testing.assert_close(transform_points(batch.to_photo, recorded[0]), points[1], atol=1e-3, rtol=0)
    crops = FaceCrops((9, 9), [0], [np.zeros(4)], [], [batch.to_photo[0].double().numpy()], [])
    prediction = CropPrediction(rounded.predict_points(batch.image).points[0].detach().double().numpy(), None, None)
    face = collect(rounded, "a", Path("a"), crops, iter([prediction])).faces[0]
    assert np.array_equal(face.points, np.trunc(face.points))


def test_hrnet_refuses_crops_that_are_no_multiple_of_its_stride() -> None:
    """Would catch branches of sizes that do not fit, for which timm raises an unclear error."""
    module = build(compose_config(small("hrnet")), "model")
    with pytest.raises(ConfigError, match=r"crop.size=100 must be a multiple of 32"):
        module(torch.zeros(1, 3, 100, 100, dtype=torch.uint8))


def test_hrnet_refuses_losses_of_other_predictions() -> None:
    """Would catch a loss of coordinates, which fails with an unclear error in the first step."""
    assert faults([*small("hrnet"), "loss=l2"]) == [
        "loss: `LandmarkLoss` compares Tensor, the model `HRNet` predicts Heatmaps"
    ]


@pytest.mark.parametrize("words", [["backbone=mbv2", "backbone.pretrained=false", "head=simple_baseline"]], ids=str)
def test_hrnet_trains_other_backbones(words: list[str]) -> None:
    """Would catch a method that works on HRNet's trunk alone."""
    of_trunk = ("backbone.", "head.")
    others = [word for word in small("hrnet") if not word.startswith(of_trunk)]
    cfg = compose_config([*others, *words, "head.width=8"])
    module, datamodule = build(cfg, "model"), build(cfg, "datamodule")
    datamodule.setup("fit")
    batch = next(iter(datamodule.train_dataloader()))
    module.train().training_step(batch, 0).backward()
    assert module.eval().predict_points(batch.image).points.shape == batch.points.shape


def test_hrnet_refuses_branches_without_gradient() -> None:
    """Would catch HRNet's trunk with a head on its coarsest branch alone: the others would not be trained."""
    with pytest.raises(ConfigError, match=r"head: simple_baseline uses the coarsest features alone.*head=hrnet"):
        build(compose_config(["model=hrnet", "backbone.pretrained=false", "head=simple_baseline"]), "model")
