"""A run on disk: check and build its configuration, load its checkpoint, show its results.

Here and in the doors at the root of the repository Hydra composes and builds; ``facelab.check`` and ``facelab.argv``
know its configurations and its command line. Nothing heavy is imported before it is needed, so that ``--help`` and
``--cfg job`` answer at once.
"""

import copy
import hashlib
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from facelab.atomic import replacing
from facelab.recording import RANKS, STAMP, is_first

if TYPE_CHECKING:
    from datamodules.landmark import LandmarkDataModule

log = logging.getLogger(__name__)

STAMPED = r"^\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d"
"""How the name of a folder begins that was not chosen by hand."""
INITIAL_WEIGHTS = {"pretrained": False, "weights": None}
PATHS = tuple(f"paths.{key}" for key in ("data", "cache", "run", "name", "group", "id", "tags"))
TRAIN_KEYS = (
    *("task", "seed", "test_with", "memory_format", "compile", "monitor.name", "monitor.mode"),
    *("trainer", "model", "datamodule", "logger", "callbacks", *PATHS),
)
"""The keys that train.py reads; every other key must be used by these."""
EVALUATE_KEYS = (
    *("task", "ckpt", "split", "box", "flip_test", "batch_size", "num_workers"),
    *("trainer", "data", "logger", "callbacks", *PATHS),
)
"""The keys that evaluate.py reads."""
EVALUATE_OPTIONS = ("ckpt", "split", "box", "flip_test", "batch_size", "num_workers", "trainer")
"""What config.yaml keeps of an evaluation beside the configuration of the run; its dataset stands in that."""


