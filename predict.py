"""Prediction of landmarks on photos: ``python predict.py images=FOLDER landmarker=RUN boxes=FILE``."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import hydra
from omegaconf import DictConfig

from facelab.bounds import Count, Device, Name, Positive, Text
from facelab.errors import ConfigError, FacelabError, ImageError, visible
from facelab.files import expand_home, resolve_links, why_not_writable, write_json
from facelab.runs.build import check, choose_device, write_config
from facelab.runs.check import PATHS
from facelab.runs.checkpoint import parse_supplements
from facelab.runs.recording import track_run
from facelab.runs.start import exits, start
from facelab.runs.targets import trusting

if TYPE_CHECKING:  # importing torch takes seconds
    from facelab.api import Landmarker
    from facelab.faces.crop import Crop
    from facelab.faces.layouts import Layout
    from facelab.inference.boxes_file import Boxes
    from facelab.inference.landmarks import Photos, PredictedPhoto, Skipped

log = logging.getLogger(__name__)

PREDICT_KEYS: dict[str, Any] = {
    "task": Text,
    "images": Name,
    "landmarker": Name,
    "output": Text,
    "boxes": Name | None,
    "units": Literal["pixels", "fraction"],
    "crop.scale": Positive | Sequence[Positive] | None,
    "crop.square": bool | None,
    "crop.shift": Sequence[float] | None,
    **dict.fromkeys(("trust", "supplements"), Sequence[str]),
    "batch_size": Count,
    "device": Device,
    "pictures": bool,
    **PATHS,
}
"""Keys that predict.py reads, with their types."""
SHOWN = 10
"""Number of skipped photos and faces that are printed; landmarks.json lists all."""


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(cfg: DictConfig) -> None:
    """Open the run, predict every photo and write the results; fail if no face was predicted."""
    folder = Path(cfg.paths.run)
    with exits(), track_run(folder, cfg.task) as status, trusting(cfg.trust):
        check(cfg, PREDICT_KEYS)
        check_values(cfg)
        from facelab import api
        from facelab.inference.boxes_file import read_boxes
        from facelab.inference.landmarks import boxes_without_photo, find_photos

        photos = find_photos(str(cfg.images))
        boxes = None if cfg.boxes is None else read_boxes(expand_home(str(cfg.boxes)))
        supplements = parse_supplements(cfg.supplements)
        landmarker = api.open_landmarker(str(cfg.landmarker), cfg.device, {**cfg.crop}, cfg.paths, supplements)
        crop = landmarker.image_crop if boxes is None else landmarker.crop
        status["begun"] = True
        write_config(folder, cfg)
        predicted, speed = predict(landmarker, cfg, photos, boxes)
        skipped = [skip for photo in predicted for skip in photo.skipped] + boxes_without_photo(boxes or {}, photos)
        write(landmarker, crop, cfg, photos, predicted, skipped)
        report(cfg, crop, photos, predicted, skipped, speed)
        if not any(photo.faces for photo in predicted):
            raise FacelabError("no face was predicted; the reasons are above and in landmarks.json")


def check_values(cfg: DictConfig) -> None:
    """Refuse values that would fail later or do harm.

    Raises:
        ConfigError: a value is refused; the message contains the value and what is expected.
    """
    choose_device(cfg.device)
    if reason := why_not_writable(Path(cfg.output)):
        raise ConfigError("output", f"={cfg.output}: nothing can be written there ({reason})")
    images, output = resolve_links(expand_home(str(cfg.images))), resolve_links(Path(cfg.output))
    if cfg.pictures and images.is_dir() and output.is_relative_to(images):
        raise ConfigError(
            "output",
            f"={output} is in the folder of the photos, so the next run would read its pictures as photos; "
            "give output=FOLDER outside of it",
        )


def predict(
    landmarker: "Landmarker", cfg: DictConfig, photos: "Photos", boxes: "Boxes | None"
) -> "tuple[list[PredictedPhoto], str]":
    """Predict all photos and draw their pictures; return the predicted photos, and the speed as text."""
    from rich.progress import track

    pictures, predicted = Path(cfg.output) / "pictures", list["PredictedPhoto"]()
    started = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        fractions = cfg.units == "fraction"
        batches = landmarker.predict_photos(photos, boxes, cfg.batch_size, pool, fractions=fractions)
        for batch in track(batches, "predict", total=-(-len(photos.paths) // cfg.batch_size), transient=True):
            predicted += batch
            if cfg.pictures:
                with_faces = [photo for photo in batch if photo.faces]
                list(pool.map(lambda photo: draw(photo, landmarker.layout, pictures), with_faces))
    seconds = time.perf_counter() - started
    return predicted, f"{len(predicted) / seconds:.1f} photos a second on {landmarker.module.device}"


def draw(photo: "PredictedPhoto", layout: "Layout", pictures: Path) -> None:
    """Draw the picture of a photo; log a failure, because it must not cost the results."""
    from facelab.inference.write import write_picture

    try:
        write_picture(photo, layout, pictures)
    except (ImageError, OSError) as error:
        log.warning("no picture of %s: %s", photo.name, error)


def write(
    landmarker: "Landmarker",
    crop: "Crop",
    cfg: DictConfig,
    photos: "Photos",
    predicted: "list[PredictedPhoto]",
    skipped: "list[Skipped]",
) -> None:
    """Write ``landmarks.csv`` and ``landmarks.json``."""
    from facelab.inference.write import contents, write_csv

    output, layout = Path(cfg.output), landmarker.layout
    origin = {
        "checkpoint": str(landmarker.checkpoint.resolve()),
        "crop": {"_target_": f"{type(crop).__module__}.{type(crop).__qualname__}", **asdict(crop)},
        "folder": str(photos.folder.resolve()),
        "skipped": [skip._asdict() for skip in skipped],
        "left_aside": photos.left_aside,
    }
    write_csv(output / "landmarks.csv", predicted, layout)
    write_json(output / "landmarks.json", origin | contents(predicted, layout), indent=None)


def report(
    cfg: DictConfig,
    crop: "Crop",
    photos: "Photos",
    predicted: "list[PredictedPhoto]",
    skipped: "list[Skipped]",
    speed: str,
) -> None:
    """Print the number of predicted faces, the skipped ones with the reasons, and the paths of the results."""
    from rich.console import Console

    around = f"the boxes of {cfg.boxes}" if cfg.boxes is not None else "each whole photo (boxes=FILE gives the boxes)"
    lines = [f"faces cut out around {around}, scale {crop.scale}, shift {crop.shift}"]
    for skip in skipped[:SHOWN]:
        face = "" if skip.face is None else f", face {skip.face}"
        lines.append(f"skipped {skip.image}{face}: {skip.reason}")
    if len(skipped) > SHOWN:
        lines.append(f"skipped {len(skipped) - SHOWN} more; landmarks.json lists them")
    if photos.left_aside:
        others = ", ".join(f"{count} {ending}" for ending, count in photos.left_aside.items())
        lines.append(f"ignored files whose ending is not that of a photo: {others}")
    faces, with_faces = sum(len(photo.faces) for photo in predicted), sum(bool(photo.faces) for photo in predicted)
    lines.append(f"{faces} face{'s' * (faces != 1)} in {with_faces} of {len(predicted)} photos, {speed}")
    pictures = " and pictures/" if cfg.pictures and faces else ""
    lines.append(f"landmarks.json, landmarks.csv{pictures} in {cfg.output}")
    Console().print(visible("\n".join(lines)), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    start(opens="landmarker")
    main()
