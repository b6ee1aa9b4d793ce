"""Train a method on a dataset, test it, and leave a run folder: ``python train.py model=pipnet data=lapa106``."""

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from facelab import runs
from facelab.recording import recorded
from facelab.resuming import begin, resumption


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Train, test with ``test_with``, write the results, and return the monitored value for a sweeper."""
    folder = Path(cfg.paths.run)
    with recorded(folder) as status:
        runs.check(cfg, runs.TRAIN_KEYS)
        resumed = resumption(folder, cfg)
        if resumed and resumed.finished:
            runs.report(folder)
            return None
        if not resumed:
            check_cell()
            runs.write_config(folder, cfg)
        check_values(cfg)
        from lightning import seed_everything

        from facelab import speed

        seed_everything(cfg.seed, workers=True, verbose=False)
        datamodule, module = runs.build(cfg.datamodule), runs.build(cfg.model)
        module.save_hyperparameters(OmegaConf.to_container(cfg, resolve=False), logger=False)
        speed.prepare(module, cfg.memory_format, cfg.compile)
        trainer = runs.build_trainer(cfg)
        begin(folder, resumed)
        runs.write_config(folder, cfg)
        status["begun"] = True
        for logger in trainer.loggers:  # with fast_dev_run Lightning puts others in their place, which open nothing
            logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
        trainer.fit(module, datamodule, ckpt_path=resumed and resumed.checkpoint, weights_only=True)
        monitored = trainer.callback_metrics.get(cfg.monitor.name)
        saved = trainer.checkpoint_callback and not trainer.fast_dev_run
        checkpoint = runs.find_checkpoint(folder, cfg.test_with) if saved else None
        if checkpoint:
            module.load_state_dict(runs.read_checkpoint(checkpoint).weights)
        status["tested"] = checkpoint and str(checkpoint)
        trainer.test(module, datamodule, verbose=False)
    runs.report(folder)
    return None if monitored is None else float(monitored)


def check_cell() -> None:
    """Refuse to train what an experiment's grid is built upon, which is none of its cells.

    Raises:
        SystemExit: says over what the grid is.
    """
    hydra_cfg: Any = HydraConfig.get()
    typed = {word.lstrip("+~").partition("=")[0] for word in hydra_cfg.overrides.task}
    params = OmegaConf.select(hydra_cfg, "sweeper.params") or {}
    grid = [key for key in map(str, params) if key.lstrip("+~") not in typed]
    if hydra_cfg.mode == RunMode.RUN and grid:
        experiment = hydra_cfg.runtime.choices.get("experiment")
        raise SystemExit(
            f"{f'experiment={experiment}' if experiment else 'hydra.sweeper.params'} is a grid over {', '.join(grid)}: "
            f"start it with -m, or say which cell: {' '.join(f'{key}=...' for key in grid)}"
        )


def check_values(cfg: DictConfig) -> None:
    """Refuse values that would show as a mistake only after the training.

    Raises:
        SystemExit: says which value, and what is expected.
    """
    if cfg.test_with not in ("last", "best"):
        raise SystemExit(f"test_with={cfg.test_with}: last or best expected")
    trainer = cfg.trainer
    every, epochs = trainer.get("check_val_every_n_epoch"), trainer.get("max_epochs")
    otherwise = (
        trainer.get("fast_dev_run") or trainer.get("max_steps", -1) != -1 or trainer.get("limit_val_batches") == 0
    )
    if every is not None and epochs not in (None, -1) and every > epochs and not otherwise:
        raise SystemExit(
            f"trainer.check_val_every_n_epoch={every} is more than trainer.max_epochs={epochs}: nothing would be "
            "validated, and no best checkpoint kept; trainer.check_val_every_n_epoch=1 validates after every epoch, "
            "trainer.limit_val_batches=0 never"
        )


if __name__ == "__main__":
    runs.start(resumable=True)
    main()
