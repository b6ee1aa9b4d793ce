"""Logger of W&B, and functions that log tables and charts to it."""

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from facelab.internals.lightning import drop_wandb_setting

log = logging.getLogger(__name__)

DATA_DIR = "WANDB_DATA_DIR"
"""Environment variable with W&B's folder for files that await their upload."""
ERROR_HEADING = "error in percent"
"""Heading of an error in a table or a chart."""


class TolerantWandbLogger(WandbLogger):
    """Lightning's W&B logger that does not stop the training when W&B fails.

    W&B runs as a separate process, which a full disk or a signal to the whole job can end. Lightning's logger would
    then raise an error and end the training. If W&B cannot start, the error is still raised, before the training.

    Args:
        save_dir: parent folder of the run's folder ``wandb``.
        project: W&B project.
        id: identifier of the run, the same after a resume.
        name: displayed name of the run.
        group: group of the runs of a sweep.
        job_type: type of the job, such as train.
        tags: tags to search runs by.
        offline: write files only; ``wandb sync`` uploads them later. Online, ``WANDB_ENTITY`` selects the team.
    """

    def __init__(
        self,
        save_dir: str,
        project: str,
        id: str,
        name: str,
        group: str,
        job_type: str,
        tags: Sequence[str],
        offline: bool,
    ) -> None:
        labels: dict[str, Any] = {"group": group, "job_type": job_type, "tags": list(tags)}
        super().__init__(save_dir=save_dir, project=project, id=id, name=name, offline=offline, **labels)
        drop_wandb_setting(self, "anonymous")  # Lightning always passes it, and W&B warns about it
        self.has_failed = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics; after the first failure, log one warning and then do nothing."""
        if self.has_failed:
            return
        try:
            super().log_metrics(metrics, step)
        except Exception as error:  # W&B raises errors of many types; none is a reason to stop the training
            self.has_failed = True
            log.warning("W&B has failed (%s: %s); the run continues without it", type(error).__name__, error)


@rank_zero_only
def log_to_wandb(trainer: Trainer, make: Callable[[], Mapping[str, Any]]) -> None:
    """Log tables and charts to W&B if it is one of the loggers.

    W&B copies each table to a folder for pending uploads, by default in the user's home. Here it is the folder of the
    W&B run: a run writes nothing elsewhere and needs no writable home.

    Args:
        trainer: trainer of the run.
        make: function that returns the tables and charts by name. It is called once per W&B logger, because W&B accepts
            each object once. Without a W&B logger it is not called, and wandb is not imported.
    """
    for logger in trainer.loggers:
        if not isinstance(logger, WandbLogger):
            continue
        configured = os.environ.get(DATA_DIR)
        os.environ[DATA_DIR] = configured or str(Path(logger.experiment.dir).parent)
        try:
            logger.log_metrics(make(), step=trainer.global_step)
        finally:
            if not configured:
                del os.environ[DATA_DIR]


def number(value: float) -> float | None:
    """Return a number as a float, or None if it is NaN or infinite; W&B shows an empty cell for None."""
    return float(value) if math.isfinite(value) else None


def percent(fraction: float) -> float | None:
    """Convert a fraction to percent, or return None as :func:`number` does."""
    return number(100 * fraction)
