"""The frame of a door: what happens before Hydra, and how mistakes become messages and exits.

This is the only file below the doors that exits.
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode

from facelab import signals
from facelab.errors import FacelabError, RunError
from facelab.runs import resolvers  # noqa: F401  makes them known
from facelab.runs.argv import is_sweep, normalise_argv
from facelab.runs.overrides import RESUME, resumed_argv
from facelab.runs.processes import RANKS, RANKS_PARENT, STAMP, STAMP_FORMAT, choose_stamp
from facelab.runs.snapshot import run_from_copy
from facelab.runs.typed import check_typed


class JobFailed(CompactHydraException):
    """A job of a sweep that cannot be done. The other jobs go on; Hydra shows the message without a traceback."""


@contextmanager
def exits() -> Iterator[None]:
    """Turn what ends a door early into its exit.

    Raises:
        SystemExit: a mistake of the user's, with the message.
        JobFailed: a mistake in a job of a sweep. SystemExit would end all of its jobs.
    """
    try:
        yield
    except FacelabError as error:
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            raise JobFailed(str(error)) from error
        raise SystemExit(str(error)) from error


def start(resumable: bool = False) -> None:
    """Do what every door does before Hydra: order the command line, and give all processes of the run one stamp.

    Args:
        resumable: the door knows ``resume=FOLDER``.

    Raises:
        SystemExit: what was typed cannot be read, or ``resume=`` names something else than a run, or with ``-m`` a
            sweep.
    """
    with exits():
        _start(resumable)


def _start(resumable: bool) -> None:
    argv = normalise_argv(sys.argv[1:])
    if RANKS in os.environ:  # Lightning started this process to help with one run, and knows no more of it
        signals.end_with(int(os.environ[RANKS_PARENT]))
        rank = os.environ.get("LOCAL_RANK", "1")
        argv = [*json.loads(os.environ[RANKS]), f"hydra.job.name={Path(sys.argv[0]).stem}_rank_{rank}"]
    else:
        check_typed(argv, RESUME if resumable else None)
    sys.argv[1:] = resumed_argv(argv) if resumable else argv
    started = max(int(os.environ.get(name, 1)) for name in ("SLURM_STEP_NUM_TASKS", "WORLD_SIZE"))
    if started > 1 and STAMP not in os.environ and not any(word.startswith("hydra.run.dir=") for word in sys.argv):
        raise RunError(
            f"{started} processes were started for this run, and each would make a folder of its own; give all the "
            f"same {STAMP}, for instance by: export {STAMP}=$(date +{STAMP_FORMAT})"
        )
    choose_stamp()
    if is_sweep(argv):
        run_from_copy()
    logging.raiseExceptions = False  # a full disk is told once, by what needed it, and not by each line of the log
    os.environ.setdefault("WANDB_SILENT", "true")
    # Of a short epoch the loss is logged once, see LandmarkModule.on_train_start.
    warnings.filterwarnings("ignore", message=r"The number of training batches .* smaller than the logging interval")
    # A set without a validation by choice; the datamodule says so.
    warnings.filterwarnings("ignore", message=r"Total length of `list` across ranks is zero")
    warnings.filterwarnings("ignore", message=r"`ModelCheckpoint\(monitor=.*could not find the monitored key")
    warnings.filterwarnings("ignore", message="Checkpoint directory")  # is not empty, of a run that goes on
    warnings.filterwarnings("ignore", message=r"The `srun` command is available")  # jobs are started by submitit
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")  # Lightning's own
