"""A callback outside of the project, which tests use through ``trust=[pace]``."""

import time
from typing import Any

from lightning.pytorch.callbacks import Callback

from facelab.bounds import Positive


class MinimumEpochTime(Callback):
    """A pause at the end of each epoch, so that a training lasts as long on every machine.

    Args:
        seconds: shortest time of an epoch.
    """

    def __init__(self, seconds: Positive) -> None:
        self.seconds = seconds

    def on_train_start(self, *_: Any) -> None:
        """Start the clock, also of a resume within an epoch, which Lightning does not start again."""
        self.started = time.monotonic()

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start the clock."""
        self.on_train_start()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Wait."""
        time.sleep(max(0.0, self.started + self.seconds - time.monotonic()))
