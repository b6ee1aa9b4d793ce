"""Faults of a configuration, found before anything is built from it."""

import inspect
import math
import os
import re
import shlex
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt, MinLen
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from facelab.bounds import Seed, Text
from facelab.renames import renamed_key
from facelab.runs.argv import quoted
from facelab.runs.stricter import MAX_NUMBER, STRICTER
from facelab.runs.targets import GET_OBJECT, PROJECT, Refused, buildable, hint, layout_at

PATHS: dict[str, Any] = {
    **{f"paths.{key}": Text for key in ("data", "cache", "run", "name", "group", "id")},
    "paths.tags": Sequence[str],
}
"""Keys of ``paths`` that scripts and dashboards read, with their types."""
TRAIN_KEYS: dict[str, Any] = {
    "task": Text,
    "seed": Seed,
    "test": bool,
    "test_ckpt": Literal["last", "best"],
    "on_nan": Literal["stop", "skip", "continue"],
    "monitor.name": Text,
    "monitor.mode": Literal["min", "max"],
    **dict.fromkeys(("logger", "callbacks"), dict[str, Any] | None),
    **dict.fromkeys(("memory_format", "compile", "trainer", "model", "datamodule"), Any),
    **PATHS,
}
"""Keys that train.py reads, with their types if no constructor checks them. Any other key must be used by one of
these."""
SPECIAL = ("_target_", "_partial_", "_recursive_", "_convert_")
"""Keys of a node that are not arguments."""
_CONVERT = ("none", "partial", "object", "all")
# `${name`, `${..name`, or `${resolver:first argument`; the match ends at a nested `${`, which leaves a prefix.
_REFERENCE = re.compile(r"\$\{\s*([^\s${}:]+)\s*(?::\s*['\"]?([^\s${},'\"]*))?")
_READS_KEYS = ("oc.select", "oc.deprecated", "oc.dict.keys", "oc.dict.values")
_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "of length >="}
_UNKNOWN = object()  # marks a value that cannot be read; the reason is reported as a separate fault

_Place = tuple[str | int, ...]  # keys and list indices from the root


class Fault(str):
    """Fault of a configuration, on one line: its place, a colon and the problem.

    Attributes:
        place: dotted key.
    """

    place: str

    def __new__(cls, place: str, message: str) -> "Fault":
        """Join place and message."""
        fault = super().__new__(cls, f"{place}: {message}")
        fault.place = place
        return fault


def check_config(cfg: DictConfig, names: Collection[str]) -> list[Fault]:
    """Find every fault that can be detected without building anything.

    * A value is missing, or an interpolation refers to a missing key or creates a node.
    * A ``_target_`` cannot be imported or is not allowed. Allowed: classes of this project; classes of
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
    tree = list(_containers(cfg, ()))
    return [
        *_value_faults(tree),
        *(_script_faults(cfg, names) if isinstance(names, Mapping) else ()),
        *(fault for place, node in tree if isinstance(node, DictConfig) for fault in _node_faults(place, node)),
        *_unread_faults(cfg, (), names, _references(tree)),
        *_pair_faults(cfg),
    ]


def _fault(place: _Place, key: Any, message: str) -> Fault:
    """Make a fault of a key of a node."""
    return Fault(_show((*place, key)), message)


# The tree


def _show(place: _Place) -> str:
    """Write a place as it is typed: ``a.b[0]``."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    return text.lstrip(".")


def _dotted(place: _Place) -> str:
    """Write a place with dots only: ``a.b.0``."""
    return ".".join(map(str, place))


def _keys(node: DictConfig | ListConfig) -> list[Any]:
    """List the keys of a mapping or the indices of a list."""
    return list(range(len(node))) if isinstance(node, ListConfig) else list(node.keys())


def _read(node: DictConfig | ListConfig, key: Any) -> Any:
    """Return the value with its interpolation resolved, or _UNKNOWN."""
    try:
        return node[key]
    except OmegaConfBaseException:
        return _UNKNOWN


def _containers(node: DictConfig | ListConfig, place: _Place) -> Iterator[tuple[_Place, DictConfig | ListConfig]]:
    """Yield every mapping and list of the tree itself with its place; interpolations are not followed."""
    yield place, node
    for key in _keys(node):
        value = _UNKNOWN if OmegaConf.is_interpolation(node, key) else _read(node, key)
        if isinstance(value, DictConfig | ListConfig):
            yield from _containers(value, (*place, key))


# Values


