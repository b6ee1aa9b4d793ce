"""Checks of the command line before Hydra reads it, with messages that show the correct form."""

import os
import re
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, ValueType
from hydra.errors import HydraException

from facelab.errors import FacelabError
from facelab.files import why_not_writable
from facelab.internals.trainer import trainer_arguments
from facelab.renames import renamed_key
from facelab.runs.argv import as_typed, config_folders, config_names, is_sweep, key_of, options_of, overrides_of
from facelab.runs.environment import ROOT
from facelab.runs.processes import RERUN
from facelab.runs.targets import hint

HELP = ("-h", "--help", "--hydra-help", "--version", "-sc", "--shell-completion")
"""Hydra's options that print information without composing a configuration."""
RUN_FOLDER_KEYS = ("hydra.run.dir", "hydra.sweep.dir", "paths.run")
"""Keys of the folder of a run or a sweep; by default it is in ``logs``."""
EXTRAS = {
    ("hydra/launcher", "local_jobs"): ("slurm", "hydra_plugins.hydra_submitit_launcher"),
    ("hydra/launcher", "slurm"): ("slurm", "hydra_plugins.hydra_submitit_launcher"),
    ("hydra/sweeper", "search"): ("optuna", "hydra_plugins.hydra_optuna_sweeper"),
}
"""Extra of the package that an option needs, and the module that the extra installs, by group and option."""
OPTIONAL = ("callbacks/early_stopping", "experiment")
"""Groups without an option by default, to which null returns."""
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-/\\+.$%*@?|: \t")
"""Characters that Hydra accepts in a value without quotes."""
_SHOWS = re.compile(r"-c|-i|--(?:cfg|info)(?:=.*)?")  # options that print a configuration and run nothing


def check_typed(argv: Sequence[str], skip_prefix: str | None = None) -> None:
    """Refuse a command line that Hydra cannot read or would misread, or whose folder cannot be written.

    With ``--help`` nothing is checked.

    Args:
        argv: the normalised words after the program's name.
        skip_prefix: prefix of words that only this project reads, such as ``resume=``; they are not checked.

    Raises:
        FacelabError: a word is faulty; the message contains each such word and what to type instead. Also ``--cfg`` or
            ``--info`` with ``-m``.
    """
    if set(HELP) & set(argv):
        return
    shown = [word.partition("=")[0] for word in options_of(argv) if _SHOWS.fullmatch(word)]
    if shown and {"-m", "--multirun"} & set(argv):
        raise FacelabError(f"{shown[0]} shows one configuration; leave out -m and the values with commas")
    words, sweep, folders = overrides_of(argv), is_sweep(argv), _group_folders(argv)
    read = [number for number, word in enumerate(words) if skip_prefix is None or not word.startswith(skip_prefix)]
    if faults := [fault for number in read if (fault := _word_fault(words, number, sweep, folders))]:
        raise FacelabError("\n".join(faults))
    groups = [words[number] for number in read if _is_folder(key_of(words[number]), folders)]
    if groups and RERUN.partition("=")[2] in config_names(argv):
        raise FacelabError(
            f"{groups[0]}: a rerun has no config groups; change single values, such as optimizer.lr=0.001"
        )
    if not shown and (skip_prefix is None or len(read) == len(words)):
        _check_folders([words[number] for number in read])


def _check_folders(words: Sequence[str]) -> None:
    """Refuse a run whose folder cannot be written to; Hydra would fail to create it with a traceback.

    Raises:
        FacelabError: nothing can be written there; the message names the folder.
    """
    typed = {
        key: value for key, _, value in (word.lstrip("+").partition("=") for word in words) if key in RUN_FOLDER_KEYS
    }
    for key, value in (typed or {RUN_FOLDER_KEYS[0]: "logs"}).items():
        path: Any = OverridesParser.create().parse_override(f"{key}={value}").value()
        if isinstance(path, str) and (reason := why_not_writable(Path(path.partition("${")[0]))):
            raise FacelabError(f"{key}={value}: nothing can be written there ({reason})")


def check_groups(overrides: Sequence[Override], argv: Sequence[str]) -> None:
    """Refuse overrides of a sweep that set a config group to no name of its options, or an unknown trainer argument.

    Args:
        overrides: overrides of the command line and of ``hydra.sweeper.params``.
        argv: see :func:`check_typed`.

    Raises:
        FacelabError: an override is faulty; the message contains each such word and what to type instead.
    """
    folders = _group_folders(argv)
    found = (_trainer_fault(override) or _group_fault(override, True, folders) for override in overrides)
    if faults := [fault for fault in found if fault]:
        raise FacelabError("\n".join(faults))


def _word_fault(words: Sequence[str], number: int, sweep: bool, folders: Sequence[Path]) -> str:
    """Return the fault of one of the words; empty if it has none."""
    word = words[number]
    key, equals, value = word.partition("=")
    if not equals and not word.startswith("~"):
        return _stray_fault(words, number, folders)
    parser = OverridesParser.create()
    try:
        if not parser.parse_override(f"{key}=").key_or_group:
            return f"{word}: there is no key before the =; type KEY=VALUE without spaces; --cfg job lists the keys"
    except HydraException:
        return f"{word}: {key!r} is not a key; type KEY=VALUE without spaces; --cfg job lists the keys"
    try:
        override = parser.parse_override(word)
    except HydraException:
        special = " ".join(f"`{letter}`" for letter in dict.fromkeys(value) if letter not in PLAIN)
        why = f": {special} must be in quotes" if special else ""
        text = os.path.expanduser(value)  # noqa: PTH111 (a Path would change more, such as a slash at the end)
        return f"{word} cannot be read{why}. As one text it is typed: {as_typed(key, text)}"
    if (new := renamed_key(key)) != key:
        return f"{word}: {key} is called {new} in this version"
    if fault := _trainer_fault(override):
        return fault
    group = key.lstrip("+~").replace(".", "/")
    if "." in key and any((folder / group / f"{value}.yaml").is_file() for folder in folders):
        return f"{word}: {group} is a config group; type {group}={value}"
    if _is_group(override, folders):
        return _group_fault(override, sweep, folders)
    if override.is_sweep_override() and not sweep:
        return _several_fault(word, override)
    return ""


