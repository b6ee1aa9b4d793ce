"""How an interrupted run, or a sweep, is taken up again where it was."""

import csv
import io
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from facelab.atomic import replacing
from facelab.recording import STAMP, is_first, quoted
from facelab.runs import read_checkpoint
from facelab.status import SWEEP, read_status

log = logging.getLogger(__name__)

WORD = "resume="
OVERRIDES = "overrides.yaml"
"""What a run was started with, in words of the command line."""
RESTORED = (
    *("optimizer", "scheduler", "seed"),
    *("datamodule.batch_size", "trainer.devices", "trainer.accumulate_grad_batches"),
)
"""What a checkpoint goes on with as it was, so that another value would not be used, or not fit the epoch at hand."""
LONGER = "trainer.max_epochs"
"""What alone may change in a run that is finished."""
UNMENTIONED = ("paths", "logger", "callbacks")
"""Nodes that change where things lie and what is watched, but no number."""


def resumed_argv(argv: Sequence[str]) -> list[str]:
    """The command line that ``resume=FOLDER`` stands for; others are returned as they are.

    For a run these are the overrides it was started with, those typed now, and its folder; for a sweep (with ``-m``)
    those typed now and its folder, in which the sweeper finds the rest. Of the folder only
    overrides of the task are taken: those of Hydra itself can name programs.

    Args:
        argv: the words behind the program's name.

    Raises:
        SystemExit: the folder is none of a run, or of a sweep.
    """
    typed = [word for word in argv if not word.startswith(WORD)]
    places = [word.removeprefix(WORD) for word in argv if word.startswith(WORD)]
    if not places:
        return list(argv)
    place = places[-1]
    folder = Path(place[1:-1] if place[:1] in "'\"" and place[:1] == place[-1:] else place).expanduser().absolute()
    if any(word.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for word in typed):
        raise SystemExit(
            f"{WORD}{folder} says already where the run lies; leave hydra.run.dir and hydra.sweep.dir away"
        )
    if {"-m", "--multirun"} & set(argv):
        if not (folder / SWEEP).is_file():
            raise SystemExit(f"{folder} holds no {SWEEP}; with -m, {WORD} takes the folder of a sweep over a grid")
        os.environ[STAMP] = str(_read(folder / SWEEP).get("stamp") or folder.name)
        return [*typed, f"hydra.sweep.dir={quoted(folder)}"]
    saved = folder / OVERRIDES
    if not saved.is_file():
        hint = f"; python train.py -m {WORD}{folder} goes on with a sweep" if (folder / SWEEP).is_file() else ""
        raise SystemExit(f"{folder} is not the folder of a run: it holds no {OVERRIDES}{hint}")
    os.environ[STAMP] = str(read_status(folder).content.get("stamp") or folder.name)
    return [*saved_overrides(saved), *typed, f"hydra.run.dir={quoted(folder)}"]


def task_overrides(content: Any, source: Path) -> list[str]:
    """Overrides that were read from a file.

    Raises:
        SystemExit: it holds something else, such as a flag, or an override of Hydra itself.
    """
    if not isinstance(content, list) or not all(isinstance(word, str) for word in content):
        raise SystemExit(f"{source} is no list of overrides")
    for word in content:
        key, _, value = word.partition("=")
        path = re.fullmatch(r"(?:\+{1,2}|~)?([A-Za-z_]\w*(?:[./]\w+)*)", key)
        # Without a dot it is an option of a group, the name of a file that must not lead out of the configuration.
        if not path or re.search(r"\bhydra\b", key) or ("." not in key and re.search(r"\.\.|^/", value)):
            raise SystemExit(f"{source}: {word!r} is no override of a run's configuration; nothing was started")
    return content


def saved_overrides(path: Path) -> list[str]:
    """The overrides that a run was started with last, as its folder keeps them.

    Raises:
        SystemExit: as :func:`task_overrides`.
    """
    return task_overrides(_read_yaml(path), path)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SystemExit(f"{path} cannot be read: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise SystemExit(f"{path} is no mapping")
    return content


class Resumed(NamedTuple):
    """Where a run goes on."""

    checkpoint: Path
    step: int  # optimizer steps that were done
    finished: bool  # with this configuration, to its end


def resumption(folder: Path, cfg: DictConfig) -> Resumed | None:
    """Where the run in this folder goes on; None for a run that begins. Says what was changed, and changes nothing.

    Args:
        folder: of the run.
        cfg: its configuration now.

    Raises:
        SystemExit: something was changed that would have no effect, or that would falsify results that stand.
    """
    before, checkpoint = folder / "config.yaml", folder / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file() or not before.is_file():
        return None
    step = read_checkpoint(checkpoint).step
    told = _changes(_read_yaml(before), OmegaConf.to_container(cfg, resolve=True))
    keys = [line.partition(":")[0] for line in told]
    if any(key.startswith(RESTORED) for key in keys):
        raise SystemExit(
            "A run that goes on keeps its optimizer, its schedule, its seed and its batches as they were saved, so "
            "another value would have no effect; begin another run:\n  " + "\n  ".join(told)
        )
    finished = (folder / "metrics.json").is_file()
    if finished and any(key != LONGER for key in keys):
        raise SystemExit(
            f"{folder} is finished, and its results belong to what it was trained with; only {LONGER} may change. "
            "Begin another run for:\n  " + "\n  ".join(told)
        )
    for line in told:
        log.warning("changed: %s", line)
    return Resumed(checkpoint, step, finished and not told)


def begin(folder: Path, resumed: Resumed | None) -> None:
    """Prepare the folder for training that begins or goes on, once all that was typed is accepted.

    Keeps the overrides for the next resumption, and takes back what was written after the checkpoint: the metrics of
    steps that will be trained again, and the results of a test.
    """
    if not is_first():
        return
    with replacing(folder / OVERRIDES) as path:
        OmegaConf.save(HydraConfig.get().overrides.task, path)
    for name in ("metrics.json", "faces.csv"):
        (folder / name).unlink(missing_ok=True)
    _rewind(folder / "metrics.csv", resumed.step if resumed else 0)
    if resumed:
        log.info("going on from %s, step %d", resumed.checkpoint, resumed.step)


def _changes(before: Any, after: Any) -> list[str]:
    """Every value that differs, as ``key: before -> after``."""

    def flat(node: Any, at: str = "") -> dict[str, Any]:
        if isinstance(node, dict):
            return {key: value for name, child in node.items() for key, value in flat(child, f"{at}.{name}").items()}
        return {at[1:]: node}

    old, new = flat(before), flat(after)
    keys = [key for key in {**old, **new} if not key.startswith(UNMENTIONED) and old.get(key) != new.get(key)]
    own = [key for key in keys if not any(key.endswith(f".{other}") for other in keys)]  # others refer to these
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in own]


def _rewind(path: Path, step: int) -> None:
    """Leave out of a metrics.csv what was written at this step or later, and a last line that is not whole."""
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
    if not rows or not step:
        path.unlink()
        return
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for row in rows if int(row["step"]) < step)
