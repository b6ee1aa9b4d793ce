"""Faults of a configuration, found before anything is built from it."""

import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from facelab.bounds import Name, Seed, Text
from facelab.renames import renamed_key
from facelab.runs.pairs import pair_faults
from facelab.runs.references import references_of
from facelab.runs.targets import GET_OBJECT, Refused, buildable, hint, layout_at
from facelab.runs.tree import UNKNOWN, Fault, Place, containers, dotted, fault_at, is_partial, keys_of, read
from facelab.runs.values import annotation_of, is_default, type_faults

PATHS: dict[str, Any] = {
    **{f"paths.{key}": Text for key in ("data", "cache", "run", "name", "group", "id")},
    "paths.tags": Sequence[str],
}
"""Keys of ``paths`` that scripts and dashboards read, with their types."""
DETECTION: dict[str, Any] = {
    f"detection.{key}": Any
    for key in (
        *("scale", "threshold", "candidates", "nms_iou", "most", "official_areas"),
        *("min_face", "factor", "thresholds", "nms_iom", "cells", "resize", "official_pixels"),  # of MTCNN
    )
}
"""Keys of ``detection`` by which a script changes the rule of a detector, whose constructor checks their values."""
TRAIN_KEYS: dict[str, Any] = {
    "task": Text,
    "seed": Seed,
    "init": Name | None,
    "test": bool,
    "test_ckpt": Literal["last", "best"],
    "trust": Sequence[str],
    "on_nan": Literal["stop", "skip", "continue"],
    "monitor.name": Text,
    "monitor.mode": Literal["min", "max"],
    **dict.fromkeys(("logger", "callbacks"), dict[str, Any] | None),
    **dict.fromkeys(("rates", "memory_format", "compile", "trainer", "model", "datamodule"), Any),
    **PATHS,
}
"""Keys that train.py reads, with their types if no constructor checks them. Any other key must be used by one of
these."""
SPECIAL = ("_target_", "_partial_", "_recursive_", "_convert_")
"""Keys of a node that are not arguments."""
_CONVERT = ("none", "partial", "object", "all")


def check_config(cfg: DictConfig, names: Collection[str]) -> list[Fault]:
    """Find every fault that can be detected without building anything.

    * A value is missing, or an interpolation refers to a missing key or creates a node.
    * A ``_target_`` cannot be imported or is not allowed. Allowed: classes of this project and of the packages that
      :func:`facelab.runs.targets.trusting` allows; classes of
      :data:`facelab.runs.targets.LIBRARIES` derived from one of ``BASES`` there; ``hydra.utils.get_object`` for a
      layout. The check imports only these packages. This keeps a configuration of unknown origin from calling
      arbitrary functions; it is not a sandbox, because the allowed classes may read files that their arguments name.
    * An argument is not in the signature or is missing (allowed if ``_partial_`` is true), or its value does not match
      a plain annotation: finite numbers and their bounds, text, lists and mappings of these, literals, classes, and
      the return type of a partial. :data:`facelab.runs.stricter.STRICTER` adds bounds that libraries do not declare.
    * A key is unused: it is not an argument, no interpolation refers to it, and it is not in ``names``.
    * The datamodule's ``batch_type`` is not the type that the model's ``training_step`` takes, the datamodule has not
      all methods of the protocol in the model's ``fit_statistics``, or the loss does not take the return type of the
      model's ``forward``.

    Args:
        cfg: the composed configuration, with unresolved interpolations.
        names: dotted paths of the keys that the caller itself reads, such as ``seed`` or ``monitor.name``. In a mapping
            the values are their types, which are checked like those of arguments. A mapping of nodes to build
            (``callbacks``) is named once; its values may be nodes with ``_target_`` or null. Names that are missing
            from the configuration are no fault.

    Returns:
        The faults, each on one line that begins with its place in the configuration; empty if there are none.
    """
    tree = list(containers(cfg, ()))
    return [
        *_value_faults(tree),
        *(_script_faults(cfg, names) if isinstance(names, Mapping) else ()),
        *(fault for place, node in tree if isinstance(node, DictConfig) for fault in _node_faults(place, node)),
        *_unread_faults(cfg, (), names, references_of(tree)),
        *pair_faults(cfg),
    ]


# Values


def _value_faults(tree: list[tuple[Place, DictConfig | ListConfig]]) -> Iterator[Fault]:
    """Yield a fault for each value that is missing or cannot be read."""
    in_tree = {id(node) for _, node in tree}
    for place, node in tree:
        for key in keys_of(node):
            message = _value_fault(node, key, (*place, key), in_tree)
            if message:
                yield fault_at(place, key, message)


def _value_fault(node: DictConfig | ListConfig, key: Any, place: Place, in_tree: set[int]) -> str | None:
    """Return why a value cannot be used; None if it can."""
    try:
        value = node[key]
    except MissingMandatoryValue:
        name = next((dotted(place[:depth]) for depth, step in enumerate(place) if isinstance(step, int)), None)
        return f"is not set; type {name}=[...]" if name else f"is not set; type {dotted(place)}=..."
    except InterpolationToMissingValueError:
        return None  # reported once, at the missing value
    except OmegaConfBaseException as error:
        return str(error).splitlines()[0]
    if isinstance(value, str) and "${" in value:
        return "text that contains `${`: an interpolation cannot be escaped, it would be resolved during building"
    if OmegaConf.is_config(value) and id(value) not in in_tree and not _is_plain_list(value):
        return "an interpolation may refer to a node of the configuration but must not create one"
    return None


def _is_plain_list(value: Any) -> bool:
    """Return whether a value is a list without nodes."""
    return isinstance(value, ListConfig) and not any(OmegaConf.is_config(read(value, key)) for key in keys_of(value))