def _trainer_fault(override: Override) -> str:
    """Return the fault of an override that sets an argument that the Trainer does not have; empty if it has none."""
    node, _, argument = override.key_or_group.partition(".")
    if node != "trainer" or not argument or argument.split(".")[0] in (*trainer_arguments(), "_target_"):
        return ""
    nearest = hint(argument, trainer_arguments())
    return f"{override.input_line}: Lightning's Trainer has no argument {argument}{nearest}"


def _stray_fault(words: Sequence[str], number: int, folders: Sequence[Path]) -> str:
    """Return the fault of a word without ``=``, which is most often a piece of a value with spaces."""
    fault = f"{words[number]}: KEY=VALUE expected, without spaces"
    first = max((at for at in range(number) if words[at].find("=") > 0), default=None)
    if first is None or any(word.startswith("~") for word in words[first:number]):
        return fault
    if number > first + 1:
        return ""  # reported with the first piece
    key, _, value = words[first].partition("=")
    last = next((at for at in range(number, len(words)) if "=" in words[at] or words[at].startswith("~")), len(words))
    pieces = [*([value] if value else []), *words[number:last]]
    if _is_folder(key.lstrip("+"), folders):
        return f"{fault}: {key}={pieces[0]}" if len(pieces) == 1 else fault
    whole = as_typed(key, " ".join(pieces))
    return f"{words[number]}: KEY=VALUE expected; if it belongs to the word before, type: {whole}"


def _several_fault(word: str, override: Override) -> str:
    """Return the fault of a word with several values outside of a sweep."""
    key, _, value = word.partition("=")
    if override.value_type != ValueType.SIMPLE_CHOICE_SWEEP:
        return f"{word} expands to several values: with -m there is a run for each"
    runs, one = shlex.quote(word), shlex.quote(f"{key}=[{value}]")
    return f"{word} has several values. A run for each: -m {runs}; a list: {one}; one text: {as_typed(key, value)}"


# Config groups


def _group_folders(argv: Sequence[str]) -> list[Path]:
    """Return the folders of config groups: ``conf`` and those of ``--config-dir``."""
    return [ROOT / "conf", *config_folders(argv)]


def _is_group(override: Override, folders: Sequence[Path]) -> bool:
    """Return whether an override chooses an option of a config group."""
    return _is_folder(override.key_or_group, folders)


def _is_folder(key: str, folders: Sequence[Path]) -> bool:
    """Return whether a key is the folder of a config group."""
    return "/" in key or any((folder / key).is_dir() for folder in folders)


def _group_fault(override: Override, sweep: bool, folders: Sequence[Path]) -> str:
    """Return the fault of the options that a word chooses; empty if it has none, or if it chooses no option."""
    if not _is_group(override, folders) or override.is_delete():
        return ""
    group, word = override.key_or_group, str(override.input_line)
    extra, module = EXTRAS.get((group, str(override.value())), ("", ""))
    if extra and find_spec(module) is None:
        return f"{word} needs another package: pip install -e '.[{extra}]'"
    if override.is_sweep_override() and not sweep:
        return f"{word} expands to several runs, which -m starts: -m {shlex.quote(word)}"
    value: Any = override.value()
    if isinstance(value, ChoiceSweep):
        chosen = [_plain(option) for option in value.list]
    else:
        chosen = [] if override.is_sweep_override() else [value]
    if any(isinstance(option, list) and _exclude(group, option, folders) for option in chosen):
        names = [str(name) for option in chosen for name in (option if isinstance(option, list) else [option])]
        key, names = override.get_key_element(), list(dict.fromkeys(names))
        how = f"type {key}={names[0]}"
        if len(names) > 1 and not override.is_hydra_override():
            how = f"a run for each: {'' if sweep else '-m '}{shlex.quote(key + '=' + ','.join(names))}"
        why = "with a list, Hydra would use only the last one, without a warning"
        return f"{word}: {group} takes one option; {why}; {how}"
    if group in OPTIONAL:
        chosen = [option for option in chosen if option is not None]
    if any(not isinstance(option, list) and (option == "" or not isinstance(option, str)) for option in chosen):
        options = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
        return f"{word}: {group} takes the name of an option{': ' * bool(options)}{', '.join(options)}"
    return ""


def _plain(option: Any) -> Any:
    """Return an option, or a list of them, without quotes."""
    if isinstance(option, list):
        return [_plain(one) for one in option]
    return option.text if isinstance(option, QuotedString) else option


def _exclude(group: str, options: Sequence[Any], folders: Sequence[Path]) -> bool:
    """Return whether options of a group exclude each other; those of loggers or callbacks can be combined."""
    files = [file for folder in folders for name in options if (file := folder / group / f"{name}.yaml").is_file()]
    return group.startswith("hydra/") or any(map(_is_whole, files))


def _is_whole(file: Path) -> bool:
    """Return whether an option is complete (a part or a configuration), so only one of its group can be chosen."""
    text = file.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return False  # Hydra reports it
    if re.search(r"^#\s*@package\s+_global_", text, re.MULTILINE) or not isinstance(content, dict):
        return True
    beside = [file.with_name(f"{name}.yaml") for name in content.get("defaults") or () if isinstance(name, str)]
    return "_target_" in content or any(_is_whole(other) for other in beside if other.is_file() and other != file)
