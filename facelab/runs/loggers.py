"""Loggers of an evaluation, which log beside those of the evaluated run."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from facelab.run_folder import owner_of
from facelab.runs.checkpoint import saved_config
from facelab.runs.overrides import key_of

log = logging.getLogger(__name__)

FOLLOWING = "evaluate"
"""Option of the group ``logger`` whose loggers are used if the run has them too."""
NAMES = ("project", "group", "tags")
"""Keys of the W&B logger that an evaluation takes from the run. The run folder may be from somebody else, so neither
its folders nor its servers are used."""


def follow_loggers(cfg: DictConfig, checkpoint: Path) -> None:
    """Leave out the loggers that the evaluated run does not have, and take over the names of its W&B runs.

    W&B writes files only, unless the user sets ``logger.wandb.offline=false`` for the evaluation too.

    Args:
        cfg: configuration of the evaluation, which is changed. Loggers that the user chose are kept.
        checkpoint: checkpoint that is evaluated. Of a file outside of a run folder the loggers are not known.
    """
    owner, hydra = owner_of(checkpoint), HydraConfig.get()
    saved = saved_config(owner.path).get("logger") if owner else None
    saved = saved if isinstance(saved, Mapping) else {}
    if hydra.runtime.choices.get("logger") == FOLLOWING:
        for name in [name for name in cfg.logger if saved.get(name) is None]:
            cfg.logger[name] = None
    ours, theirs = (cfg.get("logger") or {}).get("wandb"), saved.get("wandb")
    if not ours or not isinstance(theirs, Mapping):
        return
    typed = {key_of(word) for word in hydra.overrides.task}
    for key in NAMES:
        if f"logger.wandb.{key}" not in typed and _is_name(theirs.get(key), listed=key == "tags"):
            OmegaConf.update(ours, key, theirs[key])
    if theirs.get("offline") is False and ours.offline:
        log.info("the run logged to W&B online; this evaluation does so with logger.wandb.offline=false")


def _is_name(value: Any, *, listed: bool) -> bool:
    """Return whether a value is text without a reference, or a list of such texts if ``listed``."""
    texts = value if listed else [value]
    return isinstance(texts, list) and all(isinstance(text, str) and "${" not in text for text in texts)