def _chosen(*groups: str, _root_: DictConfig) -> str:
    """The options taken of these config groups, joined by a dash; a group without one is left out.

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
    """How a checkpoint's run is called: its folder without the stamp, or in a sweep the sweep's stamp and a number.

    Args:
        checkpoint: a run folder or a checkpoint file, which need not exist.
    """
    path = Path(str(checkpoint)).expanduser().resolve()
    if path.parent.name == "checkpoints":
        path = path.parent.parent
    name = f"{path.parent.name}-{path.name}" if path.name.isdecimal() else path.name.removesuffix(".ckpt")
    return re.sub(f"{STAMPED}_", "", name)


def _folder_id(folder: str) -> str:
    """A name for a run that no other has: its folder's, in a sweep with that of the sweep before it.

    A folder that was named by hand gets a hash of its place.
    """
    path = Path(folder).absolute()
    name = f"{path.parent.name}-{path.name}" if path.name.isdecimal() else path.name
    unique = name if re.match(STAMPED, name) else f"{name}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"
    return re.sub(r"[^\w.-]", "-", unique)


def _tags(*, _root_: DictConfig) -> list[str]:
    """What a run is found by in dashboards: the method, dataset and backbone that it has."""
    names = (_chosen("model", _root_=_root_), OmegaConf.select(_root_, "data.name"), _chosen("backbone", _root_=_root_))
    return [name for name in names if name]


OmegaConf.register_new_resolver("chosen", _chosen, replace=True)
OmegaConf.register_new_resolver("run_name", run_name, replace=True)
OmegaConf.register_new_resolver("folder_id", _folder_id, replace=True)
OmegaConf.register_new_resolver("tags", _tags, replace=True)


def start(resumable: bool = False) -> None:
    """What every door does before Hydra: order the command line, and give all processes of the run one stamp.

    Args:
        resumable: the door knows ``resume=FOLDER``.

    Raises:
        SystemExit: ``resume=`` names something else than a run, or with ``-m`` a sweep.
    """
    from facelab.argv import normalise_argv
    from facelab.resuming import resumed_argv
    from facelab.sweep import run_from_copy

    argv = normalise_argv(sys.argv[1:])
    if RANKS in os.environ:  # Lightning started this process to help with one run, and knows no more of it
        rank = os.environ.get("LOCAL_RANK", "1")
        argv = [*json.loads(os.environ[RANKS]), f"hydra.job.name={Path(sys.argv[0]).stem}_rank_{rank}"]
    sys.argv[1:] = resumed_argv(argv) if resumable else argv
    started = max(int(os.environ.get(name, 1)) for name in ("SLURM_STEP_NUM_TASKS", "WORLD_SIZE"))
    if started > 1 and STAMP not in os.environ and not any(word.startswith("hydra.run.dir=") for word in sys.argv):
        raise SystemExit(
            f"{started} processes were started for this run, and each would make a folder of its own; give all the "
            f"same {STAMP}, for instance by: export {STAMP}=$(date +%Y-%m-%d_%H-%M-%S)"
        )
    os.environ.setdefault(STAMP, time.strftime("%Y-%m-%d_%H-%M-%S"))
    if {"-m", "--multirun"} & set(argv):
        run_from_copy()
    logging.raiseExceptions = False  # a full disk is told once, by what needed it, and not by each line of the log
    os.environ.setdefault("WANDB_SILENT", "true")
    # With few batches an epoch the training loss is logged once in some epochs, and the validation after each as ever.
    warnings.filterwarnings("ignore", message=r"The number of training batches .* smaller than the logging interval")
    warnings.filterwarnings("ignore", message="Checkpoint directory")  # is not empty, of a run that goes on
    warnings.filterwarnings("ignore", message=r"The `srun` command is available")  # jobs are started by submitit
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")  # Lightning's own


def check(cfg: DictConfig, names: Sequence[str]) -> None:
    """Report every fault of a configuration at once and stop, before anything is built.

    Args:
        cfg: as Hydra composed it.
        names: the keys that the door itself reads.

    Raises:
        SystemExit: with all faults.
    """
    from facelab.check import check_config

    if faults := check_config(cfg, names):
        raise SystemExit("The configuration has faults:\n  " + "\n  ".join(faults))


def build(node: DictConfig, **parts: Any) -> Any:
    """Instantiate a node that :func:`check` has passed, with plain lists and dicts.

    Args:
        node: with a ``_target_``; it and its root stay as they are. Hydra would resolve in place what it refers to, and
            the saved configuration would then hold this machine's paths.
        **parts: arguments that are built already.

    Raises:
        SystemExit: a part refuses its values (a ValueError, RuntimeError, OSError or Lightning's own of its
            constructor); says which part and why, and is raised from that error.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    cfg: Any = copy.deepcopy(node._get_root())
    name = node._get_full_key(None)
    refusals = (ValueError, RuntimeError, OSError, MisconfigurationException)
    try:
        return instantiate(OmegaConf.select(cfg, name) if name else cfg, **parts, _convert_="all")
    except (InstantiationException, *refusals) as error:
        # Hydra 1.3 raises an error of its own from the part's; 1.4 lets that through, with a note.
        reason = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(reason, refusals):
            raise
        found = re.search(r"full_key: (\S+)", "\n".join([str(error), *getattr(error, "__notes__", ())]))
        place = _own_place(cfg, found[1] if found else name)
        told = str(reason) if not place or str(reason).startswith(place) else f"{place}: {reason}"
        raise SystemExit(told) from error


def _own_place(cfg: DictConfig, place: str) -> str:
    """Where a part is chosen: ``model.backbone`` only refers to ``backbone``, which is what one types."""
    keys = place.split(".")
    for depth in range(1, len(keys)):
        parent = OmegaConf.select(cfg, ".".join(keys[:depth]))
        if isinstance(parent, DictConfig) and OmegaConf.is_interpolation(parent, keys[depth]):
            raw = OmegaConf.to_container(parent, resolve=False)[keys[depth]]  # type: ignore[index,call-overload]
            if name := re.fullmatch(r"\$\{([\w.]+)\}", raw):
                return _own_place(cfg, ".".join([name[1], *keys[depth + 1 :]]))
    return place


def build_all(nodes: DictConfig | None) -> list[Any]:
    """Instantiate the values of a group whose keys are only names, such as callbacks and loggers; null is left out."""
    return [build(node) for node in (nodes or {}).values() if node is not None]


