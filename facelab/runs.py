"""A run on disk: check and build its configuration, load its checkpoint, write its results.

Here and in the doors at the root of the repository Hydra composes and builds; ``facelab.check`` and ``facelab.argv``
know its configurations and its command line. Nothing heavy is imported before it is needed, so that ``--help`` and
``--cfg job`` answer at once.
"""

import copy
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from facelab.atomic import replacing
from facelab.landmarks.face import DataFault

if TYPE_CHECKING:
    from datamodules.landmark import FaceDataset, LandmarkDataModule
    from facelab.metrics.faces import FaceTable
    from lightning_modules.landmark import LandmarkModule

log = logging.getLogger(__name__)

STAMP = "FACELAB_STAMP"
EVALUATOR_VERSION = 1
"""Raised whenever the same predictions would get another number, so that old and new numbers are not compared."""
INITIAL_WEIGHTS = {"pretrained": False, "weights": None}
PATHS = tuple(f"paths.{key}" for key in ("data", "cache", "run", "name", "group"))
TRAIN_KEYS = (
    *("task", "seed", "test_with", "monitor.name", "monitor.mode"),
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
PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "timm", "albumentations", "torchmetrics", "numpy")


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


def _run_name(checkpoint: str) -> str:
    """How a checkpoint's run is called: its folder without the stamp, or in a sweep the sweep's stamp and a number.

    Args:
        checkpoint: a run folder or a checkpoint file, which need not exist.
    """
    path = Path(str(checkpoint)).expanduser().resolve()
    if path.parent.name == "checkpoints":
        path = path.parent.parent
    name = f"{path.parent.name}-{path.name}" if path.name.isdecimal() else path.name.removesuffix(".ckpt")
    return re.sub(r"^\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_", "", name)


OmegaConf.register_new_resolver("chosen", _chosen, replace=True)
OmegaConf.register_new_resolver("run_name", _run_name, replace=True)


class JobFailed(CompactHydraException):
    """A job of a sweep that cannot be done. The other jobs go on; Hydra shows the message without a traceback."""


def _stop(message: str) -> BaseException:
    """What ends a run with a message instead of a traceback. SystemExit would end all jobs of a sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return SystemExit(message)
    log.error("%s; the sweep goes on", message)  # Hydra tells it only when the sweep ends
    return JobFailed(message)


def _message(error: BaseException) -> str | None:
    """What to tell the user instead of a traceback; None where the traceback is to be seen.

    A mistake of the user's is a ``SystemExit`` with words, a ``DataFault``, an error of W&B, or a ``ValueError`` that
    begins with the key to change, as where parts do not fit each other (``crop.size=100 must be ...``). Any other error
    is one of the code. The traceback of both stands in the run's log file.
    """
    if isinstance(error, SystemExit) and isinstance(error.code, str):
        return error.code
    if isinstance(error, DataFault) or (isinstance(error, ValueError) and re.match(r"\w+(\.\w+)+=", str(error))):
        return str(error)
    if "wandb" in sys.modules:  # importing it takes a second
        import wandb

        if isinstance(error, wandb.Error):
            return f"logger.wandb: {error}\nlogger.wandb.offline=true needs neither an account nor a network."
    return None


def _log_traceback(error: BaseException) -> None:
    """Write how an error came about into the run's log file, and not to the screen."""
    where = (type(error), error, error.__traceback__)
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, "the run ended so:", (), where)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def start() -> None:
    """What every door does before Hydra: order the command line, and give all processes of the run one stamp."""
    from facelab.argv import normalise_argv

    sys.argv[1:] = normalise_argv(sys.argv[1:])
    os.environ.setdefault(STAMP, time.strftime("%Y-%m-%d_%H-%M-%S"))
    os.environ.setdefault("WANDB_SILENT", "true")
    # The logger warns of a folder that is not empty; a run's folder holds its configuration before its metrics.
    warnings.filterwarnings("ignore", message="Experiment logs directory")
    # With few batches an epoch the training loss is logged once in some epochs, and the validation after each as ever.
    warnings.filterwarnings("ignore", message=r"The number of training batches .* smaller than the logging interval")
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
    try:
        return instantiate(OmegaConf.select(cfg, name) if name else cfg, **parts, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, (ValueError, RuntimeError, OSError, MisconfigurationException)):
            found = re.search(r"^full_key: (\S+)", str(error), re.MULTILINE)
            place, reason = _own_place(cfg, found[1] if found else name), str(error.__cause__)
            raise SystemExit(reason if not place or reason.startswith(place) else f"{place}: {reason}") from error
        raise


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
    """The Lightning Trainer of a run, with its callbacks and loggers. It saves what the callbacks save, and no more."""
    from lightning.pytorch.callbacks import Checkpoint

    callbacks = build_all(cfg.callbacks)
    return build(
        cfg.trainer,
        callbacks=callbacks,
        logger=build_all(cfg.logger) or False,
        default_root_dir=cfg.paths.run,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
    )


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Keep a run's environment and state in its folder, and end its W&B run whatever happens.

    What ends the run early is told as :func:`_message` says, and its traceback written to the run's log file.

    Raises:
        SystemExit: a mistake of the user's; or the folder belongs to another run, which is then left as it is.
        JobFailed: the same in a sweep.
    """
    status: dict[str, Any] = {
        "state": "running",
        "stamp": os.environ.get(STAMP),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if _is_first():
        _claim(folder / "status.json", status)
        write_json(folder / "environment.json", environment())
    try:
        yield
        status["state"] = "finished"
    except BaseException as error:
        _log_traceback(error)
        message = _message(error)
        # Lightning ends an interrupted training by SystemExit(1).
        interrupted = isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)
        reason = "interrupted" if interrupted else message or f"{type(error).__name__}: {error}"
        status |= {"state": "failed", "reason": reason}
        if message is None:
            raise
        raise _stop(message) from error
    finally:
        if _is_first():
            write_json(folder / "status.json", status | {"ended": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
        if "wandb" in sys.modules:  # importing it takes a second
            import wandb

            wandb.finish()


def _claim(path: Path, status: dict[str, Any]) -> None:
    """Write the first state of a run, unless a run that started in the same second and has the same name did so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.touch(exist_ok=False)  # of two processes at the same moment, one makes it
    except FileExistsError:
        other = json.loads(path.read_text() or "null")  # empty: the other one is about to write
        if other is None or (
            all(other.get(key) == status[key] for key in ("state", "stamp"))
            and any(other.get(key) != status[key] for key in ("host", "pid"))
        ):
            whose = "process {pid} on {host}".format(**other) if other else "another process"
            raise _stop(
                f"{path.parent} is the folder of a run of the same name that {whose} started in the same second; "
                "start this one again"
            ) from None
    write_json(path, status)


