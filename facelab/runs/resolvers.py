"""OmegaConf resolvers for ``conf/``: names of runs, their IDs and tags. Importing the module registers them."""

import hashlib
import re
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from facelab.files import expand_home, resolve_links
from facelab.run_folder import STAMPED, RunFolder, owner_of

INNERMOST = re.compile(r"\$\{([^${}]*)\}")
"""Interpolation that contains no other interpolation."""
RESOLVERS = ("chosen", "oc.select", "tags")
"""Resolvers that are allowed in a configuration from another machine (``paths`` is exempt: this machine sets it). They
read only the configuration and the options that were chosen in Hydra."""


def _chosen(*groups: str, _root_: DictConfig) -> str:
    """Join the chosen options of these config groups by dashes; a group without an option is skipped.

    The option ``timm`` does not identify the network, so its ``name`` is used instead.
    """
    choices = HydraConfig.get().runtime.choices
    taken = {group: choices[group] for group in groups if choices.get(group) not in (None, "null")}
    names = (
        OmegaConf.select(_root_, f"{group}.name", default=option) if option == "timm" else option
        for group, option in taken.items()
    )
    return "-".join(names).replace("/", "-")


def fix_choices(text: str, cfg: DictConfig) -> str:
    """Replace each ``${chosen:...}`` of a text by its present value."""
    return re.sub(r"\$\{chosen:([^{}]*)\}", lambda match: _chosen(*match[1].split(","), _root_=cfg), text)


def run_name(checkpoint: str | None, predictions: str | None = None) -> str:
    """Return the name of a checkpoint's run: its folder name without the stamp; in a sweep, sweep stamp and job number.

    Args:
        checkpoint: a run folder or a checkpoint file, which need not exist; None for predictions.
        predictions: a file or folder of predictions, which may be that of a run.
    """
    path = resolve_links(expand_home(str(checkpoint or predictions or "none")))
    owner = RunFolder(path.parent)
    if path in (owner.detections, owner.submission):
        path = owner.path
    elif checkpoint_owner := owner_of(path):
        path = checkpoint_owner.path
    name = re.sub(r"\.(ckpt|npz|json)$", "", RunFolder(path).name.replace("/", "-"))
    return re.sub(f"{STAMPED}_", "", name)


def _folder_id(folder: str) -> str:
    """Return a unique name of a run: its folder name, in a sweep with the name of the sweep's folder before it.

    A folder name without a stamp gets a hash of its path appended.
    """
    path = Path(folder).absolute()
    name = RunFolder(path).name.replace("/", "-")
    unique = name if re.match(STAMPED, name) else f"{name}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"
    return re.sub(r"[^\w.-]", "-", unique)


def _tags(*, _root_: DictConfig) -> list[str]:
    """Return the tags of a run for dashboards: its method, dataset and backbone, if it has them."""
    names = (_chosen("model", _root_=_root_), OmegaConf.select(_root_, "data.name"), _chosen("backbone", _root_=_root_))
    return [name for name in names if name]


def foreign_interpolation(node: Any) -> str:
    """Return the first text with an interpolation other than a key reference or one of :data:`RESOLVERS`.

    The text is empty if there is none. Other resolvers read the environment of the process that opens a configuration.

    Args:
        node: plain containers.
    """
    if isinstance(node, dict):
        return next(filter(None, (foreign_interpolation(value) for pair in node.items() for value in pair)), "")
    if isinstance(node, (list, tuple)):
        return next(filter(None, map(foreign_interpolation, node)), "")
    if not isinstance(node, str):
        return ""
    rest = node
    while match := INNERMOST.search(rest):
        resolver, colon, _ = match[1].partition(":")
        if colon and resolver.strip() not in RESOLVERS:
            return node
        rest = rest[: match.start()] + "_" + rest[match.end() :]
    return node if "${" in rest else ""


# At import: a job that a cluster starts imports a script and does not call ``start``.
OmegaConf.register_new_resolver("chosen", _chosen, replace=True)
OmegaConf.register_new_resolver("folder_id", _folder_id, replace=True)
OmegaConf.register_new_resolver("tags", _tags, replace=True)
OmegaConf.register_new_resolver("run_name", run_name, replace=True)
