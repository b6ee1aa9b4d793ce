"""Train a method on a dataset, test it, and leave a run folder: ``python train.py model=pipnet data=lapa106``."""

from pathlib import Path

import hydra
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
            runs.write_config(folder, cfg)
        from lightning import seed_everything

        from facelab import speed

        if cfg.test_with not in ("last", "best"):
            raise SystemExit(f"test_with={cfg.test_with}: last or best expected")
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


if __name__ == "__main__":
    runs.start(resumable=True)
    main()
