"""Reading of checkpoints of train.py, and opening of a checkpoint as the trained module.

Opening builds ``model``, and checks ``crop`` and ``data.layout`` with it, or ``detection`` for a detector; no other
node of the configuration is read. A removed logger, callback or option therefore does not prevent opening.
:mod:`facelab.renames` translates the names of earlier versions.
"""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from zipfile import ZIP_STORED, ZipFile

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from facelab.errors import CheckpointError, ConfigError, RunError
from facelab.files import MAX_DEPTH, MAX_NODES, read_yaml
from facelab.renames import renamed_checkpoint, renamed_config
from facelab.run_folder import RunFolder
from facelab.runs.build import build, check, typed_key
from facelab.runs.check import check_config
from facelab.runs.references import copy_part
from facelab.runs.resolvers import foreign_interpolation

if TYPE_CHECKING:  # importing OpenCV takes a tenth of a second, torch seconds
    from facelab.faces.crop import BoxSource, Crop
    from facelab.faces.detections import CascadeRule, DetectionRule

log = logging.getLogger(__name__)

INITIAL_WEIGHTS = {"pretrained": False, "weights": None}
"""Keys that name initial weights, with the values that mean no initial weights."""
NO_PATHS = {"data": "data", "cache": "data", "run": ".", "name": "", "group": "", "id": "", "tags": []}
"""Node ``paths`` of a run that is opened outside of a script; nothing that is opened reads or writes there."""
TRAINING = ("model.optimizer", "model.scheduler", "datamodule.augment")
"""Dotted keys of parts that only training needs."""
OPENED = ("model", "crop", "data.layout")
"""Nodes that are checked when a checkpoint of a landmark method is opened; only the first is built."""
OPENED_DETECTOR = ("model", "detection")
"""Nodes that are checked when a checkpoint of a detector is opened; ``detection`` is its contract."""
ABSENT = (*TRAINING, "model.loss")
"""Arguments that may be null in a module that is not trained, even if its signature does not allow it."""


class Checkpoint(NamedTuple):
    """Content of a checkpoint of train.py that is needed without a trainer."""

    config: dict[str, Any]
    weights: dict[str, Any]
    step: int  # number of completed optimizer steps


class LoadedRun(NamedTuple):
    """Trained module with its configuration."""

    cfg: DictConfig  # the whole configuration; only :func:`opened_nodes` were checked
    module: Any  # the LightningModule, in evaluation mode
    checkpoint: Path


def find_checkpoint(path: Path, name: str) -> Path:
    """Return the checkpoint of a run folder, or the file itself.

    Args:
        path: a run folder or a checkpoint file.
        name: ``last`` or ``best``.

    Raises:
        RunError: there is no checkpoint; the message names the expected file.
    """
    if path.is_file():
        return path
    file = RunFolder(path).checkpoint(name)
    if file.is_file():
        return file
    if not path.is_dir():
        raise RunError(f"{path} is neither a run folder nor a checkpoint file")
    if OmegaConf.select(OmegaConf.create(saved_config(path)), "trainer.fast_dev_run"):
        raise RunError(f"{path} is a check of a few batches (trainer=check), and saves no checkpoint; train without it")
    raise RunError(f"{path} has no {file.relative_to(path)}; did its training complete an epoch?")


def tested_checkpoint(path: Path) -> Path:
    """Return the checkpoint of a run folder that its test uses (``test_ckpt``), or the file itself.

    Raises:
        RunError: there is no checkpoint, or the configuration of the run cannot be read.
    """
    return find_checkpoint(path, "best" if saved_config(path).get("test_ckpt") == "best" else "last")