def _value_faults(tree: list[tuple[_Place, DictConfig | ListConfig]]) -> Iterator[Fault]:
    """Yield a fault for each value that is missing or cannot be read."""
    in_tree = {id(node) for _, node in tree}
    for place, node in tree:
        for key in _keys(node):
            message = _value_fault(node, key, (*place, key), in_tree)
            if message:
                yield _fault(place, key, message)


def _value_fault(node: DictConfig | ListConfig, key: Any, place: _Place, in_tree: set[int]) -> str | None:
    """Return why a value cannot be used; None if it can."""
    try:
        value = node[key]
    except MissingMandatoryValue:
        name = next((_dotted(place[:depth]) for depth, step in enumerate(place) if isinstance(step, int)), None)
        return f"is not set; type {name}=[...]" if name else f"is not set; type {_dotted(place)}=..."
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
    return isinstance(value, ListConfig) and not any(OmegaConf.is_config(_read(value, key)) for key in _keys(value))


def _script_faults(cfg: DictConfig, types: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the faults of the keys that the script reads, by their types."""
    for name, annotation in types.items():
        *above, key = name.split(".")
        node: Any = cfg
        for step in above:
            node = _read(node, step) if isinstance(node, DictConfig) and step in node else None
        if isinstance(node, DictConfig) and key in node:
            yield from _type_faults((*above, key), node, key, annotation)


# Nodes


def _node_faults(place: _Place, node: DictConfig) -> Iterator[Fault]:
    """Yield the faults of one node: flags, class and arguments."""
    if "_target_" not in node.keys():  # noqa: SIM118 (`in node` is False where the value is missing)
        for key in _keys(node):
            if str(key).startswith("_") and key not in ("_recursive_", "_convert_"):
                yield _fault(place, key, f"has no effect in a node without `_target_`{hint(key, SPECIAL)}")
        return
    yield from _flag_faults(place, node)
    path = _read(node, "_target_")
    if path is _UNKNOWN:
        return
    if path == GET_OBJECT:
        yield from _get_object_faults(place, node)
        return
    try:
        target = buildable(path)
    except Refused as refusal:
        yield _fault(place, "_target_", str(refusal))
    else:
        yield from _argument_faults(place, node, target)


def _flag_faults(place: _Place, node: DictConfig) -> Iterator[Fault]:
    """Yield the faults of Hydra's keys of a node, such as ``_partial_``."""
    if "_args_" in node.keys():  # noqa: SIM118
        yield _fault(place, "_args_", "is not allowed: name each argument")
    for key, allowed in (("_partial_", (True, False)), ("_recursive_", (True, False)), ("_convert_", _CONVERT)):
        value = _read(node, key) if key in node else allowed[0]
        if not any(type(value) is type(choice) and value == choice for choice in allowed):
            yield _fault(place, key, f"{value!r} given, one of {', '.join(map(str, allowed))} expected")


def _arguments(node: DictConfig) -> dict[str, Any]:
    """Return the arguments of a node with interpolations resolved."""
    return {str(key): _read(node, key) for key in _keys(node) if key not in (*SPECIAL, "_args_")}


def _is_partial(node: DictConfig) -> bool:
    return "_partial_" in node and _read(node, "_partial_") is True


def _get_object_faults(place: _Place, node: DictConfig) -> Iterator[Fault]:
    """Yield the faults of a node that names a layout."""
    arguments = _arguments(node)
    for key in arguments.keys() - {"path"}:
        yield _fault(place, key, f"`get_object` has no argument `{key}`{hint(key, ['path'])}")
    if "path" not in arguments:
        yield _fault(place, "path", "is required by `get_object`")
    elif arguments["path"] is not _UNKNOWN:
        try:
            layout_at(arguments["path"])
        except Refused as refusal:
            yield _fault(place, "path", str(refusal))


def _argument_faults(place: _Place, node: DictConfig, target: Callable[..., Any]) -> Iterator[Fault]:
    """Yield the faults of the arguments for a class: not accepted, of a wrong type, or missing."""
    arguments, name = _arguments(node), target.__qualname__
    parameters = inspect.signature(target).parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters) and not _has_no_constructor(target)
    for key, value in arguments.items():
        if key in named:
            if not _is_default(value, named[key]):
                yield from _type_faults((*place, key), node, key, _annotation(named[key], target))
        elif takes_any:
            yield from _type_faults((*place, key), node, key, Any)
        else:
            message = f"`{name}` has no argument `{key}`{hint(key, [*named, *SPECIAL]) or _takes(named)}"
            yield _fault(place, key, message)
    if not _is_partial(node):
        for key, parameter in named.items():
            if parameter.default is parameter.empty and key not in arguments:
                yield _fault(place, key, f"is required by `{name}`")


