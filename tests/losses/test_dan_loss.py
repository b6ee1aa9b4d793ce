"""Tests of DAN's loss."""

from dataclasses import replace

import pytest
import torch

from facelab.faces.layouts import IBUG68, LAPA106, WFLW98, Layout
from facelab.losses.dan import PupilDistanceLoss


def faces(layout: Layout, count: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return prediction, target and valid (all true)."""
    target, noise = torch.rand(2, count, layout.num_points, 2, generator=torch.Generator().manual_seed(0))
    return target + 0.1 * noise, target, torch.ones(count, layout.num_points, dtype=torch.bool)


@pytest.mark.parametrize("layout", [IBUG68, WFLW98, LAPA106], ids=lambda layout: layout.name)
def test_pupil_distance_loss_matches_the_formula(layout: Layout) -> None:
    """Would catch the outer corners of the eyes for the pupils, a sum for a mean, or a squared distance."""
    prediction, target, valid = faces(layout)
    expected = []
    for face, truth in zip(prediction, target, strict=True):
        left, right = (truth[list(points)].mean(0) for points in layout.pupils)
        distances = [float((a - b).square().sum().sqrt()) for a, b in zip(face, truth, strict=True)]
        expected.append(sum(distances) / len(distances) / float((left - right).square().sum().sqrt()))
    value = PupilDistanceLoss(layout, 1e-6)(prediction, target, valid)["points"]
    assert float(value) == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_pupil_distance_loss_ignores_what_is_not_annotated() -> None:
    """Would catch NaN targets in the gradient, a face without eyes that counts, and 0 / 0 without any face."""
    prediction, target, valid = faces(IBUG68)
    valid[0, :9] = valid[1, 37] = False
    target[~valid] = torch.nan
    prediction = prediction.requires_grad_()
    loss = PupilDistanceLoss(IBUG68, 0.01)
    value = loss(prediction, target, valid)["points"]
    value.backward()
    gradient = prediction.grad
    assert gradient is not None and gradient.isfinite().all()
    assert gradient[0, :9].abs().max() == 0 and gradient[1].abs().max() == 0 and gradient[0, 9:].abs().min() > 0
    alone = [loss(prediction[[row]], target[[row]], valid[[row]])["points"] for row in (0, 2)]
    torch.testing.assert_close(value, torch.stack(alone).mean())
    assert loss(prediction, target, torch.zeros_like(valid))["points"] == 0


def test_pupil_distance_loss_has_a_gradient_for_an_exact_prediction() -> None:
    """Would catch the root of 0, whose gradient is infinite."""
    _, target, valid = faces(IBUG68)
    prediction = target.clone().requires_grad_()
    PupilDistanceLoss(IBUG68, 0.01)(prediction, target, valid)["points"].backward()
    assert prediction.grad is not None and prediction.grad.abs().max() == 0


def test_pupil_distance_loss_limits_the_weight_of_a_profile() -> None:
    """Would catch a face whose pupils coincide and whose gradient exceeds that of all others."""
    prediction, target, valid = faces(IBUG68, 1)
    target[0, 36:48] = 0.5
    value = PupilDistanceLoss(IBUG68, 0.05)(prediction, target, valid)["points"]
    expected = (prediction - target).norm(dim=-1).mean() / 0.05
    torch.testing.assert_close(value, expected)


def test_pupil_distance_loss_uses_the_eye_corners_of_a_layout_without_pupils() -> None:
    """Would catch the mean of no points, which is NaN."""
    layout = replace(IBUG68, pupils=((), ()))
    prediction, target, valid = faces(layout, 1)
    left, right = layout.eye_corners
    value = PupilDistanceLoss(layout, 1e-6)(prediction, target, valid)["points"]
    expected = (prediction - target).norm(dim=-1).mean() / (target[0, left] - target[0, right]).norm()
    torch.testing.assert_close(value, expected)