def read_checkpoint(file: Path) -> Checkpoint:
    """Read a checkpoint of train.py without executing code from the file.

    With weight averaging, the weights are the averages. For a test, load them into the module directly: with
    ``ckpt_path``, Lightning restores the state of the callbacks for a test as well, and ``WeightAveraging`` after
    ``fit`` then replaces the averages by the weights of the last step.

    Raises:
        CheckpointError: the file is not a checkpoint of train.py, or a later version wrote it.
    """
    import torch

    _check_members(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    except Exception as error:  # for other files torch raises many types, and its messages give unsafe advice
        raise CheckpointError(f"{file} is not a checkpoint of train.py; torch cannot read it") from error
    if isinstance(content, dict):
        _check_size(content.get("hyper_parameters"), file)
    try:
        content = renamed_checkpoint(content) if isinstance(content, dict) else {}
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    keys = ("hyper_parameters", "state_dict", "global_step")
    config, weights, step = (content.get(key) for key in keys)
    if not isinstance(config, dict) or not isinstance(weights, dict) or "model" not in config:
        raise CheckpointError(f"{file} contains no configuration with its weights; it was not written by train.py")
    if not all(isinstance(name, str) and _is_plain(value) for name, value in weights.items()):
        raise CheckpointError(f"{file} contains weights that are not plain, named tensors; train.py writes no others")
    if not isinstance(step, int):
        raise CheckpointError(f"{file} contains no number of optimizer steps; it was not written by train.py")
    # A tensor can repeat one stored number over its whole shape.
    if sum(value.numel() * value.element_size() for value in weights.values()) > file.stat().st_size:
        raise CheckpointError(f"{file} is smaller than its weights; it is damaged or was not written by train.py")
    return Checkpoint(config, weights, step)


def load_run(path: Path, paths: DictConfig | None, supplements: Mapping[str, Any] = MappingProxyType({})) -> LoadedRun:
    """Open a checkpoint: read its configuration, insert this machine's paths, and build the trained module.

    No server is contacted. Keys that name initial weights are cleared, because the checkpoint contains the trained
    weights. A node that reads the environment, such as a logger, is left out with a warning. Optimizer and scheduler
    are not built. A loss that cannot be built is left out with a warning, together with its weights and those of
    branches that only it trained.

    Args:
        path: a run folder or a checkpoint file.
        paths: the ``paths`` node of the script that opens it; None outside of a script.
        supplements: values by dotted key that the configuration lacks, because a class has gained an argument since.

    Raises:
        RunError: there is no checkpoint, or the configuration of its run cannot be read.
        ConfigError: a supplement has no effect, or the configuration has its key.
        CheckpointError: the file is not a checkpoint of train.py, or its weights do not fit its configuration.
        FacelabError: the needed nodes of its configuration have faults.
    """
    from facelab.profiling.compile import set_format_and_compile

    file = tested_checkpoint(path)
    config, weights, _ = read_checkpoint(file)
    machine: Any = NO_PATHS if paths is None else OmegaConf.to_container(paths, resolve=True)
    config = {key: clear_initial_weights(node) for key, node in config.items()} | {"paths": machine}
    for key in [key for key, node in config.items() if foreign_interpolation(node)]:
        log.warning("%s: %s is left out: %s reads the environment", file, key, foreign_interpolation(config[key]))
        del config[key]
    try:
        cfg = OmegaConf.create(config)
        supplement(cfg, supplements)
        with offline():
            module = _open(cfg, weights, file)
        memory_format = cfg.get("memory_format", "channels_last")
    except OmegaConfBaseException as error:
        raise CheckpointError(f"the configuration in {file} cannot be read: {error}") from error
    set_format_and_compile(module, memory_format, compile=False)  # a test is too short to make up for the compile time
    return LoadedRun(cfg, module.eval(), file)


def parse_supplements(words: Sequence[str]) -> dict[str, Any]:
    """Return the typed supplements, such as ``model.width=8``, as values by dotted key.

    Raises:
        ConfigError: one of them is not a key with one value.
    """
    values = {}
    for word in words:
        try:
            each = OverridesParser.create().parse_override(word)
        except HydraException as error:
            raise ConfigError("supplements", f": {word!r} is not KEY=VALUE", mounted=True) from error
        if each.is_sweep_override():
            raise ConfigError("supplements", f": {word!r} has several values; a run has one", mounted=True)
        values[each.key_or_group] = each.value()
    return values


def supplement(cfg: DictConfig, values: Mapping[str, Any]) -> None:
    """Add values that a configuration lacks to the nodes that are opened, in place.

    Args:
        cfg: whole configuration of a run.
        values: by dotted key; a key within a part that another node refers to is that of the part or of the reference.

    Raises:
        ConfigError: see :func:`load_run`.
    """
    opened = {"datamodule", *needed(cfg, *opened_nodes(cfg))} if values else set()
    for key, value in values.items():
        parent, _, last = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else None
        if key.partition(".")[0] not in opened or not isinstance(node, DictConfig):
            nodes = ", ".join(sorted(opened))
            raise ConfigError(f"+{key}", f": the run opens no such node; its nodes are {nodes}", mounted=True)
        if last in node.keys():  # noqa: SIM118 (`in node` is False where the value is missing)
            raise ConfigError(f"+{key}", ": the run has this value; only a missing one can be added", mounted=True)
        node[last] = value


def build_crop(run: LoadedRun, box: "BoxSource", changes: Mapping[str, Any]) -> "Crop":
    """Build the crop of the training around another box.

    Args:
        run: the run.
        box: ``given`` or ``image``. A training with boxes has the scale 1 and no shift around a whole photo, unless
            they are changed.
        changes: arguments of the crop to change, by name; None keeps the value.

    Raises:
        FacelabError: a value is invalid.
    """
    wanted = {key: value for key, value in changes.items() if value is not None}
    if box == "image" and run.cfg.crop.box != "image":
        wanted = {"scale": 1.0, "shift": [0.0, 0.0]} | wanted
    cfg = OmegaConf.merge(run.cfg, {"crop": {**wanted, "box": box}})
    part = needed(cfg, "crop")  # type: ignore[arg-type]
    check(part, ("crop",))
    crop: Crop = build(part, "crop")
    return crop


def build_rule(run: LoadedRun, changes: Mapping[str, Any]) -> "DetectionRule | CascadeRule":
    """Build the rule by which a detector searches a photo.

    Args:
        run: the run.
        changes: arguments of the rule to change, by name; None keeps the value of the run.

    Raises:
        FacelabError: a value is invalid.
    """
    wanted = {key: value for key, value in changes.items() if value is not None}
    part = needed(OmegaConf.merge(run.cfg, {"detection": wanted}), "detection")  # type: ignore[arg-type]
    check(part, ("detection",))
    rule: DetectionRule | CascadeRule = build(part, "detection")
    return rule


def saved_config(folder: Path) -> dict[str, Any]:
    """Read the ``config.yaml`` of a run with today's names; empty where there is none.

    Raises:
        RunError: it cannot be read.
    """
    file = RunFolder(folder).config
    try:
        saved = read_yaml(file) if file.is_file() else {}
    except ValueError as error:
        raise RunError(f"{file} cannot be read: {error}") from error
    return renamed_config(saved) if isinstance(saved, dict) else {}


def _open(cfg: DictConfig, weights: Mapping[str, Any], file: Path) -> Any:
    """Build the module and load its weights; a loss that cannot be built becomes null in the configuration."""
    import torch

    nodes = opened_nodes(cfg)
    opened = needed(cfg, *nodes)
    fault = _loss_fault(opened, nodes)
    if fault:
        cfg.model.loss = None
        opened = needed(cfg, *nodes)
    check(opened, nodes, absent=ABSENT)
    with torch.device("meta"):  # first, without memory: the network may be far larger than the weights
        skipped = _load(build(opened, "model"), {key: value.to("meta") for key, value in weights.items()}, file, fault)
    module = build(opened, "model")
    _load(module, weights, file, fault)
    if fault:
        removed = sorted({"loss", *(key.partition(".")[0] for key in skipped)})
        log.warning("%s: its loss cannot be built and is left out (%s)", file, fault)
        log.warning("left out with their weights: %s", ", ".join(removed))
    return module


def _load(module: Any, weights: Mapping[str, Any], file: Path, fault: str) -> list[str]:
    """Load the weights of a checkpoint, and return the names of those that are skipped without the loss.

    Raises:
        CheckpointError: the weights do not fit.
    """
    # Without the loss, parts that only it needs are not built, such as a branch that only it trains.
    skipped = [key for key in weights if fault and getattr(module, key.partition(".")[0], None) is None]
    kept = {key: value for key, value in weights.items() if key not in skipped}
    built = {key: value for key, value in module.state_dict().items() if key in kept}
    if differing := [key for key, value in built.items() if kind_of(kept[key]) != kind_of(value)]:
        raise CheckpointError(f"the weights in {file} do not fit its configuration: {differing[0]} has another type")
    try:
        module.load_state_dict(kept)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {file} do not fit its configuration: {error}") from error
    return skipped


def is_detector(cfg: DictConfig) -> bool:
    """Return whether the method of a configuration finds faces in photos, and not landmarks in crops."""
    return "detection" in cfg


def opened_nodes(cfg: DictConfig) -> tuple[str, ...]:
    """Return the nodes of a configuration that are checked when its checkpoint is opened."""
    return OPENED_DETECTOR if is_detector(cfg) else OPENED


def _loss_fault(opened: DictConfig, nodes: tuple[str, ...]) -> str:
    """Return why the loss of a model cannot be built; empty if it can, or if there is none."""
    place = typed_key(opened, "model.loss")
    faults = check_config(opened, nodes)
    if within := [fault for fault in faults if _is_in(fault.place, place)]:
        return "; ".join(within)
    if OmegaConf.select(opened, "model.loss") is None or any(fault.place not in ABSENT for fault in faults):
        return ""  # the caller reports other faults
    try:
        build(opened, "model.loss")
    except (ConfigError, CheckpointError) as error:
        return str(error)
    return ""


def needed(cfg: DictConfig, *nodes: str) -> DictConfig:
    """Copy nodes and what they refer to, with the parts that only training needs set to null.

    Args:
        cfg: a whole configuration.
        nodes: dotted keys.

    Raises:
        CheckpointError: one of the nodes is missing.
    """
    if missing := [node for node in nodes if not isinstance(OmegaConf.select(cfg, node), DictConfig)]:
        raise CheckpointError(f"the configuration of the checkpoint has no {', '.join(missing)}")
    cleared: Any = OmegaConf.to_container(cfg, resolve=False)
    for place in TRAINING:
        node, _, part = place.partition(".")
        if isinstance(owner := cleared.get(node), dict) and part in owner:
            owner[part] = None
    return copy_part(cleared, nodes)


def _is_in(place: str, node: str) -> bool:
    """Return whether a place is a node or below it."""
    return place == node or place.startswith((f"{node}.", f"{node}["))


def clear_initial_weights(node: Any) -> Any:
    """Return a copy of plain containers without initial weights: their keys have the values of INITIAL_WEIGHTS."""
    if isinstance(node, dict):
        return {
            key: INITIAL_WEIGHTS[key]
            if key in INITIAL_WEIGHTS and not isinstance(value, (dict, list))
            else clear_initial_weights(value)
            for key, value in node.items()
        }
    return [clear_initial_weights(value) for value in node] if isinstance(node, (list, tuple)) else node


def kind_of(weight: Any) -> str:
    """Return the kind of a tensor's numbers: real, complex or whole.

    When loading, torch converts between kinds without a warning.
    """
    return "real" if weight.is_floating_point() else "complex" if weight.is_complex() else "whole"


def _is_plain(value: Any) -> bool:
    """Return whether a value is a tensor with strided memory layout, neither sparse nor quantised."""
    import torch

    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized


def _check_members(file: Path) -> None:
    """Refuse a file that torch would unpack to more than its size, or whose content has changed.

    torch itself refuses other invalid files.

    Raises:
        CheckpointError: the file has compressed members, which torch never writes, or a checksum does not match.
    """
    try:
        with ZipFile(file) as archive:
            members = archive.infolist()
            packed = any(member.compress_type != ZIP_STORED for member in members)
            packed |= sum(member.file_size for member in members) > file.stat().st_size
            damaged = None if packed else archive.testzip()  # torch ignores wrong checksums
    except Exception:  # zipfile raises many types for a broken archive, and torch also reads older formats
        return
    if packed:
        raise CheckpointError(f"{file} contains compressed parts; it was not written by train.py")
    if damaged or len({member.filename for member in members}) < len(members):
        raise CheckpointError(f"{file} was damaged or changed since it was written: its checksums do not match")


def _check_size(config: Any, file: Path) -> None:
    """Refuse a configuration that is far larger than that of any run.

    Shared containers in the file would be copied and could fill the memory.

    Raises:
        CheckpointError: the configuration is too large or too deep.
    """
    level, count = [config], 0
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, (dict, list, tuple))
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        count += len(level)
        if not level:
            return
        if count > MAX_NODES:
            break
    raise CheckpointError(f"{file}: its configuration has over {MAX_NODES:,} values or {MAX_DEPTH} levels")


@contextmanager
def offline() -> Iterator[None]:
    """Refuse every connection to a server that a part opens while it is built.

    Raises:
        CheckpointError: a part opens one.
    """
    if not _hooks:
        _hooks.append(_refuse_connection)
        sys.addaudithook(_refuse_connection)  # added once, because an audit hook cannot be removed
    _offline.append(True)  # applies to all threads, because a part may start one
    try:
        yield
    finally:
        _offline.pop()


_hooks: list[Any] = []
_offline: list[bool] = []


def _refuse_connection(event: str, arguments: Any) -> None:
    """Refuse a connection to a server while a checkpoint is opened; a hook of :func:`sys.addaudithook`."""
    if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request") and _offline:
        raise CheckpointError(
            f"a part of the checkpoint connects to a server ({event}), which is not allowed while it is opened"
        )
