"""Prediction on photos: ``python predict.py images=FOLDER detector=RUN``, or ``landmarker=RUN boxes=FILE``."""

import logging
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import hydra
from omegaconf import DictConfig, OmegaConf

from facelab.bounds import Count, Device, Name, Positive, Text
from facelab.errors import ConfigError, FacelabError, ImageError, visible
from facelab.files import expand_home, resolve_links, why_not_writable, write_json
from facelab.runs.build import check, choose_device, write_config
from facelab.runs.check import DETECTION, PATHS
from facelab.runs.checkpoint import parse_supplements
from facelab.runs.recording import track_run
from facelab.runs.start import exits, start
from facelab.runs.targets import trusting

if TYPE_CHECKING:  # importing torch takes seconds
    from facelab.api import Detector, Landmarker
    from facelab.inference.photos import Photos, PredictedPhoto, Skipped

log = logging.getLogger(__name__)

PREDICT_KEYS: dict[str, Any] = {
    "task": Text,
    "images": Name,
    "output": Text,
    **dict.fromkeys(("landmarker", "detector", "boxes"), Name | None),
    "units": Literal["pixels", "fraction"],
    "crop.scale": Positive | Sequence[Positive] | None,
    "crop.square": bool | None,
    "crop.shift": Sequence[float] | None,
    **dict.fromkeys(("trust", "supplements"), Sequence[str]),
    "batch_size": Count,
    "device": Device,
    "pictures": bool,
    **DETECTION,
    **PATHS,
}
"""Keys that predict.py reads, with their types."""
SHOWN = 10
"""Number of skipped photos and faces that are printed; the JSON file lists all."""


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(cfg: DictConfig) -> None:
    """Open the run, predict every photo and write the results."""
    with exits(), track_run(Path(cfg.paths.run), cfg.task) as status, trusting(cfg.trust):
        check(cfg, PREDICT_KEYS)
        check_values(cfg)
        from facelab.inference.photos import find_photos

        photos = find_photos(str(cfg.images))
        if cfg.detector is None:
            find_landmarks(cfg, photos, status)
        else:
            find_faces(cfg, photos, status)


def check_values(cfg: DictConfig) -> None:
    """Refuse values that would fail later, have no effect or do harm.

    Raises:
        ConfigError: a value is refused; the message contains the value and what is expected.
    """
    if cfg.landmarker is None and cfg.detector is None:
        raise ConfigError(
            "landmarker", ": landmarker=RUN is missing, which finds landmarks, or detector=RUN, which finds faces"
        )
    if cfg.landmarker is not None and cfg.detector is not None:
        raise ConfigError(
            "landmarker",
            f"={cfg.landmarker}: run detector={cfg.detector} alone first, then landmarker={cfg.landmarker} with "
            "boxes=FOLDER/detections.json of its results",
        )
    options, kind = list(DETECTION), "detectors"
    if cfg.detector is not None:
        options, kind = ["boxes", "units", "crop.scale", "crop.square", "crop.shift"], "landmark methods"
    for option in options:
        if (value := OmegaConf.select(cfg, option)) not in (None, "pixels"):  # the values without effect
            raise ConfigError(option, f"={value} is an option of {kind}")
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


def find_landmarks(cfg: DictConfig, photos: "Photos", status: MutableMapping[str, Any]) -> None:
    """Predict the landmarks of the faces in all photos, and write ``landmarks.json`` and ``landmarks.csv``.

    Raises:
        FacelabError: no face was predicted.
    """
    from facelab import api
    from facelab.inference.boxes_file import read_boxes
    from facelab.inference.photos import boxes_without_photo
    from facelab.inference.write import write_landmarks

    boxes = None if cfg.boxes is None else read_boxes(expand_home(str(cfg.boxes)))
    supplements = parse_supplements(cfg.supplements)
    landmarker = api.open_landmarker(str(cfg.landmarker), cfg.device, {**cfg.crop}, cfg.paths, supplements)
    crop = landmarker.image_crop if boxes is None else landmarker.crop
    around = "each whole photo (boxes=FILE gives the boxes)" if boxes is None else f"the boxes of {cfg.boxes}"

    def predict(pool: Executor) -> "Iterator[list[PredictedPhoto[Any]]]":
        fractions = cfg.units == "fraction"
        return landmarker.predict_photos(photos, boxes, cfg.batch_size, pool, fractions=fractions)

    begin(cfg, status)
    predicted, speed = predict_all(cfg, photos, landmarker, predict)
    skipped = [skip for photo in predicted for skip in photo.skipped] + boxes_without_photo(boxes or {}, photos)
    write_landmarks(Path(cfg.output) / "landmarks.csv", predicted, landmarker.layout)
    write_results(cfg, "landmarks", landmarker, {"crop": described(crop)}, photos, predicted, skipped)
    how = f"faces cut out around {around}, scale {crop.scale}, shift {crop.shift}"
    report(cfg, "landmarks", how, photos, predicted, skipped, speed)
    if not any(photo.faces for photo in predicted):
        raise FacelabError("no face was predicted; the reasons are above and in landmarks.json")


