"""Construction of the objects that a checked configuration names."""

import os
import re
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, ListConfig, OmegaConf

from facelab.bounds import Device
from facelab.errors import ConfigError, FacelabError
from facelab.files import replacing
from facelab.run_folder import RunFolder
from facelab.runs.check import SPECIAL, check_config
from facelab.runs.processes import is_first
from facelab.runs.references import reference
from facelab.runs.resolvers import fix_choices
from facelab.runs.targets import GET_OBJECT, buildable, is_own, layout_at

RERUN_DEFAULTS = ["_self_", {"hydra": "default"}, {"override hydra/sweeper": "grid"}]
"""Defaults list of ``rerun.yaml``: Hydra's own configuration, as in ``conf/train.yaml``."""


def check(cfg: DictConfig, names: Collection[str], *, absent: Sequence[str] = ()) -> None:
    """Report every fault of a configuration at once, before anything is built.

    Args:
        cfg: the configuration as Hydra composed it.
        names: the keys that the script itself reads, in a mapping to their types.
        absent: keys that may be null even if the signature of their class does not allow it.

    Raises:
        FacelabError: the configuration has faults; the message lists all of them.
    """
    if faults := [fault for fault in check_config(cfg, names) if fault.place not in absent]:
        raise FacelabError("The configuration has faults:\n  " + "\n  ".join(faults))


def build(cfg: DictConfig, place: str, **parts: Any) -> Any:
    """Build a node that :func:`check` accepted, inner nodes first; containers become plain lists and dicts.

    Unlike ``hydra.utils.instantiate`` this builds only what :mod:`facelab.runs.targets` allows, adds the part's place
    in the configuration to its error, and converts all containers regardless of ``_convert_``.

    Args:
        cfg: the whole configuration; it is not modified.
        place: dotted key of a node with a ``_target_``.
        **parts: arguments that are already built.

    Raises:
        ConfigError: a part or a library refuses a value, see :func:`_is_refusal`; the message contains the part and the
            reason, and the original error is the cause.
        FacelabError: any other error of this type that a part raises.
    """
    return _build(cfg, OmegaConf.select(cfg, place), typed_key(cfg, place), parts)


def _build(cfg: DictConfig, node: Any, place: str, parts: Mapping[str, Any]) -> Any:
    """Build the value at a place; with ``_recursive_: false`` the nodes in it remain plain containers."""
    if isinstance(node, ListConfig):
        return [_build(cfg, node[i], f"{place}[{i}]", {}) for i in range(len(node))]
    if not isinstance(node, DictConfig):
        return node
    if node.get("_target_") == GET_OBJECT:
        return layout_at(node.path)
    keys: list[Any] = [key for key in node if key not in SPECIAL and key not in parts]
    names = {key: reference(node, key) for key in keys}
    places = {key: typed_key(cfg, name) if name else f"{place}.{key}" for key, name in names.items()}
    if node.get("_recursive_", True):
        arguments = {key: _build(cfg, node[key], places[key], {}) for key in keys}
    else:
        plain: Any = OmegaConf.to_container(node, resolve=True)
        arguments = {key: plain[key] for key in keys}
    if "_target_" not in node:
        return arguments
    call = partial(_call, buildable(node["_target_"]), place, places, **arguments, **parts)
    return call if node.get("_partial_", False) else call()


def _call(target: Callable[..., Any], place: str, places: Mapping[str, str], /, *given: Any, **arguments: Any) -> Any:
    """Build a part, and add its place to the error if it refuses its values.

    Args:
        target: the class.
        place: dotted key of its node in the configuration.
        places: dotted keys of the arguments in that node.
        *given: positional arguments of the caller that completes a partial part.
        **arguments: all other arguments.
    """
    try:
        return target(*given, **arguments)
    except ConfigError as error:
        argument = re.split(r"[.\[]", error.key)[0]
        if not error.key:
            error.mount(place)
        elif argument in places:  # otherwise the caller that completes this partial part adds the place
            error.mount(places[argument] + error.key.removeprefix(argument))
        raise
    except FacelabError:
        raise
    except Exception as error:
        if not _is_refusal(error):
            error.add_note(f"while building {place}: {target.__module__}.{target.__qualname__}")
            raise
        argument, reason = _reason(error)
        raise ConfigError(places.get(argument, place), f": {reason}", mounted=True) from error


