"""Overrides that a folder keeps, and the command line that ``resume=FOLDER`` stands for."""

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from facelab import files
from facelab.errors import RunError
from facelab.renames import renamed_override
from facelab.run_folder import LARGEST_SWEEP, RunFolder, read_jobs, read_status
from facelab.runs.argv import as_typed, is_sweep, normalise_argv, quoted, unquoted
from facelab.runs.environment import ROOT
from facelab.runs.processes import STAMP
from facelab.runs.resolvers import foreign_interpolation

RESUMED = "FACELAB_RESUMED"
"""Environment variable: the words beside ``resume=``, as a list in JSON."""
RESUME = "resume="
"""How the word begins that names the folder to resume."""

WRITTEN = frozenset({"cache", "run"})
"""Keys that name a place to write to, wherever they stand."""
WRITERS = ("callbacks", "logger", "trainer")
"""Nodes whose parts write files or speak to servers."""
WRITTEN_BY_WRITERS = WRITTEN | {
    *("default_root_dir", "dir", "dirpath", "file", "folder", "log_dir", "path", "root_dir", "save_dir"),
    *("tracking_uri", "url", "base_url", "host"),
}
"""Keys that name a place to write to in these."""
LEADS_OUT = re.compile(r"[/~]|(.*/)?\.\.(/|$)|[A-Za-z][\w+.-]*:/?/")
"""Text that names another folder than one below the working folder, or a server."""
SCHEME = re.compile(r"[A-Za-z][\w+.-]*:")
"""Text that names another place than one of the file system."""


def resumed_argv(argv: Sequence[str]) -> list[str]:
    """Give the command line that ``resume=FOLDER`` stands for; others are returned as they are.

    For a run these are the overrides it was started with, those typed now, and its folder; for a sweep (with ``-m``)
    those of its first job, those typed now, and its folder, in which the sweeper finds the rest. Of the folder only
    overrides of the task are taken: those of Hydra itself can name programs.

    Args:
        argv: the words behind the program's name.

    Raises:
        RunError: the folder is none of a run, or of a sweep.
    """
    typed = [word for word in argv if not word.startswith(RESUME)]
    places = [word.removeprefix(RESUME) for word in argv if word.startswith(RESUME)]
    if not places:
        return list(argv)
    folder = files.at_home(unquoted(places[-1])).absolute()
    os.environ[RESUMED] = json.dumps(typed)
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
        check_writable(folder)
        os.environ[STAMP] = str(_read_mapping(run.sweep).get("stamp") or folder.name)
        # Hydra composes what is typed before there are jobs: with `data.root=...` it must know which data is meant.
        return normalise_argv([*first_job(folder), *typed, f"hydra.sweep.dir={quoted(folder)}"])
    if not run.overrides.is_file():
        line = f"python train.py -m {shlex.quote(f'{RESUME}{folder}')}"
        hint = f"; {line} goes on with a sweep" if run.sweep.is_file() else ""
        raise RunError(f"{folder} is not the folder of a run: it holds no {run.overrides.name}{hint}")
    check_links(folder)
    check_writable(folder)
    saved = saved_overrides(run.overrides)
    check_words(saved, typed, run.overrides)
    os.environ[STAMP] = str(read_status(folder).content.get("stamp") or folder.name)
    return normalise_argv([*saved, *typed, f"hydra.run.dir={quoted(folder)}"])


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


def first_job(folder: Path) -> list[str]:
    """Read the overrides that the first job of a sweep was planned with; empty where there is no job.

    Raises:
        RunError: sweep.json holds something else.
    """
    jobs = read_jobs(folder)
    return task_overrides(jobs[min(jobs)], RunFolder(folder).sweep) if jobs else []


