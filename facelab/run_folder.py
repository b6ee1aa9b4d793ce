"""The folder of a run: the names of its files, and the state that it tells."""

import functools
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from facelab.errors import RunError
from facelab.files import parse_json, read_json, read_text

TEST_PICTURE, WORST_PICTURE = "test.png", "worst.png"
"""Pictures of the test in the folder ``samples``."""
LAST_CHECKPOINT = "last.ckpt"
"""The checkpoint that a run continues from, in the folder ``checkpoints``."""
NUMBERLESS = ("paths", "logger")
"""Nodes of a configuration that change where things lie and what is logged, but no number."""
WATCHERS = frozenset(
    {
        *("callbacks.charts.Charts", "callbacks.pictures.FaceGrid", "callbacks.pictures.WorstFaces"),
        *("callbacks.results.Results", "callbacks.resume.ResumableCheckpoint", "callbacks.epoch_lines.EpochLines"),
        "callbacks.finite_loss.FiniteLoss",  # its option is of the root, and counted there
        *(f"lightning.pytorch.callbacks.{name}ProgressBar" for name in ("Rich", "TQDM")),
        *(f"lightning.pytorch.callbacks.{name}Monitor" for name in ("DeviceStats", "LearningRate")),
        *(f"lightning.pytorch.callbacks.{name}Summary" for name in ("Model", "RichModel")),
    }
)
"""Callbacks that watch a run and change no number; every other class counts as one that does."""
BEST = "lightning.pytorch.callbacks.ModelCheckpoint"
"""Callback that changes a number only where the best checkpoint is tested."""
STAMPED = r"^\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d"
"""How the name of a folder begins that was not chosen by hand."""
HEARTBEAT = 60
"""Seconds between two signs of life of a run."""
LOST_AFTER = 300
"""Seconds without a sign of life after which a run is taken for dead."""
MOST_JOBS = 10_000
"""Cells of a sweep that are read."""
LARGEST_SWEEP = 2**24
"""Bytes of a sweep.json that is read: for each of that many jobs 1.6 kB of overrides."""


@dataclass(frozen=True)
class RunFolder:
    """Where the files of a run, or of a sweep, lie. None of them need exist.

    The names of ``checkpoints``, ``samples`` and ``metrics.csv`` stand in ``conf/`` as well, which cannot import.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Configuration of the run, resolved."""
        return self.path / "config.yaml"

    @property
    def overrides(self) -> Path:
        """Overrides that the run was started with."""
        return self.path / "overrides.yaml"

    @property
    def environment(self) -> Path:
        """Versions, machine and state of the code."""
        return self.path / "environment.json"

    @property
    def status(self) -> Path:
        """State of the run, see :func:`read_status`."""
        return self.path / "status.json"

    @property
    def lock(self) -> Path:
        """Lock of the process that is at work in the folder."""
        return self.path / ".lock"

    @property
    def curves(self) -> Path:
        """Metrics logged during the training."""
        return self.path / "metrics.csv"

    @property
    def metrics(self) -> Path:
        """Protocol and numbers of the test."""
        return self.path / "metrics.json"

    @property
    def faces(self) -> Path:
        """Errors of the test, one row for each face."""
        return self.path / "faces.csv"

    def bad_batch(self, rank: int) -> Path:
        """Name the file of the batch whose loss was not finite, with the weights."""
        return self.path / f"bad_batch_rank{rank}.pt"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, name: str) -> Path:
        """Name the file of a checkpoint, ``last`` or ``best``."""
        return (self.checkpoints / LAST_CHECKPOINT).with_stem(name)

    @property
    def samples(self) -> Path:
        """Folder of the pictures."""
        return self.path / "samples"

    @property
    def test_picture(self) -> Path:
        """The first faces of the test."""
        return self.samples / TEST_PICTURE

    @property
    def worst_picture(self) -> Path:
        """The worst faces of the test."""
        return self.samples / WORST_PICTURE

    @property
    def benchmark(self) -> Path:
        """Size and speed of the model, the landmarks alone."""
        return self.path / "benchmark.json"

    @property
    def benchmark_pose(self) -> Path:
        """Size and speed of the model, landmarks and head pose together."""
        return self.path / "benchmark_pose.json"

    @property
    def sweep(self) -> Path:
        """Cells of a sweep, in the folder of the sweep."""
        return self.path / "sweep.json"

    def job(self, number: int | str) -> "RunFolder":
        """Give the folder of a job of this sweep."""
        return RunFolder(self.path / str(number))


def owner_of(checkpoint: Path) -> RunFolder | None:
    """Return the folder of the run that a checkpoint lies in; None for a file that was copied elsewhere."""
    run = RunFolder(checkpoint.parent.parent)
    return run if checkpoint.parent == run.checkpoints else None


class Status(NamedTuple):
    """What became of a run."""

    state: str
    """``running``, ``finished``, ``failed``, ``stopped`` (asked to end, can go on), ``queued`` (a cluster starts it
    again), ``lost`` (said ``running``, but died without a word), ``missing`` (not begun), ``unknown`` (no file),
    ``unreadable`` (a broken one)."""
    reason: str  # why there are no results, in one line; empty if all is well
    content: dict[str, Any]  # of status.json