def write_config(folder: Path, cfg: DictConfig) -> None:
    """Keep a configuration that :func:`check` has passed as ``config.yaml``, with everything it refers to in place."""
    if _is_first():
        with replacing(folder / "config.yaml") as path:
            path.write_text(OmegaConf.to_yaml(cfg, resolve=True))


def _is_first() -> bool:
    """Whether this is the process that writes, of those that train together."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def environment() -> dict[str, Any]:
    """Versions, machine and state of the code."""
    here = Path(__file__).parent

    def git(*words: str) -> str | None:
        if shutil.which("git") is None:
            return None
        result = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else None

    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "command": sys.argv,
        "git_commit": git("rev-parse", "HEAD"),
        "git_changed_files": (git("status", "--porcelain") or "").splitlines(),
    }


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write a JSON file that is whole or not there; NaN and infinite numbers become null.

    Args:
        path: of the file.
        content: mappings, lists, text and numbers.
        indent: spaces; None for one line, where each number would have a line of its own.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_finite(content), indent=indent, allow_nan=False) + "\n")


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float) and (content != content or content in (float("inf"), float("-inf"))):
        return None
    return content


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
    saved = path / "config.yaml"
    tested = OmegaConf.select(OmegaConf.load(saved), "test_with") if saved.is_file() else None
    file = find_checkpoint(path, tested or "last")
    config, weights = read_checkpoint(file)
    try:
        cfg = OmegaConf.create(config)
        cfg.paths = OmegaConf.to_container(paths, resolve=True)
        _clear_initial_weights(cfg)
    except OmegaConfBaseException as error:
        raise SystemExit(f"the configuration in {file} cannot be read: {error}") from error
    check(cfg, TRAIN_KEYS)
    module = build(cfg.model)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise SystemExit(f"the weights in {file} do not fit its configuration: {error}") from error
    return LoadedRun(cfg, module.eval(), file)


def read_checkpoint(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and the weights in a checkpoint of train.py; nothing in the file is run.

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
        raise SystemExit(f"{file} is no checkpoint of train.py: {str(error).strip().splitlines()[0]}") from error
    config, weights = (
        content.get(key) if isinstance(content, dict) else None for key in ("hyper_parameters", "state_dict")
    )
    if not isinstance(config, dict) or not isinstance(weights, dict) or "model" not in config:
        raise SystemExit(f"{file} carries no configuration with its weights; it was not written by train.py")
    return config, weights


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


def _clear_initial_weights(node: DictConfig) -> None:
    for key in map(str, node):
        if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key):
            continue
        if key in INITIAL_WEIGHTS:
            node[key] = INITIAL_WEIGHTS[key]
        elif isinstance(node[key], DictConfig):
            _clear_initial_weights(node[key])


def protocol(module: "LandmarkModule", datamodule: "LandmarkDataModule") -> dict[str, Any]:
    """What must be equal for two numbers to be comparable."""
    faces, rows, crop = datamodule.faces["test"], module.table.face_id.tolist(), datamodule.crop
    return {
        "dataset": datamodule.data.name,
        "split": datamodule.test_split,
        "layout": module.layout.name,
        "faces": len(rows),
        "truth": fingerprint(faces, rows),
        "box": crop.box,
        "box_scale": crop.scale,
        "flip_test": module.flip_test,
        "pose": faces.pose_source,
        "evaluator": EVALUATOR_VERSION,
    }


def fingerprint(faces: "FaceDataset", rows: Sequence[int]) -> str:
    """Hash of the photos' names and the true points of the faces that were measured, the same on every machine."""
    import numpy as np

    digest = hashlib.sha256()
    for row in rows:
        digest.update(faces.paths[row].name.encode())
        digest.update(np.ascontiguousarray(faces.faces[row].points, np.float32).tobytes())
    return digest.hexdigest()[:16]


