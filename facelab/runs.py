"""A run on disk: check and build its configuration, load its checkpoint, write its results.

With the doors at the root of the repository, the only place that knows Hydra. Nothing heavy is imported before it is
needed, so that ``--help`` and ``--cfg job`` answer at once.
"""

import hashlib
import json
import os
import platform
import re
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
from omegaconf import DictConfig, OmegaConf

from facelab.atomic import replacing
from facelab.landmarks.face import DataFault

if TYPE_CHECKING:
    from datamodules.landmark import FaceDataset, LandmarkDataModule
    from facelab.metrics.faces import FaceTable
    from lightning_modules.landmark import LandmarkModule

STAMP = "FACELAB_STAMP"
EVALUATOR_VERSION = 1
"""Raised whenever the same predictions would get another number, so that old and new numbers are not compared."""
INTERVALS = ("nme_ioc", "nme_box", "fr08_ioc", "auc08_ioc")
INITIAL_WEIGHTS = {"pretrained": False, "weights": None, "previous": None}
PATHS = tuple(f"paths.{key}" for key in ("data", "cache", "run", "name", "group"))
TRAIN_KEYS = (
    *("task", "seed", "test_with", "monitor.name", "monitor.mode"),
    *("trainer", "model", "datamodule", "logger", "callbacks", *PATHS),
)
"""The keys that train.py reads; every other key must be used by these."""
PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "timm", "albumentations", "torchmetrics", "numpy")


def _chosen(*groups: str) -> str:
    """The options taken of these config groups, joined by a dash; a group without one is left out."""
    choices = HydraConfig.get().runtime.choices
    return "-".join(choices[group] for group in groups if choices.get(group) not in (None, "null"))


OmegaConf.register_new_resolver("chosen", _chosen, replace=True)


def start() -> None:
    """What every door does before Hydra: order the command line, and give all processes of the run one stamp."""
    from facelab.argv import normalise_argv

    sys.argv[1:] = normalise_argv(sys.argv[1:])
    os.environ.setdefault(STAMP, time.strftime("%Y-%m-%d_%H-%M-%S"))
    os.environ.setdefault("WANDB_SILENT", "true")
    # The logger warns of a folder that is not empty; a run's folder holds its configuration before its metrics.
    warnings.filterwarnings("ignore", message="Experiment logs directory")


def check(cfg: DictConfig, names: Sequence[str]) -> None:
    """Report every fault of a configuration at once and stop, before anything is built.

    Args:
        cfg: as Hydra composed it.
        names: the top-level keys that the door itself reads.
    """
    from facelab.check import check_config

    if faults := check_config(cfg, names):
        raise SystemExit("The configuration has faults:\n  " + "\n  ".join(faults))


