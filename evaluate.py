"""Measure a trained run again, on its own or another dataset: ``python evaluate.py ckpt=RUN data=wflw98``."""

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from facelab import runs
from facelab.recording import recorded


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Open the run, replace what was asked for, test, and write the results as a run of their own."""
    folder = Path(cfg.paths.run)
    if (folder / "checkpoints").is_dir():
        raise SystemExit(f"{folder} is the folder of a training, whose results would be overwritten")
    with recorded(folder) as status:
        runs.check(cfg, runs.EVALUATE_KEYS)
        run = runs.load_run(Path(str(cfg.ckpt)).expanduser(), cfg.paths)
        datamodule = runs.evaluation_data(run, cfg)
        evaluated = runs.evaluation_config(run, cfg)
        runs.write_config(folder, evaluated)
        status["tested"] = str(run.checkpoint)
        trainer = runs.build_trainer(cfg)
        status["begun"] = True
        for logger in trainer.loggers:
            logger.log_hyperparams(OmegaConf.to_container(evaluated, resolve=True))
        trainer.test(run.module, datamodule, verbose=False)
    runs.report(folder)


if __name__ == "__main__":
    runs.start()
    main()
