"""Overrides that a folder keeps, and the command line that ``resume=FOLDER`` stands for."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from facelab import files
from facelab.errors import RunError
from facelab.renames import renamed_override
from facelab.run_folder import LARGEST_SWEEP, RunFolder, read_status
from facelab.runs.argv import is_sweep, quoted, unquoted
from facelab.runs.processes import STAMP

RESUME = "resume="
"""How the word begins that names the folder to resume."""


def resumed_argv(argv: Sequence[str]) -> list[str]:
    """Give the command line that ``resume=FOLDER`` stands for; others are returned as they are.

    For a run these are the overrides it was started with, those typed now, and its folder; for a sweep (with ``-m``)
    those typed now and its folder, in which the sweeper finds the rest. Of the folder only overrides of the task are
    taken: those of Hydra itself can name programs.

    Args:
        argv: the words behind the program's name.

    Raises:
        RunError: the folder is none of a run, or of a sweep.
    """
    typed = [word for word in argv if not word.startswith(RESUME)]
    places = [word.removeprefix(RESUME) for word in argv if word.startswith(RESUME)]
    if not places:
        return list(argv)
    folder = Path(unquoted(places[-1])).expanduser().absolute()
    run = RunFolder(folder)
    if any(word.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for word in typed):
        raise RunError(
            f"{RESUME}{folder} says already where the run lies; leave hydra.run.dir and hydra.sweep.dir away"
        )
    if is_sweep(argv):
        if not run.sweep.is_file():
            raise RunError(
                f"{folder} holds no {run.sweep.name}; with -m, {RESUME} takes the folder of a sweep over a grid"
            )
        os.environ[STAMP] = str(_read_mapping(run.sweep).get("stamp") or folder.name)
        return [*typed, f"hydra.sweep.dir={quoted(folder)}"]
    if not run.overrides.is_file():
        line = f"python train.py -m {shlex.quote(f'{RESUME}{folder}')}"
        hint = f"; {line} goes on with a sweep" if run.sweep.is_file() else ""
        raise RunError(f"{folder} is not the folder of a run: it holds no {run.overrides.name}{hint}")
    os.environ[STAMP] = str(read_status(folder).content.get("stamp") or folder.name)
    return [*saved_overrides(run.overrides), *typed, f"hydra.run.dir={quoted(folder)}"]


def task_overrides(content: Any, source: Path) -> list[str]:
    """Check overrides that were read from a file, and give classes that were renamed since their names of today.

    Raises:
        RunError: the file holds something else, such as a flag, or an override of Hydra itself.
    """
    if not isinstance(content, list) or not all(isinstance(word, str) for word in content):
        raise RunError(f"{source} is no list of overrides")
    for word in content:
        key, _, value = word.partition("=")
        path = re.fullmatch(r"(?:\+{1,2}|~)?([A-Za-z_]\w*(?:[./]\w+)*)", key)
        # Without a dot it is an option of a group, the name of a file that must not lead out of the configuration.
        if not path or re.search(r"\bhydra\b", key) or ("." not in key and re.search(r"\.\.|^/", value)):
            raise RunError(f"{source}: {word!r} is no override of a run's configuration; nothing was started")
    return [renamed_override(word) for word in content]


def saved_overrides(path: Path) -> list[str]:
    """Read the overrides that a run was started with last, as its folder keeps them.

    Raises:
        RunError: as :func:`task_overrides`.
    """
    return task_overrides(read_yaml(path), path)


def read_yaml(path: Path) -> Any:
    """Read a YAML file of a run.

    Raises:
        RunError: it is broken, or holds more than a run writes, see :func:`facelab.files.read_yaml`.
    """
    try:
        return files.read_yaml(path)
    except ValueError as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = files.read_json(path, LARGEST_SWEEP)
    except ValueError as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is no mapping")
    return content
