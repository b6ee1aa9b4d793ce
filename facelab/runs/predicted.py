"""Evaluation of detections that another program, or another run, has written."""

import re
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from facelab.errors import ConfigError
from facelab.files import expand_home, write_json
from facelab.run_folder import RunFolder
from facelab.runs.argv import key_of
from facelab.runs.build import build, write_config
from facelab.runs.processes import is_first
from facelab.runs.resume import remove_results

READ = (
    *("predictions", "predicted", "name", "data", "split"),
    *("detection", "wider_rounded", "submission", "paths", "trust"),
)
"""Keys of an evaluation that have an effect on predictions; the others belong to a run."""
UNSTATED = "unknown"
"""Scale in the protocol of predictions whose ``detection.scale`` is not given."""


def is_predicted(cfg: DictConfig) -> bool:
    """Return whether an evaluation measures predictions, and not a run.

    Raises:
        ConfigError: not exactly one of the two is given, or an option belongs to the other.
    """
    if (cfg.ckpt is None) == (cfg.predictions is None):
        raise ConfigError("ckpt", ": name either a run (ckpt=RUN) or detections (predictions=PATH data=...)")
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    for key in map(key_of, words):
        node = re.split(r"[./@]", key)[0]
        if cfg.predictions is None and node == "predicted":
            raise ConfigError(key, "=... has no effect without predictions=PATH")
        if cfg.predictions is not None and node not in READ:
            raise ConfigError(key, "=... has no effect on predictions; it is an option of a run")
    return cfg.predictions is not None


def measure_predictions(folder: Path, cfg: DictConfig, status: dict[str, Any]) -> Any:
    """Measure detections on a dataset, and write the files of a detector's test.

    Args:
        folder: folder of the run.
        cfg: checked configuration.
        status: content of status.json.

    Returns:
        The reader of the dataset.

    Raises:
        ConfigError: there is no dataset, it has no boxes, or a tag is misspelled.
        DatasetError: the dataset or the predictions cannot be read, or they do not fit each other.
    """
    from datamodules.detection import ignored_tags, protocol_of, true_columns, write_tables
    from facelab.inference.predictions import columns_of, read_predictions
    from facelab.metrics.detection import definitions
    from facelab.metrics.detection_table import detection_table
    from facelab.metrics.record import as_results
    from facelab.metrics.wider import ROUNDED

    if cfg.get("data") is None:
        raise ConfigError("data", ": predictions need the dataset of their photos, data=wider_face")
    data, options, path = build(cfg, "data"), cfg.predicted, expand_home(str(cfg.predictions))
    try:
        ignore = ignored_tags(data, options.ignore)
    except ConfigError as error:
        error.mount(f"predicted.{error.key}")
        raise
    images = None if options.images is None else expand_home(str(options.images))
    predictions, photos = read_predictions(path, images), data.photos(cfg.split)
    source, may_lack = f"{data.name} {cfg.split}", options.missing == "empty"
    columns, remarks = columns_of(predictions, photos, source, may_lack=may_lack)
    table = detection_table(data.tags, **columns, **true_columns(photos, data.tags, ignore))
    stated = {key: value for key, value in cfg.detection.items() if value is not None}
    protocol = {
        **protocol_of(data, cfg.split, ignore, photos, table),
        "scale": UNSTATED,
        **stated,
        **({"wider": ROUNDED} if cfg.wider_rounded else {}),
    }
    status |= {"begun": True, "tested": str(path)}
    remove_results(folder)
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    kept = {key: resolved[key] for key in ("task", "trust", "data", "paths")}
    kept["evaluate"] = {
        key: resolved[key] for key in ("predictions", "predicted", "split", "detection", "wider_rounded")
    }
    write_config(folder, OmegaConf.create(kept))
    files = RunFolder(folder)
    write_tables(table, photos, files)
    results = as_results(protocol, definitions(table, wider_rounded=cfg.wider_rounded))
    extra = {"remarks": remarks} if remarks else {}
    write_json(files.metrics, {"name": folder.name, **results, "cost": {}, "unreadable": {}, **extra})
    return data


def submit(folder: Path, data: Any, cfg: DictConfig) -> None:
    """Write the detections of a test in the format of WIDER FACE.

    Args:
        folder: folder of the run, with its ``detections.npz``.
        data: reader of the tested dataset.
        cfg: configuration of the evaluation.

    Raises:
        ConfigError: the file does not exist, because the callback that writes it was removed.
        DatasetError: see :func:`facelab.inference.submission.write_submission`.
    """
    from facelab.inference.submission import write_submission
    from facelab.metrics.detection_files import read_detection_table

    files = RunFolder(folder)
    if not is_first():
        return
    if not files.detections.is_file():
        raise ConfigError(
            "submission", f"={cfg.submission} needs {files.detections.name}, which callbacks.results writes"
        )
    table, _ = read_detection_table(files.detections)
    photos = [photo.path for photo in data.photos(cfg.split)]
    write_submission(table, photos, files.submission, truncated=cfg.submission == "integer")
