"""Pairs of parts that must match each other: model and datamodule, model and loss."""

import inspect
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from facelab.runs.targets import Refused, buildable
from facelab.runs.tree import Fault, read
from facelab.runs.values import annotation_of


def pair_faults(cfg: DictConfig) -> Iterator[Fault]:
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
        return annotation_of(returned, function)
    return annotation_of(signature.parameters[name], function) if name in signature.parameters else Any


def _class_at(cfg: DictConfig, name: str) -> Any:
    """Return the class of a node; None if it has none that may be built."""
    node = read(cfg, name) if name in cfg else None
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return None
    try:
        return buildable(read(node, "_target_"))
    except Refused:
        return None  # reported as a separate fault