def build(node: DictConfig) -> Any:
    """Instantiate a node that :func:`check` has passed, with plain lists and dicts.

    Raises:
        SystemExit: a part refuses its values; says which part and why.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, (ValueError, RuntimeError, OSError)):
            place = re.search(r"full_key: (\S+)", str(error))
            raise SystemExit(f"{place[1] if place else node}: {error.__cause__}") from error
        raise


def build_all(nodes: DictConfig | None) -> list[Any]:
    """Instantiate the values of a group whose keys are only names, such as callbacks and loggers."""
    return [build(node) for node in (nodes or {}).values()]


def build_trainer(cfg: DictConfig, loggers: list[Any]) -> Any:
    """The Lightning Trainer of a run, with its callbacks and loggers."""
    from hydra.utils import instantiate

    return instantiate(
        cfg.trainer,
        callbacks=build_all(cfg.callbacks),
        logger=loggers or False,
        default_root_dir=cfg.paths.run,
        _convert_="all",
    )


@contextmanager
def recorded(folder: Path, cfg: DictConfig) -> Iterator[None]:
    """Keep a run's configuration, environment and state in its folder, and end its W&B run whatever happens."""
    write_json(folder / "environment.json", environment())
    with replacing(folder / "config.yaml") as path:
        path.write_text(OmegaConf.to_yaml(cfg, resolve=True))
    status: dict[str, Any] = {
        "state": "running",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(folder / "status.json", status)
    try:
        yield
        status["state"] = "finished"
    except DataFault as error:
        status |= {"state": "failed", "reason": str(error)}
        raise SystemExit(str(error)) from error
    except BaseException as error:
        status |= {"state": "failed", "reason": f"{type(error).__name__}: {error}"}
        raise
    finally:
        write_json(folder / "status.json", status | {"ended": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
        if "wandb" in sys.modules:  # importing it takes a second
            import wandb

            wandb.finish()


def environment() -> dict[str, Any]:
    """Versions, machine and state of the code."""
    here = Path(__file__).parent

    def git(*words: str) -> str | None:
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


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is whole or not there; NaN and infinite numbers become null."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


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


def find_checkpoint(path: Path) -> Path:
    """The checkpoint of a run folder, or the file itself.

    Raises:
        SystemExit: there is none; says what was looked for.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise SystemExit(f"{path} is neither a run folder nor a checkpoint file")
    for name in ("last.ckpt", "best.ckpt"):
        if (path / "checkpoints" / name).is_file():
            return path / "checkpoints" / name
    raise SystemExit(f"{path} has no checkpoints/last.ckpt or checkpoints/best.ckpt; did its training end an epoch?")


def load_run(path: Path, paths: DictConfig) -> LoadedRun:
    """Open a checkpoint: its configuration, with this machine's paths, and the trained module.

    Nothing is downloaded: keys that name initial weights are cleared, since the checkpoint holds the trained ones.

    Args:
        path: a run folder or a checkpoint file.
        paths: the ``paths`` node of the door that opens it.

    Raises:
        SystemExit: no checkpoint there, or its configuration has faults.
    """
    import torch

    file = find_checkpoint(path)
    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    if "model" not in checkpoint.get("hyper_parameters", {}):
        raise SystemExit(f"{file} carries no configuration; it was not written by train.py")
    cfg = OmegaConf.create(checkpoint["hyper_parameters"])
    cfg.paths = OmegaConf.to_container(paths, resolve=True)
    _clear_initial_weights(cfg)
    check(cfg, TRAIN_KEYS)
    module = build(cfg.model)
    module.load_state_dict(checkpoint["state_dict"])
    return LoadedRun(cfg, module.eval(), file)



def _clear_initial_weights(node: DictConfig) -> None:
    for key in node:
        if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key):
            continue
        if key in INITIAL_WEIGHTS:
            node[key] = INITIAL_WEIGHTS[key]
        elif isinstance(node[key], DictConfig):
            _clear_initial_weights(node[key])


def protocol(module: "LandmarkModule", datamodule: "LandmarkDataModule") -> dict[str, Any]:
    """What must be equal for two numbers to be comparable."""
    faces, crop = datamodule.faces["test"], datamodule.crop
    return {
        "dataset": datamodule.data.name,
        "split": datamodule.test_split,
        "layout": module.layout.name,
        "faces": len(faces),
        "truth": fingerprint(faces),
        "box": crop.box,
        "box_scale": crop.scale,
        "flip_test": module.flip_test,
        "pose": faces.pose_source,
        "evaluator": EVALUATOR_VERSION,
    }


def fingerprint(faces: "FaceDataset") -> str:
    """Hash of the photos' names and the true points, the same on every machine."""
    import numpy as np

    digest = hashlib.sha256()
    for path, face in zip(faces.paths, faces.faces, strict=True):
        digest.update(path.name.encode())
        digest.update(np.ascontiguousarray(face.points, np.float32).tobytes())
    return digest.hexdigest()[:16]


def write_results(folder: Path, module: "LandmarkModule", datamodule: "LandmarkDataModule") -> dict[str, Any]:
    """Write ``metrics.json`` and ``faces.csv`` of the test that was just run.

    Returns:
        The content of ``metrics.json``: protocol, metrics (fractions), counts (faces behind each mean error), left_out
        (faces that a metric is about but cannot measure) and intervals (95 % bootstrap over faces).
    """
    from facelab.metrics import landmarks

    table, tags = module.table, datamodule.data.tags
    faces = datamodule.faces["test"]
    landmarks.write_faces(table, folder / "faces.csv", [faces.paths[row].name for row in table.face_id], tags)
    results = {
        "name": folder.name,
        "protocol": protocol(module, datamodule),
        "metrics": landmarks.summary(table, module.layout, tags),
        "counts": landmarks.counts(table, module.layout, tags),
        "left_out": landmarks.left_out(table, module.layout, tags),
        "intervals": intervals(table),
    }
    write_json(folder / "metrics.json", results)
    return results


def intervals(table: "FaceTable") -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of the numbers that are read first."""
    from functools import partial

    from facelab.metrics.landmarks import auc, bootstrap, failure_rate, nme, nme_per_face

    statistics = {
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

    protocol_, metrics, counts = results["protocol"], results["metrics"], results["counts"]
    title = "{dataset} {split}, {faces} faces, box: {box} x {box_scale}, pose: {pose}".format(**protocol_)
    table = Table(title=title, title_justify="left")
    for heading, justify in (("metric", "left"), ("%", "right"), ("95 % interval", "right"), ("faces", "right")):
        table.add_column(heading, justify=justify)
    for name, value in metrics.items():
        if name in ("faces", "faces_skipped"):
            continue
        low_high = results["intervals"].get(name)
        interval = "{:.2f} .. {:.2f}".format(*(100 * end for end in low_high)) if low_high else ""
        count = counts.get(name, counts["nme_ioc"])
        table.add_row(name, "-" if value != value else f"{100 * value:.2f}", interval, str(count))
    console = Console()
    console.print(table)
    if skipped := int(metrics["faces_skipped"]):
        console.print(f"{skipped} faces could not be measured; they are listed in faces.csv without an error")
    pictures = ", ".join(sorted(path.name for path in folder.glob("samples/*.png") if path.stem in ("test", "worst")))
    console.print(f"results in {folder}" + (f"; pictures: {pictures} in {folder / 'samples'}" if pictures else ""))
