"""Undocumented parts of Lightning 2.6 that the project uses. Tested by ``test_internals.py``."""

import threading
import traceback
from subprocess import Popen
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.connectors import checkpoint_connector


def processed_epochs(trainer: Trainer) -> int:
    """Return the number of completed training epochs; also correct before a resumed run has called set_epoch."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return progress.processed


def is_last_batch(trainer: Trainer) -> bool:
    """Return whether the current batch is the last of its epoch."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def validates_after(trainer: Trainer, batches: int) -> bool:
    """Return whether a validation follows after this number of batches of the epoch."""
    every = trainer.val_check_batch  # infinite if the validation follows only after the last batch
    return every is not None and every > 0 and batches % every == 0


def failed_in_restoring(error: BaseException) -> bool:
    """Return whether an error was raised while a trainer restored the state of a checkpoint."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename == checkpoint_connector.__file__ for frame, _ in frames)


def allow_unused_parameters(trainer: Trainer) -> None:
    """Let some parameters be without a gradient in a distributed training, before the strategy wraps the module."""
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._ddp_kwargs["find_unused_parameters"] = True


def forget_best(trainer: Trainer) -> None:
    """Reset the best values of ``ModelCheckpoint`` and ``EarlyStopping``; a file of a fixed name is then replaced."""
    for stopping in trainer.early_stopping_callbacks:
        if isinstance(stopping, EarlyStopping):
            stopping.wait_count = 0
            stopping.best_score = torch.tensor(torch.inf if stopping.mode == "min" else -torch.inf)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            for path in callback.best_k_models.keys() - {callback.best_model_path}:
                trainer.strategy.remove_checkpoint(path)
            callback.best_k_models, callback.best_model_score = {}, None
            callback.best_model_path = callback.kth_best_model_path = ""


def number_files(callback: ModelCheckpoint) -> None:
    """Let a ``ModelCheckpoint`` of several files name them NAME.ckpt, NAME-v1.ckpt and so on."""
    callback._enable_version_counter = True


def release_children() -> list["Popen[Any]"]:
    """Stop Lightning's threads that watch the processes it started, and return these processes.

    Such a thread would kill this process as soon as one of them fails, even during the next job of a sweep.
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
    """Prevent a trainer from installing Lightning's signal handlers.

    Lightning's handler of SIGTERM broadcasts to the other ranks from any point of the program, and blocks indefinitely
    if one of them is at another point.
    """
    trainer._signal_connector.register_signal_handlers = _do_nothing  # type: ignore[method-assign]


def _do_nothing() -> None:
    """Do nothing, as a replacement of a method; unlike a lambda it can be pickled with the trainer."""


def drop_wandb_setting(logger: WandbLogger, name: str) -> None:
    """Remove a setting that the logger would pass to ``wandb.init`` although the user did not set it."""
    logger._wandb_init.pop(name, None)