def _is_refusal(error: Exception) -> bool:
    """Return whether an error is a refused value and not a fault of the code.

    A refusal has a type that is usually raised for invalid values, or any type if a library raised it.
    """
    if isinstance(error, ValueError | RuntimeError | OSError):
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return not is_own(frame.f_globals["__name__"])


def _reason(error: Exception) -> tuple[str, str]:
    """Return the name of the refused argument, empty if the error has none, and the reason."""
    from pydantic import ValidationError

    refused = error.__cause__ if isinstance(error.__cause__, ValidationError) else error  # albumentations
    if isinstance(refused, ValidationError):
        first = refused.errors()[0]
        return str(first["loc"][0]), first["msg"].removeprefix("Value error, ")
    return "", str(error) or type(error).__name__


def typed_key(cfg: DictConfig, place: str) -> str:
    """Return the key where a part is chosen: ``model.backbone`` only refers to ``backbone``, which the user types."""
    keys = place.split(".")
    for depth in range(1, len(keys)):
        parent = OmegaConf.select(cfg, ".".join(keys[:depth]))
        if isinstance(parent, DictConfig) and (name := reference(parent, keys[depth])):
            return typed_key(cfg, ".".join([name, *keys[depth + 1 :]]))
    return place


def build_all(cfg: DictConfig, place: str) -> list[Any]:
    """Build the values of a group whose keys are only names, such as callbacks and loggers; null is skipped."""
    group = OmegaConf.select(cfg, place) or {}
    return [build(cfg, f"{place}.{key}") for key, node in group.items() if node is not None]


def build_trainer(cfg: DictConfig) -> Any:
    """Build the Lightning Trainer of a run with its callbacks and loggers; only the callbacks save checkpoints.

    Raises:
        ConfigError: a part refuses its values, or the strategy cannot work with the launcher.
    """
    from lightning.pytorch.callbacks import Checkpoint

    from facelab.internals.lightning import keep_handlers

    if os.environ.get("SUBMITIT_LOCAL_NTASKS") == "1" and cfg.trainer.get("strategy") == "ddp":
        raise ConfigError(
            "trainer.devices",
            f"={cfg.trainer.devices}: a job of this launcher has one process; set "
            f"hydra.launcher.tasks_per_node={cfg.trainer.devices} to start one per device",
        )
    callbacks = build_all(cfg, "callbacks")
    trainer = build(
        cfg,
        "trainer",
        callbacks=callbacks,
        logger=build_all(cfg, "logger") or False,
        default_root_dir=cfg.paths.run,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
    )
    keep_handlers(trainer)
    return trainer


def choose_device(device: Device) -> str:
    """Return ``cuda`` or ``cpu``: ``auto`` is cuda where torch finds a CUDA device.

    Raises:
        ConfigError: ``cuda`` is chosen and torch finds no CUDA device.
    """
    import torch

    if device not in get_args(Device):
        raise ConfigError("device", f"={device}: expected {', '.join(get_args(Device))}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", "=cuda: torch finds no CUDA device; use device=auto or device=cpu")
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def write_rerun(folder: Path, cfg: DictConfig) -> None:
    """Write ``rerun.yaml``, from which train.py starts another run with this configuration.

    It is the configuration with its references, so that a change reaches all values that follow from it. Packages must
    be trusted again. The parts of the run's name that depend on options are resolved, because a rerun chooses none.
    """
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    raw["trust"] = []
    raw["paths"] |= {"name": fix_choices(raw["paths"]["name"], cfg), "tags": list(cfg.paths.tags)}
    with replacing(RunFolder(folder).rerun) as path:
        OmegaConf.save({"defaults": RERUN_DEFAULTS, **raw}, path)


def write_config(folder: Path, cfg: DictConfig) -> None:
    """Write a configuration that :func:`check` accepted to ``config.yaml``, with resolved interpolations."""
    if is_first():
        with replacing(RunFolder(folder).config) as path:
            path.write_text(OmegaConf.to_yaml(cfg, resolve=True))