def build_trainer(cfg: DictConfig) -> Any:
    """The Lightning Trainer of a run, with its callbacks and loggers. It saves what the callbacks save, and no more.

    Raises:
        SystemExit: a part refuses its values, or the strategy is one that cannot work here.
    """
    from lightning.pytorch.callbacks import Checkpoint

    if os.environ.get("SUBMITIT_LOCAL_NTASKS") == "1" and cfg.trainer.get("strategy") == "ddp":
        raise SystemExit(
            f"trainer.devices={cfg.trainer.devices}: a job of this launcher cannot start other processes; "
            f"hydra.launcher.tasks_per_node={cfg.trainer.devices} starts them with it"
        )
    callbacks = build_all(cfg.callbacks)
    return build(
        cfg.trainer,
        callbacks=callbacks,
        logger=build_all(cfg.logger) or False,
        default_root_dir=cfg.paths.run,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
    )


def write_config(folder: Path, cfg: DictConfig) -> None:
    """Keep a configuration that :func:`check` has passed as ``config.yaml``, with everything it refers to in place."""
    if is_first():
        with replacing(folder / "config.yaml") as path:
            path.write_text(OmegaConf.to_yaml(cfg, resolve=True))


class LoadedRun(NamedTuple):
    """A trained method as it was saved."""

    cfg: DictConfig
    module: Any  # the LightningModule, in evaluation mode
    checkpoint: Path


def find_checkpoint(path: Path, name: str) -> Path:
    """The checkpoint of a run folder, or the file itself.

    Args:
        path: a run folder or a checkpoint file.
        name: ``last`` or ``best``.

    Raises:
        SystemExit: there is none; says what was looked for.
    """
    if path.is_file():
        return path
    file = path / "checkpoints" / f"{name}.ckpt"
    if file.is_file():
        return file
    if not path.is_dir():
        raise SystemExit(f"{path} is neither a run folder nor a checkpoint file")
    raise SystemExit(f"{path} has no checkpoints/{name}.ckpt; did its training end an epoch?")


def load_run(path: Path, paths: DictConfig) -> LoadedRun:
    """Open a checkpoint: its configuration, with this machine's paths, and the trained module.

    Nothing is downloaded: keys that name initial weights are cleared, since the checkpoint holds the trained ones.

    Args:
        path: a run folder or a checkpoint file.
        paths: the ``paths`` node of the door that opens it.

    Raises:
        SystemExit: no checkpoint there, not one of train.py, or its configuration has faults.
    """
    from facelab.speed import prepare

    saved = path / "config.yaml"
    tested = OmegaConf.select(OmegaConf.load(saved), "test_with") if saved.is_file() else None
    file = find_checkpoint(path, tested or "last")
    config, weights, _ = read_checkpoint(file)
    try:
        cfg = OmegaConf.create(config)
        cfg.paths = OmegaConf.to_container(paths, resolve=True)
        clear_initial_weights(cfg)
    except OmegaConfBaseException as error:
        raise SystemExit(f"the configuration in {file} cannot be read: {error}") from error
    check(cfg, TRAIN_KEYS)
    module = build(cfg.model)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise SystemExit(f"the weights in {file} do not fit its configuration: {error}") from error
    prepare(module, cfg.get("memory_format", "channels_last"), compile=False)  # a test is too short to earn it back
    return LoadedRun(cfg, module.eval(), file)


class Checkpoint(NamedTuple):
    """What a checkpoint of train.py holds that is needed without a trainer."""

    config: dict[str, Any]
    weights: dict[str, Any]
    step: int  # optimizer steps that were done


