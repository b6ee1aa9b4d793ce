"""Resuming of an interrupted run."""

import csv
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from facelab.errors import RunError
from facelab.files import read_table, replacing
from facelab.renames import STEPS, renamed_config
from facelab.run_folder import RunFolder, read_status, result_settings
from facelab.runs.argv import key_of
from facelab.runs.build import write_config, write_rerun
from facelab.runs.checkpoint import INITIAL_WEIGHTS, kind_of, read_checkpoint
from facelab.runs.overrides import read_yaml
from facelab.runs.processes import is_first

log = logging.getLogger(__name__)

RESTORED = (
    *("backbone", "head", "coder", "crop", "pose", "data.layout"),
    *("optimizer", "scheduler", "rates", "callbacks.early_stopping", "callbacks.swa", "seed", "init"),
    *("datamodule.batch_size", "trainer.devices", "trainer.accumulate_grad_batches"),
)
"""Nodes and keys that a resumed run keeps as saved, because another value would not be used, would not fit the current
epoch, or would mix two networks."""
RESUME_CALLBACK = "callbacks.resume.ResumableCheckpoint"
"""Class of the callback that writes ``last.ckpt``."""
MAX_CURVES_BYTES = 2**28
"""Maximum size in bytes of the metrics.csv of a resumed run: a million steps with a row each."""
MAX_EPOCHS = "trainer.max_epochs"
"""The only key that may change in a finished run: it extends the training."""


class ResumePoint(NamedTuple):
    """Checkpoint from which a run resumes."""

    checkpoint: Path
    step: int  # number of completed optimizer steps
    finished: bool  # whether the run has finished with this configuration


def find_resume_point(folder: Path, cfg: DictConfig) -> ResumePoint | None:
    """Find the checkpoint from which the run in this folder resumes; None for a new run. Logs changed values.

    Args:
        folder: folder of the run.
        cfg: its present configuration.

    Raises:
        RunError: a value was changed that would have no effect or would contradict existing results, or a file is
            missing that resuming needs.
    """
    files = RunFolder(folder)
    checkpoint = files.checkpoint("last")
    if not checkpoint.is_file() or not files.config.is_file():
        if is_first():  # other ranks may see a folder that the first has already prepared
            _check_new(files)
        return None
    step = read_checkpoint(checkpoint).step
    curves_until(files.curves, step)  # to refuse a broken table now, before anything changes
    before = read_yaml(files.config)
    if not isinstance(before, dict):
        raise RunError(f"{files.config} is not a mapping")
    renamed = renamed_config(before)
    _pin(cfg, before, renamed)
    changes = _changes(renamed, OmegaConf.to_container(cfg, resolve=True))
    keys = [line.partition(":")[0] for line in changes]
    if any(_is_of(key, RESTORED) and key.rpartition(".")[2] not in INITIAL_WEIGHTS for key in keys):
        raise RunError(
            "A resumed run keeps its saved network, crop, optimizer, schedule, early stopping, average, seed and "
            "batches, so another value would have no effect; start another run for:\n  " + "\n  ".join(changes)
        )
    finished = files.metrics.is_file()
    if finished and any(key != MAX_EPOCHS for key in keys):
        raise RunError(
            f"{folder} is finished, and its results belong to its configuration; only {MAX_EPOCHS} may change. "
            "Start another run for:\n  " + "\n  ".join(changes)
        )
    for line in changes:
        log.warning("changed: %s", line)
    return ResumePoint(checkpoint, step, finished and not changes)


def _check_new(files: RunFolder) -> None:
    """Refuse to start a new run in the folder of a trained run with a missing file.

    Raises:
        RunError: a file is missing; the message names it.
    """
    if not files.config.is_file():
        others = (files.overrides, files.checkpoint("last"), files.curves, files.metrics)
        if existing := [path.name for path in others if path.is_file()]:
            raise RunError(
                f"{files.config} is missing, but {existing[0]} is there: the run cannot be resumed without it, and "
                "another run would overwrite the remaining files; copy it back, or start in another folder"
            )
    elif _was_saved(files):
        raise RunError(
            f"{files.checkpoint('last')} is missing or was never written, but the run was trained; copy it back, or "
            "start another run"
        )
    elif files.overrides.is_file():
        log.warning("%s: the run ended before its first checkpoint, and starts again at step 0", files.path)


def _was_saved(files: RunFolder) -> bool:
    """Return whether a run without ``last.ckpt`` had one, judged by its results, state and logged epochs."""
    config: Any = OmegaConf.create(renamed_config(read_yaml(files.config) or {}))
    nodes = (OmegaConf.select(config, "callbacks") or {}).values()
    saves = any(node and node.get("_target_") == RESUME_CALLBACK for node in nodes)
    if files.metrics.is_file() and not OmegaConf.select(config, "trainer.fast_dev_run"):
        return True
    state = read_status(files.path).content
    epochs, validated = _epochs(files.curves)
    if state.get("saved") is not None:  # the state is up to a minute old
        return bool(state["saved"]) or (saves and not epochs <= {"", "0"})
    return any(files.checkpoints.glob("*.ckpt")) or (saves and validated)


