"""The processes of one run: which of them writes, how the others are started, and how they end."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from facelab.runs.argv import options_of, quoted

STAMP = "FACELAB_STAMP"
"""Environment variable: the time that all processes of a run or a sweep share."""
STAMP_OWNER = "FACELAB_STAMP_OWNER"
"""Environment variable: the number of the process that chose the stamp itself; nobody typed or inherited it."""
STAMP_FORMAT = "%Y-%m-%d_%H-%M-%S"
"""Format of a stamp that is chosen."""
RANKS = "FACELAB_RANKS"
"""Environment variable: the words that the other processes of this run are started with, as a list in JSON."""
RANKS_PARENT = "FACELAB_RANKS_PARENT"
"""Environment variable: the number of the process that starts them."""
CHILDREN_END, CHILDREN_END_EARLY = 20, 2
"""Seconds that the other processes of a run have to end after it; the second after an error or a signal, when they may
wait for this process."""


def is_first() -> bool:
    """Tell whether this is the process that writes, of those that train together."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    first_machine = os.environ.get("NODE_RANK", "0") == "0"  # of a cluster that names no ranks
    return rank_zero_only.rank == 0 and first_machine  # type: ignore[attr-defined]


def slurm_job() -> str | None:
    """Return the number of the Slurm job that runs this process, as ``squeue`` shows it; None outside Slurm."""
    job, array = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{array}" if job else os.environ.get("SLURM_JOB_ID")


def join_tasks() -> None:
    """Tell Lightning of the other tasks of a job that submitit started on this machine; those of Slurm it finds."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "local" and int(os.environ["SUBMITIT_LOCAL_NTASKS"]) > 1:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def choose_stamp() -> None:
    """Set the stamp to the time of now, unless it is given."""
    if STAMP not in os.environ:
        os.environ |= {STAMP: time.strftime(STAMP_FORMAT), STAMP_OWNER: str(os.getpid())}


def restart_with_next_stamp(folder: Path) -> None:
    """Start this process again with the next second as its stamp, since a folder of this name is taken.

    Does nothing where the process did not choose the stamp, or the folder is not named by it.
    """
    stamp = os.environ.get(STAMP, "")
    if os.environ.get(STAMP_OWNER) != str(os.getpid()) or stamp not in str(folder):
        return
    later = datetime.strptime(stamp, STAMP_FORMAT) + timedelta(seconds=1)
    os.environ[STAMP] = later.strftime(STAMP_FORMAT)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@contextmanager
def ranks(folder: Path) -> Iterator[None]:
    """Say what Lightning's other processes of this run are to do: in a sweep, this job and not the sweep.

    Afterwards the process is as if it had never been one of several, so that the next job of a sweep starts its own.
    """
    before = dict(os.environ)
    os.environ["WANDB_DIR"] = str(folder)  # in a process that was spawned, a W&B run forgets where it lies
    if not HydraConfig.initialized() or RANKS in os.environ:
        yield
        return
    # As they were typed: a reference in one of them is resolved there, and one that leads nowhere is told by the check.
    typed: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    words = [*options_of(sys.argv[1:]), *typed, f"hydra.run.dir={quoted(folder)}"]
    os.environ |= {RANKS: json.dumps(words), RANKS_PARENT: str(os.getpid())}
    patience = CHILDREN_END_EARLY
    try:
        yield
        patience = CHILDREN_END
    finally:
        _end_children(patience)
        if "torch" in sys.modules:
            from torch import distributed

            if distributed.is_available() and distributed.is_initialized():
                distributed.destroy_process_group()
        for key in os.environ.keys() - before.keys():
            del os.environ[key]
        os.environ.update(before)


def _end_children(patience: float) -> None:
    """Wait some seconds for the processes that Lightning started for this run, and end those that do not end."""
    if "lightning" not in sys.modules:
        return
    from facelab.internals.lightning import release_children

    for child in release_children():
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
