"""Continue an interrupted run where it was."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from facelab.errors import RunError
from facelab.files import read_table, replacing
from facelab.renames import STEPS, renamed_config
from facelab.run_folder import RunFolder, counted, read_status
from facelab.runs.build import write_config
from facelab.runs.checkpoint import INITIAL_WEIGHTS, kind_of, read_checkpoint
from facelab.runs.overrides import read_yaml
from facelab.runs.processes import is_first

log = logging.getLogger(__name__)

RESTORED = (
    *("backbone", "head", "coder", "crop", "pose", "data.layout"),
    *("optimizer", "scheduler", "seed"),
    *("datamodule.batch_size", "trainer.devices", "trainer.accumulate_grad_batches"),
)
"""What a checkpoint goes on with as it was, so that another value would not be used, not fit the epoch at hand, or make
one network of two."""
RESUMPTION = "callbacks.resume.ResumableCheckpoint"
"""The callback that writes ``last.ckpt``."""
LARGEST_CURVES = 2**28
"""Bytes of a metrics.csv that is continued: of a million steps with a row each."""
LONGER = "trainer.max_epochs"
"""What alone may change in a run that is finished."""


class Resumed(NamedTuple):
    """Where a run goes on."""

    checkpoint: Path
    step: int  # optimizer steps that were done
    finished: bool  # with this configuration, to its end


def resumption(folder: Path, cfg: DictConfig) -> Resumed | None:
    """Find where the run in this folder continues; None for a run that begins. Logs what was changed.

    Args:
        folder: of the run.
        cfg: its configuration now.

    Raises:
        RunError: something was changed that would have no effect, or that would falsify results that stand; or a file
            is gone without which the run cannot continue.
    """
    files = RunFolder(folder)
    checkpoint = files.checkpoint("last")
    if not checkpoint.is_file() or not files.config.is_file():
        if is_first():  # the folder that another rank looks at is begun already
            _check_beginning(files)
        return None
    step = read_checkpoint(checkpoint).step
    curves_until(files.curves, step)
    before = read_yaml(files.config)
    if not isinstance(before, dict):
        raise RunError(f"{files.config} is no mapping")
    renamed = renamed_config(before)
    _pin(cfg, before, renamed)
    told = _changes(renamed, OmegaConf.to_container(cfg, resolve=True))
    keys = [line.partition(":")[0] for line in told]
    if any(_is_of(key, RESTORED) and key.rpartition(".")[2] not in INITIAL_WEIGHTS for key in keys):
        raise RunError(
            "A run that is resumed keeps its network, its crop, its optimizer, its schedule, its seed and its batches "
            "as they were saved, so another value would have no effect; begin another run for:\n  " + "\n  ".join(told)
        )
    finished = files.metrics.is_file()
    if finished and any(key != LONGER for key in keys):
        raise RunError(
            f"{folder} is finished, and its results belong to what it was trained with; only {LONGER} may change. "
            "Begin another run for:\n  " + "\n  ".join(told)
        )
    for line in told:
        log.warning("changed: %s", line)
    return Resumed(checkpoint, step, finished and not told)


def _check_beginning(files: RunFolder) -> None:
    """Refuse to begin in a folder whose run was trained, and has lost a file since.

    Raises:
        RunError: says which file is gone.
    """
    if not files.config.is_file():
        left = (files.overrides, files.checkpoint("last"), files.curves, files.metrics)
        if found := [path.name for path in left if path.is_file()]:
            raise RunError(
                f"{files.config} is gone, but {found[0]} is there: without it the run cannot continue, and another "
                "would overwrite what is left; copy it back, or begin in another folder"
            )
    elif _was_saved(files):
        raise RunError(
            f"{files.checkpoint('last')} is gone, or was never written, and the run was trained; copy it back, or "
            "begin another run"
        )
    elif files.overrides.is_file():
        log.warning("%s: the run had ended before its first checkpoint, and begins at step 0", files.path)


def _was_saved(files: RunFolder) -> bool:
    """Tell whether a run without ``last.ckpt`` had one, by its results, its state and the epochs in its metrics."""
    config: Any = OmegaConf.create(renamed_config(read_yaml(files.config) or {}))
    nodes = (OmegaConf.select(config, "callbacks") or {}).values()
    saves = any(node and node.get("_target_") == RESUMPTION for node in nodes)
    if files.metrics.is_file() and not OmegaConf.select(config, "trainer.fast_dev_run"):
        return True
    state = read_status(files.path).content
    epochs, validated = _epochs(files.curves)
    if state.get("saved") is not None:  # it is up to a minute old
        return bool(state["saved"]) or (saves and not epochs <= {"", "0"})
    return any(files.checkpoints.glob("*.ckpt")) or (saves and validated)


def _epochs(curves: Path) -> tuple[set[str], bool]:
    """Give the epochs that metrics are of, and whether there was a validation."""
    if not curves.is_file():
        return set(), False
    try:
        names, *rows = read_table(curves, torn=True)
    except ValueError:  # an empty or a broken file
        return set(), False
    table = [dict(zip(names, row, strict=False)) for row in rows]
    validated = any(value for row in table for name, value in row.items() if name.startswith("val/"))
    return {row.get("epoch", "") for row in table}, validated


def check_weights(module: Any, resumed: Resumed) -> None:
    """Refuse a checkpoint whose weights do not fit the module that would be trained further.

    Raises:
        RunError: names the weights.
    """
    weights = read_checkpoint(resumed.checkpoint).weights
    saved = {name: (value.shape, kind_of(value)) for name, value in weights.items()}
    built = {name: (value.shape, kind_of(value)) for name, value in module.state_dict().items()}
    if differing := sorted(name for name in saved.keys() | built.keys() if saved.get(name) != built.get(name)):
        raise RunError(
            f"{resumed.checkpoint} holds other weights than the network of this configuration has: "
            f"{', '.join(differing[:3])}{f' and {len(differing) - 3} more' if len(differing) > 3 else ''}"
        )


def begin(folder: Path, cfg: DictConfig, overrides: Sequence[str], resumed: Resumed | None) -> None:
    """Prepare the folder for training that begins or goes on, once all that was typed is accepted.

    Keeps the configuration, and the overrides for the next resumption, and takes back what was written after the
    checkpoint: the metrics of steps that will be trained again, the results of a test, and a batch whose loss was not
    finite.

    Args:
        folder: of the run.
        cfg: its configuration.
        overrides: that stand behind it.
        resumed: where it continues; None for a run that begins.
    """
    if not is_first():
        return
    files = RunFolder(folder)
    write_config(folder, cfg)
    with replacing(files.overrides) as path:
        OmegaConf.save(list(overrides), path)
    remove_results(folder)
    for batch in files.path.glob(files.bad_batch(0).name.replace("0", "*")):
        batch.unlink()
    _rewind(files.curves, resumed.step if resumed else 0)
    if resumed:
        log.info("going on from %s, step %d", resumed.checkpoint, resumed.step)


def remove_results(folder: Path) -> None:
    """Remove the results of a test before another begins whose configuration stands beside them."""
    files = RunFolder(folder)
    if is_first():
        for results in (files.metrics, files.faces):
            results.unlink(missing_ok=True)


def _is_of(key: str, nodes: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{node}.") for node in nodes)


def _pin(cfg: DictConfig, before: dict[str, Any], renamed: dict[str, Any]) -> None:
    """Keep the values by which options that came since leave a run as it was, unless they are typed now, in place."""
    typed = {word.lstrip("+~").partition("=")[0] for word in HydraConfig.get().overrides.task}
    added = {key for step in STEPS for _, key in step.added}
    old, new = _flat(before), _flat(renamed)
    for key in new.keys() - old.keys():
        if key.rpartition(".")[2] in added and key not in typed and OmegaConf.select(cfg, key) is not None:
            parent = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg
            if not OmegaConf.is_interpolation(parent, key.rpartition(".")[2]):
                parent[key.rpartition(".")[2]] = new[key]


def _flat(node: Any, at: str = "") -> dict[str, Any]:
    """Give dotted keys and values of nested mappings."""
    if isinstance(node, dict) and (node or not at):
        return {key: value for name, child in node.items() for key, value in _flat(child, f"{at}.{name}").items()}
    return {at[1:]: node}


def _changes(before: Any, after: Any) -> list[str]:
    """Every value that differs, as ``key: before -> after``."""
    old, new = _flat(counted(before)), _flat(counted(after))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    own = [key for key in keys if not any(key.endswith(f".{other}") for other in keys)]  # others refer to these
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in own]


def _rewind(path: Path, step: int) -> None:
    """Leave out of a metrics.csv what was written at this step or later, and a last line that is not whole."""
    if not path.is_file():
        return
    rows = curves_until(path, step) if step else []
    if not rows:
        path.unlink()
        return
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def curves_until(path: Path, step: int) -> list[list[str]]:
    """Read the heading of a metrics.csv and the rows before this step; nothing where there is no whole row.

    Raises:
        RunError: it is no such table.
    """
    try:
        names, *rows = [row for row in read_table(path, torn=True, most=LARGEST_CURVES) if row] or [[]]
        if not rows:
            return []
        if odd := next((row for row in rows if len(row) != len(names)), None):
            raise ValueError(f"{path}: a row has {len(odd)} cells, but the header names {len(names)} columns")
        at = names.index("step")
        return [names, *(row for row in rows if int(row[at]) < step)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} is no table of the run's metrics ({error}); move it away to continue without"
        ) from error
