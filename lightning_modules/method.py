"""Base class of all methods: optimizer, learning rates, schedule, and the logging of losses and metrics."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from facelab.errors import ConfigError
from facelab.renames import FORMAT
from lightning_modules.rates import UNIFORM
from lightning_modules.schedule import PlateauLR


class MethodModule(LightningModule, ABC):
    """Base class of the landmark methods and the detectors.

    After each validation or test epoch ``table`` contains the results of the epoch; all logged metrics are computed
    from it.

    Args:
        loss: loss of the method, which returns weighted terms by name. None, like the optimizer, if the module is not
            trained.
        optimizer: function of the parameters that returns the optimizer.
        scheduler: function of the optimizer that returns the scheduler, stepped once per epoch; None for a constant
            rate. One that depends on a metric is a :class:`PlateauLR`.

    Attributes:
        in_progress_bar: metric shown in the progress bar.
        rates: learning rates of the parts, parts that are not trained, and the warm-up; ``train.py`` sets them.
        memory_format: memory format of images; ``facelab.profiling.compile`` sets it together with that of the weights.
        table: results of the last validation or test.
        errors: metric that collects the results of an epoch.
        resumed: whether a checkpoint replaces the statistics, so that they need not be computed.
        remarks: sentences about the last test for its table.
    """

    in_progress_bar: ClassVar[str]
    rates = UNIFORM
    memory_format = torch.channels_last
    resumed = False
    remarks: Sequence[str] = ()
    table: Any
    errors: Any

    def __init__(
        self,
        loss: nn.Module | None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
        scheduler: Callable[[Optimizer], LRScheduler] | None,
    ) -> None:
        super().__init__()
        self.loss: Any = loss
        self.optimizer, self.scheduler = optimizer, scheduler

    def fit_statistics(self, datamodule: Any) -> None:
        """Compute statistics of the training set that the method needs and store them as buffers; here none."""

    @abstractmethod
    def collector(self, tags: tuple[str, ...]) -> Any:
        """Build the metric that collects the results of an epoch.

        Args:
            tags: tags of the dataset.
        """

    def setup(self, stage: str) -> None:
        """Create the metric and, before training, compute the statistics. Prediction needs neither."""
        if stage != "predict":
            datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
            self.errors = self.collector(datamodule.data.tags)
            if stage == "fit" and not self.resumed:
                self.fit_statistics(datamodule)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the format of the checkpoint."""
        checkpoint["format"] = FORMAT

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

    def total(self, terms: Mapping[str, Tensor], batch: Any) -> Tensor:
        """Sum the loss terms; log the sum and each term."""
        total = torch.stack(list(terms.values())).sum()
        self.log("train/loss", total.detach(), batch_size=len(batch.image), prog_bar=True)
        scalars = {f"train/loss_{name}": term.detach() for name, term in terms.items()}
        self.log_dict(scalars, batch_size=len(batch.image))
        return total

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the table as ``val/...``."""
        self._log_table("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the table as ``test/...``."""
        self._log_table("test")

    @abstractmethod
    def example(self, tags: tuple[str, ...]) -> Any:
        """Build a table of a few results, from which the names of the metrics are known before there is any result.

        Args:
            tags: tags of the dataset.
        """

    @abstractmethod
    def metrics(self, table: Any) -> Mapping[str, Any]:
        """Define the metrics of a table by name."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Return the settings of the method that must be equal for two results to be comparable."""

    def _log_table(self, role: str) -> None:
        """Compute the table, log its metrics and reset the collected results."""
        self.table = self.errors.table()
        self.errors.reset()
        for name, definition in self.metrics(self.table).items():
            # Every process has the whole table and the same numbers; Lightning still requests sync_dist.
            self.log(f"{role}/{name}", definition.value(), sync_dist=True, prog_bar=name == self.in_progress_bar)

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
