"""Start of a script before Hydra, and conversion of errors to messages and exits.

This is the only file below the scripts that exits.
"""

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode

from facelab import signals
from facelab.errors import ConfigError, FacelabError, RunError
from facelab.run_folder import RunFolder
from facelab.runs import resolvers  # noqa: F401  registers them
from facelab.runs.argv import config_names, is_sweep, normalise_argv, take_supplements, with_trainer_keys
from facelab.runs.overrides import RESUME_PREFIX, resumed_argv
from facelab.runs.processes import RANKS, RANKS_PARENT, RERUN, STAMP, STAMP_FORMAT, choose_stamp
from facelab.runs.snapshot import run_from_copy
from facelab.runs.typed import check_typed


class JobFailed(CompactHydraException):
    """Failure of one job of a sweep. The other jobs still run; Hydra shows the message without a traceback."""


@contextmanager
def exits() -> Iterator[None]:
    """Convert a mistake of the user into an exit of the script.

    Raises:
        SystemExit: outside of a sweep, with the message.
        JobFailed: in a job of a sweep, because SystemExit would end all of its jobs.
    """
    try:
        yield
    except FacelabError as error:
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            raise JobFailed(str(error)) from error
        raise SystemExit(str(error)) from error


def start(resumable: bool = False, opens: str | None = None) -> None:
    """Prepare a script before Hydra: normalise the command line, and give all processes of the run one stamp.

    Args:
        resumable: whether the script accepts ``resume=FOLDER``.
        opens: pattern of the keys of the run that the script opens, if it accepts supplements of its configuration.

    Raises:
        SystemExit: the command line cannot be read, or ``resume=`` does not name a run or, with ``-m``, a sweep.
    """
    with exits():
        _start(resumable, opens)


def _start(resumable: bool, opens: str | None) -> None:
    """Prepare a script, see :func:`start`; errors are raised, not converted."""
    argv = normalise_argv(sys.argv[1:])
    if RANKS in os.environ:  # Lightning started this process as a rank of one run, which sets its command line
        signals.end_with_parent(int(os.environ[RANKS_PARENT]))
        rank = os.environ.get("LOCAL_RANK", "1")
        argv = [*json.loads(os.environ[RANKS]), f"hydra.job.name={Path(sys.argv[0]).stem}_rank_{rank}"]
    else:
        check_typed(argv, RESUME_PREFIX if resumable else None)
        argv = with_trainer_keys(argv)
        if opens and any(re.match(f"({opens})=", word) for word in argv):
            argv = take_supplements(argv)
    if resumable and (words := [word for word in argv if word.startswith("ckpt=")]):
        raise ConfigError(
            words[0],
            ": train.py has no such option; init=RUN starts from the weights of a run, and resume=RUN continues it",
        )
    if resumable and RunFolder(Path()).config.stem in config_names(argv):
        raise RunError(
            "config.yaml of a run holds the values of its references, such as its own folder; rerun.yaml beside it "
            f"starts another run: python train.py --config-dir RUN {RERUN}"
        )
    sys.argv[1:] = resumed_argv(argv) if resumable else argv
    started = max(int(os.environ.get(name, 1)) for name in ("SLURM_STEP_NUM_TASKS", "WORLD_SIZE"))
    if started > 1 and STAMP not in os.environ and not any(word.startswith("hydra.run.dir=") for word in sys.argv):
        raise RunError(
            f"{started} processes were started for this run, and each would create a separate folder; set the same "
            f"{STAMP} for all, for instance by: export {STAMP}=$(date +{STAMP_FORMAT})"
        )
    choose_stamp()
    if is_sweep(argv):
        run_from_copy()
    logging.raiseExceptions = False  # a full disk is reported once, by the code that needed it, not by every log line
    os.environ.setdefault("WANDB_SILENT", "true")
    # The loss of a short epoch is logged once, see LandmarkModule.on_train_start.
    warnings.filterwarnings("ignore", message=r"The number of training batches .* smaller than the logging interval")
    # Intended for a dataset without a validation split; the datamodule logs it.
    warnings.filterwarnings("ignore", message=r"Total length of `list` across ranks is zero")
    warnings.filterwarnings("ignore", message=r"`ModelCheckpoint\(monitor=.*could not find the monitored key")
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")  # intended for frozen parts
    warnings.filterwarnings("ignore", message="Checkpoint directory")  # is not empty, in a resumed run
    warnings.filterwarnings("ignore", message=r"The `srun` command is available")  # jobs are started by submitit
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")  # in Lightning
