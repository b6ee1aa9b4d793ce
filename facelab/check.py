"""What is wrong with a configuration, found before anything is built from it."""

import difflib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from types import ModuleType, NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

PROJECT = frozenset({"callbacks", "datamodules", "facelab", "lightning_modules"})
"""Packages of which a configuration may build every class."""
LIBRARIES = frozenset({"albumentations", "lightning", "timm", "torch", "torchmetrics", "torchvision"})
"""Packages of which a configuration may build what is derived from one of :data:`BASES`."""
BASES = (
    "albumentations.BaseCompose",
    "albumentations.BasicTransform",
    "lightning.Trainer",
    "lightning.pytorch.callbacks.Callback",
    "lightning.pytorch.loggers.Logger",
    "lightning.pytorch.strategies.Strategy",
    "torch.nn.Module",
    "torch.optim.Optimizer",
    "torch.optim.lr_scheduler.LRScheduler",
    "torchmetrics.Metric",
)
FUNCTIONS: frozenset[str] = frozenset()
"""Functions of the project that a configuration may call, by full name."""
GET_OBJECT = "hydra.utils.get_object"
LAYOUTS = "facelab.landmarks.layouts"
"""The only module :data:`GET_OBJECT` may look into."""

_SPECIAL = ("_target_", "_partial_", "_recursive_", "_convert_")
_CONVERT = ("none", "partial", "object", "all")
# `${name`, `${..name`, or `${resolver:first argument`; what follows a nested `${` is left out, so a prefix remains.
_REFERENCE = re.compile(r"\$\{\s*([^\s${}:]+)\s*(?::\s*['\"]?([^\s${},'\"]*))?")
_READS_KEYS = ("oc.select", "oc.deprecated", "oc.dict.keys", "oc.dict.values")
_UNKNOWN = object()  # a value that cannot be had; why is a fault of its own

_Place = tuple[str | int, ...]  # keys and list indices from the root


class _RefusedError(ValueError):
    """A name that may not be built from, or that leads nowhere."""


def check_config(cfg: DictConfig, names: Collection[str]) -> list[str]:
    """Find every mistake that shows without building anything.

    * A value is missing, or an interpolation leads nowhere or makes a new node.
    * A ``_target_`` cannot be imported or is not allowed. Allowed are the classes of this project, classes of
      :data:`LIBRARIES` derived from one of :data:`BASES`, :data:`FUNCTIONS`, and ``hydra.utils.get_object`` for a
      layout. Nothing but these packages is imported to find out. This keeps a configuration of unknown origin from
      calling what it likes; it is no sandbox, as the allowed classes may read files that their arguments name.
    * An argument is unknown to the signature or lacking (lacking is right where ``_partial_`` is true), or its value
      does not fit a plain annotation: numbers, text, lists and mappings of these, literals, classes, and what a
      partial returns.
    * A key is read by nobody: it is not an argument, no interpolation refers to it, and it is not in ``names``.
    * The datamodule's ``batch_type`` is not what the model's ``training_step`` takes, it lacks a method of the protocol
      that the model's ``fit_statistics`` names, or the loss does not compare what the model's ``forward`` returns.

    Args:
        cfg: the composed configuration, interpolations unresolved.
        names: dotted paths of the keys that the caller itself reads, such as ``seed`` or ``monitor.name``. A mapping
            of things to build (``callbacks``) is named once, and may then hold nodes with ``_target_`` and null.
            Names the configuration lacks are no fault.

    Returns:
        The faults, each on one line beginning with its place in the configuration; empty if there are none.
    """
    tree = list(_containers(cfg, ()))
    return [
        *_value_faults(tree),
        *(fault for place, node in tree if isinstance(node, DictConfig) for fault in _node_faults(place, node)),
        *_unread_faults(cfg, (), names, _references(tree)),
        *_batch_faults(cfg),
        *_statistics_faults(cfg),
        *_loss_faults(cfg),
    ]


def _fault(place: _Place, key: Any, message: str) -> str:
    return f"{_show((*place, key))}: {message}"


# The tree


def _show(place: _Place) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    return text.lstrip(".")


def _dotted(place: _Place) -> str:
    return ".".join(map(str, place))


def _keys(node: DictConfig | ListConfig) -> list[Any]:
    return list(range(len(node))) if isinstance(node, ListConfig) else list(node.keys())


