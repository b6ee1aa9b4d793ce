"""Checkpoints of train.py: read, and opened as the trained module.

Opening builds ``model``, checks ``crop`` and ``data.layout`` with it, and looks at nothing else of the configuration.
So a logger, a callback or an option that is gone does not close a checkpoint. Names of earlier versions are followed by
:mod:`facelab.renames`.
"""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from facelab.errors import CheckpointError, ConfigError, RunError
from facelab.renames import renamed_checkpoint
from facelab.run_folder import RunFolder
from facelab.runs.build import build, check, own_place
from facelab.runs.check import check_config, part_of

log = logging.getLogger(__name__)

INITIAL_WEIGHTS = {"pretrained": False, "weights": None}
"""Keys that name initial weights, and their values without."""
TRAINING = ("model.optimizer", "model.scheduler", "datamodule.augment")
"""Parts that only training needs."""
OPENED = ("model", "crop", "data.layout")
"""Nodes that are checked when a checkpoint is opened; the first is built."""
ABSENT = (*TRAINING, "model.loss")
"""Arguments that are null in a module which is opened and not trained, whatever its signature says."""


class Checkpoint(NamedTuple):
    """What a checkpoint of train.py holds that is needed without a trainer."""

    config: dict[str, Any]
    weights: dict[str, Any]
    step: int  # optimizer steps that were done


class LoadedRun(NamedTuple):
    """A trained method as it was saved."""

    cfg: DictConfig  # the whole configuration; only what :data:`OPENED` names was checked
    module: Any  # the LightningModule, in evaluation mode
    checkpoint: Path


def find_checkpoint(path: Path, name: str) -> Path:
    """Find the checkpoint of a run folder, or the file itself.

    Args:
        path: a run folder or a checkpoint file.
        name: ``last`` or ``best``.

    Raises:
        RunError: there is none; says what was looked for.
    """
    if path.is_file():
        return path
    file = RunFolder(path).checkpoint(name)
    if file.is_file():
        return file
    if not path.is_dir():
        raise RunError(f"{path} is neither a run folder nor a checkpoint file")
    raise RunError(f"{path} has no {file.relative_to(path)}; did its training end an epoch?")


def read_checkpoint(file: Path) -> Checkpoint:
    """Read a checkpoint of train.py; nothing in the file is run.

    With averaged weights these are the averages. To be tested, they are put into the module itself: given
    ``ckpt_path``, Lightning lets the callbacks restore their state for a test as well, and ``WeightAveraging`` after
    ``fit`` then puts the weights of the last step in the place of their average.

    Raises:
        CheckpointError: it is another file, or a later version wrote it.
    """
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    except Exception as error:  # a file that is no checkpoint makes torch fail in many ways, with advice that is unsafe
        raise CheckpointError(f"{file} is no checkpoint of train.py; torch cannot read it") from error
    try:
        content = renamed_checkpoint(content) if isinstance(content, dict) else {}
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    keys = ("hyper_parameters", "state_dict", "global_step")
    config, weights, step = (content.get(key) for key in keys)
    if not isinstance(config, dict) or not isinstance(weights, dict) or "model" not in config:
        raise CheckpointError(f"{file} carries no configuration with its weights; it was not written by train.py")
    return Checkpoint(config, weights, step or 0)


def load_run(path: Path, paths: DictConfig) -> LoadedRun:
    """Open a checkpoint: its configuration, with this machine's paths, and the trained module.

    Nothing is downloaded: keys that name initial weights are cleared, since the checkpoint holds the trained ones.
    Optimizer and scheduler are not built. A loss that cannot be built today is left out with its weights, and with
    those that only it had trained.

    Args:
        path: a run folder or a checkpoint file.
        paths: the ``paths`` node of the door that opens it.

    Raises:
        RunError: there is no checkpoint.
        CheckpointError: it is none of train.py, or its weights do not fit its configuration.
        FacelabError: the nodes of its configuration that are needed have faults.
    """
    from facelab.profiling.compile import prepare

    saved = RunFolder(path).config
    tested = OmegaConf.select(OmegaConf.load(saved), "test_with") if saved.is_file() else None
    file = find_checkpoint(path, "best" if tested == "best" else "last")
    config, weights, _ = read_checkpoint(file)
    try:
        cfg = OmegaConf.create(config)
        cfg.paths = OmegaConf.to_container(paths, resolve=True)
        clear_initial_weights(cfg)
        module = _open(cfg, weights, file)
        memory_format = cfg.get("memory_format", "channels_last")
    except OmegaConfBaseException as error:
        raise CheckpointError(f"the configuration in {file} cannot be read: {error}") from error
    prepare(module, memory_format, compile=False)  # a test is too short to earn it back
    return LoadedRun(cfg, module.eval(), file)


def _open(cfg: DictConfig, weights: Mapping[str, Any], file: Path) -> Any:
    """Build the module and load its weights; a loss that cannot be built becomes null in the configuration."""
    opened = needed(cfg, *OPENED)
    lost = _loss_fault(opened)
    if lost:
        cfg.model.loss = None
        opened = needed(cfg, *OPENED)
    check(opened, OPENED, absent=ABSENT)
    module = build(opened, "model")
    # What only the loss had needed, such as a branch that it alone trained, is not built without it.
    left = [key for key in weights if lost and getattr(module, key.partition(".")[0], None) is None]
    try:
        module.load_state_dict({key: value for key, value in weights.items() if key not in left})
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {file} do not fit its configuration: {error}") from error
    if lost:
        gone = sorted({"loss", *(key.partition(".")[0] for key in left)})
        log.warning("%s: its loss cannot be built today and is left out (%s)", file, lost)
        log.warning("left out with their weights: %s", ", ".join(gone))
    return module


def _loss_fault(opened: DictConfig) -> str:
    """Say why the loss of a model cannot be built today; empty where it can, or there is none."""
    place = own_place(opened, "model.loss")
    faults = check_config(opened, OPENED)
    if within := [fault for fault in faults if _is_in(fault.place, place)]:
        return "; ".join(within)
    if OmegaConf.select(opened, "model.loss") is None or any(fault.place not in ABSENT for fault in faults):
        return ""  # what else is wrong is told by who opens it
    try:
        build(opened, "model.loss")
    except ConfigError as error:
        return str(error)
    return ""


def needed(cfg: DictConfig, *nodes: str) -> DictConfig:
    """Cut out nodes and what they refer to, without what only training needs.

    Args:
        cfg: a whole configuration.
        nodes: dotted keys.

    Raises:
        CheckpointError: one of them is not there.
    """
    if lacking := [node for node in nodes if OmegaConf.select(cfg, node) is None]:
        raise CheckpointError(f"the configuration of the checkpoint has no {', '.join(lacking)}")
    cleared = copy.deepcopy(cfg)
    for place in TRAINING:
        node, _, part = place.partition(".")
        if isinstance(owner := cleared.get(node), DictConfig) and part in owner:
            owner[part] = None
    return part_of(cleared, nodes)


def _is_in(place: str, node: str) -> bool:
    return place == node or place.startswith((f"{node}.", f"{node}["))


def clear_initial_weights(node: DictConfig) -> None:
    """Make every key that names initial weights say that there are none, in place."""
    for key in map(str, node):
        if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key):
            continue
        if key in INITIAL_WEIGHTS:
            node[key] = INITIAL_WEIGHTS[key]
        elif isinstance(node[key], DictConfig):
            clear_initial_weights(node[key])
