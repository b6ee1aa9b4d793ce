"""A grid of runs: its cells on disk, which of them are missing, and the code they run from."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from facelab.atomic import write_json
from facelab.recording import CODE, COMMIT, STAMP, commit
from facelab.resuming import OVERRIDES, saved_overrides, task_overrides
from facelab.status import SWEEP, Status, read_cells, read_status

ROOT = Path(__file__).parents[1]
PARTS = ("conf", "facelab", "lightning_modules", "datamodules", "callbacks", "hydra_plugins")
"""Folders that a run is made of, beside the doors."""


class Cell(NamedTuple):
    """One run of a sweep."""

    number: int
    overrides: list[str]
    status: Status


def ledger(folder: Path) -> list[Cell]:
    """The cells of a sweep in the states that their folders tell; empty where there is no sweep.json.

    A cell's overrides are those that it accepted last, which may be more than it was planned with.

    Raises:
        SystemExit: sweep.json or a cell's overrides.yaml holds something else.
    """
    try:
        planned = read_cells(folder)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    cells = []
    for number, overrides in planned.items():
        accepted = folder / str(number) / OVERRIDES
        words = saved_overrides(accepted) if accepted.is_file() else task_overrides(overrides, folder / SWEEP)
        cells.append(Cell(number, words, read_status(folder / str(number))))
    return cells


def waiting(folder: Path) -> bool:
    """Whether Slurm has jobs of this sweep in its queue that have not begun, so that a cell may only look missing."""
    if shutil.which("squeue") is None:
        return False
    line = ["squeue", "--noheader", "--me", "--states=PENDING", "--Format=StdOut:4096"]
    try:
        asked = subprocess.run(line, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired as error:
        raise SystemExit(f"squeue does not answer, so it is not known which cells of {folder} wait") from error
    return any(str(folder.resolve()) in path for path in asked.stdout.splitlines())


def write_cells(folder: Path, cells: Mapping[int, Sequence[str]]) -> None:
    """Write down what a sweep is made of, before any of it is started.

    Args:
        folder: of the sweep.
        cells: number of each, which is the name of its folder, to its overrides.
    """
    numbered = {str(number): list(overrides) for number, overrides in cells.items()}
    write_json(folder / SWEEP, {"stamp": os.environ.get(STAMP), "cells": numbered})


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


def run_from_copy() -> None:
    """Start this door again from a copy of the code, so that a job that waited runs what was there when it was typed.

    The copies lie in ``logs/code``, each once, named by a hash of its files and of the commit. Does nothing where the
    program is not a door of the project, or the copy itself.
    """
    door = Path(sys.argv[0]).resolve()
    words = [number for number, word in enumerate(sys.orig_argv) if Path(word).resolve() == door]
    if CODE in os.environ or door.parent != ROOT or not words:
        return
    code = copy_code(Path("logs/code").absolute())
    os.environ[CODE] = str(code)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))
    flags = sys.orig_argv[1 : words[0]]
    os.execv(sys.executable, [sys.executable, *flags, str(code / door.name), *sys.argv[1:]])


def copy_code(where: Path) -> Path:
    """Copy the code into a folder of ``where`` that is named by its content."""
    files = sorted(
        [*ROOT.glob("*.py"), *(path for part in PARTS for path in (ROOT / part).rglob("*") if path.is_file())]
    )
    files = [path for path in files if "__pycache__" not in path.parts]
    state: dict[str, Any] = commit(ROOT)
    digest = hashlib.sha256(json.dumps(state).encode())
    for path in files:
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    copy = where / digest.hexdigest()[:16]
    if copy.is_dir():
        return copy
    temporary = where / f".{copy.name}-{uuid4().hex}"
    for path in files:
        target = temporary / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    write_json(temporary / COMMIT, state)
    try:
        temporary.rename(copy)
    except OSError:  # another sweep has just made it
        shutil.rmtree(temporary)
    return copy
