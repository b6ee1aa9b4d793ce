"""Tests of the PIPNet loss: values by hand and missing annotations."""

import pytest
import torch
from torch import Tensor

from facelab.coders.pipnet import PIPCoder, PIPMaps
from facelab.faces.layouts import FIVE5
from facelab.losses.pipnet import PIPLoss

POINTS = torch.tensor([[[15.5, 23.5], [47.5, 7.5], [31.5, 31.5], [7.5, 55.5], [79.5, -8.5]]])  # pixels of a 64 px crop


def pip_target(points: Tensor, valid: Tensor) -> PIPMaps:
    """Return target maps of points on a grid of 2 x 2 cells, with one neighbour each: 2, 2, 0, 0, 1."""
    coder = PIPCoder(FIVE5, 32, 1, False)
    coder.set_mean_shape(POINTS[0])
    return coder.encode(points, valid, 64)


def pip_prediction(batch: int, value: float | None = None) -> PIPMaps:
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, 5, 2, 2), (batch, 5, 2, 2, 2), (batch, 5, 1, 2, 2, 2))
    filled = [torch.rand(shape, generator=generator) if value is None else torch.full(shape, value) for shape in shapes]
    return PIPMaps(*(maps.requires_grad_() for maps in filled))


def test_pip_loss_matches_values_computed_by_hand() -> None:
    """Would catch a term averaged over the wrong elements, a missing axis, and offsets from another cell."""
    valid = torch.ones(1, 5, dtype=torch.bool)
    terms = PIPLoss(10.0, 2.0, 3.0)(pip_prediction(1, 0.0), pip_target(POINTS, valid), valid)
    # Everything is predicted as 0, so the error is the target itself: a score of 1 in one cell of four;
    # offsets 1.25, 0.75, 0, 1, 1.75; neighbours 2, 1, 0.75, 0.75, 0.75, each abs(x) + abs(y).
    assert terms["score"].item() == pytest.approx(10 / 4)
    assert terms["offset"].item() == pytest.approx(2 * 4.75 / 5)
    assert terms["neighbour"].item() == pytest.approx(3 * 5.25 / 5)


def test_pip_loss_averages_over_annotated_landmarks() -> None:
    """Would catch a mean over all landmarks instead of the annotated ones, and neighbours that are not annotated."""
    valid = torch.tensor([[True, True, False, True, True]])
    terms = PIPLoss(10.0, 1.0, 1.0)(pip_prediction(1, 0.0), pip_target(POINTS, valid), valid)
    assert terms["score"].item() == pytest.approx(10 / 4)
    assert terms["offset"].item() == pytest.approx(4.75 / 4)
    assert terms["neighbour"].item() == pytest.approx(1.5 / 2)  # landmarks 3 and 4; the neighbour of 0 and 1 is missing


def test_pip_loss_ignores_masked_landmarks() -> None:
    """Would catch NaN in the gradient, and predictions at masked landmarks that still count."""
    points = POINTS.repeat(3, 1, 1)
    points[0, 2] = float("nan")
    valid = torch.ones(3, 5, dtype=torch.bool)
    valid[0, 2], valid[1] = False, False
    loss = PIPLoss(10.0, 1.0, 1.0)
    prediction = pip_prediction(3)
    target = pip_target(points, torch.ones_like(valid))  # the loss itself must apply ``valid``
    total = torch.stack(list(loss(prediction, target, valid).values())).sum()
    total.backward()
    for maps in prediction:
        assert maps.grad is not None and maps.grad.isfinite().all()
        assert maps.grad[1].abs().sum() == 0
        assert maps.grad[0, 2].abs().sum() == 0
        assert maps.grad[2].abs().sum() > 0
    # A face without annotations (an unreadable image) must count as no face.
    fewer = [maps[[0, 2]] for maps in prediction]
    expected = loss(PIPMaps(*fewer), pip_target(points[[0, 2]], valid[[0, 2]]), valid[[0, 2]])
    torch.testing.assert_close(total, torch.stack(list(expected.values())).sum())


def test_pip_loss_is_zero_for_a_batch_without_annotations() -> None:
    """Would catch a division by zero, and a loss without a graph, which ``backward`` refuses."""
    valid = torch.zeros(2, 5, dtype=torch.bool)
    prediction = pip_prediction(2)
    terms = PIPLoss(10.0, 1.0, 1.0)(prediction, pip_target(POINTS.repeat(2, 1, 1), valid), valid)
    total = torch.stack(list(terms.values())).sum()
    assert total.item() == 0
    total.backward()
    assert all(maps.grad is not None and not maps.grad.any() for maps in prediction)


def test_pip_loss_computes_in_float32_under_autocast() -> None:
    """Would catch differences taken in bfloat16, which represents an offset of 4 cells to half a pixel."""
    valid = torch.ones(1, 5, dtype=torch.bool)
    half = PIPMaps(*(maps.detach().bfloat16() for maps in pip_prediction(1)))
    target = pip_target(POINTS, valid)
    loss = PIPLoss(10.0, 1.0, 1.0)
    expected = loss(PIPMaps(*(maps.float() for maps in half)), target, valid)
    with torch.autocast("cpu", torch.bfloat16):
        terms = loss(half, target, valid)
    for name, term in terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, expected[name])
