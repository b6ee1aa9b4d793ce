"""Training and test of a method on a dataset, with a run folder: ``python train.py model=pipnet data=lapa106``."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from facelab.errors import CheckpointError, ConfigError, RunError
from facelab.runs.argv import key_of
from facelab.runs.build import build, build_trainer, check
from facelab.runs.check import TRAIN_KEYS
from facelab.runs.checkpoint import clear_initial_weights, find_checkpoint, offline, read_checkpoint
from facelab.runs.initial import build_initialised
from facelab.runs.overrides import check_origin, check_reach, trusted
from facelab.runs.processes import plain_overrides
from facelab.runs.recording import track_run
from facelab.runs.report import report
from facelab.runs.resume import Once, ResumePoint, begin, check_weights, find_resume_point
from facelab.runs.start import exits, start
from facelab.runs.targets import hint, trusting

log = logging.getLogger(__name__)

MODES = {"lower": "min", "higher": "max"}
"""Mode of a callback that monitors a metric, by the direction of better values."""


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Train, test with ``test_ckpt``, write the results, and return the monitored value for a sweeper."""
    with exits():
        check_origin(cfg)
    folder = Path(cfg.paths.run)
    with exits(), track_run(folder, cfg.task) as status, trusting(trusted(cfg)):
        resumed = open_folder(folder, cfg)
        if resumed and resumed.finished:
            report(folder)
            return None
        module, datamodule, trainer = build_parts(cfg, resumed=resumed is not None)
        check_monitors(cfg, module, datamodule)
        prepare = Once(partial(begin, folder, cfg, plain_overrides(HydraConfig.get()), resumed))
        if resumed:
            check_weights(module, resumed)
        else:
            prepare()
        status["begun"] = True
        read_data(datamodule, cfg)
        monitored = fit(module, datamodule, trainer, cfg, resumed, prepare)
        if cfg.test:
            checkpoint = take_weights(module, trainer, cfg, folder)
            status["tested"] = checkpoint and str(checkpoint)
            trainer.test(module, datamodule, verbose=False)
    report(folder)
    return monitored


def open_folder(folder: Path, cfg: DictConfig) -> ResumePoint | None:
    """Check the configuration against itself and against the folder.

    Returns:
        The checkpoint from which the run resumes; None for a new run.

    Raises:
        FacelabError: it has faults, or does not fit the run in the folder.
    """
    check(cfg, TRAIN_KEYS)
    resumed = find_resume_point(folder, cfg)
    if resumed and resumed.finished:
        return resumed
    if not resumed:
        check_not_grid_base()
    check_reach(cfg, folder)
    check_values(cfg)
    return resumed


def check_not_grid_base() -> None:
    """Refuse to train the base of a grid experiment without -m.

    Raises:
        RunError: it would be trained; the message contains the keys of the grid.
    """
    hydra_cfg: Any = HydraConfig.get()
    typed = {key_of(word) for word in hydra_cfg.overrides.task}
    params = OmegaConf.select(hydra_cfg, "sweeper.params") or {}
    grid = [key for key in map(str, params) if key.lstrip("+~") not in typed]
    if hydra_cfg.mode == RunMode.RUN and grid:
        experiment = hydra_cfg.runtime.choices.get("experiment")
        raise RunError(
            f"{f'experiment={experiment}' if experiment else 'hydra.sweeper.params'} is a grid over {', '.join(grid)}: "
            f"start it with -m, or choose one job: {' '.join(f'{key}=...' for key in grid)}"
        )


def check_values(cfg: DictConfig) -> None:
    """Refuse values whose fault would appear only after the training.

    Raises:
        ConfigError: a value is refused; the message contains the value and what is expected.
    """
    missing = [part for part in ("loss", "optimizer") if part in cfg.model and cfg.model[part] is None]
    if len(missing) > 1:
        name = cfg.model._target_.rpartition(".")[2]
        raise ConfigError(
            "model",
            f": without loss and optimizer this version trains no {name}; import_weights.py opens published weights",
        )
    if missing:
        raise ConfigError(f"model.{missing[0]}", "=null: nothing would be trained")
    trainer = cfg.trainer
    every, epochs = trainer.get("check_val_every_n_epoch"), trainer.get("max_epochs")
    otherwise = (
        trainer.get("fast_dev_run") or trainer.get("max_steps", -1) != -1 or trainer.get("limit_val_batches") == 0
    )
    if cfg.rates is None:
        raise ConfigError("rates", "=null: its keys set the learning rates; rates.freeze=[] freezes nothing")
    warmup = cfg.rates.warmup_epochs
    if epochs not in (None, -1) and warmup > epochs and not trainer.get("fast_dev_run"):
        raise ConfigError(
            "rates.warmup_epochs",
            f"={warmup} is more than trainer.max_epochs={epochs}: the learning rate is never reached",
        )
    if every is not None and epochs not in (None, -1) and every > epochs and not otherwise:
        raise ConfigError(
            "trainer.check_val_every_n_epoch",
            f"={every} is more than trainer.max_epochs={epochs}: nothing would be "
            "validated, and no best checkpoint kept; trainer.check_val_every_n_epoch=1 validates after every epoch, "
            "trainer.limit_val_batches=0 never",
        )


