"""Allowed targets of a configuration: classes of this project, and the parts of libraries that training needs."""

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

PROJECT = frozenset({"callbacks", "datamodules", "facelab", "lightning_modules"})
"""Packages whose classes a configuration may all build."""
LIBRARIES = frozenset({"albumentations", "lightning", "timm", "torch", "torchmetrics", "torchvision"})
"""Packages whose classes a configuration may build if they are derived from one of :data:`BASES`."""
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
GET_OBJECT = "hydra.utils.get_object"
LAYOUTS = "facelab.faces.layouts"
"""The only module whose objects :data:`GET_OBJECT` may return."""


class Refused(ValueError):
    """Name that is not allowed as a target, or that does not exist."""


def locate(path: str) -> Any:
    """Return the class or function of that name; only the allowed packages are imported.

    Raises:
        Refused: the name is not allowed or does not exist; the message contains the reason.
    """
    root, *rest = path.split(".")
    if root not in PROJECT | LIBRARIES:
        allowed = ", ".join(sorted(PROJECT | LIBRARIES))
        raise Refused(f"`{path}` is not allowed: only classes of {allowed} are built{hint(root, PROJECT | LIBRARIES)}")
    if not rest or not all(part.isidentifier() and not part.startswith("_") for part in rest):
        raise Refused(f"`{path}` is not the public name of a class")
    target: Any = importlib.import_module(root)
    for part in rest:
        # A module that an allowed one imports is not itself allowed (`torch.os`).
        if not isinstance(target, ModuleType) or sys.modules.get(target.__name__) is not target:
            raise Refused(f"`{path}` is not allowed: it refers to `{getattr(target, '__name__', target)}`")
        if target.__name__.partition(".")[0] != root:
            raise Refused(f"`{path}` is not allowed: it refers to the module `{target.__name__}`")
        target = _member(target, part)
    return target


def _member(module: ModuleType, name: str) -> Any:
    """Return the member of a module, or import its submodule of this name."""
    if hasattr(module, name):
        return getattr(module, name)
    full = f"{module.__name__}.{name}"
    if not hasattr(module, "__path__") or importlib.util.find_spec(full) is None:
        submodules = [info.name for info in pkgutil.iter_modules(getattr(module, "__path__", []))]
        raise Refused(f"`{module.__name__}` has no `{name}`{hint(name, [*dir(module), *submodules])}")
    try:
        return importlib.import_module(full)
    except ImportError as error:
        raise Refused(f"`{full}` cannot be imported: {error}") from error


def buildable(path: Any) -> type:
    """Return the class that a ``_target_`` names, if it may be built.

    Raises:
        Refused: it may not be built; the message contains the reason.
    """
    if not isinstance(path, str):
        raise Refused(f"{path!r} is not the name of a class")
    target = locate(path)
    if not isinstance(target, type):
        raise Refused(f"`{path}` is not allowed: it is not a class")
    ours = path.partition(".")[0] in PROJECT and target.__module__.partition(".")[0] in PROJECT
    if not ours and not any(issubclass(target, base) for base in _loaded_bases()):
        kinds = ", ".join(base.rpartition(".")[2] for base in BASES)
        raise Refused(f"`{path}` is not allowed: neither a class of this project nor one of {kinds}")
    try:
        inspect.signature(target)
    except ValueError as error:
        raise Refused(f"`{path}` is not allowed: its arguments cannot be checked, {error}") from error
    return target


def _loaded_bases() -> list[type]:
    """Return the :data:`BASES` whose package is imported; a class derived from one has imported it."""
    return [locate(base) for base in BASES if base.partition(".")[0] in sys.modules]


def layout_at(path: Any) -> Any:
    """Return the layout that ``get_object`` would return.

    Raises:
        Refused: the path does not name a layout.
    """
    module = importlib.import_module(LAYOUTS)
    layouts = {f"{LAYOUTS}.{name}": value for name, value in vars(module).items() if isinstance(value, module.Layout)}
    if not isinstance(path, str) or path not in layouts:
        raise Refused(f"{path!r} is not allowed: only a layout of {LAYOUTS}{hint(path, layouts)}")
    return layouts[path]


def hint(word: Any, options: Iterable[str]) -> str:
    """Return a suggestion of the option nearest to a mistyped word; empty if none is near."""
    nearest = difflib.get_close_matches(str(word), list(options), n=1)
    return f"; did you mean `{nearest[0]}`?" if nearest else ""