def _takes(names: Collection[str]) -> str:
    """List the arguments of a class for a message."""
    return f"; it takes {', '.join(names)}" if names else "; it takes none"


def _has_no_constructor(target: Callable[..., Any]) -> bool:
    """Return whether a class inherits ``nn.Module.__init__``, whose signature accepts any argument; the call fails."""
    torch = sys.modules.get("torch")
    return torch is not None and getattr(target, "__init__", None) is torch.nn.Module.__init__


# Types


def _is_default(value: Any, parameter: inspect.Parameter) -> bool:
    """Return whether a value equals the default of its parameter, which is always allowed."""
    default = parameter.default
    return default is not parameter.empty and type(value) is type(default) and value == default


def _type_faults(place: _Place, node: DictConfig | ListConfig, key: Any, annotation: Any) -> Iterator[Fault]:
    """Yield a fault if the value under this key, or for a list each of its items, does not match the annotation."""
    value = _read(node, key)
    if _fits(value, annotation):
        return
    text = None if annotation is Any else _text(value, annotation)
    items = _item_annotations(value, annotation) if isinstance(value, ListConfig) and text is None else []
    if items:
        for index, item in enumerate(items):
            yield from _type_faults((*place, index), value, index, item)
        return
    expected, refers_to = _expected(annotation), reference(node, key)
    if _is_not_finite(value) and (annotation is Any or "float" in expected):
        expected = "a finite number" if annotation is Any else f"finite {expected}"
    by = f" by {refers_to}" if refers_to else ""
    if isinstance(value, str) and _fits(_number(value), annotation):
        yield Fault(_show(place), f"the text {value!r} given{by}, {expected} expected: write the number without quotes")
        return
    message = f"{_given(value)} given{by}, {expected} expected"
    if text is not None:
        typed_key = refers_to or _show(place)
        message += _typed_as_text(typed_key, _typed(typed_key, value) or text)
    yield Fault(_show(place), message)


def _item_annotations(value: ListConfig, annotation: Any) -> list[Any]:
    """Return the annotation of each item of a list; empty if no list, or none of this length, is allowed."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return [Annotated[item, *inner[1:]] for item in _item_annotations(value, inner[0])]
    if origin in (Union, UnionType):
        return next(filter(None, (_item_annotations(value, member) for member in inner)), [])
    if not inner or not isinstance(origin, type) or not (issubclass(list, origin) or origin is tuple):
        return []
    if origin is tuple and inner[-1] is not Ellipsis:
        return list(inner) if len(inner) == len(value) else []
    return [inner[0]] * len(value)


def _expected(annotation: Any) -> str:
    """Format an annotation for a message, with its bounds as signs."""
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(map(_expected, get_args(annotation)))
    written = inspect.formatannotation(annotation).replace("NoneType", "None")
    return re.sub(r"(?:typing\.)?Annotated\[(.*?)((?:, \w+\([^()]*\))+)\]", _bounded, written)


def _bounded(match: re.Match[str]) -> str:
    """Format an ``Annotated`` type with its bounds as signs."""
    bounds = re.findall(r"(gt|ge|lt|le|min_length)=([-\d.]+)", match[2])
    return f"{match[1]} {' and '.join(f'{_SIGNS[name]} {number}' for name, number in bounds)}"


def _text(value: Any, annotation: Any) -> Any:
    """Return the text, or list of texts, that was parsed as another type; None if text is not allowed here."""
    words = [_word(_read(value, key)) for key in _keys(value)] if isinstance(value, ListConfig) else [_word(value)]
    if not all(isinstance(word, str) for word in words) or (value is None and not _is_text(annotation)):
        return None
    text = OmegaConf.create(words) if isinstance(value, ListConfig) else words[0]
    return text if _fits(text, annotation) else None


def _is_text(annotation: Any) -> bool:
    """Return whether an annotation is text, with or without bounds."""
    return annotation is str or (get_origin(annotation) is Annotated and get_args(annotation)[0] is str)


def _word(value: Any) -> Any:
    """Return the word that was parsed as a number, a boolean or null; other values unchanged."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if isinstance(value, int | float) else value


