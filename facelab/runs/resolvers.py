"""Resolvers that ``conf/`` uses: names of runs, their id and their tags. Importing the module makes them known."""

import hashlib
import re
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from facelab.files import at_home, real
from facelab.run_folder import STAMPED, owner_of

INNERMOST = re.compile(r"\$\{([^${}]*)\}")
"""An interpolation without another in it."""
RESOLVERS = ("chosen", "oc.select", "tags")
"""Resolvers that a configuration from elsewhere may use outside of ``paths``, which is the machine's: they read the
configuration, and of Hydra which options were chosen."""


def _chosen(*groups: str, _root_: DictConfig) -> str:
    """Join the options taken of these config groups by a dash; a group without one is left out.

    The option ``timm`` says nothing of the network, so there its ``name`` stands instead.
    """
    choices = HydraConfig.get().runtime.choices
    taken = {group: choices[group] for group in groups if choices.get(group) not in (None, "null")}
    names = (
        OmegaConf.select(_root_, f"{group}.name", default=option) if option == "timm" else option
        for group, option in taken.items()
    )
    return "-".join(names).replace("/", "-")


def run_name(checkpoint: str) -> str:
    """Name a checkpoint's run: its folder without the stamp, or in a sweep the sweep's stamp and a number.

    Args:
        checkpoint: a run folder or a checkpoint file, which need not exist.
    """
    path = real(at_home(str(checkpoint)))
    if owner := owner_of(path):
        path = owner.path
    name = f"{path.parent.name}-{path.name}" if path.name.isdecimal() else path.name.removesuffix(".ckpt")
    return re.sub(f"{STAMPED}_", "", name)


def _folder_id(folder: str) -> str:
    """Give a run a name that no other has: its folder's, in a sweep with that of the sweep before it.

    A folder that was named by hand gets a hash of its place.
    """
    path = Path(folder).absolute()
    name = f"{path.parent.name}-{path.name}" if path.name.isdecimal() else path.name
    unique = name if re.match(STAMPED, name) else f"{name}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"
    return re.sub(r"[^\w.-]", "-", unique)


def _tags(*, _root_: DictConfig) -> list[str]:
    """List what a run is found by in dashboards: the method, dataset and backbone that it has."""
    names = (_chosen("model", _root_=_root_), OmegaConf.select(_root_, "data.name"), _chosen("backbone", _root_=_root_))
    return [name for name in names if name]


def foreign_interpolation(node: Any) -> str:
    """Find text in plain containers that more than refers to another key; empty where there is none.

    Resolvers other than those of this project read the environment of the process that opens a configuration.
    """
    if isinstance(node, dict):
        return next(filter(None, (foreign_interpolation(value) for pair in node.items() for value in pair)), "")
    if isinstance(node, (list, tuple)):
        return next(filter(None, map(foreign_interpolation, node)), "")
    if not isinstance(node, str):
        return ""
    rest = node
    while found := INNERMOST.search(rest):
        resolver, colon, _ = found[1].partition(":")
        if colon and resolver.strip() not in RESOLVERS:
            return node
        rest = rest[: found.start()] + "_" + rest[found.end() :]
    return node if "${" in rest else ""


# While the module is imported: a job that a cluster starts imports a door and calls no ``start``.
OmegaConf.register_new_resolver("chosen", _chosen, replace=True)
OmegaConf.register_new_resolver("folder_id", _folder_id, replace=True)
OmegaConf.register_new_resolver("tags", _tags, replace=True)
OmegaConf.register_new_resolver("run_name", run_name, replace=True)