def check_words(words: Sequence[str], typed: Sequence[str], source: Path) -> None:
    """Refuse overrides that a folder keeps and that read the environment, unless their keys are typed now.

    Raises:
        RunError: a folder that was received would have a secret of this machine written down.
    """
    now = {_key(word) for word in typed}
    for word in words:
        if _key(word) not in now and foreign_interpolation(word):
            raise RunError(f"{source}: {word!r} reads the environment; type it too if it is meant")


def check_reach(cfg: DictConfig, folder: Path) -> None:
    """Refuse a resumed configuration whose parts write outside of its folder, unless their keys are typed now.

    A folder may come from somebody else. What a run writes lies in its folder, in the cache of this machine or one
    below the working folder, or where the user says now.

    Args:
        cfg: of the run, composed with the overrides of its folder.
        folder: of the run.

    Raises:
        RunError: names the key, and what to type.
    """
    if RESUMED not in os.environ:
        return
    now = {_key(word) for word in json.loads(os.environ[RESUMED])}
    machine: Any = OmegaConf.load(ROOT / "conf" / "paths" / "default.yaml")
    allowed = [files.real(folder), files.real(files.at_home(machine.cache))]
    allowed += [files.real(Path(str(cfg.paths.cache)))] if now & {"paths.cache", "paths"} else []
    for place, text in _texts(cfg, ()):
        name = next((key for key in reversed(place) if not key.isdecimal()), "")
        writer = place[0] in WRITERS
        # A group that is typed, as `callbacks=ema`, says nothing of what the folder sets below it.
        if ".".join(place) in now or any(".".join(place[:depth]) in now for depth in range(2, len(place))):
            continue
        if not (name in (WRITTEN_BY_WRITERS if writer else WRITTEN) or (writer and LEADS_OUT.match(text))):
            continue
        where = files.real(files.at_home(text))
        # A cache gets folders that are named by a hash, and never overwrites: the working folder is as good as another.
        roots = [*allowed, Path.cwd()] if name == "cache" else allowed
        if SCHEME.match(text) or not any(where.is_relative_to(root) for root in roots):
            key = ".".join(place)
            raise RunError(
                f"{folder}: its {key}={text} would have the run write outside of its folder. A folder may come from "
                f"somebody else, so this is for you to say: type {as_typed(key, text)} too, or what you want instead"
            )


def _texts(node: DictConfig | ListConfig, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Give the place of each text in a configuration, and the text, resolved; nodes that are referred to come once."""
    keys: Any = node if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        child = node[key]
        if isinstance(child, str) and key != "_target_":
            yield (*place, str(key)), child
        elif isinstance(child, (DictConfig, ListConfig)) and not OmegaConf.is_interpolation(node, key):
            yield from _texts(child, (*place, str(key)))


def plain_overrides() -> list[str]:
    """List the overrides of this run as they were typed, references in them unresolved."""
    words: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [str(word) for word in words]


def check_links(folder: Path) -> None:
    """Refuse a run folder with a link that leads out of it: what is written there would be written elsewhere.

    Raises:
        RunError: names the link.
    """
    home = files.real(folder)
    for place, folders, names in os.walk(folder):
        # W&B's own links lead to its log, and each start writes into a folder of its own.
        if place == str(folder / "wandb"):
            folders.clear()
            continue
        for name in (*folders, *names):
            path = Path(place, name)
            if path.is_symlink() and not files.real(path).is_relative_to(home):
                raise RunError(f"{path} is a link that leads out of the folder of the run; put a copy in its place")


def check_writable(folder: Path) -> None:
    """Refuse a folder in which nothing can be written; Hydra opens its log there before it calls the door.

    Raises:
        RunError: names the folder, or the log.
    """
    if reason := files.closed(folder):
        raise RunError(f"{folder} cannot go on where it is: nothing can be written there ({reason}); continue a copy")
    for path in folder.glob("*.log"):
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK))  # a pipe would be waited for
        except OSError as error:
            raise RunError(f"{path} cannot be written to: {error.strerror}; remove it") from error


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


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