def _typed(place: str, value: Any) -> str | None:
    """Return the typed word that was parsed as this value, such as 2024_01 for 202401; None if there is none."""
    if not HydraConfig.initialized():
        return None
    words: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    parser = OverridesParser.create()
    typed = {each.key_or_group: each for each in parser.parse_overrides(words)}.get(place)
    same = typed is not None and type(typed.value()) is type(value) and typed.value() == value
    return str(typed.input_line).partition("=")[2] if typed is not None and same else None


def _typed_as_text(place: str, text: Any) -> str:
    """Return a hint how to write text that would be parsed as another type."""
    written = quoted(text) if isinstance(text, str) else f"[{','.join(map(quoted, text))}]"
    in_shell = "" if "[" in place else f", in a shell {shlex.quote(f'{place}={written}')}"
    return f"; as text it is written in quotes: {written} in YAML{in_shell}"


def _number(text: str) -> Any:
    """Parse text as a number; other text is returned unchanged."""
    try:
        return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)
    except ValueError:
        return text


def _given(value: Any) -> str:
    """Describe a value for a message."""
    if isinstance(value, DictConfig) and "_target_" in value:
        return f"a {'partial ' if _is_partial(value) else ''}{value['_target_']}"
    return "null" if value is None else repr(value)


def _annotation(parameter: inspect.Parameter, target: Callable[..., Any]) -> Any:
    """Return the annotation of a parameter as an object, or its stricter replacement.

    Any if there is no annotation, or if its type is imported for type checkers only.
    """
    classes = getattr(target, "__mro__", ())
    for base in classes:
        stricter = STRICTER.get(f"{base.__module__}.{base.__qualname__}", {})
        if parameter.name in stricter:
            return stricter[parameter.name]
    if parameter.annotation is parameter.empty:
        return Any
    owner = next((base for base in classes if "__init__" in vars(base)), target)
    hint = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        hints = typing.get_type_hints(hint, globalns=vars(sys.modules[owner.__module__]), include_extras=True)
    except (AttributeError, NameError):
        return Any
    largest = MAX_NUMBER.get(owner.__module__.partition(".")[0])
    return Annotated[hints[parameter.name], Interval(ge=-largest, le=largest)] if largest else hints[parameter.name]


