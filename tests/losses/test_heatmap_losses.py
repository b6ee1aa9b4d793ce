"""Tests of the heatmap losses: values of the formulas, masks and gradients."""

import math

import pytest
import torch
from torch import Tensor

from facelab.coders.heatmap import Heatmaps
from facelab.errors import ConfigError
from facelab.losses.heatmap import AdaptiveWing, HeatmapMSE

PAPER = {"omega": 14.0, "theta": 0.5, "epsilon": 1.0, "alpha": 2.1, "foreground_weight": 10.0, "threshold": 0.2}
LOSSES = (HeatmapMSE(1.0), HeatmapMSE(0.0), AdaptiveWing(**PAPER))


def maps(seed: int = 0) -> tuple[Heatmaps, Heatmaps, Tensor, Tensor]:
    """Return prediction, target, valid and visible (all true) of two faces with three landmarks."""
    draws = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    everything = torch.ones(2, 3, dtype=torch.bool)
    return Heatmaps(draws[0]), Heatmaps(draws[1]), everything, everything


def adaptive_wing(prediction: float, target: float) -> float:
    """Compute the formula of the paper; beyond theta a line with the paper's constants A and C."""
    error, exponent = abs(prediction - target), 2.1 - target
    if error < 0.5:
        return 14 * math.log(1 + error**exponent)
    slope = 14 * (1 / (1 + 0.5**exponent)) * exponent * 0.5 ** (exponent - 1)
    return slope * error - (0.5 * slope - 14 * math.log(1 + 0.5**exponent))


def test_heatmap_mse_is_the_mean_of_all_cells() -> None:
    """Would catch another factor than in the reference code, whose learning rate would not fit."""
    prediction, target, valid, visible = maps()
    loss = HeatmapMSE(1.0)(prediction, target, valid, ~visible)["maps"]
    assert float(loss) == pytest.approx(float(torch.nn.functional.mse_loss(prediction.maps, target.maps)))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_heatmap_loss_ignores_landmarks_without_annotation(loss: torch.nn.Module) -> None:
    """Would catch training on the empty maps of missing landmarks, and 0 / 0 in a batch without annotation."""
    prediction, target, valid, visible = maps()
    valid = valid.clone()
    valid[0, 1] = valid[1] = False
    target.maps[0, 1] = torch.nan
    prediction.maps.requires_grad_()
    value = loss(prediction, target, valid, visible)["maps"]
    value.backward()
    gradient = prediction.maps.grad
    assert gradient is not None
    assert value.isfinite() and gradient[0, [0, 2]].abs().sum() > 0
    assert gradient[1].abs().max() == 0
    expected = loss(*(Heatmaps(each.maps[:1, ::2]) for each in (prediction, target)), valid[:1, ::2], visible[:1, ::2])
    torch.testing.assert_close(value, expected["maps"])
    assert loss(prediction, target, torch.zeros_like(valid), visible)["maps"] == 0


def test_heatmap_mse_weights_hidden_landmarks() -> None:
    """Would catch ``hidden_weight`` on the visible landmarks."""
    prediction, target, valid, visible = maps()
    visible = visible.clone()
    visible[:, 0] = False
    each = (prediction.maps - target.maps).square().mean((2, 3))
    value = HeatmapMSE(0.25)(prediction, target, valid, visible)["maps"]
    torch.testing.assert_close(value, (each * torch.tensor([0.25, 1, 1])).mean())


@pytest.mark.parametrize("target", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("error", [0.0, 0.01, 0.3, 0.499, 0.5, 0.501, 1.2, -0.3, -2.0])
def test_adaptive_wing_matches_the_paper(error: float, target: float) -> None:
    """Would catch a mistake in the formula."""
    value = AdaptiveWing(**PAPER).per_cell(torch.tensor(target + error), torch.tensor(target))
    assert float(value) == pytest.approx(adaptive_wing(target + error, target), abs=1e-5)


@pytest.mark.parametrize("theta", [0.5, 0.3])
@pytest.mark.parametrize("epsilon", [1.0, 0.5])
def test_adaptive_wing_is_continuous_at_theta(theta: float, epsilon: float) -> None:
    """Would catch a jump of the value or the slope where the line begins."""
    loss = AdaptiveWing(**{**PAPER, "theta": theta, "epsilon": epsilon})
    target = torch.linspace(0, 1, 11, dtype=torch.float64)
    sides = []
    for step in (-1e-9, 1e-9):
        prediction = (target + theta + step).requires_grad_()
        value = loss.per_cell(prediction, target)
        value.sum().backward()
        sides.append((value.detach(), prediction.grad))
    torch.testing.assert_close(*sides, atol=1e-6, rtol=0)


def test_adaptive_wing_weights_the_cells_of_a_peak() -> None:
    """Would catch the lower weight on cells next to a peak, and the higher weight on other cells."""
    target = torch.zeros(1, 1, 7, 7)
    target[0, 0, 3, 3], target[0, 0, 0, 0] = 1.0, 0.19
    prediction = target + 0.1
    loss = AdaptiveWing(**PAPER)
    cells = loss.per_cell(prediction, target)[0, 0]
    weight = torch.ones(7, 7)
    weight[2:5, 2:5] = 11
    annotated = torch.ones(1, 1, dtype=torch.bool)
    value = loss(Heatmaps(prediction), Heatmaps(target), annotated, annotated)["maps"]
    torch.testing.assert_close(value, (weight * cells).mean())


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_heatmap_loss_has_finite_gradients_in_float32(loss: torch.nn.Module) -> None:
    """Would catch NaN at an error of 0 or a very large error, and a sum in bfloat16."""
    _, target, valid, visible = maps()
    for offset in (0.0, 1e-20, 1e4, -1e4):
        prediction = (target.maps + offset).requires_grad_()
        loss(Heatmaps(prediction), target, valid, visible)["maps"].backward()
        assert prediction.grad is not None and prediction.grad.isfinite().all()
    half = loss(Heatmaps(target.maps.bfloat16()), target, valid, visible)["maps"]
    assert half.dtype == torch.float32


def test_adaptive_wing_refuses_an_alpha_below_two() -> None:
    """Would catch an exponent below 1 on a peak, whose slope is infinite at an error of 0."""
    with pytest.raises(ConfigError, match=r"alpha=1\.9"):
        AdaptiveWing(**{**PAPER, "alpha": 1.9})
