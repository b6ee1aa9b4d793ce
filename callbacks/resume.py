"""What makes a run continue where it was: checkpoints at any time, whole or not there, with the state of chance."""

import io
import os
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import distributed

from facelab import signals
from facelab.bounds import Amount
from facelab.errors import CheckpointError
from facelab.files import replacing
from facelab.internals.lightning import is_last_batch, validates_after
from facelab.renames import renamed_checkpoint
from facelab.run_folder import LAST_CHECKPOINT

CHECKPOINTS = ("best_model_path", "kth_best_model_path", "last_model_path")
"""Entries of the state of a ``ModelCheckpoint`` that are files."""

STATES = ("loops", "callbacks", "optimizer_states")
"""Entries of a checkpoint without which a run cannot continue."""


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write a file of torch that is whole or not there.

    Raises:
        OSError: of writing.
    """
    memory = io.BytesIO()  # torch tells of a full disk by a RuntimeError without a reason
    torch.save(content, memory)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(memory.getbuffer())


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the old one and then puts it in its place, so that a crash leaves one of the two.

    Lightning's own way leads through the folder for temporary files; from there to another disk it is a copy, and half
    of it is a broken checkpoint. A checkpoint of an earlier format is read with today's names.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the disk is full, or the folder cannot be written to; the old file is as it was.
        """
        write_tensors(Path(path), checkpoint)

    def load_checkpoint(self, *given: Any, **named: Any) -> dict[str, Any]:
        """Read a checkpoint, as Lightning's own with the same arguments.

        Raises:
            CheckpointError: a later version wrote it, or it lacks a state, which Lightning would begin anew in silence.
        """
        checkpoint = renamed_checkpoint(super().load_checkpoint(*given, **named))
        if lacking := [key for key in STATES if not checkpoint.get(key)]:
            raise CheckpointError(f"it has no {', '.join(lacking)}")
        return checkpoint


class ResumableCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, from which a run continues as if it had not been interrupted.

    It is written at the end of every epoch, after every ``minutes`` within one, and when the machine says that it will
    end the run (SIGTERM, SIGUSR2): then after the training step at hand, whereupon the handler that was there before
    decides what happens. During a validation that handler is called before the next batch, and the epoch's steps since
    the last checkpoint are repeated.

    Torch's random state travels along, as a tensor. What else is random in training is a function of seed, epoch and
    row, and the sampler leaves out what was already trained on.

    Args:
        folder: of ``last.ckpt``.
        minutes: between two checkpoints within an epoch.
    """

    def __init__(self, folder: str, minutes: Amount) -> None:
        self.path, self.seconds = Path(folder) / LAST_CHECKPOINT, 60 * minutes
        self.saved = 0.0  # when, by the monotonic clock
        self.told = 0  # the signal; 0 for none
        self.leaving = 0
        self.before: signals.Handlers = {}  # the handlers of the door
        self.replaced: signals.Handlers = {}  # those that Lightning put in their place
        self.chance: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The random states of torch, of each process."""
        mine = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        if not (distributed.is_available() and distributed.is_initialized()):
            return {"processes": [mine]}
        states: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(states, mine)
        return {"processes": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the random states until training begins.

        Raises:
            CheckpointError: they are no states of torch.
        """
        try:
            for state in state_dict["processes"]:
                torch.Generator().set_state(state["cpu"])
                len(state["cuda"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"no random state of torch: {error}") from error
        self.chance = state_dict

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a run know its best checkpoint by its own folder, whatever folder the checkpoint names.

        Lightning forgets the score of a run that was moved; the next validation would then replace the best checkpoint,
        however bad it is. And it removes the file that the checkpoint names as soon as there is a better one, wherever
        that lies.

        Raises:
            CheckpointError: there is no random state, and training would continue with another.
        """
        if not checkpoint["callbacks"].get(self.state_key):
            raise CheckpointError("there is no random state of torch")
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if not isinstance(callback, ModelCheckpoint) or not state:
                continue
            own = {file: _own_place(file, str(state["dirpath"]), str(callback.dirpath)) for file in _files_of(state)}
            own = {file: place for file, place in own.items() if Path(place).is_file()}
            if own.keys() == _files_of(state):
                state["best_k_models"] = {own[file]: score for file, score in state["best_k_models"].items()}
            else:  # the score of a file that is not here would count
                own = {}
                state |= {"best_k_models": {}, "best_model_score": None}
                state.pop("kth_value", None)
            state |= {key: own.get(state[key], "") for key in CHECKPOINTS} | {"dirpath": callback.dirpath}

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """See who listens before Lightning does, whose handler would talk to other processes in mid-step."""
        self.before = signals.current()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Listen to the machine."""
        self.saved, self.told, self.leaving = time.monotonic(), 0, 0
        self.replaced = signals.install(dict.fromkeys(signals.STOP_SIGNALS, self._note))

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """End the run if it was told to; bring chance to where it was, only now, since setting up a run uses it too."""
        if self.leaving:
            self._give_way(self.leaving)
        if self.chance is not None and trainer.global_rank < len(self.chance["processes"]):
            chance = self.chance["processes"][trainer.global_rank]
            torch.set_rng_state(chance["cpu"])
            if len(chance["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(chance["cuda"])
        self.chance = None

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Save if it is time or the machine said so.

        There is no going on from amid accumulated gradients, nor from before a validation. The metrics of a step are
        written after this hook: the run therefore ends before the next step, and a step that has metrics is no time to
        save without need, lest a crash come between.
        """
        done, every = batch_index + 1, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if validates_after(trainer, done) or done % trainer.accumulate_grad_batches or is_last_batch(trainer):
            return
        silent = trainer.global_step % every != 0 or every == 1
        self.leaving = self._of_all(trainer, self.told)
        if self.leaving or (silent and self._overdue(trainer)):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save; the validation of this epoch is done."""
        self._save(trainer)
        if number := self._of_all(trainer, self.told):
            self._give_way(number)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Listen no more."""
        self._restore_handlers()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """End the run instead of a validation, which may take longer than the cluster waits."""
        if trainer.state.fn == TrainerFn.FITTING and (number := self._of_all(trainer, self.told)):
            self._give_way(number)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """End the run amid a validation, each rank for itself: they need not have as many batches to go."""
        if trainer.state.fn == TrainerFn.FITTING and self.told:
            self._give_way(self.told)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Listen no more. What a dying machine does to a run is no failure of the run."""
        if self.told:
            signals.blame(exception, self.told)
        self._restore_handlers()

    def _save(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)
        self.saved = time.monotonic()

    def _of_all(self, trainer: Trainer, told: int) -> int:
        """What any process was told: to save is a task of all, and not all are told at the same step."""
        if trainer.world_size == 1:
            return told
        priority = torch.tensor(signals.PRIORITY.index(told), device=trainer.strategy.root_device)
        return signals.PRIORITY[int(trainer.strategy.reduce(priority, reduce_op="max"))]

    def _overdue(self, trainer: Trainer) -> bool:
        """Whether it is time to save, by the clock of the first process."""
        overdue = time.monotonic() - self.saved > self.seconds
        return trainer.strategy.broadcast(overdue) if trainer.world_size > 1 else overdue

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.told = number

    def _give_way(self, number: int) -> None:
        """Let who listened before decide; as a rule it ends the process."""
        self.replaced, self.told = {}, 0
        signals.hand_over(number, self.before)

    def _restore_handlers(self) -> None:
        signals.install(self.replaced)
        self.replaced = {}


def _files_of(state: dict[str, Any]) -> set[str]:
    """List the files that the state of a ``ModelCheckpoint`` names."""
    return {str(file) for file in (*state["best_k_models"], *(state[key] for key in CHECKPOINTS)) if file}


def _own_place(file: str, old: str, folder: str) -> str:
    """Name a file of one folder in another one; one that lay elsewhere gets its place in the folder itself."""
    inside = os.path.relpath(os.path.normpath(file), os.path.normpath(old))
    return str(Path(folder, Path(file).name if inside.startswith("..") else inside))