def _fits(value: Any, annotation: Any) -> bool:
    """Return whether a value matches an annotation; True if this cannot be decided."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if value is _UNKNOWN or _is_not_finite(value) or annotation is Any:
        return not _is_not_finite(value)
    if origin is Annotated:
        return _fits(value, inner[0]) and all(_is_within(value, bound) for bound in inner[1:])
    if origin in (Union, UnionType):
        return any(_fits(value, member) for member in inner)
    if origin is Literal:
        return any(type(value) is type(literal) and value == literal for literal in inner)
    kind = NoneType if annotation is None else origin or annotation
    if not isinstance(kind, type) or typing.is_typeddict(kind):
        return True
    if getattr(kind, "_is_protocol", False):  # only built objects implement a protocol of this project
        is_built = isinstance(value, DictConfig) and "_target_" in value
        return is_built or kind.__module__.partition(".")[0] not in PROJECT
    if isinstance(value, ListConfig):
        return _list_fits(value, kind, inner)
    if isinstance(value, DictConfig):
        return _node_fits(value, kind, inner) if "_target_" in value else _mapping_fits(value, kind, inner)
    return _scalar_fits(value, kind)


def _is_not_finite(value: Any) -> bool:
    """Return whether a value is NaN or infinite, which no argument may be."""
    return isinstance(value, float) and not math.isfinite(value)


def _is_within(value: Any, bound: Any) -> bool:
    """Return whether every number in a value, or the length of a text, is within a bound."""
    if isinstance(value, ListConfig):
        return all(_is_within(_read(value, key), bound) for key in _keys(value))
    if isinstance(bound, GroupedMetadata):
        return all(_is_within(value, part) for part in bound)
    if isinstance(bound, MinLen):
        return not isinstance(value, str) or len(value) >= bound.min_length
    test = next((test for kind, test in _COMPARED.items() if isinstance(bound, kind)), None)
    return test is None or not isinstance(value, int | float) or test(value, bound)


_COMPARED: dict[type, Callable[[Any, Any], bool]] = {
    Gt: lambda value, bound: value > bound.gt,
    Ge: lambda value, bound: value >= bound.ge,
    Lt: lambda value, bound: value < bound.lt,
    Le: lambda value, bound: value <= bound.le,
}


def _scalar_fits(value: Any, kind: type) -> bool:
    """Return whether a value that is neither list nor mapping is of a type."""
    if isinstance(value, bool) and kind is int:
        return False
    if isinstance(value, str) and kind is not str:
        # A str is an Iterable, but is never meant as one. A path is written as text.
        return issubclass(kind, os.PathLike) or (isinstance(value, kind) and not issubclass(kind, Iterable))
    return isinstance(value, kind) or (kind is float and type(value) is int)


def _list_fits(value: ListConfig, kind: type, inner: tuple[Any, ...]) -> bool:
    """Return whether a list and its items are of a type."""
    if not issubclass(list, kind) and kind is not tuple:
        return False
    items = [_read(value, key) for key in _keys(value)]
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        return len(items) == len(inner) and all(map(_fits, items, inner))
    return not inner or all(_fits(item, inner[0]) for item in items)


def _mapping_fits(value: DictConfig, kind: type, inner: tuple[Any, ...]) -> bool:
    """Return whether a mapping without ``_target_`` and its values are of a type."""
    if not issubclass(dict, kind):
        return False
    return not (inner and issubclass(kind, Mapping)) or all(_fits(_read(value, key), inner[1]) for key in _keys(value))


def _node_fits(value: DictConfig, kind: type, inner: tuple[Any, ...]) -> bool:
    """Return whether the class of a node, or for a partial node the return type of its function, matches."""
    try:
        built = (
            type(layout_at(_read(value, "path"))) if value["_target_"] == GET_OBJECT else buildable(value["_target_"])
        )
    except Refused:
        return True  # reported as a separate fault
    if _is_partial(value):
        return issubclass(partial, kind) and (len(inner) != 2 or _class_fits(built, inner[1]))
    return issubclass(built, kind)


def _class_fits(built: type, annotation: Any) -> bool:
    """Return whether instances of a class match an annotation; True if this cannot be decided."""
    if get_origin(annotation) in (Union, UnionType):
        return any(_class_fits(built, member) for member in get_args(annotation))
    kind = get_origin(annotation) or annotation
    return not isinstance(kind, type) or getattr(kind, "_is_protocol", False) or issubclass(built, kind)


# Unused keys


def _references(tree: list[tuple[_Place, DictConfig | ListConfig]]) -> set[str]:
    """Return the dotted paths of the keys that interpolations refer to."""
    names = set()
    for place, node in tree:
        raw = OmegaConf.to_container(node, resolve=False)
        for key in _keys(node):
            text = raw[key]  # type: ignore[index]
            if isinstance(text, str):
                names |= {_absolute_key(match[1], match[2], place) for match in _REFERENCE.finditer(text)}
    return names


def _absolute_key(name: str, argument: str | None, place: _Place) -> str:
    """Return the key that ``${name}`` in the node at ``place`` refers to.

    For a resolver ``${name:argument}`` it is the key in the first argument if the resolver is in ``_READS_KEYS``,
    otherwise an empty text.
    """
    if argument is not None:
        name = argument if name in _READS_KEYS else ""
    dots = len(name) - len(name.lstrip("."))
    base = place[: len(place) - dots + 1] if dots else ()
    return ".".join([*map(str, base), *re.findall(r"[^.\[\]]+", name)])


def _unread_faults(node: DictConfig, place: _Place, names: Collection[str], references: set[str]) -> Iterator[Fault]:
    """Yield a fault for each key that neither the script, a part nor an interpolation reads."""
    if "_target_" in node:
        return
    for key in _keys(node):
        here = (*place, key)
        value: Any = _read(node, key)
        is_node = isinstance(value, DictConfig)
        if _dotted(here) in references:
            continue
        if is_node and value and "_target_" not in value and not OmegaConf.is_interpolation(node, key):
            yield from _unread_faults(value, here, names, references)
        elif _dotted(here) in names or str(key).startswith("_") or _is_above_reference(here, references):
            continue
        elif not (_dotted(place) in names and (value is None or (is_node and "_target_" in value))):
            beside = {name.rpartition(".") for name in {*names, *references}}
            options = [last for parent, _, last in beside if parent == _dotted(place)]
            new = renamed_key(_dotted(here))
            advice = hint(key, options) if new == _dotted(here) else f"; it is called {new} in this version"
            yield _fault(place, key, f"nothing reads this key{advice}")


def _is_above_reference(place: _Place, references: set[str]) -> bool:
    """Return whether an interpolation refers to a key below this place."""
    return any(reference.startswith(f"{_dotted(place)}.") for reference in references)


# Parts that must match each other


def _pair_faults(cfg: DictConfig) -> Iterator[Fault]:
    """Yield a fault for each pair of parts whose annotations do not match."""
    model, datamodule, loss = (_class_at(cfg, name) for name in ("model", "datamodule", "loss"))
    for taken, given in _misfits(getattr(datamodule, "batch_type", Any), model, "training_step", "batch"):
        yield Fault(
            "datamodule",
            f"`{datamodule.__qualname__}` gives {given.__name__}, the model `{model.__qualname__}` takes {taken}",
        )
    for method, _ in _misfits(datamodule, model, "fit_statistics", "datamodule"):
        yield Fault(
            "datamodule",
            f"`{datamodule.__qualname__}` has no method `{method}`, which the model `{model.__qualname__}` calls; "
            "it belongs to another method",
        )
    predicted = _annotated(getattr(model, "forward", None), "return")
    for taken, given in _misfits(predicted, loss, "forward", "prediction"):
        yield Fault(
            "loss",
            f"`{loss.__qualname__}` compares {taken}, the model `{model.__qualname__}` predicts {given.__name__}",
        )


def _misfits(given: Any, taker: Any, method: str, parameter: str) -> Iterator[tuple[str, type]]:
    """Compare a class with the annotation of a parameter.

    Yields:
        The name of the required class, or of each missing method of a required protocol, and the given class. Nothing
        if either type is unknown.
    """
    taken = _annotated(getattr(taker, method, None), parameter)
    if Any in (given, taken) or not isinstance(given, type) or not isinstance(taken, type):
        return
    if getattr(taken, "_is_protocol", False):
        required = (name for name, member in vars(taken).items() if callable(member) and not name.startswith("_"))
        yield from ((name, given) for name in required if not hasattr(given, name))
    elif not issubclass(given, taken):
        yield taken.__name__, given


def _annotated(function: Any, name: str) -> Any:
    """Return the annotation of a function's parameter or return value; Any if there is none."""
    if function is None:
        return Any
    signature = inspect.signature(function)
    if name == "return":
        returned = inspect.Parameter("_", inspect.Parameter.KEYWORD_ONLY, annotation=signature.return_annotation)
        return _annotation(returned, function)
    return _annotation(signature.parameters[name], function) if name in signature.parameters else Any


