"""Find landmarks on photos: ``python predict.py images=FOLDER landmarks=RUN boxes=FILE``."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig, OmegaConf

from facelab import runs

if TYPE_CHECKING:
    from facelab.landmarks.crop import Crop
    from facelab.prediction import Photos, PredictedPhoto, Skipped

PREDICT_KEYS = (
    *("task", "images", "landmarks", "boxes", "crop.scale", "crop.square", "crop.shift"),
    *("batch_size", "device", "pictures", "output", *runs.PATHS),
)
"""The keys that predict.py reads."""
SHOWN = 10
"""How many skipped photos and faces are named on the screen; landmarks.json names all."""


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(cfg: DictConfig) -> None:
    """Open the run, predict every photo, write the results; fail if not one face was predicted."""
    runs.check(cfg, PREDICT_KEYS)
    check_values(cfg)
    with runs.recorded(Path(cfg.paths.run), cfg), ThreadPoolExecutor() as pool:
        from rich.progress import track

        from facelab import prediction

        photos, output = prediction.find_photos(str(cfg.images)), Path(cfg.output)
        boxes = None if cfg.boxes is None else prediction.read_boxes(Path(str(cfg.boxes)).expanduser())
        run = runs.load_run(Path(str(cfg.landmarks)).expanduser(), cfg.paths)
        crop = build_crop(run, cfg)
        module = run.module.to(cfg.device if cfg.device != "auto" else best_device())
        started, found = time.perf_counter(), []
        batches = prediction.predict(module, crop, photos, boxes, cfg.batch_size, pool)
        for batch in track(batches, "predict", total=-(-len(photos.paths) // cfg.batch_size), transient=True):
            found += batch
            if cfg.pictures:
                shown = [photo for photo in batch if photo.faces]
                list(pool.map(lambda p: prediction.write_picture(p, module.layout, output / "pictures"), shown))
        speed = len(found) / (time.perf_counter() - started)
        skipped = [*(skip for photo in found for skip in photo.skipped), *prediction.unknown(boxes or {}, photos)]
        prediction.write_csv(output / "landmarks.csv", found, module.layout)
        runs.write_json(
            output / "landmarks.json",
            {
                "run": str(cfg.landmarks),
                "checkpoint": str(run.checkpoint.resolve()),
                "crop": OmegaConf.to_container(run.cfg.crop, resolve=True),
                "folder": str(photos.folder.resolve()),
                "skipped": [skip._asdict() for skip in skipped],
                "left_aside": photos.left_aside,
            }
            | prediction.contents(found, module.layout),
        )
        report(cfg, photos, found, skipped, crop, f"{speed:.1f} photos a second on {module.device}")
