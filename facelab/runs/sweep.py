"""Jobs of a grid sweep on disk, and which of them are missing."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from facelab.errors import RunError
from facelab.files import create_json
from facelab.run_folder import RunFolder, Status, read_jobs, read_status
from facelab.runs.overrides import saved_overrides, task_overrides
from facelab.runs.processes import SEARCH_PATH, STAMP, restart_with_next_stamp


class Job(NamedTuple):
    """Job of a sweep: one run."""

    number: int
    overrides: list[str]
    status: Status


def read_job_states(folder: Path) -> list[Job]:
    """Return the jobs of a sweep with the states of their folders; empty without a sweep.json.

    The overrides of a job are those of its last start, which may be more than the planned ones.

    Raises:
        RunError: sweep.json or the overrides.yaml of a job has invalid content.
    """
    sweep, jobs = RunFolder(folder), []
    for number, overrides in read_jobs(folder).items():
        job = sweep.job(number)
        accepted = job.overrides
        words = saved_overrides(accepted) if accepted.is_file() else task_overrides(overrides, sweep.sweep)
        jobs.append(Job(number, words, read_status(job.path)))
    return jobs


def jobs_are_waiting(folder: Path) -> bool:
    """Return whether jobs of this sweep are waiting in Slurm's queue.

    A waiting job has no folder yet and must not be started again.
    """
    if shutil.which("squeue") is None:
        return False
    line = ["squeue", "--noheader", "--me", "--states=PENDING", "--Format=StdOut:4096"]
    try:
        result = subprocess.run(line, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"squeue does not answer, so it is not known which jobs of {folder} are waiting") from error
    return any(str(folder.resolve()) in path for path in result.stdout.splitlines())


def write_jobs(folder: Path, jobs: Mapping[int, Sequence[str]], path: Sequence[str]) -> None:
    """Write the jobs of a sweep to sweep.json, before any of them starts.

    Args:
        folder: folder of the sweep.
        jobs: overrides of each job by its number, which is also the name of its folder.
        path: see :func:`facelab.runs.processes.search_path`.

    Raises:
        RunError: another sweep has just started in this folder, or it is the folder of a run.
    """
    numbered = {str(number): list(overrides) for number, overrides in jobs.items()}
    if RunFolder(folder).config.is_file():
        raise RunError(f"{folder} is the folder of a run; choose another hydra.sweep.dir")
    try:  # the key `cells` is that of old sweeps, whose jobs were called cells
        content = {"stamp": os.environ.get(STAMP), SEARCH_PATH: list(path), "cells": numbered}
        create_json(RunFolder(folder).sweep, content)
    except FileExistsError:
        restart_with_next_stamp(folder)
        raise RunError(f"another sweep has just started in {folder}; choose another hydra.sweep.dir") from None


def show(jobs: Sequence[Job]) -> None:
    """Print a table of the jobs of a sweep."""
    from rich.console import Console
    from rich.table import Table

    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    table = Table("job", "differs in", "state", "reason")
    for job in jobs:
        differing = " ".join(word.lstrip("+") for word in job.overrides if word not in shared)
        table.add_row(str(job.number), differing, job.status.state, job.status.reason)
    Console(markup=False, highlight=False).print(table)
