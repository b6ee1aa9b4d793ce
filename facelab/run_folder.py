"""Folder of a run: the names of its files, and the state that is recorded in it."""

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
"""Checkpoint from which a run resumes, in the folder ``checkpoints``."""
PASSIVE_NODES = ("paths", "logger", "trust")
"""Nodes of a configuration that set paths, logging and allowed packages, and change no result."""
PASSIVE_CALLBACKS = frozenset(
    {
        *("callbacks.charts.Charts", "callbacks.pictures.FaceGrid", "callbacks.pictures.WorstFaces"),
        "callbacks.pictures.WorstPhotos",
        *("callbacks.results.Results", "callbacks.resume.ResumableCheckpoint", "callbacks.epoch_lines.EpochLines"),
        "callbacks.finite_loss.FiniteLoss",  # its option is a key of the root, which is compared
        *(f"lightning.pytorch.callbacks.{name}ProgressBar" for name in ("Rich", "TQDM")),
        *(f"lightning.pytorch.callbacks.{name}Monitor" for name in ("DeviceStats", "LearningRate")),
        *(f"lightning.pytorch.callbacks.{name}Summary" for name in ("Model", "RichModel")),
    }
)
"""Classes of callbacks that change no result; every other class is treated as one that may."""
BEST_CALLBACK = "lightning.pytorch.callbacks.ModelCheckpoint"
"""Class of the callback that changes a result only if the best checkpoint is tested."""
STAMPED = r"^\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d"
"""Pattern of the stamp at the beginning of a folder name, unless the user chose the name."""
HEARTBEAT = 60
"""Seconds between two heartbeats of a run."""
LOST_AFTER = 300
"""Seconds without a heartbeat after which a run counts as lost: five missed ones."""
MAX_JOBS = 10_000
"""Largest number of jobs of a sweep that is read."""
MAX_SWEEP_BYTES = 2**24
"""Largest size in bytes of a sweep.json that is read: 1.6 kB of overrides for each of :data:`MAX_JOBS` jobs."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of the files of a run or of a sweep; they need not exist.

    ``conf/`` repeats the names ``checkpoints``, ``samples`` and ``metrics.csv``, because YAML cannot import them.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def name(self) -> str:
        """Return the name of the folder; for a job of a sweep, after the name of the sweep: ``SWEEP/0``."""
        return f"{self.path.parent.name}/{self.path.name}" if self.path.name.isdecimal() else self.path.name

    @property
    def config(self) -> Path:
        """Return the path of the resolved configuration of the run."""
        return self.path / "config.yaml"

    @property
    def rerun(self) -> Path:
        """Return the path of the configuration with its references, from which another run starts."""
        return self.path / "rerun.yaml"

    @property
    def overrides(self) -> Path:
        """Return the path of the overrides of the last start of the run."""
        return self.path / "overrides.yaml"

    @property
    def environment(self) -> Path:
        """Return the path of the versions, the machine and the state of the code."""
        return self.path / "environment.json"

    @property
    def status(self) -> Path:
        """Return the path of the state of the run, see :func:`read_status`."""
        return self.path / "status.json"

    @property
    def lock(self) -> Path:
        """Return the path of the lock of the process that is running in the folder."""
        return self.path / ".lock"

    @property
    def curves(self) -> Path:
        """Return the path of the metrics that were logged during the training."""
        return self.path / "metrics.csv"

    @property
    def metrics(self) -> Path:
        """Return the path of the protocol and the metrics of the test."""
        return self.path / "metrics.json"

    @property
    def faces(self) -> Path:
        """Return the path of the errors of the test, one row for each face."""
        return self.path / "faces.csv"

    @property
    def detections(self) -> Path:
        """Return the path of all detections and annotated faces of a detector's test, for programs."""
        return self.path / "detections.npz"

    @property
    def detections_csv(self) -> Path:
        """Return the path of the detections of a detector's test with a score from 0.3, one row for each."""
        return self.path / "detections.csv"

    @property
    def photos(self) -> Path:
        """Return the path of the counts of a detector's test, one row for each photo."""
        return self.path / "photos.csv"

    @property
    def detection_curves(self) -> Path:
        """Return the path of the curves of a detector's test: precision, recall and false detections per photo."""
        return self.path / "detection_curves.csv"

    @property
    def submission(self) -> Path:
        """Return the path of the folder of a detector's detections in the format of WIDER FACE."""
        return self.path / "submission"

    def bad_batch(self, rank: int) -> Path:
        """Return the path of a batch whose loss was not finite, with the weights, of one rank."""
        return self.path / f"bad_batch_rank{rank}.pt"

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, name: str) -> Path:
        """Return the path of a checkpoint, ``last`` or ``best``."""
        return (self.checkpoints / LAST_CHECKPOINT).with_stem(name)

    @property
    def samples(self) -> Path:
        """Return the folder of the pictures."""
        return self.path / "samples"

    @property
    def test_picture(self) -> Path:
        """Return the path of the picture of the first faces of the test."""
        return self.samples / TEST_PICTURE

    @property
    def worst_picture(self) -> Path:
        """Return the path of the picture of the worst faces or photos of the test."""
        return self.samples / WORST_PICTURE

    @property
    def benchmark(self) -> Path:
        """Return the path of the size and speed of the model for landmarks alone."""
        return self.path / "benchmark.json"

    @property
    def benchmark_pose(self) -> Path:
        """Return the path of the size and speed of the model for landmarks and head pose together."""
        return self.path / "benchmark_pose.json"

    @property
    def sweep(self) -> Path:
        """Return the path of the list of jobs, in the folder of a sweep."""
        return self.path / "sweep.json"

    def job(self, number: int | str) -> "RunFolder":
        """Return the folder of a job of this sweep."""
        return RunFolder(self.path / str(number))


