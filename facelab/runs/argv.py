"""Order of the words on Hydra's command line, and quoting of their values."""

import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from facelab.errors import ConfigError

# Options of Hydra that take the next word as their value. For `--info` the value is optional.
_WITH_VALUE = {
    "--cfg": "-c",
    "--package": "-p",
    "--config-path": "-cp",
    "--config-name": "-cn",
    "--config-dir": "-cd",
    "--experimental-rerun": None,
}
SCRIPT_NODES = ("box_jitter", "callbacks", "data", "hydra", "logger", "paths", "trainer")
"""Nodes of the scripts that open a run; ``+`` before a key of any other node supplements the run."""
_INFO = ("--info", "-i")
_WITHOUT_VALUE = ("--help", "--hydra-help", "--version", "--resolve", "--run", "--multirun", "--shell-completion")


def _takes_value(option: str) -> bool:
    """Return whether the next word is the value of an option."""
    if option in _WITH_VALUE.values():
        return True
    # argparse accepts an abbreviated long option: --config-n is --config-name.
    return len(option) > len("--") and any(name.startswith(option) for name in _WITH_VALUE)


def _is_override(word: str) -> bool:
    return "=" in word or word.startswith("~")


def _without_dashes(word: str) -> str:
    """Return ``--KEY=VALUE`` as the override ``KEY=VALUE``; sweep agents such as that of W&B write it so."""
    option, equals, _ = word.partition("=")
    names = (*_WITH_VALUE, *_WITHOUT_VALUE, _INFO[0])  # argparse accepts the beginning of a name, too
    if not equals or not re.match(r"--[A-Za-z_+]", word) or any(name.startswith(option) for name in names):
        return word
    return word.removeprefix("--")


def options_of(argv: Sequence[str]) -> list[str]:
    """Return Hydra's options of a normalised command line with their values, except the option of a sweep."""
    words, options = list(argv), list[str]()
    while words and words[0].startswith("-") and words[0] not in ("-", "--"):
        option = words.pop(0)
        values = [words.pop(0)] if (option in _INFO or _takes_value(option)) and words else []
        if option not in ("-m", "--multirun"):
            options += [option, *values]
    return options


def config_folders(argv: Sequence[str]) -> list[Path]:
    """Return the folders of ``--config-dir`` on a normalised command line."""
    return [Path(value) for value in _values_of("--config-dir", argv)]


def config_names(argv: Sequence[str]) -> list[str]:
    """Return the names of ``--config-name`` on a normalised command line."""
    return [value.removesuffix(".yaml") for value in _values_of("--config-name", argv)]


def _values_of(name: str, argv: Sequence[str]) -> list[str]:
    """Return the values of an option of :data:`_WITH_VALUE`, which may be abbreviated."""
    words = [part for word in options_of(argv) for part in (word.split("=", 1) if word.startswith("-") else [word])]
    return [
        value
        for option, value in pairwise(words)
        if option == _WITH_VALUE[name] or (len(option) > len("--config-") and name.startswith(option))
    ]


def normalise_argv(argv: Sequence[str]) -> list[str]:
    """Sort the words after the program's name: first Hydra's options with their values, then the overrides.

    Hydra 1.3 refuses overrides on both sides of an option (``model=pipnet -m backbone=mbv2,resnet18``), because its
    parser accepts only one contiguous group of them. Options keep their order, and so do overrides. All words after
    ``--`` are overrides, and ``--KEY=VALUE`` is one if Hydra has no such option. A normalised command line is returned
    unchanged.

    Args:
        argv: ``sys.argv[1:]``.
    """
    options: list[str] = []
    overrides: list[str] = []
    words = list(argv)
    while words:
        word = _without_dashes(words.pop(0))
        if word == "--":
            return [*options, "--", *overrides, *words]
        if not word.startswith("-") or word == "-":
            overrides.append(word)
        elif word in _INFO and (not words or words[0].startswith("-") or _is_override(words[0])):
            # With its default value written out; otherwise argparse would read the first override as the value.
            options.append("--info=all")
        elif (word in _INFO or _takes_value(word)) and words:
            options += [word, words.pop(0)]
        else:
            options.append(word)
    return options + overrides


def take_supplements(argv: Sequence[str]) -> list[str]:
    """Collect the words such as ``+model.width=8`` of a normalised command line in one override, ``supplements=[...]``.

    They supplement the configuration of the opened run, not that of the script; see :data:`SCRIPT_NODES`.

    Raises:
        ConfigError: ``supplements=`` is typed, too.
    """
    words = overrides_of(argv)
    taken = [word for word in words if (match := re.match(r"\+(\w+)\.", word)) and match[1] not in SCRIPT_NODES]
    if taken and (typed := [word for word in words if key_of(word) == "supplements"]):
        raise ConfigError(typed[0], f": type {taken[0]} and all other supplements with a plus")
    rest = [word for word in argv if word not in taken]
    return [*rest, f"supplements=[{','.join(quoted(word[1:]) for word in taken)}]"] if taken else list(argv)


def overrides_of(argv: Sequence[str]) -> list[str]:
    """Return the overrides of a normalised command line, which follow Hydra's options."""
    words = list(argv)
    while words and words[0].startswith("-") and words[0] not in ("-", "--"):
        option = words.pop(0)
        if words and (option in _INFO or _takes_value(option)):
            words.pop(0)
    return words[1:] if words[:1] == ["--"] else words


def with_trainer_keys(words: Sequence[str]) -> list[str]:
    """Put ``++`` before overrides of ``trainer.KEY``, so that they need no ``+`` for keys that no YAML file has.

    :func:`facelab.runs.typed.check_typed` refuses a key that is no argument of the Trainer.
    """
    return [f"++{word}" if word.startswith("trainer.") else word for word in words]


def is_sweep(argv: Sequence[str]) -> bool:
    """Return whether a normalised command line starts a sweep."""
    return bool({"-m", "--multirun"} & set(argv)) or "hydra.mode=MULTIRUN" in argv


def key_of(word: str) -> str:
    """Return the key of an override, without ``+`` or ``~``."""
    return word.lstrip("+~").partition("=")[0]


def quoted(text: str | Path) -> str:
    """Quote text, such as a path, as a value on Hydra's command line."""
    from hydra.core.override_parser.types import Quote, QuotedString

    # Double quotes are preferred: `shlex.quote` adds single quotes, within which they need no escape.
    quote = Quote.single if '"' in str(text) else Quote.double
    return QuotedString(text=str(text), quote=quote).with_quotes()


def as_typed(key: str, text: str) -> str:
    """Return the shell word that sets a key to this text."""
    return shlex.quote(f"{key}={quoted(text)}")


def unquoted(value: str) -> str:
    """Parse a value that Hydra does not read: quoted text as Hydra would parse it, other text unchanged."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if not value.startswith(("'", '"')):
        return value
    try:
        text = OverridesParser.create().parse_override(f"value={value}").value()
    except HydraException:
        return value
    return text if isinstance(text, str) else value
