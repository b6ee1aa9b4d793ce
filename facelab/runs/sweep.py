"""A grid of runs: its jobs on disk, and which of them are missing."""

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
from facelab.runs.processes import STAMP, restart_with_next_stamp


class Job(NamedTuple):
    """One run of a sweep."""

    number: int
    overrides: list[str]
    status: Status


def ledger(folder: Path) -> list[Job]:
    """List the jobs of a sweep in the states that their folders tell; empty where there is no sweep.json.

    A cell's overrides are those that it accepted last, which may be more than it was planned with.

    Raises:
        RunError: sweep.json or a cell's overrides.yaml holds something else.
    """
    sweep, jobs = RunFolder(folder), []
    for number, overrides in read_jobs(folder).items():
        job = sweep.job(number)
        accepted = job.overrides
        words = saved_overrides(accepted) if accepted.is_file() else task_overrides(overrides, sweep.sweep)
        jobs.append(Job(number, words, read_status(job.path)))
    return jobs


def waiting(folder: Path) -> bool:
    """Tell whether jobs of this sweep wait in Slurm's queue, so that a job may only look missing."""
    if shutil.which("squeue") is None:
        return False
    line = ["squeue", "--noheader", "--me", "--states=PENDING", "--Format=StdOut:4096"]
    try:
        asked = subprocess.run(line, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"squeue does not answer, so it is not known which jobs of {folder} wait") from error
    return any(str(folder.resolve()) in path for path in asked.stdout.splitlines())


def write_jobs(folder: Path, jobs: Mapping[int, Sequence[str]]) -> None:
    """Write down what a sweep is made of, before any of it is started.

    Args:
        folder: of the sweep.
        jobs: number of each, which is the name of its folder, to its overrides.

    Raises:
        RunError: another sweep has just begun in this folder, or it is the folder of a run.
    """
    numbered = {str(number): list(overrides) for number, overrides in jobs.items()}
    if RunFolder(folder).config.is_file():
        raise RunError(f"{folder} is the folder of a run; choose another hydra.sweep.dir")
    try:
        create_json(RunFolder(folder).sweep, {"stamp": os.environ.get(STAMP), "cells": numbered})
    except FileExistsError:
        restart_with_next_stamp(folder)
        raise RunError(f"another sweep has just begun in {folder}; choose another hydra.sweep.dir") from None


def show(jobs: Sequence[Job]) -> None:
    """Print the ledger of a sweep."""
    from rich.console import Console
    from rich.table import Table

    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    table = Table("job", "differs in", "state", "reason")
    for job in jobs:
        own = " ".join(word for word in job.overrides if word not in shared)
        table.add_row(str(job.number), own, job.status.state, job.status.reason)
    Console(markup=False, highlight=False).print(table)
