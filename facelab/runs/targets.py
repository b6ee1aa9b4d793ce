"""Allowed targets of a configuration: classes of this project and of trusted packages, and parts of libraries."""

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from facelab.errors import ConfigError

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
_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())
"""Packages of the user whose classes may be built, too; see :func:`trusting`."""


class Refused(ValueError):
    """Name that is not allowed as a target, or that does not exist."""


@contextmanager
def trusting(packages: Any) -> Iterator[None]:
    """Allow the classes of the user's own packages as targets.

    Args:
        packages: names of top-level packages, as the user typed them (``trust``). A checkpoint must never name them,
            because importing a package runs its code.

    Raises:
        ConfigError: it is not a list of such names, or a name is that of a library.
    """
    if isinstance(packages, str) or not isinstance(packages, Iterable):
        raise ConfigError("trust", f"={packages}: expected a list of packages, such as trust=[mypackage]", mounted=True)
    names = list(packages)
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigError("trust", f": {name!r} is not the name of a top-level package", mounted=True)
        if not _may_be_trusted(name):
            raise ConfigError("trust", f": {name} is a library, not a package of your own", mounted=True)
    token = _trusted.set(frozenset(names))
    try:
        yield
    finally:
        _trusted.reset(token)


def _may_be_trusted(root: str) -> bool:
    """Return whether a top-level package may be one of the user's own."""
    return root not in sys.stdlib_module_names | LIBRARIES | {"__main__"}


def is_own(module: str) -> bool:
    """Return whether a module belongs to this project or to a trusted package."""
    return module.partition(".")[0] in PROJECT | _trusted.get()


def locate(path: str) -> Any:
    """Return the class or function of that name; only the allowed packages are imported.

    Raises:
        Refused: the name is not allowed or does not exist; the message contains the reason.
    """
    root, *rest = path.split(".")
    allowed = PROJECT | LIBRARIES | _trusted.get()
    if root not in allowed:
        names = ", ".join(sorted(allowed))
        raise Refused(f"`{path}` is not allowed: only classes of {names} are built{hint(root, allowed)}{_advice(root)}")
    if not rest or not all(part.isidentifier() and not part.startswith("_") for part in rest):
        raise Refused(f"`{path}` is not the public name of a class")
    target: Any = _imported(root)
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
    return _imported(full)


def _imported(module: str) -> ModuleType:
    """Import a module.

    Raises:
        Refused: it does not exist, or raises an error; the message contains its place.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise Refused(f"`{module}` cannot be imported: {error}") from error
        raise Refused(f"`{module}` cannot be imported: install it, or name its folder in PYTHONPATH") from error
    except Exception as error:  # the code of a package may raise any error
        *_, last = traceback.extract_tb(error.__traceback__)
        where = "" if isinstance(error, SyntaxError) else f" ({last.filename}, line {last.lineno})"
        raise Refused(f"`{module}` cannot be imported: {type(error).__name__}: {error}{where}") from error


def _advice(root: str) -> str:
    """Return what to type to allow the classes of a package; empty for a package that may not be trusted."""
    if not root.isidentifier() or not _may_be_trusted(root):
        return ""
    return f"; if {root} is your own package, trust=[{','.join(sorted({*_trusted.get(), root}))}] allows it"


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
    own = is_own(path) and is_own(target.__module__)
    if not own and not any(issubclass(target, base) for base in _loaded_bases()):
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
