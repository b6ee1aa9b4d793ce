"""Checkpoints for an exact resume: atomic files, written at any step, with the RNG state."""

import io
import os
import re
import shutil
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import distributed

from facelab import signals
from facelab.bounds import Amount
from facelab.errors import CheckpointError
from facelab.files import replacing
from facelab.internals.lightning import is_last_batch, number_files, validates_after
from facelab.renames import renamed_checkpoint
from facelab.run_folder import LAST_CHECKPOINT

CHECKPOINTS = ("best_model_path", "kth_best_model_path", "last_model_path")
"""Entries with a file name in the state of a ``ModelCheckpoint``."""

STATES = ("loops", "callbacks", "optimizer_states")
"""Entries of a checkpoint that a resume requires."""


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write a torch file atomically.

    Raises:
        OSError: the file cannot be written.
    """
    buffer = io.BytesIO()  # on a full disk torch.save to a file raises a RuntimeError without a reason
    torch.save(content, buffer)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(buffer.getbuffer())


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint writer that replaces the old file atomically: after a crash the old or the new file is complete.

    Lightning writes to the folder for temporary files first. Moving the file to another disk is then a copy, and an
    interrupted copy is a broken checkpoint. Old names in a checkpoint of an earlier format are replaced on reading.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the disk is full, or the folder is not writable; the old file is unchanged.
        """
        write_tensors(Path(path), checkpoint)

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint; the arguments are those of Lightning's method.

        Raises:
            CheckpointError: a later version wrote the file, or a state is missing. Lightning would silently start
                without that state.
        """
        checkpoint = renamed_checkpoint(super().load_checkpoint(*args, **kwargs))
        # Spawned ranks return their weights through this class, too: a bare state dict.
        missing = [key for key in STATES if not checkpoint.get(key)]
        if "state_dict" in checkpoint and missing:
            raise CheckpointError(f"it has no {', '.join(missing)}")
        return checkpoint


class ResumableCheckpoint(Checkpoint):
    """Writer of ``last.ckpt``, from which a resumed run gives the same result as an uninterrupted one.

    It writes the checkpoint at the end of each epoch, every ``minutes`` within an epoch, and after a stop signal
    (SIGTERM, SIGUSR2). After a signal it finishes the training step, saves, and calls the handler that was installed
    before it. During a validation it calls that handler before the next batch without saving: a resume repeats the
    steps since the last checkpoint.

    Before it writes the checkpoint, it gives the best file of each ``ModelCheckpoint`` the name without a number.

    The checkpoint contains torch's RNG state as a tensor. All other random draws of training are functions of seed,
    epoch and row, and the sampler skips the rows that were already used for training.

    Args:
        folder: folder of ``last.ckpt``.
        minutes: time between two checkpoints within an epoch.
    """

    def __init__(self, folder: str, minutes: Amount) -> None:
        self.path, self.seconds = Path(folder) / LAST_CHECKPOINT, 60 * minutes
        self.last_save = 0.0  # seconds of the monotonic clock
        self.received_signal = 0  # number of the signal that this rank has received, 0 for none
        self.pending_signal = 0  # number of the signal that ends the run before the next step, 0 for none
        self.previous_handlers: signals.Handlers = {}  # handlers that were installed before the training
        self.replaced_handlers: signals.Handlers = {}  # handlers of Lightning, which this callback replaces
        self.rng_states: dict[str, Any] | None = None  # states to restore before the first step

    def state_dict(self) -> dict[str, Any]:
        """Return torch's RNG states of all ranks."""
        local = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        if not (distributed.is_available() and distributed.is_initialized()):
            return {"processes": [local]}
        states: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(states, local)
        return {"processes": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the RNG states until training begins.

        Raises:
            CheckpointError: they are not torch's RNG states.
        """
        try:
            for state in state_dict["processes"]:
                torch.Generator().set_state(state["cpu"])
                len(state["cuda"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"its RNG state of torch is broken: {error}") from error
        self.rng_states = state_dict

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Replace the folder in the paths of the best checkpoints by the current folder of the run.

        If a run was moved, Lightning discards its best score, and the next validation would replace the best
        checkpoint even by a worse one. Lightning would also delete the old path once there is a better checkpoint,
        although it may be a file of another run.

        Raises:
            CheckpointError: the RNG state is missing; training would use another one.
        """
        if not checkpoint["callbacks"].get(self.state_key):
            raise CheckpointError("it has no RNG state of torch")
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if not isinstance(callback, ModelCheckpoint) or not state:
                continue
            moved = {file: _moved(file, str(state["dirpath"]), str(callback.dirpath)) for file in _files_of(state)}
            moved = {file: path for file, path in moved.items() if Path(path).is_file()}
            if moved.keys() == _files_of(state):
                state["best_k_models"] = {moved[file]: score for file, score in state["best_k_models"].items()}
            else:  # discard all scores; a score whose file is missing would still be compared with new ones
                moved = {}
                state |= {"best_k_models": {}, "best_model_score": None}
                state.pop("kth_value", None)
            state |= {key: moved.get(state[key], "") for key in CHECKPOINTS} | {"dirpath": callback.dirpath}

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Store the current handlers before Lightning installs its own, and number the best checkpoints if several.

        Lightning's handler would communicate with other ranks in the middle of a step.
        """
        self.previous_handlers = signals.current_handlers()
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_top_k not in (0, 1):
                number_files(callback)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Install the handlers of the stop signals, and end a resumed training that was already stopped early."""
        for stopping in trainer.early_stopping_callbacks:
            if isinstance(stopping, EarlyStopping) and stopping.wait_count >= stopping.patience:
                trainer.should_stop = True  # Lightning would train another epoch
        self.last_save, self.received_signal, self.pending_signal = time.monotonic(), 0, 0
        self.replaced_handlers = signals.install(dict.fromkeys(signals.STOP_SIGNALS, self._store_signal))

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """End the run if a signal is pending, and restore the RNG state before the first step.

        The state is not restored earlier because the setup of a run draws random numbers too.
        """
        if self.pending_signal:
            self._call_previous_handler(self.pending_signal)
        if self.rng_states is not None and trainer.global_rank < len(self.rng_states["processes"]):
            rng_state = self.rng_states["processes"][trainer.global_rank]
            torch.set_rng_state(rng_state["cpu"])
            if len(rng_state["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(rng_state["cuda"])
        self.rng_states = None

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Save after a stop signal or when a checkpoint is due.

        A run cannot be resumed from the middle of an accumulated step or from just before a validation. Lightning logs
        the metrics of a step after this hook. The run therefore ends before the next step. Checkpoints that are due
        are saved only after a step without logged metrics. Otherwise a crash between saving and logging would lose
        those metrics.
        """
        batches, every = batch_index + 1, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if validates_after(trainer, batches) or batches % trainer.accumulate_grad_batches or is_last_batch(trainer):
            return
        without_metrics = trainer.global_step % every != 0 or every == 1
        self.pending_signal = self._global_signal(trainer, self.received_signal)
        if self.pending_signal or (without_metrics and self._is_due(trainer)):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save after the validation of the epoch."""
        self._save(trainer)
        if number := self._global_signal(trainer, self.received_signal):
            self._call_previous_handler(number)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Restore the handlers of the stop signals."""
        self._restore_handlers()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """End the run after a stop signal. A validation may take longer than the cluster waits."""
        if trainer.state.fn == TrainerFn.FITTING and (number := self._global_signal(trainer, self.received_signal)):
            self._call_previous_handler(number)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """End the run during a validation after a stop signal.

        Each rank ends alone, since the ranks need not have the same number of batches left.
        """
        if trainer.state.fn == TrainerFn.FITTING and self.received_signal:
            self._call_previous_handler(self.received_signal)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Restore the handlers and record a received signal in the exception.

        The run then gets the state ``stopped`` and not ``failed``.
        """
        if self.received_signal:
            signals.record_signal(exception, self.received_signal)
        self._restore_handlers()

    def _save(self, trainer: Trainer) -> None:
        """Save last.ckpt and restart the clock."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    _name_best(trainer, callback)
            trainer.save_checkpoint(self.path)
        self.last_save = time.monotonic()

    def _global_signal(self, trainer: Trainer, local: int) -> int:
        """Return the signal that any rank has received, by :data:`signals.PRIORITY`; 0 for none.

        All ranks must save together, but the signal may reach them at different steps.
        """
        if trainer.world_size == 1:
            return local
        priority = torch.tensor(signals.PRIORITY.index(local), device=trainer.strategy.root_device)
        return signals.PRIORITY[int(trainer.strategy.reduce(priority, reduce_op="max"))]

    def _is_due(self, trainer: Trainer) -> bool:
        """Return whether a checkpoint is due by the clock of rank 0."""
        is_due = time.monotonic() - self.last_save > self.seconds
        return trainer.strategy.broadcast(is_due) if trainer.world_size > 1 else is_due

    def _store_signal(self, number: int, frame: FrameType | None) -> None:
        """Store a received signal until the end of the step."""
        self.received_signal = number

    def _call_previous_handler(self, number: int) -> None:
        """Call the handler that was installed before, which usually ends the process."""
        self.replaced_handlers, self.received_signal = {}, 0
        signals.call_handler(number, self.previous_handlers)

    def _restore_handlers(self) -> None:
        """Restore Lightning's handlers of the stop signals."""
        signals.install(self.replaced_handlers)
        self.replaced_handlers = {}


def _name_best(trainer: Trainer, callback: ModelCheckpoint) -> None:
    """Give the best file the name without a number, and the file with this name that of the best.

    Lightning numbers the files by their age. The name without a number always exists, also after a crash.
    """
    best, scores = Path(callback.best_model_path), callback.best_k_models
    if not (match := re.fullmatch(rf"({re.escape(callback.filename or '')})-v\d+", best.stem)):
        return
    plain = best.with_stem(match[1])
    if trainer.is_global_zero and str(plain) in scores:
        with replacing(best) as temporary:
            shutil.copyfile(plain, temporary)
            best.replace(plain)
    elif trainer.is_global_zero:  # a file that no score belongs to, such as that of an earlier stage of DAN
        best.replace(plain)
    trainer.strategy.barrier()
    renamed = {str(best): str(plain), str(plain): str(best)}
    callback.best_k_models = {renamed.get(path, path): score for path, score in scores.items()}
    callback.kth_best_model_path = renamed.get(callback.kth_best_model_path, callback.kth_best_model_path)
    callback.best_model_path = str(plain)


def _files_of(state: dict[str, Any]) -> set[str]:
    """List the files that the state of a ``ModelCheckpoint`` names."""
    return {str(file) for file in (*state["best_k_models"], *(state[key] for key in CHECKPOINTS)) if file}


def _moved(file: str, old_folder: str, folder: str) -> str:
    """Return the path of a file after its folder was moved; a file outside the old folder is placed directly in it."""
    relative = os.path.relpath(os.path.normpath(file), os.path.normpath(old_folder))
    return str(Path(folder, Path(file).name if relative.startswith("..") else relative))
