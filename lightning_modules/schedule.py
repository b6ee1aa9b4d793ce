"""Learning-rate schedules: in fractions of the run, so that a shorter run has the same shape, or by a metric."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from annotated_types import Interval
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, ReduceLROnPlateau

from facelab.bounds import Amount, Count, Positive, Share, Text, Whole


class FractionalMultiStepLR(MultiStepLR):
    """Schedule that multiplies the learning rate by ``factor`` after given fractions of the run.

    Args:
        optimizer: optimizer of the learning rate.
        at: fractions of ``max_epochs``, rounded to whole epochs. The first epoch always has the full rate.
        factor: factor of each drop.
        max_epochs: length of the run in epochs.
    """

    def __init__(self, optimizer: Optimizer, at: Sequence[Share], factor: Positive, max_epochs: Count) -> None:
        super().__init__(optimizer, [max(1, round(fraction * max_epochs)) for fraction in at], gamma=factor)


def first_epochs(shares: Sequence[Share], max_epochs: Count) -> list[int]:
    """Divide a training into parts, and return the first epoch of each part, counted from 0.

    Args:
        shares: share of the epochs of each part, in sum 1; rounded to whole epochs, at least one for each part.
        max_epochs: length of the training in epochs. If it is less than the number of parts, the last parts begin at
            ``max_epochs`` or later.

    >>> first_epochs([0.25, 0.75], 600)
    [0, 150]
    >>> first_epochs([0.98, 0.01, 0.01], 10)
    [0, 8, 9]
    """
    first, share = [0], 0.0
    for number, part in enumerate(shares[:-1], start=1):
        share += part
        latest = max_epochs - (len(shares) - number)
        first.append(max(first[-1] + 1, min(round(share * max_epochs), latest)))
    return first


class StagedCosineLR(LambdaLR):
    """Schedule that lowers the learning rate from its full value to 0 by a cosine, anew in each part of the training.

    Args:
        optimizer: optimizer of the learning rate.
        shares: see :func:`first_epochs`.
        max_epochs: see :func:`first_epochs`.
    """

    def __init__(self, optimizer: Optimizer, shares: Sequence[Share], max_epochs: Count) -> None:
        self.edges = [*first_epochs(shares, max_epochs), max_epochs]
        super().__init__(optimizer, self.factor)

    def factor(self, epoch: int) -> float:
        """Return the factor on the learning rate in an epoch."""
        part = max(number for number, first in enumerate(self.edges[:-1]) if first <= epoch)
        first, length = self.edges[part], max(1, self.edges[part + 1] - self.edges[part])
        return (1 + math.cos(math.pi * min(1.0, (epoch - first) / length))) / 2


class PlateauLR(ReduceLROnPlateau):
    """Schedule that lowers the learning rate when a metric of the validation has stopped improving.

    Args:
        optimizer: optimizer of the learning rate.
        monitor: name of the metric.
        mode: whether lower (``min``) or higher (``max``) values are better.
        factor: factor of each drop.
        patience: number of validations without an improvement before a drop.
        threshold: smallest change that is an improvement, as a fraction of the best value.
        every: number of epochs between two validations.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        monitor: Text,
        mode: Literal["min", "max"],
        factor: Annotated[float, Interval(gt=0, lt=1)],
        patience: Whole,
        threshold: Amount,
        every: Count,
    ) -> None:
        super().__init__(optimizer, mode=mode, factor=factor, patience=patience, threshold=threshold)
        self.monitor, self.every = monitor, every
