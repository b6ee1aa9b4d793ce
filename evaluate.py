"""Evaluation of a trained run on its dataset or on another one: ``python evaluate.py ckpt=RUN data=wflw98``.

``python evaluate.py predictions=PATH data=wider_face`` measures the detections of any program.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from facelab.bounds import Count, Name, Processes, Share, Text
from facelab.errors import ConfigError
from facelab.files import expand_home
from facelab.run_folder import RunFolder
from facelab.runs.build import build, build_trainer, check, write_config
from facelab.runs.check import DETECTION, PATHS
from facelab.runs.checkpoint import ABSENT, LoadedRun, is_detector, load_run, needed, parse_supplements
from facelab.runs.loggers import follow_loggers
from facelab.runs.predicted import is_predicted, measure_predictions, submit
from facelab.runs.recording import track_run
from facelab.runs.report import report
from facelab.runs.resume import remove_results
from facelab.runs.start import exits, start
from facelab.runs.targets import trusting

log = logging.getLogger(__name__)

OF_DETECTORS = ("submission", "wider_rounded")
"""Further options of detectors."""
CHANGES = {
    "box": "crop.box",
    "flip_test": "model.flip_test",
    "batch_size": "datamodule.batch_size",
    "num_workers": "datamodule.num_workers",
    "max_unreadable": "datamodule.max_unreadable",
    **{key: key for key in DETECTION},
}
"""Key in the configuration of the run that an option changes, unless it is null."""
EVALUATE_KEYS: dict[str, Any] = {
    "task": Text,
    **dict.fromkeys(("ckpt", "predictions", "predicted.images"), Name | None),
    "predicted.missing": Literal["error", "empty"],
    "name": Name,
    "submission": Literal["float", "integer"] | None,
    "wider_rounded": bool,
    **dict.fromkeys(("trust", "supplements", "predicted.ignore"), Sequence[str]),
    "flip_test": bool | None,
    "batch_size": Count | None,
    "num_workers": Processes | None,
    "max_unreadable": Share | None,
    **dict.fromkeys(("logger", "callbacks"), dict[str, Any] | None),
    **dict.fromkeys(("split", "box", "box_jitter", "trainer", "data"), Any),
    **DETECTION,
    **PATHS,
}
"""Keys that evaluate.py reads, with the types of those that no constructor checks."""
EVALUATE_OPTIONS = ("ckpt", "split", "box", "flip_test", "batch_size", "num_workers", "max_unreadable", "trainer")
"""Keys of an evaluation that config.yaml contains beside the configuration of the run, which contains the dataset."""


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Measure a run or predictions, and write the results to a new run folder."""
    folder = Path(cfg.paths.run)
    with exits(), track_run(folder, cfg.task) as status, trusting(cfg.trust):
        check(cfg, EVALUATE_KEYS)
        data = (measure_predictions if is_predicted(cfg) else measure_run)(folder, cfg, status)
        if cfg.submission:
            submit(folder, data, cfg)
    report(folder)


def measure_run(folder: Path, cfg: DictConfig, status: dict[str, Any]) -> Any:
    """Open the run, apply the requested changes, test it, and return the reader of the dataset."""
    run = load_run(expand_home(str(cfg.ckpt)), cfg.paths, parse_supplements(cfg.supplements))
    datamodule = build_data(run, cfg)
    follow_loggers(cfg, run.checkpoint)
    evaluated = evaluated_config(run, cfg)
    trainer = build_trainer(cfg)
    status |= {"begun": True, "tested": str(run.checkpoint)}
    remove_results(folder)
    write_config(folder, evaluated)
    for logger in trainer.loggers:
        logger.log_hyperparams(OmegaConf.to_container(evaluated, resolve=True))
    trainer.test(run.module, datamodule, verbose=False)
    return datamodule.data


