"""Overrides that a folder keeps, and the command line that ``resume=FOLDER`` stands for."""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from facelab import files
from facelab.errors import RunError
from facelab.renames import renamed_override
from facelab.run_folder import LARGEST_SWEEP, RunFolder, read_status
from facelab.runs.argv import is_sweep, quoted, unquoted
from facelab.runs.processes import STAMP
from facelab.runs.resolvers import foreign_interpolation

RESUME = "resume="
"""How the word begins that names the folder to resume."""

WRITTEN = frozenset({"cache", "run"})
"""Keys that name a place to write to, wherever they stand."""
WRITERS = ("callbacks", "logger", "trainer")
"""Nodes whose parts write files or speak to servers."""
WRITTEN_BY_WRITERS = WRITTEN | {
    *("default_root_dir", "dir", "dirpath", "file", "filename", "folder", "log_dir", "path", "root_dir", "save_dir"),
}
"""Keys that name a place to write to in these."""
LEADS_OUT = re.compile(r"[/~]|(.*/)?\.\.(/|$)")
"""Text that names another folder than one below the working folder."""


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
    check_links(folder)
    saved = saved_overrides(run.overrides)
    check_reach(saved, typed, folder)
    os.environ[STAMP] = str(read_status(folder).content.get("stamp") or folder.name)
    return [*saved, *typed, f"hydra.run.dir={quoted(folder)}"]


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


def check_reach(words: Sequence[str], typed: Sequence[str], folder: Path) -> None:
    """Refuse overrides that a folder keeps and that lead out of it, unless their keys are typed now.

    Args:
        words: that the folder keeps.
        typed: overrides of now, which may lead anywhere.
        folder: of the run.

    Raises:
        RunError: one of them has the run write outside of its folder, ask a server or read the environment. A folder
            that was received must not decide that.
    """
    now = {_key(word) for word in typed}
    for word in words:
        if _key(word) not in now and (why := _reach(word, folder)):
            raise RunError(
                f"{folder}: its override {word!r} {why}. A folder may come from somebody else, so this is for you to "
                f"say: type {shlex.quote(word)} too, or what you want instead"
            )


def check_links(folder: Path) -> None:
    """Refuse a run folder with a link that leads out of it: what is written there would be written elsewhere.

    Raises:
        RunError: names the link.
    """
    home = folder.resolve()
    for place, folders, names in os.walk(folder):
        if place == str(
            folder / "wandb"
        ):  # W&B's own links lead to its log; each start writes into a folder of its own
            folders.clear()
            continue
        for name in (*folders, *names):
            path = Path(place, name)
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise RunError(f"{path} is a link that leads out of the folder of the run; put a copy in its place")


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _reach(word: str, folder: Path) -> str:
    """Say where an override leads out of the folder of its run; empty where it does not."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(word)
        value = None if override.is_delete() else override.value()
    except HydraException:
        return ""  # Hydra says what is wrong with it
    writer = override.key_or_group.partition(".")[0] in WRITERS
    for name, leaf in _leaves(value, override.key_or_group.rpartition(".")[2]):
        if foreign_interpolation(leaf):
            return "reads the environment"
        if writer and "://" in leaf:
            return "asks a server"
        place = name in (WRITTEN_BY_WRITERS if writer else WRITTEN) or (writer and LEADS_OUT.match(leaf))
        if place and not Path(leaf).expanduser().resolve().is_relative_to(folder.resolve()):
            return "has the run write outside of its folder"
    return ""


def _leaves(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Give each text in a value with the key that it stands under."""
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _leaves(child, str(name))
    elif isinstance(value, list):
        for child in value:
            yield from _leaves(child, key)
    elif isinstance(value, str):
        yield key, str(value)


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
