"""Handling of a training loss that is NaN or infinite."""

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, distributed
from torch.optim import Optimizer

from callbacks.resume import write_tensors
from facelab.errors import TrainingError, visible
from facelab.faces.batch import DetectionBatch, LandmarkBatch
from facelab.run_folder import RunFolder

log = logging.getLogger(__name__)

MAX_SKIPPED = 10
"""Maximum number of consecutive steps that are skipped; a training that skips more learns nothing."""
LISTED_PHOTOS = 8
"""Maximum number of photos of a batch that a message lists."""


class FiniteLoss(Callback):
    """Check of the loss after each step; by default a NaN or infinite loss stops the training.

    Only the loss is checked, not the gradients: with fp16 an infinite gradient is normal, and the gradient scaler
    then skips the optimizer step. All ranks decide together, after the backward pass and before the optimizer
    step. The weights that are saved with the batch are therefore those that produced this loss.

    On a GPU the result of the check is copied to the host during the backward pass and adds no waiting time.

    Args:
        folder: folder of the run. The batch and the weights are saved there in ``bad_batch_rank0.pt`` for a replay::

                saved = torch.load("RUN/bad_batch_rank0.pt")
                module.load_state_dict(saved["weights"])
                module.training_step(LandmarkBatch(**saved["batch"]), 0)  # DetectionBatch of a detector

        on_nan: ``stop`` ends the run as failed. ``skip`` skips the optimizer step, together with all batches whose
            gradients it accumulates; more than 10 consecutive skipped steps end the run as well. ``continue`` logs a
            warning for the first such loss.
    """

    def __init__(self, folder: str, on_nan: Literal["stop", "skip", "continue"]) -> None:
        self.folder, self.on_nan = RunFolder(Path(folder)), on_nan
        self.batch: tuple[LandmarkBatch | DetectionBatch, int] | None = None
        self.is_bad: Tensor | None = None  # () float32, on the host: 1 if the loss of any rank is not finite
        self.copy_done: torch.cuda.Event | None = None
        self.loss: Tensor
        self.skips_step, self.consecutive_skips, self.warned = False, 0, False

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: LandmarkBatch | DetectionBatch, batch_index: int
    ) -> None:
        """Store the batch for an error message."""
        self.batch = batch, batch_index

    def on_train_batch_end(self, *_: Any) -> None:
        """Release the batch."""
        self.batch = None

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        """Check the loss on its device and on all ranks, and start to copy the result to the host."""
        self.loss = loss.detach()
        bad = (~torch.isfinite(self.loss)).float()
        if trainer.world_size > 1:
            distributed.all_reduce(bad, distributed.ReduceOp.MAX)
        if not bad.is_cuda:
            self.is_bad = bad
            return
        if self.is_bad is None or self.copy_done is None:
            self.is_bad, self.copy_done = torch.empty((), pin_memory=True), torch.cuda.Event()
        self.is_bad.copy_(bad, non_blocking=True)
        self.copy_done.record()

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        """Stop, skip the step or log a warning if the loss is not finite.

        Raises:
            TrainingError: the loss is not finite and ``on_nan`` is ``stop``.
        """
        if self.copy_done is not None:
            self.copy_done.synchronize()
        if not self.is_bad:
            return
        if self.on_nan == "stop":
            self._stop(trainer, module, "on_nan=skip skips such steps")
        elif self.on_nan == "skip":
            self.skips_step = True
            log.warning("%s; the step is skipped", self._describe(trainer))
        elif not self.warned:
            self.warned = True
            log.warning("%s; the training continues with on_nan=continue", self._describe(trainer))

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        """Discard the gradients of a skipped step.

        Raises:
            TrainingError: too many consecutive steps were skipped, or a buffer of the network is no longer finite.
        """
        self.consecutive_skips = self.consecutive_skips + 1 if self.skips_step else 0
        if not self.skips_step:
            return
        self.skips_step = False
        optimizer.zero_grad(set_to_none=True)
        if self.consecutive_skips > MAX_SKIPPED:
            self._stop(trainer, module, f"{MAX_SKIPPED} steps in a row were skipped before it")
        # The forward pass has already updated the batch statistics.
        broken = [name for name, value in module.named_buffers() if value.is_floating_point() and _is_broken(value)]
        if broken:
            self._stop(trainer, module, f"the step cannot be skipped because the network's {broken[0]} became NaN too")

    def _stop(self, trainer: Trainer, module: LightningModule, remedy: str) -> None:
        """Save the batch and the weights, and stop the training.

        Raises:
            TrainingError: always.
        """
        message, file = self._describe(trainer), self.folder.bad_batch(trainer.global_rank)
        assert self.batch is not None
        batch = {name: value.cpu() for name, value in self.batch[0]._asdict().items()}
        weights = {name: value.cpu() for name, value in module.state_dict().items()}
        saved = f"The batch and the weights are saved in {file}"
        try:
            write_tensors(file, {"batch": batch, "weights": weights, "step": trainer.global_step})
        except OSError as error:  # the loss is the more important message
            saved = f"The batch could not be saved: {error}"
        raise TrainingError(
            f"{message}. {saved}. A smaller optimizer.lr, trainer.gradient_clip_val=1 or trainer.precision=32-true "
            f"may help; {remedy}"
        )

    def _describe(self, trainer: Trainer) -> str:
        """Describe the loss of this rank with its step and photos."""
        assert self.batch is not None
        batch, index = self.batch
        photos = [visible(name) for name in trainer.datamodule.names(batch)]  # type: ignore[attr-defined]
        more = f" and {len(photos) - LISTED_PHOTOS} more" if len(photos) > LISTED_PHOTOS else ""
        rates = {f"{group['lr']:.3g}" for optimizer in trainer.optimizers for group in optimizer.param_groups}
        rank = f" of rank {trainer.global_rank}" if trainer.world_size > 1 else ""
        return (
            f"the loss{rank} is {self.loss.item()} at step {trainer.global_step} (epoch {trainer.current_epoch}, batch "
            f"{index}, learning rate {' and '.join(sorted(rates))}), photos {', '.join(photos[:LISTED_PHOTOS])}{more}"
        )


def _is_broken(value: Tensor) -> bool:
    """Return whether a tensor contains a NaN or an infinite number."""
    return not bool(torch.isfinite(value).all())
