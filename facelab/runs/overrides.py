"""Saved overrides of a folder, and expansion of ``resume=FOLDER`` to a command line."""

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
from facelab.run_folder import MAX_SWEEP_BYTES, RunFolder, read_jobs, read_status
from facelab.runs.argv import as_typed, is_sweep, key_of, normalise_argv, quoted, unquoted
from facelab.runs.environment import ROOT
from facelab.runs.processes import RESUMED_WORDS, SEARCH_PATH, STAMP
from facelab.runs.resolvers import foreign_interpolation
from facelab.runs.search_path import check_environment, check_hydra, names_files, remembered

READ_ONLY = ("init",)
"""Keys without a dot whose value is the path of a checkpoint, which is read without running code."""
RESUME_PREFIX = "resume="
"""Prefix of the word that names the folder to resume."""
TRUST = "trust"
"""Key of the packages whose classes a run may build."""

WRITTEN = frozenset({"cache", "run"})
"""Keys that name a place to write to, in any node."""
WRITERS = ("callbacks", "logger", "trainer")
"""Nodes whose parts write files or contact servers."""
WRITTEN_BY_WRITERS = WRITTEN | {
    *("default_root_dir", "dir", "dirpath", "file", "folder", "log_dir", "path", "root_dir", "save_dir"),
    *("tracking_uri", "url", "base_url", "host"),
}
"""Keys that name a place to write to in the nodes :data:`WRITERS`."""
LEADS_OUT = re.compile(r"[/~]|(.*/)?\.\.(/|$)|[A-Za-z][\w+.-]*:/?/")
"""Text that names a folder outside the working folder, or a server."""
SCHEME = re.compile(r"[A-Za-z][\w+.-]*:")
"""Text that begins with a URL scheme, which names no place of the file system."""


def resumed_argv(argv: Sequence[str]) -> list[str]:
    """Expand ``resume=FOLDER`` to a full command line; return other command lines unchanged.

    For a run, the result consists of its saved overrides, the words typed now, and its folder. For a sweep
    (``-m``): the overrides of its first job, the words typed now, and its folder. The sweeper reads the other jobs from
    that folder. Only overrides of the task are read from the folder, because overrides of Hydra can name programs.

    Args:
        argv: the words after the program's name.

    Raises:
        RunError: the folder is not that of a run or, with ``-m``, of a sweep.
    """
    typed = [word for word in argv if not word.startswith(RESUME_PREFIX)]
    places = [word.removeprefix(RESUME_PREFIX) for word in argv if word.startswith(RESUME_PREFIX)]
    if not places:
        return list(argv)
    folder = files.expand_home(unquoted(places[-1])).absolute()
    os.environ[RESUMED_WORDS] = json.dumps(typed)
    run = RunFolder(folder)
    if any(word.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for word in typed):
        raise RunError(
            f"{RESUME_PREFIX}{folder} already sets the folder of the run; leave hydra.run.dir and hydra.sweep.dir out"
        )
    if is_sweep(argv):
        if not run.sweep.is_file():
            raise RunError(
                f"{folder} contains no {run.sweep.name}; with -m, {RESUME_PREFIX} takes the folder of a grid sweep"
            )
        check_writable(folder)
        sweep = _read_sweep(run.sweep)
        os.environ[STAMP] = str(sweep.get("stamp") or folder.name)
        path = remembered(sweep.get(SEARCH_PATH, []), typed, run.sweep)
        # Hydra composes the typed words before there are jobs: `data.root=...` needs the `data=...` of a job.
        words = normalise_argv([*path, *first_job(folder), *typed, f"hydra.sweep.dir={quoted(folder)}"])
        check_hydra(words)
        return words
    if not run.overrides.is_file():
        line = f"python train.py -m {shlex.quote(f'{RESUME_PREFIX}{folder}')}"
        hint = f"; {line} resumes a sweep" if run.sweep.is_file() else ""
        raise RunError(f"{folder} is not the folder of a run: it contains no {run.overrides.name}{hint}")
    check_links(folder)
    check_writable(folder)
    saved = saved_overrides(run.overrides)
    check_words(saved, typed, run.overrides)
    os.environ[STAMP] = str(read_status(folder).content.get("stamp") or folder.name)
    path = remembered([word for word in read_yaml(run.overrides) if names_files(word)], typed, run.overrides)
    words = normalise_argv([*path, *saved, *typed, f"hydra.run.dir={quoted(folder)}"])
    check_hydra(words)
    return words


