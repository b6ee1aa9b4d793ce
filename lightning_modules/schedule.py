"""Learning-rate schedules in fractions of the run, so that a shorter run has the same shape."""

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from facelab.bounds import Count, Positive, Share


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
