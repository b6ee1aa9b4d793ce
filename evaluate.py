"""Measure a trained run again, on its own or another dataset: ``python evaluate.py ckpt=RUN data=wflw98``."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from facelab import runs


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Open the run, replace what was asked for, test, and write the results as a run of their own."""
    folder = Path(cfg.paths.run)
    with runs.recorded(folder):
        runs.check(cfg, runs.EVALUATE_KEYS)
        run = runs.load_run(Path(str(cfg.ckpt)).expanduser(), cfg.paths)
        datamodule = runs.evaluation_data(run, cfg)
        runs.write_config(folder, runs.evaluation_config(run, cfg))
        trainer = runs.build_trainer(cfg)
        trainer.test(run.module, datamodule, verbose=False)
        results = runs.write_results(folder, run.module, datamodule, checkpoint=run.checkpoint)
    runs.report(folder, results)


if __name__ == "__main__":
    runs.start()
    main()
