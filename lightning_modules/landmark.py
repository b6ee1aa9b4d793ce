"""Base class of the landmark methods: training, validation, test and prediction steps, optimizer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from facelab.errors import ConfigError
from facelab.faces.batch import LandmarkBatch
from facelab.faces.geometry import flip_image, transform_points
from facelab.faces.layouts import Layout
from facelab.metrics import landmarks
from facelab.metrics.face_errors import FaceErrors
from facelab.metrics.face_table import FaceTable
from facelab.metrics.landmarks import Definition
from facelab.renames import FORMAT
from lightning_modules.rates import UNIFORM
from lightning_modules.schedule import PlateauLR

IN_PROGRESS_BAR = "nme_box"
"""Metric shown in the progress bar; also the metric that methods monitor, because every layout has it."""


class Prediction(NamedTuple):
    """Prediction of a landmark method for a batch of crops."""

    points: Tensor  # (B, N, 2) float32
    confidence: Tensor  # (B, N) in [0, 1]; the meaning depends on the coder
    pose: Tensor | None = None  # (B, 3) yaw, pitch, roll of the head in degrees; None if not requested or not predicted


class LandmarkModule(LightningModule):
    """Base class of the landmark methods. A method builds its network and may override ``training_step``.

    Training computes ``encode -> forward -> loss``, all other steps ``forward -> decode``. After each validation or
    test epoch ``table`` contains the errors of every face; all logged metrics are computed from it.

    Args:
        layout: layout of the predicted landmarks.
        coder: conversion between points and the output of the network.
        loss: function of prediction, target and valid that returns weighted terms by name. None, like the optimizer, if
            the module is not trained.
        optimizer: function of the parameters that returns the optimizer.
        scheduler: function of the optimizer that returns the scheduler, stepped once per epoch; None for a constant
            rate. One that depends on a metric is a :class:`PlateauLR`.
        flip_test: whether to average the points with those of the flipped crop.

    Attributes:
        rates: learning rates of the parts, parts that are not trained, and the warm-up; ``train.py`` sets them.
        memory_format: memory format of images; ``facelab.profiling.compile`` sets it together with that of the weights.
        table: errors of the last validation or test.
        predicts_pose: whether :meth:`predict` returns a pose.
        resumed: whether a checkpoint replaces the statistics, so that they need not be computed.
        remarks: sentences about the last test for its table.
    """

    rates = UNIFORM
    memory_format = torch.channels_last
    predicts_pose = False
    resumed = False
    remarks: Sequence[str] = ()
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
        self.coder: Any = coder  # nn.Module has no types for encode and decode
        self.optimizer, self.scheduler, self.flip_test = optimizer, scheduler, flip_test
        self.register_buffer("flip", torch.tensor(layout.flip), persistent=False)

    def fit_statistics(self, datamodule: Any) -> None:
        """Compute statistics of the training set that the method needs and store them as buffers; here none."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the format of the checkpoint."""
        checkpoint["format"] = FORMAT

    def setup(self, stage: str) -> None:
        """Create the metric and, before training, compute the statistics. Prediction needs neither."""
        if stage != "predict":
            datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
            self.errors = FaceErrors(self.layout, datamodule.data.tags)
            if stage == "fit" and not self.resumed:
                self.fit_statistics(datamodule)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        if mode:
            self.rates.set_evaluation_mode(self)
        return self

    def on_train_start(self) -> None:
        """Log the loss at least once an epoch, however short the epoch is."""
        trainer: Any = self.trainer
        trainer.log_every_n_steps = max(1, min(trainer.log_every_n_steps, steps_per_epoch(trainer)))

    def training_step(self, batch: LandmarkBatch, batch_index: int) -> Tensor:
        """Compute the sum of the loss terms of a batch."""
        target = self.coder.encode(batch.points, batch.valid, batch.image.shape[-1])
        image = batch.image.contiguous(memory_format=self.memory_format)
        return self.total(self.loss(self(image), target, batch.valid), batch)

    def total(self, terms: Mapping[str, Tensor], batch: LandmarkBatch) -> Tensor:
        """Sum the loss terms; log the sum and each term."""
        total = torch.stack(list(terms.values())).sum()
        self.log("train/loss", total.detach(), batch_size=len(batch.image), prog_bar=True)
        scalars = {f"train/loss_{name}": term.detach() for name, term in terms.items()}
        self.log_dict(scalars, batch_size=len(batch.image))
        return total

    def predict(self, image: Tensor) -> Prediction:
        """Predict all outputs of the method for crops.

        Args:
            image: ``(B, 3, H, W)`` uint8 RGB.

        Returns:
            Points in pixels of ``image``, and the pose if the method predicts it.
        """
        return self.predict_points(image)

    def predict_points(self, image: Tensor) -> Prediction:
        """Predict only the landmarks of crops. The export and the cost of a face contain this and nothing else.

        Args:
            image: ``(B, 3, H, W)`` uint8 RGB.

        Returns:
            Points in pixels of ``image``.
        """
        image = image.contiguous(memory_format=self.memory_format)
        return self.with_flip_test(Prediction(*self.coder.decode(self(image))), image)

    def with_flip_test(self, prediction: Prediction, image: Tensor) -> Prediction:
        """Average the points and confidence with those of the flipped crops if ``flip_test``; the pose is unchanged."""
        if not self.flip_test:
            return prediction
        return self.average(prediction, Prediction(*self.coder.decode(self(image.flip(-1)))), image.shape[-1])

    def average(self, prediction: Prediction, flipped: Prediction, width: int) -> Prediction:
        """Average the points and confidence of crops of a width in pixels with those predicted on the flipped crops."""
        back = torch.as_tensor(flip_image(width), dtype=torch.float32, device=flipped.points.device)
        points = transform_points(back, flipped.points)[:, self.flip]
        confidence = flipped.confidence[:, self.flip]
        return prediction._replace(
            points=(prediction.points + points) / 2, confidence=(prediction.confidence + confidence) / 2
        )

    def validation_step(  # type: ignore[override]
        self, batch: LandmarkBatch, batch_index: int
    ) -> Prediction:
        """Predict a batch and update the metric. Callbacks use the returned prediction."""
        prediction = self.predict(batch.image)
        self.errors.update(prediction.points, batch, prediction.pose)
        return prediction

    def test_step(  # type: ignore[override]
        self, batch: LandmarkBatch, batch_index: int
    ) -> Prediction:
        """Predict a batch and update the metric, see :meth:`validation_step`."""
        return self.validation_step(batch, batch_index)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the table as ``val/...``."""
        self._log_table("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the table as ``test/...``."""
        self._log_table("test")

    def metrics(self, table: FaceTable) -> dict[str, Definition]:
        """Define the metrics of a table by name. A method may add others that only it has."""
        return landmarks.definitions(table)

    def protocol(self) -> dict[str, Any]:
        """Return the settings of the method that must be equal for two results to be comparable."""
        return {"flip_test": self.flip_test}

    def _log_table(self, role: str) -> None:
        """Compute the table, log its metrics and reset the collected errors."""
        self.table = self.errors.table()
        self.errors.reset()
        for name, definition in self.metrics(self.table).items():
            # Every process has the whole table and the same numbers; Lightning still requests sync_dist.
            self.log(f"{role}/{name}", definition.value(), sync_dist=True, prog_bar=name == IN_PROGRESS_BAR)

    def predict_step(self, batch: LandmarkBatch, batch_index: int) -> Prediction:
        """Predict a batch in pixels of the photos."""
        prediction = self.predict(batch.image)
        return prediction._replace(points=self.map_to_photo(prediction.points, batch.to_photo))

    def map_to_photo(self, points: Tensor, to_photo: Tensor) -> Tensor:
        """Convert points from pixels of the crop to pixels of the photo.

        Args:
            points: ``(..., N, 2)``.
            to_photo: ``(..., 3, 3)``.

        Returns:
            ``(..., N, 2)``.
        """
        return transform_points(to_photo, points)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer of the trained parameters and the scheduler, which is stepped once per epoch.

        Raises:
            ConfigError: the scheduler depends on a metric but does not name it, or see :class:`Rates`.
        """
        assert self.optimizer is not None, "a module without an optimizer cannot be trained"
        optimizer = self.rates.build_optimizer(self.optimizer, self)
        if self.scheduler is None:
            return optimizer
        scheduler = self.scheduler(optimizer)
        if isinstance(scheduler, PlateauLR):
            stepped: Any = {"scheduler": scheduler, "monitor": scheduler.monitor, "frequency": scheduler.every}
            return {"optimizer": optimizer, "lr_scheduler": stepped}
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ConfigError("scheduler", ": it does not name the metric that it needs; use scheduler=plateau")
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take a step of the optimizer with the learning rates of the warm-up."""
        trainer: Any = self.trainer
        with self.rates.warmed_up(optimizer, trainer.global_step, steps_per_epoch(trainer)):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler, unless it depends on a metric; see :meth:`on_train_epoch_end`."""
        if metric is None:
            super().lr_scheduler_step(scheduler, metric)

    def on_train_epoch_end(self) -> None:
        """Step a scheduler that depends on a metric. Lightning would step it only after the epoch's checkpoint."""
        for each in self.trainer.lr_scheduler_configs:
            scheduler = each.scheduler
            if isinstance(scheduler, PlateauLR) and (self.current_epoch + 1) % scheduler.every == 0:
                metric = self.trainer.callback_metrics.get(scheduler.monitor)
                if metric is not None:  # it is missing if max_steps ends the training before the first validation
                    scheduler.step(metric)


def steps_per_epoch(trainer: Any) -> int:
    """Return the number of optimizer steps in an epoch."""
    return -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