def owner_of(checkpoint: Path) -> RunFolder | None:
    """Return the folder of the run that contains a checkpoint; None for a file that was copied elsewhere."""
    run = RunFolder(checkpoint.parent.parent)
    return run if checkpoint.parent == run.checkpoints else None


class Status(NamedTuple):
    """State of a run."""

    state: str
    """``running``, ``finished``, ``failed``, ``stopped`` (by a signal; can be resumed), ``queued`` (a cluster starts
    it again), ``lost`` (recorded as ``running``, but was killed), ``missing`` (not started), ``unknown`` (no file),
    ``unreadable`` (a broken file)."""
    reason: str  # why there are no results, in one line; empty if there is no problem
    content: dict[str, Any]  # content of status.json


def now() -> str:
    """Return the current time in ISO 8601, to the second, with the time zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def read_status(folder: Path) -> Status:
    """Read the state of a run.

    Args:
        folder: folder of the run.
    """
    if not folder.is_dir():
        return Status("missing", "not started", {})
    file = RunFolder(folder).status
    try:
        content = parse_json(read_text(file) or "{}")
    except FileNotFoundError:
        return Status("unknown", "", {})
    except (OSError, ValueError) as error:
        return Status("unreadable", f"{file.name}: {error}", {})
    if not isinstance(content, dict):
        return Status("unreadable", f"{file.name} is not a mapping", {})
    state, reason = str(content.get("state", "unknown")), " ".join(str(content.get("reason", "")).split())
    if state == "queued" and (job := content.get("slurm_job")) and not _in_queue(str(job)):
        return Status("lost", "requeued, but no longer in the queue", content)
    if state != "running":
        return Status(state, reason, content)
    who = "process {} on {}".format(*(content.get(key, "?") for key in ("pid", "host")))
    if why := _why_lost(content):
        return Status("lost", f"{who}: {why}", content)
    return Status("running", f"since {content.get('started', '?')}, {who}", content)


def _why_lost(content: dict[str, Any]) -> str:
    """Return the reason why a run with the state ``running`` is lost; empty if it may be running."""
    if content.get("host") == socket.gethostname() and isinstance(pid := content.get("pid"), int):
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):  # the second: no process has such a number
            return "the process does not exist"
        except PermissionError:  # of another user, if it is the same process at all
            pass
    seen = content.get("heartbeat") or content.get("started")
    try:
        silent = time.time() - datetime.fromisoformat(str(seen)).timestamp()
    except (ValueError, OverflowError):
        return f"no heartbeat, {seen!r} is not a time"
    return f"no heartbeat since {seen}" if silent > LOST_AFTER else ""


def read_jobs(folder: Path) -> dict[int, list[str]]:
    """Read number and overrides of the jobs of a sweep; empty for a folder that is not a sweep.

    Raises:
        RunError: sweep.json has invalid content.
    """
    path = RunFolder(folder).sweep
    try:
        content = read_json(path, MAX_SWEEP_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    # The key is `cells` because old sweeps have it; their jobs were called cells.
    jobs = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(jobs, dict):
        raise RunError(f"{path} cannot be read: it has no `cells`")
    if len(jobs) > MAX_JOBS:
        raise RunError(f"{path} lists {len(jobs):,} jobs; the maximum is {MAX_JOBS:,}")
    for name, overrides in jobs.items():
        if not re.fullmatch("0|[1-9][0-9]{0,8}", name):
            raise RunError(f"{path}: the job {name[:40]!r} has a name that is not a whole number")
        if not isinstance(overrides, list) or not all(isinstance(word, str) for word in overrides):
            raise RunError(f"{path}: the overrides of job {name} are not a list of words")
    return {int(name): overrides for name, overrides in sorted(jobs.items())}


def result_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that may change a result.

    Leaves out the nodes :data:`PASSIVE_NODES`, the callbacks :data:`PASSIVE_CALLBACKS`, and the paths of other
    callbacks that are in the folder of the run.

    Args:
        config: configuration of a run, in plain containers with today's names.
    """
    kept = {key: node for key, node in config.items() if key not in PASSIVE_NODES}
    if not isinstance(callbacks := kept.get("callbacks"), Mapping):
        return kept
    paths = config.get("paths")
    home = str(paths.get("run") or "") if isinstance(paths, Mapping) else ""
    active = {name: node for name, node in callbacks.items() if node is not None and not _is_passive(node, config)}
    del kept["callbacks"]
    return kept | ({"callbacks": {name: _without_paths(node, home) for name, node in active.items()}} if active else {})