def build_data(run: LoadedRun, cfg: DictConfig) -> Any:
    """Build the datamodule of a run with the requested changes, and apply them to ``run.cfg`` and the module too.

    Raises:
        ConfigError: the other dataset has other landmarks than the run predicts, or the method of the run has no such
            option.
        FacelabError: the configuration of the datamodule has faults.
    """
    from facelab.faces.crop import BoxJitter

    if (data := cfg.get("data")) is not None:
        run.cfg.data = OmegaConf.merge(data)
        data_layout, layout = build(cfg, "data.layout"), run.module.layout
        if data_layout.name != layout.name:
            raise ConfigError(
                "data",
                f"={data.name} has the {data_layout.num_points} landmarks of {data_layout.name}, but the run "
                f"predicts the {layout.num_points} of {layout.name}",
            )
    needed(run.cfg, "datamodule")
    run.cfg.datamodule.test_split = cfg.split
    for option, place in CHANGES.items():
        if (value := OmegaConf.select(cfg, option)) is not None:
            node, _, key = place.partition(".")
            if option == "batch_size" and "eval_batch_size" in run.cfg[node]:
                key = "eval_batch_size"  # a method whose training samples are smaller than photos
            refuse_foreign(run, option, value, has_it=key in (run.cfg.get(node) or {}))
            run.cfg[node][key] = value
    nodes = ("model", "datamodule")
    measured = needed(run.cfg, *nodes)
    check(measured, nodes, absent=ABSENT)
    if is_detector(run.cfg):
        run.module.detection = build(measured, "detection")
        run.module.wider_rounded = cfg.wider_rounded
    else:
        run.module.flip_test = run.cfg.model.flip_test
    datamodule = build(measured, "datamodule")
    jitter = build(cfg, "box_jitter")
    if not isinstance(jitter, BoxJitter):
        raise ConfigError("box_jitter", f"={jitter} must be like {{scale:[0.9,1.3],shift:0.1}}", mounted=True)
    if jitter:
        refuse_foreign(run, "box_jitter", jitter, has_it=not is_detector(run.cfg))
        datamodule.box_jitter = jitter
    for option in OF_DETECTORS:
        if cfg[option]:
            refuse_foreign(run, option, cfg[option], has_it=is_detector(run.cfg))
    return datamodule


def refuse_foreign(run: LoadedRun, option: str, value: Any, *, has_it: bool) -> None:
    """Refuse an option that the method of the run does not have.

    Raises:
        ConfigError: ``has_it`` is false.
    """
    if not has_it:
        kind = "detectors" if option.startswith(("detection.", *OF_DETECTORS)) else "landmark methods"
        raise ConfigError(
            option, f"={value} is an option of {kind}; this run is of {type(run.module).__name__}, which has none"
        )


def evaluated_config(run: LoadedRun, cfg: DictConfig) -> DictConfig:
    """Return the configuration of the run as evaluated, with the requested changes under ``evaluate``.

    A node that cannot be resolved, such as a logger of an earlier version, is left out.
    """
    requested = {key: cfg[key] for key in EVALUATE_OPTIONS}
    if cfg.supplements:
        requested["supplements"] = cfg.supplements
    if build(cfg, "box_jitter"):
        requested["box_jitter"] = cfg.box_jitter
    if cfg.wider_rounded:
        requested["wider_rounded"] = True
    run.cfg.pop("logger", None)  # those of the run are not used
    if used := {name: node for name, node in (cfg.logger or {}).items() if node is not None}:
        run.cfg.logger = used
    kept = OmegaConf.merge(run.cfg, {"task": cfg.task, "trust": cfg.trust, "evaluate": requested})
    assert isinstance(kept, DictConfig)
    while broken := next(((key, error) for key in kept if (error := unresolved(kept, str(key)))), None):
        log.warning(
            "%s of the run is left out of %s: %s", broken[0], RunFolder(Path(cfg.paths.run)).config.name, broken[1]
        )
        del kept[broken[0]]
    return kept


def unresolved(cfg: DictConfig, key: str) -> str:
    """Return why a node cannot be resolved; empty if it can."""
    try:
        if OmegaConf.is_config(value := cfg[key]):
            OmegaConf.to_container(value, resolve=True)
    except OmegaConfBaseException as error:
        return str(error).splitlines()[0]
    return ""


if __name__ == "__main__":
    start(opens="ckpt")
    main()
