"""Values of a configuration against the annotations of the arguments that receive them."""

import inspect
import math
import os
import re
import shlex
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt, MinLen
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from facelab.runs.argv import quoted
from facelab.runs.references import reference
from facelab.runs.stricter import MAX_NUMBER, STRICTER
from facelab.runs.targets import GET_OBJECT, Refused, buildable, is_own, layout_at
from facelab.runs.tree import UNKNOWN, Fault, Place, is_partial, keys_of, read, show

_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "of length >="}


def type_faults(place: Place, node: DictConfig | ListConfig, key: Any, annotation: Any) -> Iterator[Fault]:
    """Yield a fault if the value under this key, or for a list each of its items, does not match the annotation."""
    value = read(node, key)
    if _fits(value, annotation):
        return
    text = None if annotation is Any else _text(value, annotation)
    items = _item_annotations(value, annotation) if isinstance(value, ListConfig) and text is None else []
    if items:
        for index, item in enumerate(items):
            yield from type_faults((*place, index), value, index, item)
        return
    expected, refers_to = _expected(annotation), reference(node, key)
    if _is_not_finite(value) and (annotation is Any or "float" in expected):
        expected = "a finite number" if annotation is Any else f"finite {expected}"
    by = f" by {refers_to}" if refers_to else ""
    if isinstance(value, str) and _fits(_number(value), annotation):
        yield Fault(show(place), f"the text {value!r} given{by}, {expected} expected: write the number without quotes")
        return
    message = f"{_given(value)} given{by}, {expected} expected"
    if text is not None:
        typed_key = refers_to or show(place)
        message += _typed_as_text(typed_key, _typed(typed_key, value) or text)
    yield Fault(show(place), message)


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


def is_default(value: Any, parameter: inspect.Parameter) -> bool:
    """Return whether a value equals the default of its parameter, which is always allowed."""
    default = parameter.default
    return default is not parameter.empty and type(value) is type(default) and value == default


def annotation_of(parameter: inspect.Parameter, target: Callable[..., Any]) -> Any:
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


# Messages


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
    words = [_word(read(value, key)) for key in keys_of(value)] if isinstance(value, ListConfig) else [_word(value)]
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
        return f"a {'partial ' if is_partial(value) else ''}{value['_target_']}"
    return "null" if value is None else repr(value)


# Types


def _fits(value: Any, annotation: Any) -> bool:
    """Return whether a value matches an annotation; True if this cannot be decided."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if value is UNKNOWN or _is_not_finite(value) or annotation is Any:
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
    if getattr(kind, "_is_protocol", False):  # only built objects implement an own protocol
        is_built = isinstance(value, DictConfig) and "_target_" in value
        return is_built or not is_own(kind.__module__)
    if isinstance(value, ListConfig):
        return _list_fits(value, kind, inner)
    if isinstance(value, DictConfig):
        return _node_fits(value, kind, inner) if "_target_" in value else _mapping_fits(value, kind, inner)
    return _scalar_fits(value, kind)


def _is_not_finite(value: Any) -> bool:
    """Return whether a value is NaN or infinite, which no argument may be."""
    return isinstance(value, float) and not math.isfinite(value)


def _is_within(value: Any, bound: Any) -> bool:
    """Return whether every number in a value, or the length of a text or a list, is within a bound."""
    if isinstance(bound, GroupedMetadata):
        return all(_is_within(value, part) for part in bound)
    if isinstance(bound, MinLen):
        return not isinstance(value, str | ListConfig) or len(value) >= bound.min_length
    if isinstance(value, ListConfig):
        return all(_is_within(read(value, key), bound) for key in keys_of(value))
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
    items = [read(value, key) for key in keys_of(value)]
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        return len(items) == len(inner) and all(map(_fits, items, inner))
    return not inner or all(_fits(item, inner[0]) for item in items)


def _mapping_fits(value: DictConfig, kind: type, inner: tuple[Any, ...]) -> bool:
    """Return whether a mapping without ``_target_`` and its values are of a type."""
    if not issubclass(dict, kind):
        return False
    return not (inner and issubclass(kind, Mapping)) or all(_fits(read(value, key), inner[1]) for key in keys_of(value))


def _node_fits(value: DictConfig, kind: type, inner: tuple[Any, ...]) -> bool:
    """Return whether the class of a node, or for a partial node the return type of its function, matches."""
    try:
        built = (
            type(layout_at(read(value, "path"))) if value["_target_"] == GET_OBJECT else buildable(value["_target_"])
        )
    except Refused:
        return True  # reported as a separate fault
    if is_partial(value):
        return issubclass(partial, kind) and (len(inner) != 2 or _class_fits(built, inner[1]))
    return issubclass(built, kind)


def _class_fits(built: type, annotation: Any) -> bool:
    """Return whether instances of a class match an annotation; True if this cannot be decided."""
    if get_origin(annotation) in (Union, UnionType):
        return any(_class_fits(built, member) for member in get_args(annotation))
    kind = get_origin(annotation) or annotation
    return not isinstance(kind, type) or getattr(kind, "_is_protocol", False) or issubclass(built, kind)
