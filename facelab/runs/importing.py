"""Run folders of published weights."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from facelab.bounds import Name, Seed, Text
from facelab.errors import CheckpointError, ConfigError
from facelab.files import expand_home, read_text, replacing
from facelab.renames import FORMAT
from facelab.run_folder import RunFolder
from facelab.runs.argv import key_of
from facelab.runs.build import build, check, write_config
from facelab.runs.check import PATHS
from facelab.runs.checkpoint import ABSENT, clear_initial_weights, needed

log = logging.getLogger(__name__)

IMPORT_KEYS: dict[str, Any] = {"task": Text, "seed": Seed, "weights": Name, "meanface": Name | None, **PATHS}
"""The keys that import_weights.py reads beside the nodes in :data:`NODES`, and their types."""
NODES = ("model", "datamodule")
"""Nodes of the configuration that an imported run keeps, with all that they refer to."""
FILLED = ("backbone.", "head.")
"""Prefixes of the tensors that the file must fill; a coder has tables only."""
WRAPPER = "module."
"""Prefix that ``torch.nn.DataParallel`` puts before the name of each tensor."""
WEIGHTS = (".npz", ".pt", ".pth", ".safetensors")
"""Endings of the files of weights in a folder."""
MAX_MEANFACE_BYTES = 2**20
"""Bytes of the largest file of a mean face that is read; one of 106 landmarks has 4 kB."""


def select_imported(cfg: DictConfig) -> DictConfig:
    """Return the part of a configuration that an imported run keeps: no training, loggers or initial weights."""
    part = OmegaConf.create(clear_initial_weights(OmegaConf.to_container(needed(cfg, *NODES))))
    part.update({key: cfg[key] for key in ("task", "seed", "weights", "meanface")})
    part.paths = cfg.paths
    return part


def check_import(cfg: DictConfig) -> None:
    """Check the configuration of an import, and refuse overrides without effect.

    Args:
        cfg: as Hydra composed it.

    Raises:
        ConfigError: an override changes a node that an imported run does not have, such as ``trainer``.
        FacelabError: the configuration has faults.
    """
    part = select_imported(cfg)
    names = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    typed = [key_of(word) for word in names]
    without_node = ("experiment", "official", "model", "trust")
    if others := [key for key in typed if key.partition(".")[0].partition("/")[0] not in (*part, *without_node)]:
        raise ConfigError(others[0], "=... has no effect: an imported run is not trained")
    if others := [key for key in typed if key.endswith(".weights")]:
        raise ConfigError(others[0], "=... has no effect: the file of weights=... contains all weights")
    check(part, {**IMPORT_KEYS, **dict.fromkeys(NODES, Any)}, absent=(*ABSENT, "model.pose"))


def import_run(folder: Path, cfg: DictConfig) -> dict[str, Any]:
    """Write the run folder of a published file.

    Args:
        folder: the run folder.
        cfg: checked configuration.

    Returns:
        Entries for status.json: the file and its SHA-256.

    Raises:
        ConfigError: a file is missing, or an option does not fit the method.
        CheckpointError: the file does not fit the model.
    """
    import torch

    part, file = select_imported(cfg), expand_home(str(cfg.weights))
    module: Any = build(part, "model")
    weights = match_weights(module, file)
    module.load_state_dict(module.state_dict() | weights)
    set_mean_face(module, cfg.meanface)
    source = {"file": str(file), "sha256": hash_files(file)}
    part.imported = source
    content = {
        "format": FORMAT,
        "hyper_parameters": OmegaConf.to_container(part, resolve=False),
        "state_dict": module.state_dict(),
        "global_step": 0,
    }
    write_config(folder, part)
    with replacing(RunFolder(folder).checkpoint("last")) as path:
        torch.save(content, path)
    log.info("%d tensors of %s are in %s", len(weights), file, folder)
    return {"begun": True, "imported": source}


def hash_files(path: Path) -> str:
    """Return the SHA-256 of a file, or of the files of a folder one after the other in the order of their names."""
    files = weight_files(path) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def match_weights(module: Any, file: Path) -> dict[str, Any]:
    """Return the tensors of a published file under the names of a module.

    Raises:
        ConfigError: the file cannot be read, or no published weights belong to the method.
        CheckpointError: the file does not fit the model.
    """
    from facelab.networks.official import match_tensors

    match: Callable[[], dict[str, Any]]
    if hasattr(module, "match_arrays"):
        match = partial(module.match_arrays, read_arrays(file))
    elif hasattr(module, "match_folder"):
        match = partial(module.match_folder, read_folder(file))
    elif hasattr(module, "official"):
        official = module.official()
        own = {name: value for name, value in module.state_dict().items() if name.startswith(FILLED)}
        match = partial(match_tensors, own, _choose_state(read_states(file), official), official)
    else:
        raise ConfigError("model", f": no published weights of {type(module).__name__} are supported", mounted=True)
    try:
        return match()
    except CheckpointError as error:
        raise CheckpointError(f"{file} does not fit this model: {error}") from error


def read_arrays(file: Path) -> dict[str, Any]:
    """Read the arrays of an ``.npz`` of numpy as tensors; no code in the file is run.

    Raises:
        ConfigError: the file is missing or not an ``.npz`` of plain arrays, or has compressed arrays, which may be far
            larger than the file.
    """
    import numpy as np
    import torch

    if not file.is_file():
        raise ConfigError("weights", f"={file}: there is no such file", mounted=True)
    try:
        with ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > file.stat().st_size:
                raise ValueError("its arrays are compressed")
        with np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.atleast_1d(arrays[name])) for name in arrays.files}
    except Exception as error:  # zipfile and numpy raise many types for other files
        raise ConfigError(
            "weights", f"={file}: not a file of arrays written by numpy.savez ({error})", mounted=True
        ) from error


def read_folder(folder: Path) -> dict[str, Any]:
    """Read the tensors of all files in a folder, under the name of their file without its ending and a dot.

    Raises:
        ConfigError: there is no such folder, it contains no file of weights, or one cannot be read.
        CheckpointError: a file contains no tensors by name.
    """
    if not folder.is_dir() or not (files := weight_files(folder)):
        raise ConfigError(
            "weights", f"={folder}: a folder with a file of each network is needed, such as pnet.pt", mounted=True
        )
    tensors: dict[str, Any] = {}
    for file in files:
        state = read_arrays(file) if file.suffix == ".npz" else next(iter(read_states(file).values()))
        tensors |= {f"{file.stem}.{name}": tensor for name, tensor in state.items()}
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights in a folder."""
    return sorted(file for file in folder.iterdir() if file.suffix in WEIGHTS)


