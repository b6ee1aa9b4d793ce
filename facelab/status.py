"""The state of a run, as its folder tells it: ``status.json``, and whether who wrote it is still alive."""

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

FILE = "status.json"
SWEEP = "sweep.json"
"""In the folder of a sweep: what it is made of."""
TOLD = (signal.SIGTERM, signal.SIGUSR2)
"""How a machine says that it will end a run: a shutdown or a cancelled job, and a time limit of a cluster."""
HEARTBEAT = 60
"""Seconds between two signs of life of a run."""
LOST_AFTER = 300
"""Seconds without a sign of life after which a run is taken for dead."""


ENDED_BY = "told to end by "
"""How the note of an exception begins that came after the machine had said that it will end the run."""


class Status(NamedTuple):
    """What became of a run."""

    state: str
    """``running``, ``finished``, ``failed``, ``stopped`` (asked to end, can go on), ``queued`` (a cluster starts it
    again), ``lost`` (said ``running``, but died without a word), ``missing`` (not begun), ``unknown`` (no file),
    ``unreadable`` (a broken one)."""
    reason: str  # why there are no results, in one line; empty if all is well
    content: dict[str, Any]  # of status.json


def now() -> str:
    """This moment, to the second, with the time zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def read_status(folder: Path) -> Status:
    """Read the state of a run.

    Args:
        folder: of the run.
    """
    if not folder.is_dir():
        return Status("missing", "not begun", {})
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8") or "{}")
    except FileNotFoundError:
        return Status("unknown", "", {})
    except (OSError, ValueError) as error:
        return Status("unreadable", f"{FILE}: {error}", {})
    if not isinstance(content, dict):
        return Status("unreadable", f"{FILE} is no mapping", {})
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
    """Why a run that says it is running is not; empty if it may well be."""
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
    """Number to overrides of the runs that a sweep is made of; empty for a folder that is none.

    Raises:
        ValueError: sweep.json holds something else.
    """
    path = folder / SWEEP
    if not path.is_file():
        return {}
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return {int(number): [str(word) for word in overrides] for number, overrides in sorted(cells.items())}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: {error!r}") from error


def _in_queue(job: str) -> bool:
    """Whether a job is still known to Slurm; where it cannot be asked, that is not known and taken for yes."""
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