def _is_passive(callback: Any, config: Mapping[str, Any]) -> bool:
    """Return whether a callback changes no result; that of best.ckpt changes one only if best.ckpt is tested."""
    if not isinstance(callback, Mapping):
        return False
    evaluated = config.get("evaluate")
    file = str(evaluated.get("ckpt")) if isinstance(evaluated, Mapping) else ""
    tests_best = config.get("test_ckpt") == "best" or Path(file).name == RunFolder(Path()).checkpoint("best").name
    return (name := str(callback.get("_target_"))) in PASSIVE_CALLBACKS or (name == BEST_CALLBACK and not tests_best)


def _without_paths(callback: Any, home: str) -> Any:
    """Return a callback without its files and folders that are in the folder of its run."""
    if not isinstance(callback, Mapping) or not home:
        return callback
    return {key: value for key, value in callback.items() if not f"{value}/".startswith(f"{home}/")}


def _in_queue(job: str) -> bool:
    """Return whether a job is still in Slurm's queue; True if the queue cannot be read."""
    jobs = _queue()
    return jobs is None or job in jobs


@functools.cache
def _queue() -> frozenset[str] | None:
    """Return the jobs of all users in Slurm's queue, read once; None without Slurm or without an answer."""
    if shutil.which("squeue") is None:
        return None
    line = ["squeue", "--noheader", "--array", "--format=%i"]
    try:
        result = subprocess.run(line, capture_output=True, text=True, check=True, timeout=20)
    except (subprocess.SubprocessError, OSError):
        return None
    return frozenset(result.stdout.split())