def _script_faults(cfg: DictConfig, types: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the faults of the keys that the script reads, by their types."""
    for name, annotation in types.items():
        *above, key = name.split(".")
        node: Any = cfg
        for step in above:
            node = read(node, step) if isinstance(node, DictConfig) and step in node else None
        if isinstance(node, DictConfig) and key in node:
            yield from type_faults((*above, key), node, key, annotation)


# Nodes


def _node_faults(place: Place, node: DictConfig) -> Iterator[Fault]:
    """Yield the faults of one node: flags, class and arguments."""
    if "_target_" not in node.keys():  # noqa: SIM118 (`in node` is False where the value is missing)
        for key in keys_of(node):
            if str(key).startswith("_") and key not in ("_recursive_", "_convert_"):
                yield fault_at(place, key, f"has no effect in a node without `_target_`{hint(key, SPECIAL)}")
        return
    yield from _flag_faults(place, node)
    path = read(node, "_target_")
    if path is UNKNOWN:
        return
    if path == GET_OBJECT:
        yield from _get_object_faults(place, node)
        return
    try:
        target = buildable(path)
    except Refused as refusal:
        yield fault_at(place, "_target_", str(refusal))
    else:
        yield from _argument_faults(place, node, target)


def _flag_faults(place: Place, node: DictConfig) -> Iterator[Fault]:
    """Yield the faults of Hydra's keys of a node, such as ``_partial_``."""
    if "_args_" in node.keys():  # noqa: SIM118
        yield fault_at(place, "_args_", "is not allowed: name each argument")
    for key, allowed in (("_partial_", (True, False)), ("_recursive_", (True, False)), ("_convert_", _CONVERT)):
        value = read(node, key) if key in node.keys() and key in node else allowed[0]  # noqa: SIM118 (faster)
        if not any(type(value) is type(choice) and value == choice for choice in allowed):
            yield fault_at(place, key, f"{value!r} given, one of {', '.join(map(str, allowed))} expected")


def _arguments(node: DictConfig) -> dict[str, Any]:
    """Return the arguments of a node with interpolations resolved."""
    return {str(key): read(node, key) for key in keys_of(node) if key not in (*SPECIAL, "_args_")}


def _get_object_faults(place: Place, node: DictConfig) -> Iterator[Fault]:
    """Yield the faults of a node that names a layout."""
    arguments = _arguments(node)
    for key in arguments.keys() - {"path"}:
        yield fault_at(place, key, f"`get_object` has no argument `{key}`{hint(key, ['path'])}")
    if "path" not in arguments:
        yield fault_at(place, "path", "is required by `get_object`")
    elif arguments["path"] is not UNKNOWN:
        try:
            layout_at(arguments["path"])
        except Refused as refusal:
            yield fault_at(place, "path", str(refusal))


def _argument_faults(place: Place, node: DictConfig, target: Callable[..., Any]) -> Iterator[Fault]:
    """Yield the faults of the arguments for a class: not accepted, of a wrong type, or missing."""
    arguments, name = _arguments(node), target.__qualname__
    parameters = inspect.signature(target).parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters) and not _has_no_constructor(target)
    for key, value in arguments.items():
        if key in named:
            if not is_default(value, named[key]):
                yield from type_faults((*place, key), node, key, annotation_of(named[key], target))
        elif takes_any:
            yield from type_faults((*place, key), node, key, Any)
        else:
            message = f"`{name}` has no argument `{key}`{hint(key, [*named, *SPECIAL]) or _takes(named)}"
            yield fault_at(place, key, message)
    if not is_partial(node):
        for key, parameter in named.items():
            if parameter.default is parameter.empty and key not in arguments:
                whole = (*place, key)
                how = "" if any(isinstance(step, int) for step in whole) else f"; type +{dotted(whole)}=VALUE"
                yield fault_at(place, key, f"is required by `{name}`{how}")


def _takes(names: Collection[str]) -> str:
    """List the arguments of a class for a message."""
    return f"; it takes {', '.join(names)}" if names else "; it takes none"


def _has_no_constructor(target: Callable[..., Any]) -> bool:
    """Return whether a class inherits ``nn.Module.__init__``, whose signature accepts any argument; the call fails."""
    torch = sys.modules.get("torch")
    return torch is not None and getattr(target, "__init__", None) is torch.nn.Module.__init__


# Unused keys


def _unread_faults(node: DictConfig, place: Place, names: Collection[str], references: set[str]) -> Iterator[Fault]:
    """Yield a fault for each key that neither the script, a part nor an interpolation reads."""
    if "_target_" in node:
        return
    for key in keys_of(node):
        here = (*place, key)
        value: Any = read(node, key)
        is_node = isinstance(value, DictConfig)
        if dotted(here) in references:
            continue
        if is_node and value and "_target_" not in value and not OmegaConf.is_interpolation(node, key):
            yield from _unread_faults(value, here, names, references)
        elif dotted(here) in names or str(key).startswith("_") or _is_above_reference(here, references):
            continue
        elif not (dotted(place) in names and (value is None or (is_node and "_target_" in value))):
            beside = {name.rpartition(".") for name in {*names, *references}}
            options = [last for parent, _, last in beside if parent == dotted(place)]
            new = renamed_key(dotted(here))
            advice = hint(key, options) if new == dotted(here) else f"; it is called {new} in this version"
            yield fault_at(place, key, f"nothing reads this key{advice}")


def _is_above_reference(place: Place, references: set[str]) -> bool:
    """Return whether an interpolation refers to a key below this place."""
    return any(reference.startswith(f"{dotted(place)}.") for reference in references)
