"""Start of a training from the weights of another run: ``train.py init=RUN``."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from facelab.errors import CheckpointError
from facelab.files import expand_home
from facelab.runs.build import build
from facelab.runs.checkpoint import clear_initial_weights, kind_of, offline, read_checkpoint, tested_checkpoint

log = logging.getLogger(__name__)

LISTED = 8
"""Largest number of names in a log line."""
OWN_WEIGHTS = "backbone."
"""Beginning of the names of parameters that have initial weights of their own, such as those of ImageNet."""


def build_initialised(cfg: DictConfig) -> Any:
    """Build the model of a training with the weights of the run or checkpoint file in ``cfg.init``.

    The tensors with the same name and shape are loaded; the others keep their usual start, and are logged. With another
    layout these are those of the last layer. The state of the loss is not loaded. The backbone's own initial weights
    are loaded only if the other run does not replace all of them.

    Args:
        cfg: whole configuration.

    Raises:
        FacelabError: the run cannot be read, or no parameter fits.
    """
    path = expand_home(str(cfg.init))
    try:
        file = tested_checkpoint(path)
        weights = read_checkpoint(file).weights
    except CheckpointError as error:
        raise CheckpointError(f"init={path}: {error}") from error
    with offline():
        module = build(OmegaConf.create(clear_initial_weights(OmegaConf.to_container(cfg))), "model")
    if any(name.startswith(OWN_WEIGHTS) for name in load_fitting(module, weights, file)):
        module = build(cfg, "model")
        load_fitting(module, weights, file)
    _log_rest(module, weights, file)
    return module


def load_fitting(module: Any, weights: dict[str, Any], file: Path) -> list[str]:
    """Load the tensors that fit into a module, and return the names of the parameters that got none.

    Raises:
        CheckpointError: no parameter fits.
    """
    fitting = _select_fitting(module, weights)
    parameters = [name for name, _ in module.named_parameters() if not name.startswith("loss.")]
    if not any(name in fitting for name in parameters):
        raise CheckpointError(f"init={file}: no weights of this checkpoint fit the model; does it have the same parts?")
    module.load_state_dict(fitting, strict=False)
    return [name for name in parameters if name not in fitting]


def _select_fitting(module: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors whose name and shape are those of a tensor of the module.

    Whole numbers are left out: they are tables, which a training computes, and counters.
    """
    own = {name: value for name, value in module.state_dict().items() if _is_weight(name, value)}
    return {
        name: weights[name]
        for name, value in own.items()
        if name in weights and weights[name].shape == value.shape and _is_weight(name, weights[name])
    }


def _is_weight(name: str, value: Any) -> bool:
    """Return whether a tensor is neither of the loss nor of whole numbers."""
    return not name.startswith("loss.") and kind_of(value) != "whole"


def _log_rest(module: Any, weights: dict[str, Any], file: Path) -> None:
    """Log what was loaded from a checkpoint and what was not."""
    fitting = _select_fitting(module, weights)
    new = [name for name, value in module.named_parameters() if _is_weight(name, value) and name not in fitting]
    unused = [name for name, value in weights.items() if _is_weight(name, value) and name not in fitting]
    log.info("init: %d tensors of %s are loaded", len(fitting), file)
    for what, names in (("not in it or of another shape", new), ("not used of it", unused)):
        if names:
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            log.warning("init: %s: %s%s", what, ", ".join(names[:LISTED]), more)
