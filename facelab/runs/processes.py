"""Processes of one run: which one writes, how the others are started, and how they end."""

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

from facelab.run_folder import RunFolder
from facelab.runs.argv import options_of, quoted

STAMP = "FACELAB_STAMP"
"""Environment variable: start time that all processes of a run or a sweep share."""
STAMP_OWNER = "FACELAB_STAMP_OWNER"
"""Environment variable: PID of the process that created the stamp; not set if the user set the stamp."""
STAMP_FORMAT = "%Y-%m-%d_%H-%M-%S"
"""strftime format of a stamp that :func:`choose_stamp` sets."""
RANKS = "FACELAB_RANKS"
"""Environment variable: command line of the other ranks of this run, as a JSON list of words."""
RANKS_PARENT = "FACELAB_RANKS_PARENT"
"""Environment variable: PID of the process that starts the other ranks."""
RESUMED_WORDS = "FACELAB_RESUMED"
"""Environment variable: the words typed beside ``resume=``, as a JSON list."""
SEARCH_PATH = "hydra.searchpath"
"""Key of the user's folders of configuration files."""
RERUN = f"--config-name={RunFolder(Path()).rerun.stem}"
"""Option that, after ``--config-dir RUN``, starts a run with the configuration of another one."""
CHILDREN_END, CHILDREN_END_EARLY = 20, 2
"""Seconds to wait for the other processes at the end of a run: normally, and after an error or signal, when they may be
waiting for this process."""


def is_first() -> bool:
    """Return whether this process is the one that writes, among those that train together."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    first_machine = os.environ.get("NODE_RANK", "0") == "0"  # for a cluster that sets no global rank
    return rank_zero_only.rank == 0 and first_machine  # type: ignore[attr-defined]


def slurm_job() -> str | None:
    """Return the ID of the Slurm job of this process, as ``squeue`` shows it; None outside Slurm."""
    job, array = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{array}" if job else os.environ.get("SLURM_JOB_ID")


def join_tasks() -> None:
    """Set the variables by which Lightning finds the tasks of a job that submitit started on this machine."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "local" and int(os.environ["SUBMITIT_LOCAL_NTASKS"]) > 1:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def choose_stamp() -> None:
    """Set the stamp to the current time, unless it is already set."""
    if STAMP not in os.environ:
        os.environ |= {STAMP: time.strftime(STAMP_FORMAT), STAMP_OWNER: str(os.getpid())}


def restart_with_next_stamp(folder: Path) -> None:
    """Restart this process with the next second as its stamp, because the folder of this name is taken.

    Does nothing if the process did not choose the stamp, or if the folder name does not contain it.
    """
    stamp = os.environ.get(STAMP, "")
    if os.environ.get(STAMP_OWNER) != str(os.getpid()) or stamp not in str(folder):
        return
    later = datetime.strptime(stamp, STAMP_FORMAT) + timedelta(seconds=1)
    os.environ[STAMP] = later.strftime(STAMP_FORMAT)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def plain_overrides(hydra: Any) -> list[str]:
    """Return the overrides of a run as they were typed, after :func:`search_path`.

    References are not resolved: each rank resolves them, and the check reports those that cannot be resolved.

    Args:
        hydra: Hydra's own configuration.
    """
    words: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    return [*search_path(hydra), *map(str, words)]


def search_path(hydra: Any) -> list[str]:
    """Return the words that name the user's own configuration files; none if there are none.

    They are an override with the folders of ``--config-dir`` and ``hydra.searchpath`` as absolute paths, and for a
    rerun :data:`RERUN`.

    Args:
        hydra: Hydra's own configuration.
    """
    folders = [
        str(Path(source.path).absolute()) if source.schema == "file" else f"{source.schema}://{source.path}"
        for source in hydra.runtime.config_sources
        if source.provider in ("command-line", f"{SEARCH_PATH} in command-line")
    ]
    rerun = [RERUN] if hydra.job.config_name == RERUN.partition("=")[2] else []
    return [*rerun, *([f"{SEARCH_PATH}=[{','.join(map(quoted, folders))}]"] if folders else [])]


@contextmanager
def prepare_ranks(folder: Path) -> Iterator[None]:
    """Set the command line of the ranks that Lightning starts, and restore the environment afterwards.

    In a sweep it is the command line of this job. At the end the other ranks have ended: the next job of a sweep
    starts its own ranks.
    """
    before = dict(os.environ)
    os.environ["WANDB_DIR"] = str(folder)  # a spawned process does not inherit the folder of the W&B run
    if not HydraConfig.initialized() or RANKS in os.environ:
        yield
        return
    words = [*options_of(sys.argv[1:]), *plain_overrides(HydraConfig.get()), f"hydra.run.dir={quoted(folder)}"]
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
    """Wait some seconds for each process that Lightning started for this run, and kill it if it does not end."""
    if "lightning" not in sys.modules:
        return
    from facelab.internals.lightning import release_children

    for child in release_children():
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
