"""Progress of a training whose output is a file."""

import logging
import sys
import time

from lightning import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)


class EpochLines(Callback):
    """Log line per epoch, for output that is not a terminal and has no progress bar.

    The line contains the metrics of the progress bar and the seconds of the epoch with its validation.
    """

    def __init__(self) -> None:
        self.started = 0.0  # seconds of the monotonic clock
        self.has_terminal = False

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Check the standard output before Rich's progress bar replaces it by an object that is no terminal."""
        self.has_terminal = sys.stdout.isatty()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock of a run that resumes within an epoch."""
        self.started = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock."""
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Log the line of this epoch."""
        if self.has_terminal or not trainer.is_global_zero:
            return
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in trainer.progress_bar_metrics.items())
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else "?"
        seconds = time.monotonic() - self.started
        log.info("epoch %d of %s: %s, %.0f s", trainer.current_epoch + 1, epochs, metrics, seconds)