def read_states(file: Path) -> dict[str, dict[str, Any]]:
    """Read the state dicts of a published file by their key; the key is empty for a file that is a state dict itself.

    Raises:
        ConfigError: the file cannot be read, see :func:`facelab.networks.backbone.read_weights_file`.
        CheckpointError: the file contains no state dict.
    """
    from facelab.networks.backbone import read_weights_file

    content = read_weights_file(file)
    nested = {"": content, **content} if isinstance(content, Mapping) else {}
    states = {str(key): dict(value) for key, value in nested.items() if _is_state(value)}
    if not states:
        raise CheckpointError(f"{file} contains no tensors by name")
    return {key: _remove_wrapper(state) for key, state in states.items()}


def _is_state(value: Any) -> bool:
    """Return whether a value is a mapping of names to tensors."""
    import torch

    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items())
    )


def _remove_wrapper(state: dict[str, Any]) -> dict[str, Any]:
    """Remove the prefix of a network that was saved inside ``DataParallel``."""
    if not all(name.startswith(WRAPPER) for name in state):
        return state
    return {name.removeprefix(WRAPPER): tensor for name, tensor in state.items()}


def _choose_state(states: Mapping[str, dict[str, Any]], official: Any) -> dict[str, Any]:
    """Return the state dict of a file with the most tensors that the model needs, and log the others."""
    best = max(states, key=lambda key: official.count_matches(states[key]))
    if others := [key for key in states if key != best]:
        log.info("only %s of the file is read; left out: %s", best, ", ".join(others))
    return states[best]


def set_mean_face(module: Any, meanface: Any) -> None:
    """Set the neighbours of PIPNet from the mean face of its dataset.

    Args:
        module: the module.
        meanface: path of the official ``meanface.txt``: x and y of all landmarks in one line.

    Raises:
        ConfigError: the file is missing or malformed, the module needs a mean face and there is none, or the reverse.
    """
    import torch

    coder: Any = getattr(module, "coder", None)
    if not getattr(coder, "num_neighbours", 0):
        if meanface is not None:
            raise ConfigError("meanface", f"={meanface}: this method has no neighbours to set", mounted=True)
        return
    if meanface is None:
        raise ConfigError(
            "meanface",
            "=null: the weights do not contain the neighbours; name the file meanface.txt of the dataset",
            mounted=True,
        )
    try:
        numbers = [float(word) for word in read_text(expand_home(str(meanface)), MAX_MEANFACE_BYTES).split()]
        if len(numbers) != 2 * module.layout.num_points:
            raise ValueError(f"it has {len(numbers)} numbers; {2 * module.layout.num_points} are needed")
        coder.set_mean_shape(torch.tensor(numbers, dtype=torch.float64).reshape(-1, 2))
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError("meanface", f"={meanface}: {error}", mounted=True) from error