def _read(node: DictConfig | ListConfig, key: Any) -> Any:
    """The value with its interpolation resolved, or _UNKNOWN."""
    try:
        return node[key]
    except OmegaConfBaseException:
        return _UNKNOWN


def _containers(node: DictConfig | ListConfig, place: _Place) -> Iterator[tuple[_Place, DictConfig | ListConfig]]:
    """Every mapping and list that stands in the tree itself; interpolations are not followed."""
    yield place, node
    for key in _keys(node):
        value = _UNKNOWN if OmegaConf.is_interpolation(node, key) else _read(node, key)
        if isinstance(value, DictConfig | ListConfig):
            yield from _containers(value, (*place, key))


# Values


def _value_faults(tree: list[tuple[_Place, DictConfig | ListConfig]]) -> Iterator[str]:
    in_tree = {id(node) for _, node in tree}
    for place, node in tree:
        for key in _keys(node):
            message = _value_fault(node, key, (*place, key), in_tree)
            if message:
                yield _fault(place, key, message)


def _value_fault(node: DictConfig | ListConfig, key: Any, place: _Place, in_tree: set[int]) -> str | None:
    try:
        value = node[key]
    except MissingMandatoryValue:
        name = next((_dotted(place[:depth]) for depth, step in enumerate(place) if isinstance(step, int)), None)
        return f"is not set; type {name}=[...]" if name else f"is not set; type {_dotted(place)}=..."
    except InterpolationToMissingValueError:
        return None  # said once, where the value is missing
    except OmegaConfBaseException as error:
        return str(error).splitlines()[0]
    if isinstance(value, str) and "${" in value:
        return "text with `${` in it: an interpolation cannot be escaped, it would be resolved when things are built"
    if OmegaConf.is_config(value) and id(value) not in in_tree and not _is_plain_list(value):
        return "an interpolation may refer to a node of the configuration and may not make one"
    return None


def _is_plain_list(value: Any) -> bool:
    return isinstance(value, ListConfig) and not any(OmegaConf.is_config(_read(value, key)) for key in _keys(value))


# Targets


def _locate(path: str) -> Any:
    """The class or function of that name, importing no package but the allowed ones.

    Raises:
        _RefusedError: saying what is wrong with the name.
    """
    root, *rest = path.split(".")
    if root not in PROJECT | LIBRARIES:
        allowed = ", ".join(sorted(PROJECT | LIBRARIES))
        raise _RefusedError(
            f"`{path}` is not allowed: only classes of {allowed} are built{_hint(root, PROJECT | LIBRARIES)}"
        )
    if not rest or not all(part.isidentifier() and not part.startswith("_") for part in rest):
        raise _RefusedError(f"`{path}` is not the public name of a class")
    found: Any = importlib.import_module(root)
    for part in rest:
        # A module that was imported by an allowed one is not itself allowed (`torch.os`).
        if not isinstance(found, ModuleType) or sys.modules.get(found.__name__) is not found:
            raise _RefusedError(f"`{path}` is not allowed: it leads into `{getattr(found, '__name__', found)}`")
        if found.__name__.partition(".")[0] != root:
            raise _RefusedError(f"`{path}` is not allowed: it leads into the module `{found.__name__}`")
        found = _member(found, part)
    return found


def _member(module: ModuleType, name: str) -> Any:
    if hasattr(module, name):
        return getattr(module, name)
    full = f"{module.__name__}.{name}"
    if not hasattr(module, "__path__") or importlib.util.find_spec(full) is None:
        submodules = [info.name for info in pkgutil.iter_modules(getattr(module, "__path__", []))]
        raise _RefusedError(f"`{module.__name__}` has no `{name}`{_hint(name, [*dir(module), *submodules])}")
    try:
        return importlib.import_module(full)
    except ImportError as error:
        raise _RefusedError(f"`{full}` cannot be imported: {error}") from error


def _callable(path: Any) -> Callable[..., Any]:
    """What a ``_target_`` names, if it may be built.

    Raises:
        _RefusedError: saying what is wrong with it.
    """
    if not isinstance(path, str):
        raise _RefusedError(f"{path!r} is not the name of a class")
    found = _locate(path)
    if path in FUNCTIONS:
        return found
    if not isinstance(found, type):
        raise _RefusedError(f"`{path}` is not allowed: it is no class")
    ours = path.partition(".")[0] in PROJECT and found.__module__.partition(".")[0] in PROJECT
    if not ours and not any(issubclass(found, base) for base in _loaded_bases()):
        kinds = ", ".join(base.rpartition(".")[2] for base in BASES)
        raise _RefusedError(f"`{path}` is not allowed: neither a class of this project nor one of {kinds}")
    try:
        inspect.signature(found)
    except ValueError as error:
        raise _RefusedError(f"`{path}` is not allowed: its arguments cannot be checked, {error}") from error
    return found


