"""The user's folders of configuration files (``--config-dir``): a run remembers them, and its resume uses them.

They may be folders of somebody else if the run is. Then their files must not change what Hydra itself runs.
"""

import json
import os
import re
import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from facelab.errors import RunError
from facelab.runs.argv import config_folders, config_names, key_of, overrides_of
from facelab.runs.environment import ROOT
from facelab.runs.processes import RERUN, RESUMED_WORDS, SEARCH_PATH
from facelab.runs.resolvers import foreign_interpolation
from facelab.runs.tree import containers, dotted, keys_of

AGAIN = "if the files are yours, type --config-dir FOLDER with their folder too"
"""What to do about files that are not used without asking."""


def is_search_path(word: Any) -> bool:
    """Return whether a word is an override of the folders."""
    return isinstance(word, str) and key_of(word) == SEARCH_PATH


def names_files(word: Any) -> bool:
    """Return whether a saved word names configuration files; see :func:`facelab.runs.processes.search_path`."""
    return word == RERUN or is_search_path(word)


def are_typed(typed: Sequence[str]) -> bool:
    """Return whether the words of a command line name folders."""
    return bool(config_folders(typed)) or any(map(is_search_path, typed))


def remembered(words: Any, typed: Sequence[str], source: Path) -> list[str]:
    """Check the saved override of the folders, and return it as a list; none if others are typed.

    Args:
        words: saved by :func:`facelab.runs.processes.search_path`.
        typed: the words typed now.
        source: the file that contains it.

    Raises:
        RunError: it is something else, a folder does not exist, or is in a Python package, which would be imported. The
            run is a rerun and this is not typed again, because its file may change what Hydra itself does.
    """
    if isinstance(words, list) and RERUN in words and not config_names(typed):
        folder = next((word.partition("=")[2].strip("[]\"'") for word in words if is_search_path(word)), "RUN")
        raise RunError(
            f"{source}: the run was started from the file of another one; type --config-dir {shlex.quote(folder)} "
            f"{RERUN} too"
        )
    if are_typed(typed):
        return []
    if not isinstance(words, list) or not all(map(is_search_path, words)):
        raise RunError(f"{source}: the folders of configuration files are not an override of {SEARCH_PATH}")
    for word in words:
        try:
            folders: Any = OverridesParser.create().parse_override(word).value()
        except HydraException as error:
            raise RunError(f"{source}: {word!r} cannot be read") from error
        for folder in folders if isinstance(folders, list) else [folders]:
            if not isinstance(folder, str) or not Path(folder).is_absolute():
                raise RunError(f"{source}: {folder!r} is not used without asking; type {shlex.quote(word)} too")
            if not Path(folder).is_dir():
                raise RunError(f"{source}: {folder} does not exist; type --config-dir FOLDER with its present place")
    return words


def check_hydra(words: Sequence[str]) -> None:
    """Refuse a resumed run whose remembered files change what Hydra itself does.

    Hydra builds its launcher, callbacks and logging without the checks of this project. Nothing is built here.

    Args:
        words: normalised command line of the run, or its overrides.

    Raises:
        RunError: they do, or the run cannot be composed.
    """
    overrides = overrides_of(words)
    if not any(map(is_search_path, overrides)) or are_typed(json.loads(os.environ[RESUMED_WORDS])):
        return
    own = [word for word in overrides if re.match("hydra[./]", key_of(word)) and not is_search_path(word)]
    try:
        with _initialised():
            used, plain = map(_settings, (overrides, own))
    except HydraException as error:
        raise RunError(str(error)) from error
    if changed := [key for key in used if used[key] != plain.get(key)]:
        raise RunError(
            f"the run's configuration files change hydra.{changed[0]}, by which Hydra can start programs; {AGAIN}"
        )


def _initialised() -> AbstractContextManager[None]:
    """Return a context in which Hydra composes; in a sweep it already does."""
    is_running = GlobalHydra.instance().is_initialized()
    return nullcontext() if is_running else initialize_config_dir(str(ROOT / "conf"), version_base="1.3")


def _settings(overrides: list[str]) -> dict[str, Any]:
    """Compose a run; return Hydra's own configuration without the command line and the grid of a sweep."""
    composed = GlobalHydra.instance().config_loader().load_configuration("train", overrides, RunMode.RUN)
    settings: Any = OmegaConf.to_container(composed.hydra, resolve=False)
    for key in ("overrides", "runtime", "searchpath"):
        del settings[key]
    del settings["job"]["override_dirname"]
    settings["sweeper"].pop("params", None)
    return dict(settings)


def check_environment(cfg: DictConfig, typed: Sequence[str], folder: Path) -> None:
    """Refuse a resumed run whose remembered files read the environment; see ``overrides.check_words``.

    Args:
        cfg: configuration of the run.
        typed: the words typed now.
        folder: folder of the run.

    Raises:
        RunError: a value other than those of ``conf/paths`` and of the typed keys reads the environment.
    """
    machine: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "paths" / "default.yaml"))
    for place, node in containers(cfg, ()) if not are_typed(typed) else ():
        raw: Any = OmegaConf.to_container(node, resolve=False)
        for key in keys_of(node):
            name, text = dotted((*place, key)), raw[key]
            allowed = place == ("paths",) and machine.get(key) == text
            is_typed = any(f"{name}.".startswith(f"{key_of(word)}.") for word in typed)
            if isinstance(text, str) and foreign_interpolation(text) and not allowed and not is_typed:
                raise RunError(f"{folder}: its {name}={text} reads the environment; {AGAIN}")
