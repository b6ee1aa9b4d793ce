"""Learning-rate schedules whose shape is a fraction of the run, so that a shortened run keeps it."""

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from facelab.bounds import Count, Positive, Share


class FractionalMultiStepLR(MultiStepLR):
    """Multiply the learning rate by ``factor`` after these fractions of the run.

    Args:
        optimizer: whose learning rate.
        at: fractions of ``max_epochs``, rounded to whole epochs; the first epoch always has the full rate.
        factor: of each drop.
        max_epochs: length of the run.
    """

    def __init__(self, optimizer: Optimizer, at: Sequence[Share], factor: Positive, max_epochs: Count) -> None:
        super().__init__(optimizer, [max(1, round(fraction * max_epochs)) for fraction in at], gamma=factor)
