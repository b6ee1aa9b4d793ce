"""DAN: Deep Alignment Network (Kowalski, Naruniec, Trzcinski, CVPR Workshops 2017, arXiv 1706.01789)."""

import inspect
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
from facelab.networks.dan import DANStage, draw_heatmap, fit_similarity, match_dan_arrays, warp
from lightning_modules.landmark import LandmarkModule, Prediction
from lightning_modules.schedule import first_epochs

log = logging.getLogger(__name__)

PLACEHOLDER_RADIUS = 0.25
"""Radius of the circle that stands for the mean shape before the statistics are computed, as a share of the crop."""
LOSS_ARGUMENTS = 3
"""Number of arguments that a loss gets: prediction, target and valid."""
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
        earlier_tables: errors of the last validation or test by the stages in use before the last one.

    Raises:
        ConfigError: the shares are not positive or their sum is not 1, the heatmap's squares are larger than the crop,
            sizes differ, or the loss needs other arguments than prediction, target and valid.
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
        required = [] if loss is None else [*_required_arguments(loss.forward)][LOSS_ARGUMENTS:]
        if required:
            raise ConfigError("loss", f": {type(loss).__name__} needs {', '.join(required)}, which DAN does not have")
        if 2 * heatmap_radius >= size:
            raise ConfigError(
                "heatmap_radius", f"={heatmap_radius}: the squares must be smaller than the crop ({size})"
            )
        self.stages = nn.ModuleList([stage(num_points=layout.num_points, first=k == 0) for k in range(count)])
        if self.stages[0].size != size:
            given = self.stages[0].size
            raise ConfigError("stage.size", f"={given} must be coder.size={size}, the crop's side", mounted=True)
        self.first_epochs, self.max_epochs = first_epochs(stage_shares, max_epochs), max_epochs
        self.heatmap_radius, self.official_training_mode = heatmap_radius, official_training_mode
        self.earlier_tables = list[FaceTable]()
        self.register_buffer("mean_shape", _placeholder(layout.num_points, size))
        self.register_buffer("image_mean", torch.full((size, size), NEUTRAL_GREY))
        self.register_buffer("image_deviation", torch.full((size, size), NEUTRAL_GREY))
        self.register_buffer("trained_stages", torch.tensor(count))
        self.num_active = count
        self.register_load_state_dict_post_hook(_use_loaded_stages)

    def match_arrays(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the numbered arrays of a file of the reference code under the names of this module.

        Raises:
            CheckpointError: see :func:`facelab.networks.dan.match_dan_arrays`; a shape is another.
        """
        found, own = match_dan_arrays(self.stages, arrays), self.state_dict()  # type: ignore[arg-type]
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
        for number, each in enumerate(self.stages if stage == "fit" else ()):
            if not any(parameter.requires_grad for parameter in each.parameters()):
                raise ConfigError("rates.freeze", f": stages.{number} could not be trained in its epochs", mounted=True)
        if stage == "fit" and len(self.stages) > 1:
            allow_unused_parameters(self.trainer)  # those of the stages that are not trained

    def fit_statistics(self, datamodule: HasStatistics) -> None:
        """Compute mean shape, mean and deviation of the training crops."""
        shape, mean, deviation = map(torch.from_numpy, datamodule.statistics())
        if mean.shape != self.image_mean.shape:
            size, side = self.coder.size, len(mean)
            raise ConfigError("coder.size", f"={size} must be the crop's side, which is {side}", mounted=True)
        for buffer, value in zip(
            (self.mean_shape, self.image_mean, self.image_deviation), (shape, mean, deviation), strict=True
        ):
            buffer.copy_(value)

    def on_train_epoch_start(self) -> None:
        """Start the next stage when its first epoch is reached; a check of all parts uses all stages at once."""
        scheduled = sum(epoch <= self.current_epoch for epoch in self.first_epochs)
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.use_stages(len(self.stages))
        elif self.current_epoch == 0:
            self.use_stages(1)
        elif scheduled > self.num_active:  # not fewer stages: a run may be extended
            forget_best(self.trainer)
            self.use_stages(scheduled)
            log.info("epoch %d: stage %d is trained, the earlier stages are frozen", self.current_epoch + 1, scheduled)

    def on_train_end(self) -> None:
        """Warn of stages that were not trained."""
        if remark := self._name_missing_stages():
            log.warning(remark)

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

    def grey(self, image: Tensor) -> Tensor:
        """Convert crops ``(B, 3, S, S)`` uint8 to grey levels ``(B, 1, S, S)``, the plain mean of the channels.

        Raises:
            ConfigError: the crops have another size than the stages.
        """
        if image.shape[-1] != self.coder.size or image.shape[-2] != self.coder.size:
            side = image.shape[-1]
            raise ConfigError(
                "coder.size", f"={self.coder.size} must be the crop's side, which is {side}", mounted=True
            )
        return image.to(torch.promote_types(self.image_mean.dtype, torch.float32)).mean(1, keepdim=True)

    def run_stages(self, image: Tensor, start: Tensor | None = None) -> list[Tensor]:
        """Predict the landmarks of crops by each stage in use.

        Args:
            image: ``(B, 3, S, S)`` uint8.
            start: ``(B, N, 2)`` landmarks in pixels of the crop to start from, such as those of another method or of
                the frame before: the crop is warped so that they match the mean shape, also in their rotation.

        Returns:
            One ``(B, N, 2)`` float32 per stage, in pixels of the crop.
        """
        grey, back = self.grey(image), None
        if start is not None:
            _, back = fit_similarity(start, self.mean_shape)
            grey = warp(grey, back)
        normalised = (grey - self.image_mean) / self.image_deviation
        points, hidden, results = None, None, list[Tensor]()
        for number in range(self.num_active):
            frozen = self.training and number < self.num_active - 1
            with torch.no_grad() if frozen else nullcontext():
                points, hidden = self._run_stage(number, normalised, points, hidden)
            results.append(points)
        return results if back is None else [transform_points(back, points) for points in results]

    def _run_stage(
        self, number: int, normalised: Tensor, points: Tensor | None, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the corrected landmarks of a stage and its hidden vector; the first stage gets neither.

        Section 3.2 of the paper: a later stage works on the image in which the landmarks match the mean shape, and its
        result is mapped back.
        """
        stage = self.stages[number]
        if points is None:
            correction, hidden = stage(normalised)
            return self.mean_shape + correction.to(normalised.dtype), hidden
        to_mean, back = fit_similarity(points, self.mean_shape)
        aligned = transform_points(to_mean, points)
        heatmap = draw_heatmap(aligned, normalised.shape[-1], self.heatmap_radius)
        correction, hidden = stage(warp(normalised, back), heatmap, hidden)
        return transform_points(back, aligned + correction.to(normalised.dtype)), hidden

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

        Before the first validation there is only the first stage, which every validation measures.
        """
        return super().metrics(table) | self._stage_metrics(table)

    def _stage_metrics(self, table: FaceTable) -> dict[str, Definition]:
        """Define the mean error of every stage in use by name; empty for a network of one stage."""
        tables = [*self.earlier_tables, table] if len(self.stages) > 1 else []
        return {
            f"nme_box_stage{number}": Definition(
                nme_per_face(each, "box"), whole="nme_box", breakdown="stage", part=str(number)
            )
            for number, each in enumerate(tables, start=1)
        }

    def _log_table(self, role: str) -> None:
        """Log the metrics, and warn of a stage that is worse than the one before."""
        self.earlier_tables = []
        for errors in self.stage_errors[: self.num_active - 1]:
            self.earlier_tables.append(errors.table())
            errors.reset()
        super()._log_table(role)
        worse = _name_worse_stages([each.value() for each in self._stage_metrics(self.table).values()])
        self.remarks = list(filter(None, [self._name_missing_stages(), *worse]))
        is_end_of_stage = self.current_epoch + 1 in (*self.first_epochs[1:], self.max_epochs)
        if self.trainer.is_global_zero and (role == "test" or is_end_of_stage):
            for remark in worse:
                log.warning("%s: %s", role, remark)

    def _name_missing_stages(self) -> str:
        """Return a sentence on stages that are not trained; empty if all are."""
        if self.num_active == len(self.stages):
            return ""
        return f"the training ended in stage {self.num_active} of {len(self.stages)}; the later stages are not used"


def _name_worse_stages(means: Sequence[float]) -> list[str]:
    """Return a sentence for each stage whose mean error, as it is printed, is larger than that of the stage before."""
    return [
        f"stage {number + 1} is worse than stage {number}: nme_box {after:.2%} instead of {before:.2%}"
        for number, (before, after) in enumerate(pairwise(means), 1)
        if after > before and f"{after:.2%}" != f"{before:.2%}"
    ]


def _required_arguments(function: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments without a default."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.default is parameter.empty]


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
