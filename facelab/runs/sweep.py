"""A grid of runs: its cells on disk, and which of them are missing."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from facelab.errors import RunError
from facelab.files import create_json
from facelab.run_folder import RunFolder, Status, read_cells, read_status
from facelab.runs.overrides import saved_overrides, task_overrides
from facelab.runs.processes import STAMP, restart_with_next_stamp


class Cell(NamedTuple):
    """One run of a sweep."""

    number: int
    overrides: list[str]
    status: Status


def ledger(folder: Path) -> list[Cell]:
    """List the cells of a sweep in the states that their folders tell; empty where there is no sweep.json.

    A cell's overrides are those that it accepted last, which may be more than it was planned with.

    Raises:
        RunError: sweep.json or a cell's overrides.yaml holds something else.
    """
    sweep, cells = RunFolder(folder), []
    for number, overrides in read_cells(folder).items():
        cell = sweep.cell(number)
        accepted = cell.overrides
        words = saved_overrides(accepted) if accepted.is_file() else task_overrides(overrides, sweep.sweep)
        cells.append(Cell(number, words, read_status(cell.path)))
    return cells


def waiting(folder: Path) -> bool:
    """Tell whether jobs of this sweep wait in Slurm's queue, so that a cell may only look missing."""
    if shutil.which("squeue") is None:
        return False
    line = ["squeue", "--noheader", "--me", "--states=PENDING", "--Format=StdOut:4096"]
    try:
        asked = subprocess.run(line, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"squeue does not answer, so it is not known which cells of {folder} wait") from error
    return any(str(folder.resolve()) in path for path in asked.stdout.splitlines())


def write_cells(folder: Path, cells: Mapping[int, Sequence[str]]) -> None:
    """Write down what a sweep is made of, before any of it is started.

    Args:
        folder: of the sweep.
        cells: number of each, which is the name of its folder, to its overrides.

    Raises:
        RunError: another sweep has just begun in this folder, or it is the folder of a run.
    """
    numbered = {str(number): list(overrides) for number, overrides in cells.items()}
    if RunFolder(folder).config.is_file():
        raise RunError(f"{folder} is the folder of a run; choose another hydra.sweep.dir")
    try:
        create_json(RunFolder(folder).sweep, {"stamp": os.environ.get(STAMP), "cells": numbered})
    except FileExistsError:
        restart_with_next_stamp(folder)
        raise RunError(f"another sweep has just begun in {folder}; choose another hydra.sweep.dir") from None


def show(cells: Sequence[Cell]) -> None:
    """Print the ledger of a sweep."""
    from rich.console import Console
    from rich.table import Table

    shared = set.intersection(*(set(cell.overrides) for cell in cells)) if len(cells) > 1 else set()
    table = Table("cell", "differs in", "state", "reason")
    for cell in cells:
        own = " ".join(word for word in cell.overrides if word not in shared)
        table.add_row(str(cell.number), own, cell.status.state, cell.status.reason)
    Console(markup=False, highlight=False).print(table)