def build_parts(cfg: DictConfig, *, resumed: bool = False) -> tuple[Any, Any, Any]:
    """Build module, datamodule and trainer.

    Raises:
        ConfigError: a part refuses its values.
    """
    from lightning import seed_everything

    from facelab.profiling.compile import set_format_and_compile

    seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule, module = build(cfg, "datamodule"), build_module(cfg, resumed=resumed)
    module.resumed, module.rates = resumed, build(cfg, "rates")
    module.rates.freeze(module)
    module.save_hyperparameters(OmegaConf.to_container(cfg, resolve=False), logger=False)
    set_format_and_compile(module, cfg.memory_format, cfg.compile)
    module.configure_optimizers()  # only to refuse invalid values now: Lightning calls it again before training
    return module, datamodule, build_trainer(cfg)


def build_module(cfg: DictConfig, *, resumed: bool) -> Any:
    """Build the module; without initial weights for a resumed run, because its checkpoint replaces them."""
    if not resumed:
        backbone = cfg.get("backbone") or {}
        if cfg.get("init") is None and backbone.get("pretrained") is False and backbone.get("weights") is None:
            log.info("the backbone starts from random weights")
        return build(cfg, "model") if cfg.get("init") is None else build_initialised(cfg)
    with offline():
        return build(OmegaConf.create(clear_initial_weights(OmegaConf.to_container(cfg))), "model")


def check_monitors(cfg: DictConfig, module: Any, datamodule: Any) -> None:
    """Refuse a callback or a schedule that monitors a metric that no validation logs, or that prefers its worse values.

    Lightning would fail after the first epoch for the first, and keep the worst checkpoint for the second.

    Raises:
        ConfigError: there is one; the message contains its key.
    """
    metrics = module.metrics(module.example(datamodule.data.tags))
    logged = {f"val/{name}": MODES.get(definition.better) for name, definition in metrics.items()}
    nodes = {"monitor": {"monitor": cfg.monitor.name, "mode": cfg.monitor.mode}, "scheduler": cfg.get("scheduler")}
    nodes |= {f"callbacks.{name}": node for name, node in (cfg.callbacks or {}).items()}
    for place, node in nodes.items():
        if not node or not node.get("monitor"):
            continue
        monitored = str(node["monitor"])
        # A custom method may log other names, and Lightning logs `step` and `epoch`.
        ours = monitored.startswith("val/") or f"val/{monitored}" in logged
        if ours and monitored not in logged:
            key = "monitor.name" if place == "monitor" else f"{place}.monitor"
            raise ConfigError(key, f"={monitored}: no validation logs this metric{hint(monitored, logged)}")
        is_lightnings = str(node.get("_target_")).startswith("lightning.")  # whose mode is min by default
        right = logged.get(monitored)
        mode = node.get("mode", "min" if is_lightnings else right)
        if right and mode != right and mode in MODES.values():  # another word is not a direction
            raise ConfigError(f"{place}.mode", f"={mode}: the best {monitored} is its {right}imum; use {right}")


def read_data(datamodule: Any, cfg: DictConfig) -> None:
    """Read all annotations that the run needs, to report a missing split before training.

    Raises:
        FacelabError: a split is missing.
    """
    datamodule.setup("fit")
    if cfg.test:
        datamodule.setup("test")
    if cfg.test and cfg.test_ckpt == "best" and not datamodule.has_validation():
        raise ConfigError("test_ckpt", "=best: without a validation there is no best checkpoint; use test_ckpt=last")
    if not datamodule.has_validation() or cfg.trainer.get("limit_val_batches") == 0:
        for place in ("scheduler", "callbacks.early_stopping"):
            if monitored := OmegaConf.select(cfg, f"{place}.monitor"):
                raise ConfigError(place, f": it needs {monitored}, but the run has no validation")


def fit(
    module: Any,
    datamodule: Any,
    trainer: Any,
    cfg: DictConfig,
    resumed: ResumePoint | None,
    prepare: Once,
) -> float | None:
    """Train to the end, and return the monitored value.

    The folder of a resumed run is prepared after the trainer has restored the state of the checkpoint: when the
    training starts, or at the end if the last epoch was already completed.

    Raises:
        CheckpointError: the state cannot be restored.
    """
    from lightning.pytorch.callbacks import LambdaCallback

    from facelab.internals.lightning import failed_in_restoring

    trainer.callbacks.append(LambdaCallback(on_train_start=prepare, on_fit_end=prepare))
    for logger in trainer.loggers:  # with fast_dev_run Lightning replaces them by others that open no file
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    try:
        trainer.fit(module, datamodule, ckpt_path=resumed and resumed.checkpoint, weights_only=True)
    except Exception as error:
        if resumed and failed_in_restoring(error):
            raise CheckpointError(
                f"the state in {resumed.checkpoint} cannot be restored ({type(error).__name__}: {error}); the file was "
                "changed or is broken, and the run cannot be resumed: start another run"
            ) from error
        raise
    monitored = trainer.callback_metrics.get(cfg.monitor.name)
    return None if monitored is None else float(monitored)


def take_weights(module: Any, trainer: Any, cfg: DictConfig, folder: Path) -> Path | None:
    """Load the weights of ``test_ckpt`` into the module, and return their file; None if none was saved."""
    if not trainer.checkpoint_callback or trainer.fast_dev_run:
        return None
    checkpoint = find_checkpoint(folder, cfg.test_ckpt)
    module.load_state_dict(read_checkpoint(checkpoint).weights)
    return checkpoint


if __name__ == "__main__":
    start(resumable=True)
    main()
