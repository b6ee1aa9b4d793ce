"""What happens when the loss of a training step is NaN or infinite."""

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, distributed
from torch.optim import Optimizer

from callbacks.resume import write_tensors
from facelab.errors import TrainingError, visible
from facelab.faces.batch import LandmarkBatch
from facelab.run_folder import RunFolder

log = logging.getLogger(__name__)

MOST_SKIPPED = 10
"""Steps in a row that may be skipped; a training that skips more learns nothing."""
SHOWN = 8
"""Photos of a batch that a message names."""


class FiniteLoss(Callback):
    """Tests the loss of each step, and stops a training whose loss is NaN or infinite.

    The loss alone is tested, not the gradients: with fp16 an infinite gradient is normal, and the scaler skips its
    step. All ranks decide together, after the backward pass and before the step of the optimizer. So the weights that
    are kept with the batch are those that gave this loss.

    On a GPU the answer is copied while the backward pass runs, which therefore needs not be waited for.

    Args:
        folder: of the run. It keeps the batch in ``bad_batch_rank0.pt``, with the weights, for a replay::

                saved = torch.load("RUN/bad_batch_rank0.pt")
                module.load_state_dict(saved["weights"])
                module.training_step(LandmarkBatch(**saved["batch"]), 0)

        on_nan: ``stop`` ends the run as failed. ``skip`` leaves out the step of the optimizer, with accumulated
            gradients for all their batches; after more than 10 such steps in a row it stops too. ``continue`` logs a
            warning at the first such loss.
    """

    def __init__(self, folder: str, on_nan: Literal["stop", "skip", "continue"]) -> None:
        self.folder, self.on_nan = RunFolder(Path(folder)), on_nan
        self.batch: tuple[LandmarkBatch, int] | None = None
        self.answer: Tensor | None = None  # () float32, on the host: 1 where the loss of some rank is not finite
        self.copied: torch.cuda.Event | None = None
        self.loss: Tensor
        self.skipping, self.in_a_row, self.warned = False, 0, False

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: LandmarkBatch, batch_index: int
    ) -> None:
        """Keep the batch at hand."""
        self.batch = batch, batch_index

    def on_train_batch_end(self, *_: Any) -> None:
        """Let go of the batch."""
        self.batch = None

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        """Test the loss, on its device and on all ranks, and have the answer copied to the host."""
        self.loss = loss.detach()
        bad = (~torch.isfinite(self.loss)).float()
        if trainer.world_size > 1:
            distributed.all_reduce(bad, distributed.ReduceOp.MAX)
        if not bad.is_cuda:
            self.answer = bad
            return
        if self.answer is None or self.copied is None:
            self.answer, self.copied = torch.empty((), pin_memory=True), torch.cuda.Event()
        self.answer.copy_(bad, non_blocking=True)
        self.copied.record()

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        """Act on the answer.

        Raises:
            TrainingError: the loss is not finite, and the training stops.
        """
        if self.copied is not None:
            self.copied.synchronize()
        if not self.answer:
            return
        if self.on_nan == "stop":
            self._stop(trainer, module, "on_nan=skip leaves such steps out")
        elif self.on_nan == "skip":
            self.skipping = True
            log.warning("%s; the step is skipped", self._happened(trainer))
        elif not self.warned:
            self.warned = True
            log.warning("%s; the training continues with on_nan=continue", self._happened(trainer))

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        """Drop the gradients of a step that is skipped.

        Raises:
            TrainingError: too many steps in a row were skipped, or the network cannot be used any more.
        """
        self.in_a_row = self.in_a_row + 1 if self.skipping else 0
        if not self.skipping:
            return
        self.skipping = False
        optimizer.zero_grad(set_to_none=True)
        if self.in_a_row > MOST_SKIPPED:
            self._stop(trainer, module, f"{MOST_SKIPPED} steps in a row were skipped before it")
        # Batch statistics are taken in the forward pass, which has happened.
        broken = [name for name, value in module.named_buffers() if value.is_floating_point() and _is_broken(value)]
        if broken:
            self._stop(trainer, module, f"this step cannot be skipped, as it made {broken[0]} of the network NaN too")

    def _stop(self, trainer: Trainer, module: LightningModule, remedy: str) -> None:
        """Keep the batch and end the training.

        Raises:
            TrainingError: always.
        """
        happened, file = self._happened(trainer), self.folder.bad_batch(trainer.global_rank)
        assert self.batch is not None
        batch = {name: value.cpu() for name, value in self.batch[0]._asdict().items()}
        weights = {name: value.cpu() for name, value in module.state_dict().items()}
        kept = f"The batch and the weights are kept in {file}"
        try:
            write_tensors(file, {"batch": batch, "weights": weights, "step": trainer.global_step})
        except OSError as error:  # what happened is more important
            kept = f"The batch could not be kept: {error}"
        raise TrainingError(
            f"{happened}. {kept}. A smaller optimizer.lr, +trainer.gradient_clip_val=1 or trainer.precision=32-true "
            f"may help; {remedy}"
        )

    def _happened(self, trainer: Trainer) -> str:
        """Say what the loss of this rank is, and of which step and photos."""
        assert self.batch is not None
        batch, index = self.batch
        paths = trainer.datamodule.faces["train"].paths  # type: ignore[attr-defined]
        photos = [visible(paths[row].name) for row in batch.face_id.tolist()]
        more = f" and {len(photos) - SHOWN} more" if len(photos) > SHOWN else ""
        rates = {f"{group['lr']:.3g}" for optimizer in trainer.optimizers for group in optimizer.param_groups}
        rank = f" of rank {trainer.global_rank}" if trainer.world_size > 1 else ""
        return (
            f"the loss{rank} is {self.loss.item()} at step {trainer.global_step} (epoch {trainer.current_epoch}, batch "
            f"{index}, learning rate {' and '.join(sorted(rates))}), of {', '.join(photos[:SHOWN])}{more}"
        )


def _is_broken(value: Tensor) -> bool:
    return not bool(torch.isfinite(value).all())
