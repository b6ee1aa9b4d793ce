"""Tests of DAN's stages and connection layers, against slow references in numpy."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from dan_reference import slow_heatmap, slow_similarity, slow_warp
from torch import Tensor

from facelab.errors import ConfigError
from facelab.faces.geometry import transform_points
from facelab.networks.dan import DANStage, draw_heatmap, fit_similarity, warp

SIZE = 112
PAPER = {"size": SIZE, "width": 64, "dropout": 0.5, "norm_epsilon": 1e-4}


def shapes(count: int, points: int = 68, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random shapes ``(count, points, 2)`` and a target ``(points, 2)`` in a crop, float64."""
    generator = torch.Generator().manual_seed(seed)
    target = 28 + 56 * torch.rand(points, 2, dtype=torch.float64, generator=generator)
    angle = torch.rand(count, 1, 1, dtype=torch.float64, generator=generator) * 2 - 1
    x, y = ((target - 56) * 0.9).unbind(-1)
    turned = torch.stack([x * angle[..., 0].cos() - y * angle[..., 0].sin(), x * angle[..., 0].sin() + y], -1)
    return turned + 53 + torch.randn(count, points, 2, dtype=torch.float64, generator=generator), target


def test_fit_similarity_matches_least_squares() -> None:
    """Would catch a rotation in the other direction, x exchanged with y, or a scale of the inverse fit."""
    points, target = shapes(5)
    to_target, back = fit_similarity(points, target)
    for shape, matrix, inverse in zip(points, to_target, back, strict=True):
        np.testing.assert_allclose(matrix, slow_similarity(shape.numpy(), target.numpy()), atol=1e-10)
        np.testing.assert_allclose(matrix @ inverse, np.eye(3), atol=1e-10)


@pytest.mark.parametrize("degenerate", ["a point", "a mirror image", "one annotated pair"])
def test_fit_similarity_of_a_degenerate_shape_only_moves(degenerate: str) -> None:
    """Would catch a division by 0, or a map without an inverse that sends the landmarks to infinity."""
    target = torch.tensor([[50.0, 50], [60, 50], [60, 60], [50, 60]])
    if degenerate == "a point":
        points = torch.full((1, 4, 2), 40.0)
    elif degenerate == "a mirror image":
        points = target[None] * torch.tensor([-1.0, 1]) + torch.tensor([95.0, -15])
    else:
        points = torch.tensor([[[40.0, 40], [40.001, 40], [40, 40], [40, 40]]])
    for matrix in fit_similarity(points, target):
        torch.testing.assert_close(matrix[0, :2, :2], torch.eye(2))
    moved = transform_points(fit_similarity(points, target)[0], points)
    torch.testing.assert_close(moved.mean(1)[0], target.mean(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fit_similarity_is_computed_in_float32(dtype: torch.dtype) -> None:
    """Would catch squares of coordinates that are infinite in float16 or have two digits in bfloat16."""
    points, target = (each.to(dtype) for each in shapes(3))
    given, exact = fit_similarity(points, target), fit_similarity(points.double(), target.double())
    for half, double in zip(given, exact, strict=True):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half.double(), double, atol=1e-4, rtol=1e-4)


def test_warp_matches_a_slow_reference() -> None:
    """Would catch half a pixel of torch's coordinates, another border, or the map in the other direction."""
    points, target = shapes(3)
    image = torch.rand(3, 1, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    to_target, back = fit_similarity(points, target)
    for maps in (to_target, back):
        warped = warp(image, maps)
        for row in range(3):
            np.testing.assert_allclose(warped[row, 0], slow_warp(image[row, 0].numpy(), maps[row].numpy()), atol=1e-9)


def test_draw_heatmap_matches_a_slow_reference() -> None:
    """Would catch exchanged axes, another patch, or a sum of landmarks instead of the largest."""
    points = torch.rand(2, 68, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 140 - 14
    drawn = draw_heatmap(points, SIZE, 8)
    for row in range(2):
        np.testing.assert_allclose(drawn[row, 0], slow_heatmap(points[row].numpy(), SIZE, 8), atol=1e-12)


def test_connection_layers_are_differentiable() -> None:
    """Would catch a layer that cuts the gradient, or 0 / 0 in the root of a distance."""
    points, target = shapes(2, points=5)
    points = points.requires_grad_()
    fit: Any = fit_similarity
    assert torch.autograd.gradcheck(lambda p: fit(p, target), points)
    image = torch.rand(2, 1, 24, 24, dtype=torch.float64, requires_grad=True)
    small = (points.detach() / 5 + 0.123).requires_grad_()
    to_target, _ = fit_similarity(small.detach(), target / 5)
    assert torch.autograd.gradcheck(partial(warp, to_source=to_target), image)
    assert torch.autograd.gradcheck(lambda p: draw_heatmap(p, 24, 3), small)
    on_pixels = torch.full((1, 2, 2), 12.0, dtype=torch.float64, requires_grad=True)
    draw_heatmap(on_pixels, 24, 3).sum().backward()
    assert on_pixels.grad is not None and on_pixels.grad.isfinite().all()


@pytest.mark.parametrize(("first", "million"), [(True, 11.144), (False, 11.145 + 0.806)])
def test_dan_stage_has_the_size_of_the_paper(first: bool, million: float) -> None:
    """Would catch a missing layer, biases before a normalisation, or a feature image of the whole crop."""
    with torch.device("meta"):
        stage = DANStage(68, first, **PAPER)  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in stage.parameters()) / 1e6 == pytest.approx(million, abs=0.0006)


def test_dan_stage_starts_with_glorots_distribution() -> None:
    """Would catch torch's initialisation, which is narrower by a factor of over two."""
    torch.manual_seed(0)
    stage = DANStage(68, False, **PAPER)  # type: ignore[arg-type]
    for layer, gain in ((stage.trunk[3], 2.0), (stage.feature, 2.0), (stage.hidden[2], 2.0), (stage.points, 1.0)):
        fan_in = layer.weight[0].numel()
        fan_out = layer.weight.shape[0] * layer.weight[0, 0].numel()
        assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 * gain / (fan_in + fan_out)), rel=0.02)
    assert stage.points.bias.count_nonzero() == stage.feature.bias.count_nonzero() == 0


def test_dan_stage_refuses_a_size_that_four_poolings_do_not_divide() -> None:
    """Would catch a dense layer that fits no crop."""
    with pytest.raises(ConfigError, match="size=100 must be a multiple of 16"):
        DANStage(68, True, **(PAPER | {"size": 100}))  # type: ignore[arg-type]