def _loaded_bases() -> list[type]:
    """BASES whose package is imported: a class derived from one has imported it."""
    return [_locate(base) for base in BASES if base.partition(".")[0] in sys.modules]


def _layout(path: Any) -> Any:
    """The layout that ``get_object`` would fetch.

    Raises:
        _RefusedError: if it would fetch something else.
    """
    module = importlib.import_module(LAYOUTS)
    layouts = {f"{LAYOUTS}.{name}": value for name, value in vars(module).items() if isinstance(value, module.Layout)}
    if not isinstance(path, str) or path not in layouts:
        raise _RefusedError(f"{path!r} is not allowed: only a layout of {LAYOUTS}{_hint(path, layouts)}")
    return layouts[path]


# Nodes


def _hint(word: Any, options: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(str(word), list(options), n=1)
    return f"; did you mean `{nearest[0]}`?" if nearest else ""


def _node_faults(place: _Place, node: DictConfig) -> Iterator[str]:
    if "_target_" not in node.keys():  # noqa: SIM118 (`in node` is False where the value is missing)
        for key in _keys(node):
            if str(key).startswith("_") and key not in ("_recursive_", "_convert_"):
                yield _fault(place, key, f"means nothing in a node without `_target_`{_hint(key, _SPECIAL)}")
        return
    yield from _flag_faults(place, node)
    path = _read(node, "_target_")
    if path is _UNKNOWN:
        return
    if path == GET_OBJECT:
        yield from _get_object_faults(place, node)
        return
    try:
        target = _callable(path)
    except _RefusedError as refusal:
        yield _fault(place, "_target_", str(refusal))
    else:
        yield from _argument_faults(place, node, target)


def _flag_faults(place: _Place, node: DictConfig) -> Iterator[str]:
    if "_args_" in node.keys():  # noqa: SIM118
        yield _fault(place, "_args_", "is not allowed: name each argument")
    for key, allowed in (("_partial_", (True, False)), ("_recursive_", (True, False)), ("_convert_", _CONVERT)):
        value = _read(node, key) if key in node else allowed[0]
        if not any(type(value) is type(choice) and value == choice for choice in allowed):
            yield _fault(place, key, f"{value!r} given, one of {', '.join(map(str, allowed))} expected")


def _arguments(node: DictConfig) -> dict[str, Any]:
    return {str(key): _read(node, key) for key in _keys(node) if key not in (*_SPECIAL, "_args_")}


def _is_partial(node: DictConfig) -> bool:
    return "_partial_" in node and _read(node, "_partial_") is True


def _get_object_faults(place: _Place, node: DictConfig) -> Iterator[str]:
    arguments = _arguments(node)
    for key in arguments.keys() - {"path"}:
        yield _fault(place, key, f"`get_object` has no argument `{key}`{_hint(key, ['path'])}")
    if "path" not in arguments:
        yield _fault(place, "path", "is required by `get_object`")
    elif arguments["path"] is not _UNKNOWN:
        try:
            _layout(arguments["path"])
        except _RefusedError as refusal:
            yield _fault(place, "path", str(refusal))


def _argument_faults(place: _Place, node: DictConfig, target: Callable[..., Any]) -> Iterator[str]:
    arguments, name = _arguments(node), target.__qualname__
    parameters = inspect.signature(target).parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters) and not _has_no_constructor(target)
    for key, value in arguments.items():
        if key in named:
            message = _misfit(value, named[key], target)
        elif takes_any:
            continue
        else:
            message = f"`{name}` has no argument `{key}`{_hint(key, [*named, *_SPECIAL]) or _takes(named)}"
        if message:
            yield _fault(place, key, message)
    if not _is_partial(node):
        for key, parameter in named.items():
            if parameter.default is parameter.empty and key not in arguments:
                yield _fault(place, key, f"is required by `{name}`")


def _takes(names: Collection[str]) -> str:
    return f"; it takes {', '.join(names)}" if names else "; it takes none"


