"""Build what a configuration names, after it was checked."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from facelab.errors import ConfigError, FacelabError
from facelab.files import replacing
from facelab.run_folder import RunFolder
from facelab.runs.check import SPECIAL, check_config, reference
from facelab.runs.processes import is_first
from facelab.runs.targets import GET_OBJECT, buildable, layout_at


def check(cfg: DictConfig, names: Sequence[str], *, absent: Sequence[str] = ()) -> None:
    """Report every fault of a configuration at once, before anything is built.

    Args:
        cfg: as Hydra composed it.
        names: the keys that the door itself reads.
        absent: keys that may be null, whatever the signature of their class says.

    Raises:
        FacelabError: with all faults.
    """
    if faults := [fault for fault in check_config(cfg, names) if fault.place not in absent]:
        raise FacelabError("The configuration has faults:\n  " + "\n  ".join(faults))


def build(cfg: DictConfig, place: str, **parts: Any) -> Any:
    """Build a node that :func:`check` has passed, its own nodes first, with plain lists and dicts.

    Unlike ``hydra.utils.instantiate`` this builds nothing that :mod:`facelab.runs.targets` does not allow, knows the
    place of a part that refuses its values, and converts all containers, whatever ``_convert_`` says.

    Args:
        cfg: the whole configuration; it stays as it is.
        place: dotted key of a node with a ``_target_``.
        **parts: arguments that are built already.

    Raises:
        ConfigError: a part refuses its values, by an exception of its own or a ValueError, RuntimeError, OSError or
            Lightning's own of its constructor; says which part and why, and is raised from that error.
        FacelabError: what else a part raises by itself.
    """
    return _build(cfg, OmegaConf.select(cfg, place), own_place(cfg, place), parts)


def _build(cfg: DictConfig, node: Any, place: str, parts: Mapping[str, Any]) -> Any:
    """Build a value that stands at a place; ``_recursive_: false`` leaves the nodes in it as plain containers."""
    if isinstance(node, ListConfig):
        return [_build(cfg, node[i], f"{place}[{i}]", {}) for i in range(len(node))]
    if not isinstance(node, DictConfig):
        return node
    if node.get("_target_") == GET_OBJECT:
        return layout_at(node.path)
    keys: list[Any] = [key for key in node if key not in SPECIAL and key not in parts]
    places = {key: own_place(cfg, f"{place}.{key}") for key in keys}
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
    """Build a part, and say where it is mounted if it refuses its values.

    Args:
        target: the class.
        place: of its node in the configuration.
        places: of the arguments that stand there.
        *given: further arguments of who finishes a partial part.
        **arguments: all others.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        return target(*given, **arguments)
    except ConfigError as error:
        head, dot, rest = error.key.partition(".")
        if not error.key:
            error.mount(place)
        elif head in places:  # else it is for who finishes this part to say
            error.mount(places[head] + dot + rest)
        raise
    except FacelabError:
        raise
    except (ValueError, RuntimeError, OSError, MisconfigurationException) as error:
        raise ConfigError(place, f": {error}", mounted=True) from error
    except Exception as error:  # a fault of the code, or a value of a type that the check does not know
        error.add_note(f"while {place} was built: {target.__module__}.{target.__qualname__}")
        raise


def own_place(cfg: DictConfig, place: str) -> str:
    """Find where a part is chosen: ``model.backbone`` only refers to ``backbone``, which is what one types."""
    keys = place.split(".")
    for depth in range(1, len(keys)):
        parent = OmegaConf.select(cfg, ".".join(keys[:depth]))
        if isinstance(parent, DictConfig) and (name := reference(parent, keys[depth])):
            return own_place(cfg, ".".join([name, *keys[depth + 1 :]]))
    return place


def build_all(cfg: DictConfig, place: str) -> list[Any]:
    """Build the values of a group whose keys are only names, such as callbacks and loggers; null is left out."""
    group = OmegaConf.select(cfg, place) or {}
    return [build(cfg, f"{place}.{key}") for key, node in group.items() if node is not None]


def build_trainer(cfg: DictConfig) -> Any:
    """Build the Lightning Trainer of a run, with its callbacks and loggers. It saves what the callbacks save, no more.

    Raises:
        ConfigError: a part refuses its values, or the strategy is one that cannot work here.
    """
    from lightning.pytorch.callbacks import Checkpoint

    from facelab.internals.lightning import keep_handlers

    if os.environ.get("SUBMITIT_LOCAL_NTASKS") == "1" and cfg.trainer.get("strategy") == "ddp":
        raise ConfigError(
            "trainer.devices",
            f"={cfg.trainer.devices}: a job of this launcher cannot start other processes; "
            f"hydra.launcher.tasks_per_node={cfg.trainer.devices} starts them with it",
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


def write_config(folder: Path, cfg: DictConfig) -> None:
    """Keep a configuration that :func:`check` has passed as ``config.yaml``, with everything it refers to in place."""
    if is_first():
        with replacing(RunFolder(folder).config) as path:
            path.write_text(OmegaConf.to_yaml(cfg, resolve=True))
