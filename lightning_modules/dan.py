"""DAN: Deep Alignment Network (Kowalski, Naruniec, Trzcinski, CVPR Workshops 2017, arXiv 1706.01789)."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Annotated, Any, Protocol

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from facelab.bounds import Count, Pixels, Share
from facelab.coders.regression import RegressionCoder
from facelab.errors import CheckpointError, ConfigError
from facelab.faces.batch import LandmarkBatch
from facelab.faces.geometry import Array, from_cells, to_cells, transform_points
from facelab.faces.layouts import Layout
from facelab.internals.lightning import allow_unused_parameters, forget_best
from facelab.metrics.face_errors import FaceErrors
from facelab.metrics.face_table import FaceTable, nme_per_face
from facelab.metrics.landmarks import Definition
from facelab.networks.dan import DANStage, draw_heatmap, fit_similarity, match_arrays, warp
from lightning_modules.landmark import LandmarkModule, Prediction

log = logging.getLogger(__name__)

PLACEHOLDER_RADIUS = 0.25
"""Radius of the circle that stands for the mean shape before the statistics are computed, as a share of the crop."""
NEUTRAL_GREY = 127.5
"""Mean and deviation of the crops in grey levels before the statistics of the training faces are computed."""


class HasStatistics(Protocol):
    """Datamodule with the statistics of the training faces that DAN needs."""

    def statistics(self) -> tuple[Array, Array, Array]:
        """Compute the mean shape ``(N, 2)`` in pixels of the crop, and mean and deviation ``(S, S)`` of the crops."""
        ...


class DAN(LandmarkModule):
    """Stages that correct the landmarks one after the other, each from an image of the whole face.

    The first stage starts from the mean shape. Every later one sees the crop warped so that the present landmarks
    match the mean shape, a heatmap of these landmarks, and an image made from the hidden vector of the stage before.
    The crop is grey, the plain mean of its channels, and normalised by mean and deviation of each pixel over the
    training faces. Mean shape, mean and deviation are in the checkpoint.

    **Training.** Each stage has a share of the epochs, and only the newest stage is trained. The stages before it have
    no gradient, so that the optimizer neither changes nor decays them, and are in evaluation mode. ``trained_stages``
    counts the stages that are or were trained; validation and test use these. The best checkpoint is chosen anew for
    each stage.

    Args:
        layout: layout of the predicted landmarks.
        stage: function of the number of landmarks and of whether it is the first stage that returns a stage.
        stage_shares: share of the epochs of each stage, in sum 1.
        max_epochs: length of the training in epochs.
        heatmap_radius: half the side in pixels of the square into which a landmark is drawn.
        coder: conversion between points and fractions of the crop.
        loss: loss of the points of the newest stage.
        optimizer: see :class:`LandmarkModule`.
        scheduler: see :class:`LandmarkModule`.
        flip_test: see :class:`LandmarkModule`.
        official_training_mode: keep the earlier stages in training mode, as in the reference code: they use dropout
            and batch statistics, and their running statistics still change.

    Attributes:
        num_active: number of stages in use, equal to the buffer ``trained_stages``.
        earlier_tables: errors of the last validation or test by the stages in use before the last one; None before
            the first validation or test.

    Raises:
        ConfigError: the shares are not positive or their sum is not 1, or the heatmap's squares are larger than the
            crop.
    """

    mean_shape: Tensor  # (N, 2) float32, pixels of the crop
    image_mean: Tensor  # (S, S) float32, grey levels
    image_deviation: Tensor  # (S, S) float32, grey levels
    trained_stages: Tensor  # () int64

    def __init__(
        self,
        layout: Layout,
        stage: Callable[..., DANStage],
        stage_shares: Sequence[Share],
        max_epochs: Count,
        heatmap_radius: Annotated[Pixels, Interval(ge=1)],
        coder: RegressionCoder,
        loss: nn.Module | None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        flip_test: bool,
        official_training_mode: bool,
    ) -> None:
        super().__init__(layout, coder, loss, optimizer, scheduler, flip_test)
        if not stage_shares or min(stage_shares) <= 0 or abs(sum(stage_shares) - 1) > 1e-6:
            raise ConfigError("stage_shares", f"={list(stage_shares)} must be numbers over 0 with the sum 1")
        count, size = len(stage_shares), coder.size
        if 2 * heatmap_radius >= size:
            raise ConfigError(
                "heatmap_radius", f"={heatmap_radius}: the squares must be smaller than the crop ({size})"
            )
        self.stages = nn.ModuleList([stage(num_points=layout.num_points, first=k == 0) for k in range(count)])
        self.stage_shares, self.max_epochs = tuple(stage_shares), max_epochs
        self.heatmap_radius, self.official_training_mode = heatmap_radius, official_training_mode
        self.earlier_tables: list[FaceTable] | None = None
        self.register_buffer("mean_shape", _placeholder(layout.num_points, size))
        self.register_buffer("image_mean", torch.full((size, size), NEUTRAL_GREY))
        self.register_buffer("image_deviation", torch.full((size, size), NEUTRAL_GREY))
        self.register_buffer("trained_stages", torch.tensor(count))
        self.num_active = count
        self.register_load_state_dict_post_hook(_use_loaded_stages)

    def match_arrays(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the numbered arrays of a file of the reference code under the names of this module.

        Raises:
            CheckpointError: see :func:`facelab.networks.dan.match_arrays`; a shape is another.
        """
        found, own = match_arrays(self.stages, arrays), self.state_dict()  # type: ignore[arg-type]
        for name, value in found.items():
            if value.shape != own[name].shape:
                shapes = f"{tuple(value.shape)} instead of {tuple(own[name].shape)}"
                raise CheckpointError(f"{name} has the shape {shapes}; do data.layout, crop.size and stage.width fit?")
        return found

    # Training

    def setup(self, stage: str) -> None:
        """Create the metrics and, before training, compute the statistics; see :class:`LandmarkModule`."""
        super().setup(stage)
        if stage != "predict":
            tags = self.trainer.datamodule.data.tags  # type: ignore[attr-defined]
            errors = [FaceErrors(self.layout, tags) for _ in range(len(self.stages) - 1)]
            self.stage_errors: Any = nn.ModuleList(errors)  # of all stages but the last
        if stage == "fit":
            allow_unused_parameters(self.trainer)  # those of the stages that are not trained

    def fit_statistics(self, datamodule: HasStatistics) -> None:
        """Compute mean shape, mean and deviation of the training crops."""
        buffers = (self.mean_shape, self.image_mean, self.image_deviation)
        for buffer, value in zip(buffers, datamodule.statistics(), strict=True):
            buffer.copy_(torch.from_numpy(value))

    def first_epochs(self) -> list[int]:
        """Return the first epoch of each stage, counted from 0; every stage has at least one epoch."""
        first, share = [0], 0.0
        for part in self.stage_shares[:-1]:
            share += part
            first.append(max(first[-1] + 1, round(share * self.max_epochs)))
        return first

    def on_train_start(self) -> None:
        """Warn of stages that are never trained; see :class:`LandmarkModule`."""
        super().on_train_start()
        if missing := sum(epoch >= self.max_epochs for epoch in self.first_epochs()):
            log.warning("max_epochs=%d is too short: the last %d stages are not trained", self.max_epochs, missing)

    def on_train_epoch_start(self) -> None:
        """Start the next stage when its first epoch is reached."""
        scheduled = sum(epoch <= self.current_epoch for epoch in self.first_epochs())
        if self.current_epoch == 0:
            self.use_stages(1)
        elif scheduled > self.num_active:  # not fewer stages: a run may be extended
            forget_best(self.trainer)
            self.use_stages(scheduled)
            log.info("epoch %d: stage %d is trained, the earlier stages are frozen", self.current_epoch + 1, scheduled)

    def use_stages(self, count: int) -> None:
        """Use the first ``count`` stages from now on; training changes the last of these."""
        self.num_active = count
        self.trained_stages.fill_(count)
        self.train(self.training)

    def train(self, mode: bool = True) -> "DAN":
        """Set the mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        if mode and not self.official_training_mode:
            self.stages[: self.num_active - 1].eval()
        return self

    # Prediction

    def normalise(self, image: Tensor) -> Tensor:
        """Convert crops ``(B, 3, S, S)`` uint8 to normalised grey images ``(B, 1, S, S)`` float32.

        Raises:
            ConfigError: the crops have another size than the stages.
        """
        if image.shape[-2:] != self.image_mean.shape:
            size = self.image_mean.shape[-1]
            raise ConfigError(
                "stage.size", f"={size} must be the crop's side, which is {image.shape[-1]}", mounted=True
            )
        precision = torch.promote_types(self.image_mean.dtype, torch.float32)
        grey = image.to(precision).mean(1, keepdim=True)
        return (grey - self.image_mean) / self.image_deviation

    def run_stages(self, image: Tensor, start: Tensor | None = None) -> list[Tensor]:
        """Predict the landmarks of crops by each stage in use.

        Args:
            image: ``(B, 3, S, S)`` uint8.
            start: ``(B, N, 2)`` landmarks in pixels of the crop to start from, such as those of another method or of
                the frame before; the mean shape fitted to them replaces the mean shape of the crop.

        Returns:
            One ``(B, N, 2)`` float32 per stage, in pixels of the crop.
        """
        grey, points, hidden = self.normalise(image), start, None
        results = list[Tensor]()
        for number in range(self.num_active):
            frozen = self.training and number < self.num_active - 1
            with torch.no_grad() if frozen else nullcontext():
                points, hidden = self._run_stage(number, grey, points, hidden)
            results.append(points)
        return results

    def _run_stage(
        self, number: int, grey: Tensor, points: Tensor | None, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the corrected landmarks of one stage and its hidden vector; None are the landmarks of the mean shape.

        Section 3.2 of the paper: the stage works on the image in which the landmarks match the mean shape, and its
        result is mapped back.
        """
        stage = self.stages[number]
        if points is None:
            correction, hidden = stage(grey)
            return self.mean_shape + correction.to(grey.dtype), hidden
        to_mean, back = fit_similarity(points, self.mean_shape)
        image = warp(grey, back)
        if number == 0:
            aligned = self.mean_shape
            correction, hidden = stage(image)
        else:
            aligned = transform_points(to_mean, points)
            correction, hidden = stage(image, draw_heatmap(aligned, image.shape[-1], self.heatmap_radius), hidden)
        return transform_points(back, aligned + correction.to(grey.dtype)), hidden

    def forward(self, image: Tensor) -> Tensor:
        """Predict the landmarks ``(B, N, 2)`` of crops ``(B, 3, S, S)`` uint8 as fractions of the crop."""
        return to_cells(self.run_stages(image)[-1], self.coder.size)

    def predict_stages(self, image: Tensor) -> list[Prediction]:
        """Predict the landmarks of crops ``(B, 3, S, S)`` uint8 by each stage in use, with the flip test if set."""
        image = image.contiguous(memory_format=self.memory_format)
        stages = [self._decode(points) for points in self.run_stages(image)]
        if not self.flip_test:
            return stages
        flipped = [self._decode(points) for points in self.run_stages(image.flip(-1))]
        return [self.average(*pair, image.shape[-1]) for pair in zip(stages, flipped, strict=True)]

    def _decode(self, points: Tensor) -> Prediction:
        """Return landmarks in pixels of the crop with their confidence."""
        return Prediction(*self.coder.decode(to_cells(points, self.coder.size)))

    def predict_points(self, image: Tensor) -> Prediction:
        """Predict the landmarks of the last stage in use; see :class:`LandmarkModule`."""
        return self.predict_stages(image)[-1]

    # Measurement

    def validation_step(  # type: ignore[override]
        self, batch: LandmarkBatch, batch_index: int
    ) -> Prediction:
        """Measure the predictions of all stages in use; see :class:`LandmarkModule`."""
        *earlier, last = self.predict_stages(batch.image)
        for errors, prediction in zip(self.stage_errors, earlier, strict=False):
            errors.update(prediction.points, batch)
        self.errors.update(last.points, batch)
        return last

    def metrics(self, table: FaceTable) -> dict[str, Definition]:
        """Define the metrics of the last stage in use, and the mean error of every stage; see :class:`LandmarkModule`.

        Before the first validation, the table stands for those of all stages.
        """
        return super().metrics(table) | self._stage_metrics(table)

    def _stage_metrics(self, table: FaceTable) -> dict[str, Definition]:
        """Define the mean error of every stage in use by name; empty if there is only one."""
        earlier = [table] * (len(self.stages) - 1) if self.earlier_tables is None else self.earlier_tables
        return {
            f"nme_box_stage{number}": Definition(
                nme_per_face(each, "box"), whole="nme_box", breakdown="stage", part=str(number)
            )
            for number, each in enumerate([*earlier, table] if earlier else [], start=1)
        }

    def _log_table(self, role: str) -> None:
        """Log the metrics, and warn of a stage that is worse than the one before."""
        self.earlier_tables, self.remarks = [], []
        for errors in self.stage_errors[: self.num_active - 1]:
            self.earlier_tables.append(errors.table())
            errors.reset()
        super()._log_table(role)
        means = [definition.value() for definition in self._stage_metrics(self.table).values()]
        for number, (before, after) in enumerate(pairwise(means), 1):
            if after > before:
                self.remarks.append(
                    f"stage {number + 1} is worse than stage {number}: nme_box {after:.2%} instead of {before:.2%}"
                )
        ends = role == "test" or self.current_epoch + 1 in (*self.first_epochs(), self.max_epochs)
        for remark in self.remarks if ends else ():
            log.warning("%s: %s", role, remark)


def _placeholder(num_points: int, size: int) -> Tensor:
    """Return a circle of points ``(N, 2)`` for a network without statistics, whose cost is measured."""
    angle = torch.arange(num_points) * (2 * torch.pi / num_points)
    return from_cells(0.5 + PLACEHOLDER_RADIUS * torch.stack([angle.cos(), angle.sin()], -1), size)


def _use_loaded_stages(module: nn.Module, keys: Any) -> None:
    """Use the stages that a loaded checkpoint has trained; a hook of ``load_state_dict``.

    Raises:
        CheckpointError: the checkpoint counts more stages than there are, or none.
    """
    assert isinstance(module, DAN)
    if module.trained_stages.is_meta:  # only names and shapes are loaded
        return
    count = int(module.trained_stages)
    if not 1 <= count <= len(module.stages):
        raise CheckpointError(f"the weights have {count} trained stages, the model has {len(module.stages)}")
    module.use_stages(count)