def _has_no_constructor(target: Callable[..., Any]) -> bool:
    """Whether it is built by ``nn.Module.__init__``, which takes any argument only to refuse it."""
    torch = sys.modules.get("torch")
    return torch is not None and getattr(target, "__init__", None) is torch.nn.Module.__init__


# Types


def _misfit(value: Any, parameter: inspect.Parameter, target: Callable[..., Any]) -> str | None:
    annotation = _annotation(parameter, target)
    is_default = parameter.default is not parameter.empty and type(value) is type(parameter.default)
    if _fits(value, annotation) or (is_default and value == parameter.default):
        return None
    expected = inspect.formatannotation(annotation).replace("NoneType", "None")
    if isinstance(value, str) and _fits(_number(value), annotation):
        return f"the text {value!r} given, {expected} expected: write the number without quotes"
    return f"{_given(value)} given, {expected} expected"


def _number(text: str) -> Any:
    try:
        return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)
    except ValueError:
        return text


def _given(value: Any) -> str:
    if isinstance(value, DictConfig) and "_target_" in value:
        return f"a {'partial ' if _is_partial(value) else ''}{value['_target_']}"
    return "null" if value is None else repr(value)


def _annotation(parameter: inspect.Parameter, target: Callable[..., Any]) -> Any:
    """The annotation as an object; Any where there is none, or where it names what is imported for type checkers."""
    if parameter.annotation is parameter.empty:
        return Any
    owner = next((base for base in getattr(target, "__mro__", ()) if "__init__" in vars(base)), target)
    hint = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return typing.get_type_hints(hint, globalns=vars(sys.modules[owner.__module__]))[parameter.name]
    except (AttributeError, NameError):
        return Any


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value may stand where the annotation is; True where this cannot be told."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if value is _UNKNOWN or annotation is Any:
        return True
    if origin is Annotated:
        return _fits(value, inner[0])
    if origin in (Union, UnionType):
        return any(_fits(value, member) for member in inner)
    if origin is Literal:
        return any(type(value) is type(literal) and value == literal for literal in inner)
    kind = NoneType if annotation is None else origin or annotation
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False) or typing.is_typeddict(kind):
        return True
    if isinstance(value, ListConfig):
        return _list_fits(value, kind, inner)
    if isinstance(value, DictConfig):
        return _node_fits(value, kind, inner) if "_target_" in value else _mapping_fits(value, kind, inner)
    return _scalar_fits(value, kind)


def _scalar_fits(value: Any, kind: type) -> bool:
    if isinstance(value, bool) and kind is int:
        return False
    if isinstance(value, str) and kind is not str:
        # Text is a sequence of letters, and never meant so. A path is written as text.
        return issubclass(kind, os.PathLike) or (isinstance(value, kind) and not issubclass(kind, Iterable))
    return isinstance(value, kind) or (kind is float and type(value) is int)


def _list_fits(value: ListConfig, kind: type, inner: tuple[Any, ...]) -> bool:
    if not issubclass(list, kind) and kind is not tuple:
        return False
    items = [_read(value, key) for key in _keys(value)]
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        return len(items) == len(inner) and all(map(_fits, items, inner))
    return not inner or all(_fits(item, inner[0]) for item in items)


def _mapping_fits(value: DictConfig, kind: type, inner: tuple[Any, ...]) -> bool:
    if not issubclass(dict, kind):
        return False
    return not (inner and issubclass(kind, Mapping)) or all(_fits(_read(value, key), inner[1]) for key in _keys(value))


def _node_fits(value: DictConfig, kind: type, inner: tuple[Any, ...]) -> bool:
    """Whether what the node builds is of that class, or for a partial node what its function returns."""
    try:
        built = type(_layout(_read(value, "path"))) if value["_target_"] == GET_OBJECT else _callable(value["_target_"])
    except _RefusedError:
        return True  # a fault of its own
    if not isinstance(built, type):
        return not _is_partial(value) or issubclass(partial, kind)
    if _is_partial(value):
        return issubclass(partial, kind) and (len(inner) != 2 or _class_fits(built, inner[1]))
    return issubclass(built, kind)


def _class_fits(built: type, annotation: Any) -> bool:
    """Whether objects of a class may stand where the annotation is; True where this cannot be told."""
    if get_origin(annotation) in (Union, UnionType):
        return any(_class_fits(built, member) for member in get_args(annotation))
    kind = get_origin(annotation) or annotation
    return not isinstance(kind, type) or getattr(kind, "_is_protocol", False) or issubclass(built, kind)