def _class_at(cfg: DictConfig, name: str) -> Any:
    """Return the class of a node; None if it has none that may be built."""
    node = _read(cfg, name) if name in cfg else None
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return None
    try:
        return buildable(_read(node, "_target_"))
    except Refused:
        return None  # reported as a separate fault


# Part of a configuration


def copy_part(cfg: Mapping[str, Any], paths: Iterable[str]) -> DictConfig:
    """Copy some nodes and everything that they refer to; the other nodes are neither checked nor built.

    Args:
        cfg: a whole configuration in plain containers, with unresolved interpolations.
        paths: dotted paths of nodes. Missing nodes are skipped.

    Returns:
        A new configuration of these nodes, and of those that their interpolations refer to, at the same places.
    """
    part: dict[str, Any] = {}
    copied: set[_Place] = set()
    waiting = [tuple(path.split(".")) for path in paths]
    while waiting:
        place, value = _find(cfg, waiting.pop())
        if value is _UNKNOWN or any(place[: len(other)] == other for other in copied):
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


def _find(raw: Any, path: tuple[str, ...]) -> tuple[_Place, Any]:
    """Follow a path from the root to its node, or to the first list or reference on the way."""
    value = raw
    for depth, step in enumerate(path):
        if isinstance(value, list) or (isinstance(value, str) and "${" in value):
            return path[:depth], value
        if not isinstance(value, dict) or step not in value:
            return path, _UNKNOWN
        value = value[step]
    return path, value


def _names_in(value: Any, place: _Place, key: Any) -> Iterator[str]:
    """Yield the dotted paths to which interpolations refer in a value under a key of the node at ``place``."""
    if isinstance(value, dict | list):
        for inner, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _names_in(child, (*place, key), inner)
    elif isinstance(value, str):
        yield from (_absolute_key(match[1], match[2], place) for match in _REFERENCE.finditer(value))


def reference(node: DictConfig | ListConfig, key: Any) -> str | None:
    """Return the dotted key if a value is exactly one reference; None otherwise."""
    if (isinstance(node, DictConfig) and key not in node) or not OmegaConf.is_interpolation(node, key):
        return None
    raw: Any = OmegaConf.to_container(node, resolve=False)
    match = re.fullmatch(r"\$\{(\w+(?:\.\w+)*)\}", raw[key])
    return match[1] if match else None
