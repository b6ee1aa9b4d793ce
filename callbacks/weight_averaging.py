"""Average of the weights of the last epochs."""

import logging

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from facelab.bounds import Count, Share
from lightning_modules.method import steps_per_epoch

log = logging.getLogger(__name__)


class StochasticWeightAveraging(WeightAveraging):
    """Average of the weights at the ends of the last epochs (SWA: Izmailov et al., UAI 2018, arXiv 1803.05407).

    The average is validated, tested and saved. Before the first of these epochs ends, it is a copy of the weights. The
    running statistics of batch normalisations are averaged like weights, where the paper computes them anew in another
    pass over the training set. Tables of whole numbers are copied.

    Args:
        start: share of the epochs before the first that is averaged; rounded to whole epochs.
        max_epochs: length of the training in epochs.
    """

    def __init__(self, start: Share, max_epochs: Count) -> None:
        super().__init__(use_buffers=True, avg_fn=self._average)
        self.first_epoch = min(round(start * max_epochs), max_epochs - 1)
        self.epoch_steps = 1  # optimizer steps in an epoch

    @property
    def copies(self) -> int:
        """Return the number of steps before the first average, after each of which the weights are copied."""
        return self.first_epoch * self.epoch_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the number of optimizer steps in an epoch."""
        self.epoch_steps = steps_per_epoch(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log that nothing was averaged if the training ended early."""
        super().on_train_end(trainer, pl_module)
        if trainer.current_epoch <= self.first_epoch:
            log.warning(
                "the training ended after epoch %d, before the first epoch of the average, %d: nothing was averaged",
                *(trainer.current_epoch, self.first_epoch + 1),
            )

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether to copy or average the weights after a step: in the averaged epochs after the last one."""
        if step_idx is None:  # at the end of an epoch, after its validation
            return False
        return step_idx < self.copies or (step_idx + 1) % self.epoch_steps == 0

    def _average(self, average: Tensor, weight: Tensor, updates: Tensor) -> Tensor:
        """Return the average of a weight over one more epoch."""
        if not weight.is_floating_point():
            return weight
        averaged = (updates - self.copies).clamp(min=0)  # epochs in the average
        return torch.lerp(average, weight, (1 / (averaged + 1)).to(weight.dtype))