def read_checkpoint(file: Path) -> Checkpoint:
    """Read a checkpoint of train.py; nothing in the file is run.

    With averaged weights these are the averages. To be tested, they are put into the module itself: given
    ``ckpt_path``, Lightning lets the callbacks restore their state for a test as well, and ``WeightAveraging`` after
    ``fit`` then puts the weights of the last step in the place of their average.

    Raises:
        SystemExit: it is another file.
    """
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no checkpoint makes torch fail in many ways
        raise SystemExit(
            f"{file} is no checkpoint of train.py: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        ) from error
    keys = ("hyper_parameters", "state_dict", "global_step")
    config, weights, step = (content.get(key) if isinstance(content, dict) else None for key in keys)
    if not isinstance(config, dict) or not isinstance(weights, dict) or "model" not in config:
        raise SystemExit(f"{file} carries no configuration with its weights; it was not written by train.py")
    return Checkpoint(config, weights, step or 0)


def evaluation_data(run: LoadedRun, cfg: DictConfig) -> "LandmarkDataModule":
    """The datamodule of a run with what ``evaluate.py`` was asked to replace, in ``run.cfg`` and in the module too.

    Raises:
        SystemExit: the other dataset has other landmarks than the run predicts.
    """
    if (data := cfg.get("data")) is not None:
        run.cfg.data = OmegaConf.merge(data)
        data_layout, layout = build(data.layout), run.module.layout
        if data_layout.name != layout.name:
            raise SystemExit(
                f"data={data.name} has the {data_layout.num_points} landmarks of {data_layout.name}, but the run "
                f"predicts the {layout.num_points} of {layout.name}"
            )
    run.cfg.datamodule.test_split = cfg.split
    for node, key, value in (
        (run.cfg.crop, "box", cfg.box),
        (run.cfg.model, "flip_test", cfg.flip_test),
        (run.cfg.datamodule, "batch_size", cfg.batch_size),
        (run.cfg.datamodule, "num_workers", cfg.num_workers),
    ):
        if value is not None:
            node[key] = value
    check(run.cfg, TRAIN_KEYS)
    run.module.flip_test = run.cfg.model.flip_test
    return build(run.cfg.datamodule)


def evaluation_config(run: LoadedRun, cfg: DictConfig) -> DictConfig:
    """The configuration of the run as it was measured, and under ``evaluate`` what was asked for."""
    asked = {key: cfg[key] for key in EVALUATE_OPTIONS}
    kept = OmegaConf.merge(run.cfg, {"task": cfg.task, "evaluate": asked})
    assert isinstance(kept, DictConfig)
    return kept


def clear_initial_weights(node: DictConfig) -> None:
    """Make every key that names initial weights say that there are none, in place."""
    for key in map(str, node):
        if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key):
            continue
        if key in INITIAL_WEIGHTS:
            node[key] = INITIAL_WEIGHTS[key]
        elif isinstance(node[key], DictConfig):
            clear_initial_weights(node[key])


def report(folder: Path) -> None:
    """Print the table of the test that a run's folder holds, in percent, and where its files lie."""
    from rich.console import Console
    from rich.table import Table

    if not is_first() or not (folder / "metrics.json").is_file():
        return
    results = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    metrics, counts = results["metrics"], results["counts"]
    title = "{dataset} {split}, {faces} faces, box: {box} x {box_scale}, pose: {pose}".format(**results["protocol"])
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for heading in ("%", "95 % interval", "faces"):
        table.add_column(heading, justify="right")
    for name, value in metrics.items():
        if name in ("faces", "faces_skipped"):
            continue
        unit = 1 if name.startswith("mae_") else 100
        low_high = results["intervals"].get(name)
        known = low_high is not None and None not in low_high
        interval = "{:.2f} .. {:.2f}".format(*(unit * end for end in low_high)) if known else ""
        count = counts.get(name, counts["nme_ioc"])
        table.add_row(name, "-" if value is None else f"{unit * value:.2f}", interval, str(count))
    console = Console()
    console.print(table)
    if skipped := int(metrics["faces_skipped"]):
        console.print(f"{skipped} faces could not be measured; they are listed in faces.csv without an error")
    pictures = ", ".join(sorted(path.name for path in folder.glob("samples/*.png") if path.stem in ("test", "worst")))
    console.print(f"results in {folder}" + (f", pictures in samples/: {pictures}" if pictures else ""), soft_wrap=True)
