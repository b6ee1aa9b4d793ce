"""What W&B is given beside the numbers: tables and charts."""

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
ERROR = "error in percent"


class TolerantWandbLogger(WandbLogger):
    """Lightning's logger of W&B, without which a run goes on.

    W&B is a process of its own, which a full disk or a signal to the whole job can end; Lightning's logger would then
    end the training too. That W&B cannot begin is told as ever, before anything is trained.

    Args:
        save_dir: where the folder ``wandb`` of the run lies.
        project: its project.
        id: by which the run is known, and known again when it goes on.
        name: that is shown.
        group: of the runs of a sweep.
        job_type: such as train.
        tags: by which it is found.
        offline: write files only; ``wandb sync`` uploads them later. Online, ``WANDB_ENTITY`` names the team.
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
        about: dict[str, Any] = {"group": group, "job_type": job_type, "tags": list(tags)}
        super().__init__(save_dir=save_dir, project=project, id=id, name=name, offline=offline, **about)
        drop_wandb_setting(self, "anonymous")  # W&B warns of it even where it is not asked for
        self.lost = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log, or say once that this is no longer possible."""
        if self.lost:
            return
        try:
            super().log_metrics(metrics, step)
        except Exception as error:  # its errors are of many kinds, and none is worth the training
            self.lost = True
            log.warning("W&B has ended (%s: %s); the run goes on without it", type(error).__name__, error)


@rank_zero_only
def show(trainer: Trainer, make: Callable[[], Mapping[str, Any]]) -> None:
    """Give tables and charts to W&B, if it is one of the loggers.

    W&B copies each table to where it waits for its upload, which is the user's home unless told otherwise. Here it is
    the folder of the W&B run: a run leaves nothing elsewhere, and needs no home it can write to.

    Args:
        trainer: of the run.
        make: name to table or chart. Called once for each logger, as W&B takes each of them once, and not at all where
            there is no such logger, so that wandb is imported only where it is used.
    """
    for logger in trainer.loggers:
        if not isinstance(logger, WandbLogger):
            continue
        asked = os.environ.get(DATA_DIR)
        os.environ[DATA_DIR] = asked or str(Path(logger.experiment.dir).parent)
        try:
            logger.log_metrics(make(), step=trainer.global_step)
        finally:
            if not asked:
                del os.environ[DATA_DIR]


def number(value: float) -> float | None:
    """A number, and None, which W&B leaves empty, for what is undefined or infinite."""
    return float(value) if math.isfinite(value) else None


def percent(fraction: float) -> float | None:
    """A fraction in percent, as :func:`number`."""
    return number(100 * fraction)
