"""References of a configuration: interpolations, and the keys to which they refer."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from facelab.runs.tree import UNKNOWN, Place, keys_of

# `${name`, `${..name`, or `${resolver:first argument`; the match ends at a nested `${`, which leaves a prefix.
_REFERENCE = re.compile(r"\$\{\s*([^\s${}:]+)\s*(?::\s*['\"]?([^\s${},'\"]*))?")
_READS_KEYS = ("oc.select", "oc.deprecated", "oc.dict.keys", "oc.dict.values")


def reference(node: DictConfig | ListConfig, key: Any) -> str | None:
    """Return the dotted key if a value is exactly one reference; None otherwise."""
    if (isinstance(node, DictConfig) and key not in node.keys()) or not OmegaConf.is_interpolation(node, key):  # noqa: SIM118
        return None
    raw: Any = OmegaConf.to_container(node, resolve=False)
    match = re.fullmatch(r"\$\{(\w+(?:\.\w+)*)\}", raw[key])
    return match[1] if match else None


def references_of(tree: list[tuple[Place, DictConfig | ListConfig]]) -> set[str]:
    """Return the dotted paths of the keys that interpolations refer to."""
    names = set()
    for place, node in tree:
        raw = OmegaConf.to_container(node, resolve=False)
        for key in keys_of(node):
            text = raw[key]  # type: ignore[index]
            if isinstance(text, str):
                names |= {_absolute_key(match[1], match[2], place) for match in _REFERENCE.finditer(text)}
    return names


def _absolute_key(name: str, argument: str | None, place: Place) -> str:
    """Return the key that ``${name}`` in the node at ``place`` refers to.

    For a resolver ``${name:argument}`` it is the key in the first argument if the resolver is in ``_READS_KEYS``,
    otherwise an empty text.
    """
    if argument is not None:
        name = argument if name in _READS_KEYS else ""
    dots = len(name) - len(name.lstrip("."))
    base = place[: len(place) - dots + 1] if dots else ()
    return ".".join([*map(str, base), *re.findall(r"[^.\[\]]+", name)])


def copy_part(cfg: Mapping[str, Any], paths: Iterable[str]) -> DictConfig:
    """Copy some nodes and everything that they refer to; the other nodes are neither checked nor built.

    Args:
        cfg: a whole configuration in plain containers, with unresolved interpolations.
        paths: dotted paths of nodes. Missing nodes are skipped.

    Returns:
        A new configuration of these nodes, and of those that their interpolations refer to, at the same places.
    """
    part: dict[str, Any] = {}
    copied: set[Place] = set()
    waiting = [tuple(path.split(".")) for path in paths]
    while waiting:
        place, value = _find(cfg, waiting.pop())
        if value is UNKNOWN or any(place[: len(other)] == other for other in copied):
            continue
        copied.add(place)
        branch = part
        for step in place[:-1]:
            branch = branch.setdefault(str(step), {})
        branch[str(place[-1])] = value
        waiting += [tuple(name.split(".")) for name in _names_in(value, place[:-1], place[-1]) if name]
    created = OmegaConf.create(part)
    assert isinstance(created, DictConfig)
    return created


def _find(raw: Any, path: tuple[str, ...]) -> tuple[Place, Any]:
    """Follow a path from the root to its node, or to the first list or reference on the way."""
    value = raw
    for depth, step in enumerate(path):
        if isinstance(value, list) or (isinstance(value, str) and "${" in value):
            return path[:depth], value
        if not isinstance(value, dict) or step not in value:
            return path, UNKNOWN
        value = value[step]
    return path, value


def _names_in(value: Any, place: Place, key: Any) -> Iterator[str]:
    """Yield the dotted paths to which interpolations refer in a value under a key of the node at ``place``."""
    if isinstance(value, dict | list):
        for inner, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _names_in(child, (*place, key), inner)
    elif isinstance(value, str):
        yield from (_absolute_key(match[1], match[2], place) for match in _REFERENCE.finditer(value))