def find_faces(cfg: DictConfig, photos: "Photos", status: MutableMapping[str, Any]) -> None:
    """Find the faces in all photos, and write ``detections.json`` and ``detections.csv``.

    Raises:
        FacelabError: no photo could be searched. A photo without a face is no error.
    """
    from facelab import api
    from facelab.inference.boxes_file import RULE
    from facelab.inference.write import write_detections

    supplements = parse_supplements(cfg.supplements)
    changes = {key: value for key, value in cfg.detection.items() if value is not None}
    detector = api.open_detector(str(cfg.detector), cfg.device, changes, cfg.paths, supplements)
    rule = detector.module.detection

    def predict(pool: Executor) -> "Iterator[list[PredictedPhoto[Any]]]":
        return detector.predict_photos(photos, cfg.batch_size, pool)

    begin(cfg, status)
    predicted, speed = predict_all(cfg, photos, detector, predict)
    skipped = [skip for photo in predicted for skip in photo.skipped]
    write_detections(Path(cfg.output) / "detections.csv", predicted)
    write_results(cfg, "detections", detector, {RULE: described(rule)}, photos, predicted, skipped)
    shown = ("scale", "threshold", "min_face", "thresholds")
    how = "detection: " + ", ".join(f"{key}={value}" for key, value in asdict(rule).items() if key in shown)
    report(cfg, "detections", how, photos, predicted, skipped, speed)
    if not any(photo.size for photo in predicted):
        raise FacelabError("no photo could be searched; the reasons are above and in detections.json")


def begin(cfg: DictConfig, status: MutableMapping[str, Any]) -> None:
    """Mark the run as begun, and write its configuration."""
    status["begun"] = True
    write_config(Path(cfg.paths.run), cfg)


def predict_all(
    cfg: DictConfig,
    photos: "Photos",
    method: "Landmarker | Detector",
    predict: "Callable[[Executor], Iterator[list[PredictedPhoto[Any]]]]",
) -> "tuple[list[PredictedPhoto[Any]], str]":
    """Predict all photos and draw their pictures; return the predicted photos, and the speed as text."""
    from rich.progress import track

    pictures, predicted = Path(cfg.output) / "pictures", list["PredictedPhoto[Any]"]()
    started = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        for batch in track(predict(pool), "predict", total=-(-len(photos.paths) // cfg.batch_size), transient=True):
            predicted += batch
            if cfg.pictures:
                with_faces = [photo for photo in batch if photo.faces]
                list(pool.map(lambda photo: draw(photo, method, pictures), with_faces))
    seconds = time.perf_counter() - started
    return predicted, f"{len(predicted) / seconds:.1f} photos a second on {method.module.device}"


def draw(photo: "PredictedPhoto[Any]", method: "Landmarker | Detector", pictures: Path) -> None:
    """Draw the picture of a photo; log a failure, because it must not cost the results."""
    from facelab.inference.write import write_picture

    try:
        write_picture(photo, method.draw, pictures)
    except (ImageError, OSError) as error:
        log.warning("no picture of %s: %s", photo.name, error)


def described(contract: Any) -> dict[str, Any]:
    """Return a crop or a rule as JSON content with its class."""
    return {"_target_": f"{type(contract).__module__}.{type(contract).__qualname__}", **asdict(contract)}


def write_results(
    cfg: DictConfig,
    name: str,
    method: "Landmarker | Detector",
    contract: dict[str, Any],
    photos: "Photos",
    predicted: "list[PredictedPhoto[Any]]",
    skipped: "list[Skipped]",
) -> None:
    """Write the JSON file of a name: the origin of the predictions, then the predictions."""
    from facelab.inference.write import contents

    origin = {
        "checkpoint": str(method.checkpoint.resolve()),
        **contract,
        "folder": str(photos.folder.resolve()),
        "skipped": [skip._asdict() for skip in skipped],
        "left_aside": photos.left_aside,
    }
    write_json(Path(cfg.output) / f"{name}.json", origin | contents(predicted, method.layout), indent=None)


def report(
    cfg: DictConfig,
    name: str,
    how: str,
    photos: "Photos",
    predicted: "list[PredictedPhoto[Any]]",
    skipped: "list[Skipped]",
    speed: str,
) -> None:
    """Print the number of predicted faces, the skipped ones with the reasons, and the paths of the results."""
    from rich.console import Console

    lines = [how]
    for skip in skipped[:SHOWN]:
        face = "" if skip.face is None else f", face {skip.face}"
        lines.append(f"skipped {skip.image}{face}: {skip.reason}")
    if len(skipped) > SHOWN:
        lines.append(f"skipped {len(skipped) - SHOWN} more; {name}.json lists them")
    if photos.left_aside:
        others = ", ".join(f"{count} {ending}" for ending, count in photos.left_aside.items())
        lines.append(f"ignored files whose ending is not that of a photo: {others}")
    faces, with_faces = sum(len(photo.faces) for photo in predicted), sum(bool(photo.faces) for photo in predicted)
    lines.append(f"{faces} face{'s' * (faces != 1)} in {with_faces} of {len(predicted)} photos, {speed}")
    pictures = " and pictures/" if cfg.pictures and faces else ""
    lines.append(f"{name}.json, {name}.csv{pictures} in {cfg.output}")
    Console().print(visible("\n".join(lines)), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    start(opens="landmarker|detector")
    main()