def task_overrides(content: Any, source: Path) -> list[str]:
    """Check overrides that were read from a file, and return them with today's names of renamed classes and keys.

    Raises:
        RunError: the file contains something else, such as a flag or an override of Hydra itself.
    """
    if not isinstance(content, list) or not all(isinstance(word, str) for word in content):
        raise RunError(f"{source} is not a list of overrides")
    for word in content:
        key, _, value = word.partition("=")
        path = re.fullmatch(r"(?:\+{1,2}|~)?([A-Za-z_]\w*(?:[./]\w+)*)", key)
        # A key without a dot chooses an option of a group: a file name, which must not refer outside the group.
        is_option = "." not in key and key not in READ_ONLY
        if not path or re.search(r"\bhydra\b", key) or (is_option and re.search(r"\.\.|^/", value)):
            raise RunError(f"{source}: {word!r} is not an override of a run's configuration; nothing was started")
    return [renamed_override(word) for word in content]


def saved_overrides(path: Path) -> list[str]:
    """Read the overrides of the last start of a run from its folder, without that of its configuration files.

    Raises:
        RunError: see :func:`task_overrides`.
    """
    content = read_yaml(path)
    if isinstance(content, list):
        content = [word for word in content if not names_files(word)]
    return task_overrides(content, path)


def first_job(folder: Path) -> list[str]:
    """Read the planned overrides of the first job of a sweep; empty if there is no job.

    Raises:
        RunError: sweep.json has invalid content.
    """
    jobs = read_jobs(folder)
    return task_overrides(jobs[min(jobs)], RunFolder(folder).sweep) if jobs else []


def check_words(words: Sequence[str], typed: Sequence[str], source: Path) -> None:
    """Refuse saved overrides that trust a package or read the environment, unless their keys are typed now.

    Raises:
        RunError: an override trusts a package, whose code would run. Or it reads the environment: the resumed run would
            write the value, which may be a secret, to a file.
    """
    typed_keys = {key_of(word) for word in typed}
    for word in words:
        if key_of(word) in typed_keys:
            continue
        if key_of(word) == TRUST:
            again = shlex.quote(word.lstrip("+"))
            raise RunError(f"{source}: the run uses the code of other packages; if they are yours, type {again} too")
        if foreign_interpolation(word):
            raise RunError(f"{source}: {word!r} reads the environment; to allow this, type it on the command line too")


def trusted(cfg: DictConfig) -> Any:
    """Return the packages that the user trusts in this run.

    A resumed run trusts only what is typed now, because its folder may be from somebody else.
    """
    is_resumed = RESUMED_WORDS in os.environ
    return [] if is_resumed and TRUST not in map(key_of, json.loads(os.environ[RESUMED_WORDS])) else cfg[TRUST]


def check_origin(cfg: DictConfig) -> None:
    """Refuse a resumed run that would write to another folder, or whose configuration files read the environment.

    Nothing is resolved and written before: a value of the environment may be a secret.

    Raises:
        RunError: it would.
    """
    if RESUMED_WORDS not in os.environ:
        return
    typed, folder = json.loads(os.environ[RESUMED_WORDS]), Path(HydraConfig.get().runtime.output_dir)
    check_environment(cfg, typed, folder)
    if files.resolve_links(Path(cfg.paths.run)) != files.resolve_links(folder):
        raise RunError(
            f"{folder}: its paths.run={cfg.paths.run} is another folder. The run may be from somebody else, so nothing "
            "was started; copy it, and remove paths.run from its files"
        )