def _epochs(curves: Path) -> tuple[set[str], bool]:
    """Return the epochs in a metrics.csv, and whether it contains values of a validation."""
    if not curves.is_file():
        return set(), False
    try:
        names, *rows = read_table(curves, torn=True)
    except ValueError:  # an empty or a broken file
        return set(), False
    table = [dict(zip(names, row, strict=False)) for row in rows]
    validated = any(value for row in table for name, value in row.items() if name.startswith("val/"))
    return {row.get("epoch", "") for row in table}, validated


def check_weights(module: Any, resumed: ResumePoint) -> None:
    """Refuse a checkpoint whose weights do not fit the module to be trained.

    Raises:
        RunError: the weights differ; the message names them.
    """
    weights = read_checkpoint(resumed.checkpoint).weights
    saved = {name: (value.shape, kind_of(value)) for name, value in weights.items()}
    built = {name: (value.shape, kind_of(value)) for name, value in module.state_dict().items()}
    if differing := sorted(name for name in saved.keys() | built.keys() if saved.get(name) != built.get(name)):
        raise RunError(
            f"{resumed.checkpoint} contains other weights than the network of this configuration has: "
            f"{', '.join(differing[:3])}{f' and {len(differing) - 3} more' if len(differing) > 3 else ''}"
        )


def begin(folder: Path, cfg: DictConfig, overrides: Sequence[str], resumed: ResumePoint | None) -> None:
    """Prepare the folder of a new or resumed run, after the configuration was accepted.

    Writes the configuration, and the overrides for the next resume. Removes what was written after the checkpoint:
    metrics of steps that will be trained again, results of a test, and batches whose loss was not finite.

    Args:
        folder: folder of the run.
        cfg: its configuration.
        overrides: the overrides of that configuration.
        resumed: checkpoint from which the run resumes; None for a new run.
    """
    if not is_first():
        return
    files = RunFolder(folder)
    write_config(folder, cfg)
    write_rerun(folder, cfg)
    with replacing(files.overrides) as path:
        OmegaConf.save(list(overrides), path)
    remove_results(folder)
    for batch in files.path.glob(files.bad_batch(0).name.replace("0", "*")):
        batch.unlink()
    _rewind(files.curves, resumed.step if resumed else 0)
    if resumed:
        log.info("resuming from %s, step %d", resumed.checkpoint, resumed.step)


class Once:
    """Function that is called at most once; unlike a closure, it can be sent to spawned ranks."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function, self.called = function, False

    def __call__(self, *_: Any) -> None:
        """Call the function, unless it was called before; the arguments of a hook are ignored."""
        if not self.called:
            self.called = True
            self.function()


def remove_results(folder: Path) -> None:
    """Remove old test results before a new test starts, because they do not belong to its configuration."""
    files = RunFolder(folder)
    if is_first():
        of_detectors = (files.detections, files.detections_csv, files.photos, files.detection_curves)
        for results in (files.metrics, files.faces, *of_detectors):
            results.unlink(missing_ok=True)
        shutil.rmtree(files.submission, ignore_errors=True)


def _is_of(key: str, nodes: Sequence[str]) -> bool:
    """Return whether a key is one of the nodes or below one."""
    return any(f"{key}.".startswith(f"{node}.") for node in nodes)


def _pin(cfg: DictConfig, before: dict[str, Any], renamed: dict[str, Any]) -> None:
    """Set options that did not exist when the run was started to the values that keep its behaviour.

    Options that are typed now keep their typed value.
    """
    typed = {key_of(word) for word in HydraConfig.get().overrides.task}
    added = {key for step in STEPS for _, key in step.added}
    old, new = _flat(before), _flat(renamed)
    for key in new.keys() - old.keys():
        if key.rpartition(".")[2] in added and key not in typed and OmegaConf.select(cfg, key) is not None:
            parent = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg
            if not OmegaConf.is_interpolation(parent, key.rpartition(".")[2]):
                parent[key.rpartition(".")[2]] = new[key]


def _flat(node: Any, at: str = "") -> dict[str, Any]:
    """Return dotted keys and values of nested mappings."""
    if isinstance(node, dict) and (node or not at):
        return {key: value for name, child in node.items() for key, value in _flat(child, f"{at}.{name}").items()}
    return {at[1:]: node}


def _changes(before: Any, after: Any) -> list[str]:
    """Return every value that differs, as ``key: before -> after``."""
    old, new = _flat(result_settings(before)), _flat(result_settings(after))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    origins = [key for key in keys if not any(key.endswith(f".{other}") for other in keys)]  # others refer to these
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in origins]


def _rewind(path: Path, step: int) -> None:
    """Remove from a metrics.csv the rows of this step or later, and an incomplete last line."""
    if not path.is_file():
        return
    rows = curves_until(path, step) if step else []
    if not rows:
        path.unlink()
        return
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def curves_until(path: Path, step: int) -> list[list[str]]:
    """Read the header of a metrics.csv and the rows before this step; empty if no row is complete.

    Raises:
        RunError: it is not such a table.
    """
    try:
        names, *rows = [row for row in read_table(path, torn=True, most=MAX_CURVES_BYTES) if row] or [[]]
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
            f"{path} is not a table of the run's metrics ({error}); move it away to resume without it"
        ) from error
