"""What is the same for every landmark method: training step, validation, test, prediction, optimizer."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from facelab.faces.batch import LandmarkBatch
from facelab.faces.geometry import flip_image, transform_points
from facelab.faces.layouts import Layout
from facelab.metrics.face_errors import FaceErrors
from facelab.metrics.face_table import FaceTable
from facelab.metrics.landmarks import summary
from facelab.renames import FORMAT

IN_PROGRESS_BAR = "nme_box"
"""The number of a table that is seen while a run goes on; what methods monitor, as every layout has it."""


class Prediction(NamedTuple):
    """What a landmark method says about a batch of crops."""

    points: Tensor  # (B, N, 2) float32
    confidence: Tensor  # (B, N) in [0, 1]; what it means is up to the method's coder
    pose: Tensor | None = None  # (B, 3) yaw, pitch, roll of the head in degrees; None if not asked for or not predicted


class LandmarkModule(LightningModule):
    """Base of the landmark methods. A method builds its network, and overrides ``training_step`` if it needs more.

    The parts meet in ``encode -> forward -> loss`` in training and ``forward -> decode`` everywhere else. After each
    validation or test epoch ``table`` holds the errors of every face, and everything logged is computed from it.

    Args:
        layout: the layout that is predicted.
        coder: points to what the network predicts and back.
        loss: prediction, target, valid to named, weighted terms. None, as for the optimizer, in a module that is opened
            and not trained.
        optimizer: finished with the parameters.
        scheduler: finished with the optimizer, stepped at the end of each epoch; None for a constant rate.
        flip_test: predict the flipped crop too and average the points.

    Attributes:
        memory_format: how images are laid out; ``facelab.profiling.compile`` sets it together with the weights'.
        table: the errors of the last validation or test.
    """

    memory_format = torch.channels_last
    table: FaceTable
    flip: Tensor  # (N,) int64

    def __init__(
        self,
        layout: Layout,
        coder: nn.Module,
        loss: nn.Module | None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        flip_test: bool,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.loss: Any = loss
        self.coder: Any = coder  # nn.Module says nothing of encode and decode
        self.optimizer, self.scheduler, self.flip_test = optimizer, scheduler, flip_test
        self.register_buffer("flip", torch.tensor(layout.flip), persistent=False)

    def fit_statistics(self, datamodule: Any) -> None:
        """Take what the method must know of the training set before it trains, and keep it as buffers."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the format of the checkpoint down."""
        checkpoint["format"] = FORMAT

    def setup(self, stage: str) -> None:
        """Prepare the tables of errors, and before training the method's statistics. To predict, nothing is needed."""
        if stage != "predict":
            datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
            self.errors = FaceErrors(self.layout, len(datamodule.data.tags))
            if stage == "fit":
                self.fit_statistics(datamodule)

    def on_train_start(self) -> None:
        """Log the loss at least once an epoch, however short the epoch is."""
        trainer: Any = self.trainer
        steps = -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
        trainer.log_every_n_steps = max(1, min(trainer.log_every_n_steps, steps))

    def training_step(self, batch: LandmarkBatch, batch_index: int) -> Tensor:
        """One step: the sum of the loss's terms."""
        target = self.coder.encode(batch.points, batch.valid, batch.image.shape[-1])
        image = batch.image.contiguous(memory_format=self.memory_format)
        return self.total(self.loss(self(image), target, batch.valid), batch)

    def total(self, terms: Mapping[str, Tensor], batch: LandmarkBatch) -> Tensor:
        """The sum of a loss's terms; it is logged, and so is each of them."""
        total = torch.stack(list(terms.values())).sum()
        self.log("train/loss", total.detach(), batch_size=len(batch.image), prog_bar=True)
        scalars = {f"train/loss_{name}": term.detach() for name, term in terms.items()}
        self.log_dict(scalars, batch_size=len(batch.image))
        return total

    def predict(self, image: Tensor) -> Prediction:
        """Say all that the method knows of crops.

        Args:
            image: ``(B, 3, H, W)`` uint8 RGB.

        Returns:
            Points in pixels of ``image``, and the pose where the method predicts it.
        """
        return self.predict_points(image)

    def predict_points(self, image: Tensor) -> Prediction:
        """Find the landmarks of crops and nothing else: what is exported, and what a face costs.

        Args:
            image: ``(B, 3, H, W)`` uint8 RGB.

        Returns:
            Points in pixels of ``image``.
        """
        image = image.contiguous(memory_format=self.memory_format)
        return self.with_flip_test(Prediction(*self.coder.decode(self(image))), image)

    def with_flip_test(self, prediction: Prediction, image: Tensor) -> Prediction:
        """If the flip test is on, the mean of a prediction and that of the flipped crops; not of their pose."""
        if not self.flip_test:
            return prediction
        swapped = Prediction(*self.coder.decode(self(image.flip(-1))))
        back = torch.as_tensor(flip_image(image.shape[-1]), dtype=torch.float32, device=image.device)
        points = transform_points(back, swapped.points)[:, self.flip]
        confidence = swapped.confidence[:, self.flip]
        return prediction._replace(
            points=(prediction.points + points) / 2, confidence=(prediction.confidence + confidence) / 2
        )

    def validation_step(  # type: ignore[override]
        self, batch: LandmarkBatch, batch_index: int
    ) -> Prediction:
        """Measure a batch; the prediction is returned so that callbacks need not make it again."""
        prediction = self.predict(batch.image)
        self.errors.update(prediction.points, batch, prediction.pose)
        return prediction

    def test_step(  # type: ignore[override]
        self, batch: LandmarkBatch, batch_index: int
    ) -> Prediction:
        """As in validation."""
        return self.validation_step(batch, batch_index)

    def on_validation_epoch_end(self) -> None:
        """Log what the table says, as ``val/...``."""
        self._log_table("val")

    def on_test_epoch_end(self) -> None:
        """Log what the table says, as ``test/...``."""
        self._log_table("test")

    def _log_table(self, role: str) -> None:
        self.table = self.errors.compute()
        self.errors.reset()
        tags = self.trainer.datamodule.data.tags  # type: ignore[attr-defined]
        numbers = summary(self.table, self.layout, tags)
        for name, value in numbers.items():
            # Every process has the whole table and the same numbers; Lightning asks for their mean all the same.
            self.log(f"{role}/{name}", value, sync_dist=True, prog_bar=name == IN_PROGRESS_BAR)

    def predict_step(self, batch: LandmarkBatch, batch_index: int) -> Prediction:
        """The prediction in pixels of the photos."""
        prediction = self.predict(batch.image)
        return prediction._replace(points=transform_points(batch.to_photo, prediction.points))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over all parameters and, stepped once an epoch, the schedule."""
        assert self.optimizer is not None, "a module that was opened to predict is not trained"
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}
