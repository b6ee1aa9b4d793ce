"""What the project reads of Lightning 2.6 that its documentation does not promise. Tested by ``test_internals.py``."""

import threading
import traceback
from subprocess import Popen
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.connectors import checkpoint_connector


def processed_epochs(trainer: Trainer) -> int:
    """Return how many epochs of training were ended, also before a resumed run has told its sampler."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return progress.processed


def is_last_batch(trainer: Trainer) -> bool:
    """Tell whether the batch at hand is the last of its epoch."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def validates_after(trainer: Trainer, batches: int) -> bool:
    """Tell whether a validation follows so many batches of the epoch."""
    every = trainer.val_check_batch  # infinite where the validation waits for the end of the epoch
    return every is not None and every > 0 and batches % every == 0


def failed_in_restoring(error: BaseException) -> bool:
    """Tell whether an error was raised while a trainer restored the state of a checkpoint."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename == checkpoint_connector.__file__ for frame, _ in frames)


def release_children() -> list["Popen[Any]"]:
    """Stop the threads by which Lightning watches the processes that it started, and return these processes.

    Such a thread would kill this process as soon as one of them fails, in the midst of the next job of a sweep.
    """
    released: list[Popen[Any]] = []
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            observer: Any = thread
            observer._finished = True
            released += observer._child_processes
            observer._child_processes = []
    return released


def keep_handlers(trainer: Trainer) -> None:
    """Keep a trainer from installing signal handlers of its own.

    That of SIGTERM broadcasts to the other ranks from wherever the process is at the moment, and waits for ever if one
    of them is elsewhere.
    """
    trainer._signal_connector.register_signal_handlers = _do_nothing  # type: ignore[method-assign]


def _do_nothing() -> None:
    """Stand in for a method; unlike a lambda it can be pickled with the trainer."""


def drop_wandb_setting(logger: WandbLogger, name: str) -> None:
    """Keep the logger from handing a setting to ``wandb.init``, where it gives one that nobody asked for."""
    logger._wandb_init.pop(name, None)