def now() -> str:
    """Give this moment, to the second, with the time zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def read_status(folder: Path) -> Status:
    """Read the state of a run.

    Args:
        folder: of the run.
    """
    if not folder.is_dir():
        return Status("missing", "not begun", {})
    file = RunFolder(folder).status
    try:
        content = parse_json(read_text(file) or "{}")
    except FileNotFoundError:
        return Status("unknown", "", {})
    except (OSError, ValueError) as error:
        return Status("unreadable", f"{file.name}: {error}", {})
    if not isinstance(content, dict):
        return Status("unreadable", f"{file.name} is no mapping", {})
    state, reason = str(content.get("state", "unknown")), " ".join(str(content.get("reason", "")).split())
    if state == "queued" and (job := content.get("slurm_job")) and not _in_queue(str(job)):
        return Status("lost", "requeued, but no longer in the queue", content)
    if state != "running":
        return Status(state, reason, content)
    who = "process {} on {}".format(*(content.get(key, "?") for key in ("pid", "host")))
    if why := _death(content):
        return Status("lost", f"{who}: {why}", content)
    return Status("running", f"since {content.get('started', '?')}, {who}", content)


def _death(content: dict[str, Any]) -> str:
    """Say why a run that says it is running is not; empty if it may well be."""
    if content.get("host") == socket.gethostname() and isinstance(pid := content.get("pid"), int):
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):  # the second: no process has such a number
            return "the process is gone"
        except PermissionError:  # of another user, if it is the same process at all
            pass
    seen = content.get("heartbeat") or content.get("started")
    try:
        silent = time.time() - datetime.fromisoformat(str(seen)).timestamp()
    except (ValueError, OverflowError):
        return f"no sign of life, {seen!r} is no time"
    return f"no sign of life since {seen}" if silent > LOST_AFTER else ""


def read_jobs(folder: Path) -> dict[int, list[str]]:
    """Read number and overrides of the runs that a sweep is made of; empty for a folder that is none.

    Raises:
        RunError: sweep.json holds something else.
    """
    path = RunFolder(folder).sweep
    try:
        content = read_json(path, LARGEST_SWEEP)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    jobs = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(jobs, dict):
        raise RunError(f"{path} cannot be read: it has no `cells`")
    if len(jobs) > MOST_JOBS:
        raise RunError(f"{path} lists {len(jobs):,} jobs; {MOST_JOBS:,} are read at most")
    for name, overrides in jobs.items():
        if not re.fullmatch("0|[1-9][0-9]{0,8}", name):
            raise RunError(f"{path}: the job {name[:40]!r} has no whole number for a name")
        if not isinstance(overrides, list) or not all(isinstance(word, str) for word in overrides):
            raise RunError(f"{path}: the overrides of job {name} are no list of words")
    return {int(name): overrides for name, overrides in sorted(jobs.items())}


def is_infinite(name: str, counts: Mapping[str, int]) -> bool:
    """Tell whether a number that is null in ``metrics.json`` is infinite; otherwise it has no face.

    JSON has neither. With faces behind it, a point of one of them was not predicted.

    Args:
        name: of the number.
        counts: name of a mean error to the faces behind it, as the file gives them.
    """
    faces = [counts.get(name, counts.get("nme_ioc", 0))]
    if name == "nme_box_yaw_mean":  # undefined as soon as one bucket is empty
        faces += [count for bucket, count in counts.items() if bucket.startswith("nme_box_yaw_")]
    return all(faces)


def counted(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give what of a configuration may change a number.

    Without the nodes :data:`NUMBERLESS`, and of the callbacks without those that only watch, see :data:`WATCHERS`,
    and without what lies in the folder of the run.

    Args:
        config: of a run, in plain containers with today's names.
    """
    kept = {key: node for key, node in config.items() if key not in NUMBERLESS}
    if not isinstance(callbacks := kept.get("callbacks"), Mapping):
        return kept
    paths = config.get("paths")
    own = str(paths.get("run") or "") if isinstance(paths, Mapping) else ""
    counting = {name: node for name, node in callbacks.items() if node is not None and not _watches(node, config)}
    del kept["callbacks"]
    return kept | ({"callbacks": {name: _elsewhere(node, own) for name, node in counting.items()}} if counting else {})


def _watches(callback: Any, config: Mapping[str, Any]) -> bool:
    if not isinstance(callback, Mapping):
        return False
    evaluated = config.get("evaluate")
    file = str(evaluated.get("ckpt")) if isinstance(evaluated, Mapping) else ""
    tests_best = config.get("test_ckpt") == "best" or Path(file).name == RunFolder(Path()).checkpoint("best").name
    return (name := str(callback.get("_target_"))) in WATCHERS or (name == BEST and not tests_best)


def _elsewhere(callback: Any, own: str) -> Any:
    """Leave out the files and folders of a callback that lie in the folder of its run."""
    if not isinstance(callback, Mapping) or not own:
        return callback
    return {key: value for key, value in callback.items() if not f"{value}/".startswith(f"{own}/")}


def _in_queue(job: str) -> bool:
    """Tell whether a job is still known to Slurm; where it cannot be asked, that is not known and taken for yes."""
    jobs = _queue()
    return jobs is None or job in jobs


@functools.cache
def _queue() -> frozenset[str] | None:
    """Slurm's jobs of all users, asked once; None where there is no Slurm or it does not answer."""
    if shutil.which("squeue") is None:
        return None
    line = ["squeue", "--noheader", "--array", "--format=%i"]
    try:
        asked = subprocess.run(line, capture_output=True, text=True, check=True, timeout=20)
    except (subprocess.SubprocessError, OSError):
        return None
    return frozenset(asked.stdout.split())