def write_results(
    folder: Path, module: "LandmarkModule", datamodule: "LandmarkDataModule", checkpoint: Path | None
) -> dict[str, Any]:
    """Write ``metrics.json`` and ``faces.csv`` of the test that was just run.

    Args:
        folder: of the run.
        module: that was tested.
        datamodule: with the faces it was tested on.
        checkpoint: what the weights were read from; None for those in memory.

    Returns:
        The content of ``metrics.json``: protocol, metrics (fractions), counts (faces behind each mean error), left_out
        (faces that a metric is about but cannot measure) and intervals (95 % bootstrap over faces).
    """
    from facelab.metrics import landmarks

    table, tags = module.table, datamodule.data.tags
    results = {
        "name": folder.name,
        "checkpoint": checkpoint and str(checkpoint),
        "protocol": protocol(module, datamodule),
        "metrics": landmarks.summary(table, module.layout, tags),
        "counts": landmarks.counts(table, module.layout, tags),
        "left_out": landmarks.left_out(table, module.layout, tags),
        "intervals": intervals(table),
    }
    if _is_first():
        names = [path.name for path in datamodule.faces["test"].paths]
        landmarks.write_faces(table, folder / "faces.csv", names, tags)
        write_json(folder / "metrics.json", results)
    return results


def intervals(table: "FaceTable") -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of the numbers that are read first."""
    from functools import partial

    from facelab.metrics.landmarks import (
        Normaliser,
        Statistic,
        auc,
        bootstrap,
        failure_rate,
        nme,
        nme_per_face,
    )

    statistics: dict[str, tuple[Normaliser, Statistic]] = {
        "nme_ioc": ("ioc", nme),
        "nme_box": ("box", nme),
        "fr08_ioc": ("ioc", partial(failure_rate, threshold=0.08)),
        "auc08_ioc": ("ioc", partial(auc, threshold=0.08)),
    }
    return {
        name: bootstrap(nme_per_face(table, normaliser), statistic, resamples=1000, seed=0)
        for name, (normaliser, statistic) in statistics.items()
    }


def report(folder: Path, results: dict[str, Any]) -> None:
    """Print the table of a test, in percent, and where its files lie."""
    from rich.console import Console
    from rich.table import Table

    if not _is_first():
        return
    protocol_, metrics, counts = results["protocol"], results["metrics"], results["counts"]
    title = "{dataset} {split}, {faces} faces, box: {box} x {box_scale}, pose: {pose}".format(**protocol_)
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for heading in ("%", "95 % interval", "faces"):
        table.add_column(heading, justify="right")
    for name, value in metrics.items():
        if name in ("faces", "faces_skipped"):
            continue
        low_high = results["intervals"].get(name)
        known = low_high is not None and low_high[0] == low_high[0]
        interval = "{:.2f} .. {:.2f}".format(*(100 * end for end in low_high)) if known else ""
        count = counts.get(name, counts["nme_ioc"])
        table.add_row(name, "-" if value != value else f"{100 * value:.2f}", interval, str(count))
    console = Console()
    console.print(table)
    if skipped := int(metrics["faces_skipped"]):
        console.print(f"{skipped} faces could not be measured; they are listed in faces.csv without an error")
    pictures = ", ".join(sorted(path.name for path in folder.glob("samples/*.png") if path.stem in ("test", "worst")))
    console.print(f"results in {folder}" + (f", pictures in samples/: {pictures}" if pictures else ""), soft_wrap=True)
