"""Import of published weights as a run folder: ``python import_weights.py model=pipnet weights=FILE meanface=FILE``."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from facelab.runs.importing import check_import, import_run
from facelab.runs.recording import track_run
from facelab.runs.start import exits, start
from facelab.runs.targets import trusting


@hydra.main(version_base="1.3", config_path="conf", config_name="import_weights")
def main(cfg: DictConfig) -> None:
    """Build the model, load the file into it, and write the run folder."""
    folder = Path(cfg.paths.run)
    with exits(), track_run(folder, cfg.task) as status, trusting(cfg.trust):
        check_import(cfg)
        status |= import_run(folder, cfg)


if __name__ == "__main__":
    start()
    main()