def check_reach(cfg: DictConfig, folder: Path) -> None:
    """Refuse a resumed configuration whose parts write outside of its folder, unless their keys are typed now.

    The folder may be from somebody else. A run writes only to its folder, to the cache of this machine or a cache below
    the working folder, or to a place that the user types now.

    Args:
        cfg: configuration of the run, composed with the overrides of its folder.
        folder: folder of the run.

    Raises:
        RunError: a part writes elsewhere; the message contains the key and what to type.
    """
    if RESUMED_WORDS not in os.environ:
        return
    typed = json.loads(os.environ[RESUMED_WORDS])
    typed_keys = {key_of(word) for word in typed}
    machine: Any = OmegaConf.load(ROOT / "conf" / "paths" / "default.yaml")
    allowed = [files.resolve_links(folder), files.resolve_links(files.expand_home(machine.cache))]
    allowed += [files.resolve_links(Path(str(cfg.paths.cache)))] if typed_keys & {"paths.cache", "paths"} else []
    for place, text in _texts(cfg, ()):
        name = next((key for key in reversed(place) if not key.isdecimal()), "")
        writer = place[0] in WRITERS
        # Typing a group, such as `callbacks=ema`, does not confirm single keys of that group that the folder sets.
        if ".".join(place) in typed_keys or any(
            ".".join(place[:depth]) in typed_keys for depth in range(2, len(place))
        ):
            continue
        if not (name in (WRITTEN_BY_WRITERS if writer else WRITTEN) or (writer and LEADS_OUT.match(text))):
            continue
        where = files.resolve_links(files.expand_home(text))
        # A cache only adds folders named by a hash and overwrites nothing, so it may be below the working folder.
        roots = [*allowed, Path.cwd()] if name == "cache" else allowed
        if SCHEME.match(text) or not any(where.is_relative_to(root) for root in roots):
            key = ".".join(place)
            raise RunError(
                f"{folder}: with its {key}={text} the run would write outside of its folder. The folder may be from "
                f"somebody else, so please confirm: type {as_typed(key, text)} too, or another value"
            )


def _texts(node: DictConfig | ListConfig, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the place and the resolved text of each text in a configuration; references to nodes are not followed."""
    keys: Any = node if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        child = node[key]
        if isinstance(child, str) and key != "_target_":
            yield (*place, str(key)), child
        elif isinstance(child, (DictConfig, ListConfig)) and not OmegaConf.is_interpolation(node, key):
            yield from _texts(child, (*place, str(key)))


def check_links(folder: Path) -> None:
    """Refuse a run folder with a link to the outside, because the run would write through it.

    Raises:
        RunError: there is such a link; the message names it.
    """
    home = files.resolve_links(folder)
    for place, folders, names in os.walk(folder):
        # W&B creates links to its logs, and each start writes to a new folder.
        if place == str(folder / "wandb"):
            folders.clear()
            continue
        for name in (*folders, *names):
            path = Path(place, name)
            if path.is_symlink() and not files.resolve_links(path).is_relative_to(home):
                raise RunError(f"{path} is a link to a place outside the run folder; replace the link by a copy")


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written to, before Hydra opens its log there.

    Raises:
        RunError: names the folder, or the log.
    """
    if reason := files.why_not_writable(folder):
        raise RunError(
            f"{folder} cannot be resumed: it is not writable ({reason}). "
            "Copy it to a writable place and resume the copy"
        )
    for path in folder.glob("*.log"):
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK))  # opening a pipe would block
        except OSError as error:
            raise RunError(f"{path} cannot be written to: {error.strerror}; remove it") from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file of a run.

    Raises:
        RunError: it is broken, or larger than the files of a run, see :func:`facelab.files.read_yaml`.
    """
    try:
        return files.read_yaml(path)
    except ValueError as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def _read_sweep(path: Path) -> dict[str, Any]:
    """Read sweep.json."""
    try:
        content = files.read_json(path, MAX_SWEEP_BYTES)
    except ValueError as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is not a mapping")
    return content
