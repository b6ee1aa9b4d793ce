"""The folder of a run: the names of its files, and the state that it tells."""

import functools
import json
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from facelab.errors import RunError

TEST_PICTURE, WORST_PICTURE = "test.png", "worst.png"
"""Pictures of the test in the folder ``samples``."""
LAST_CHECKPOINT = "last.ckpt"
"""The checkpoint that a run continues from, in the folder ``checkpoints``."""
NUMBERLESS = ("paths", "logger", "callbacks")
"""Nodes of a configuration that change where things lie and what is watched, but no number."""
STAMPED = r"^\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d"
"""How the name of a folder begins that was not chosen by hand."""
HEARTBEAT = 60
"""Seconds between two signs of life of a run."""
LOST_AFTER = 300
"""Seconds without a sign of life after which a run is taken for dead."""


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

    def cell(self, number: int | str) -> "RunFolder":
        """Give the folder of a cell of this sweep."""
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
        content = json.loads(file.read_text(encoding="utf-8") or "{}")
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
        except ProcessLookupError:
            return "the process is gone"
        except PermissionError:  # of another user, if it is the same process at all
            pass
    seen = content.get("heartbeat") or content.get("started")
    try:
        silent = time.time() - datetime.fromisoformat(str(seen)).timestamp()
    except ValueError:
        return f"no sign of life, {seen!r} is no time"
    return f"no sign of life since {seen}" if silent > LOST_AFTER else ""


def read_cells(folder: Path) -> dict[int, list[str]]:
    """Read number and overrides of the runs that a sweep is made of; empty for a folder that is none.

    Raises:
        RunError: sweep.json holds something else.
    """
    path = RunFolder(folder).sweep
    if not path.is_file():
        return {}
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return {int(number): [str(word) for word in overrides] for number, overrides in sorted(cells.items())}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} cannot be read: {error!r}") from error


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