# Keys that nobody reads


def _references(tree: list[tuple[_Place, DictConfig | ListConfig]]) -> set[str]:
    """Dotted paths of the keys that interpolations name."""
    found = set()
    for place, node in tree:
        raw = OmegaConf.to_container(node, resolve=False)
        for key in _keys(node):
            text = raw[key]  # type: ignore[index]
            if isinstance(text, str):
                found |= {_absolute(match[1], match[2], place) for match in _REFERENCE.finditer(text)}
    return found


def _absolute(name: str, argument: str | None, place: _Place) -> str:
    """The key that ``${name}`` or ``${name:argument}`` refers to from within the node at ``place``."""
    if argument is not None:
        name = argument if name in _READS_KEYS else ""
    dots = len(name) - len(name.lstrip("."))
    base = place[: len(place) - dots + 1] if dots else ()
    return ".".join([*map(str, base), *re.findall(r"[^.\[\]]+", name)])


def _unread_faults(node: DictConfig, place: _Place, names: Collection[str], references: set[str]) -> Iterator[str]:
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
        elif _dotted(here) in names or str(key).startswith("_") or _leads_on(here, references):
            continue
        elif not (_dotted(place) in names and (value is None or (is_node and "_target_" in value))):
            beside = {name.rpartition(".") for name in {*names, *references}}
            options = [last for parent, _, last in beside if parent == _dotted(place)]
            yield _fault(place, key, f"nothing reads this key{_hint(key, options)}")


def _leads_on(place: _Place, references: set[str]) -> bool:
    return any(reference.startswith(f"{_dotted(place)}.") for reference in references)


# The parts of a method


def _batch_faults(cfg: DictConfig) -> Iterator[str]:
    module, datamodule = _class_at(cfg, "model"), _class_at(cfg, "datamodule")
    step, given = getattr(module, "training_step", None), getattr(datamodule, "batch_type", None)
    if module is None or datamodule is None or step is None or given is None:
        return
    parameter = inspect.signature(step).parameters.get("batch")
    taken = _annotation(parameter, step) if parameter else Any
    if taken is not Any and isinstance(given, type) and isinstance(taken, type) and not issubclass(given, taken):
        yield (
            f"datamodule: `{datamodule.__qualname__}` gives {given.__name__}, "
            f"the model `{module.__qualname__}` takes {taken.__name__}"
        )


def _statistics_faults(cfg: DictConfig) -> Iterator[str]:
    """Whether the datamodule has the methods by which the model learns of the training set before it trains."""
    module, datamodule = _class_at(cfg, "model"), _class_at(cfg, "datamodule")
    learn = getattr(module, "fit_statistics", None)
    if learn is None or not isinstance(datamodule, type):
        return
    parameter = inspect.signature(learn).parameters.get("datamodule")
    asked = _annotation(parameter, learn) if parameter else Any
    if getattr(asked, "_is_protocol", False):
        methods = [name for name, member in vars(asked).items() if callable(member) and not name.startswith("_")]
        for name in methods:
            if not hasattr(datamodule, name):
                yield (
                    f"datamodule: `{datamodule.__qualname__}` has no method `{name}`, which the model "
                    f"`{module.__qualname__}` calls; it is another method's"
                )


def _loss_faults(cfg: DictConfig) -> Iterator[str]:
    module, loss = _class_at(cfg, "model"), _class_at(cfg, "loss")
    predict, compare = getattr(module, "forward", None), getattr(loss, "forward", None)
    if predict is None or compare is None:
        return
    returned = inspect.Parameter(
        "_", inspect.Parameter.KEYWORD_ONLY, annotation=inspect.signature(predict).return_annotation
    )
    parameter = inspect.signature(compare).parameters.get("prediction")
    given, taken = _annotation(returned, predict), _annotation(parameter, compare) if parameter else Any
    if (
        Any not in (given, taken)
        and isinstance(given, type)
        and isinstance(taken, type)
        and not issubclass(given, taken)
    ):
        yield (
            f"loss: `{loss.__qualname__}` compares {taken.__name__}, "
            f"the model `{module.__qualname__}` predicts {given.__name__}"
        )


def _class_at(cfg: DictConfig, name: str) -> Any:
    node = _read(cfg, name) if name in cfg else None
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return None
    try:
        return _callable(_read(node, "_target_"))
    except _RefusedError:
        return None  # a fault of its own
