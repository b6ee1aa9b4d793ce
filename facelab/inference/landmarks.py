"""Landmarks on photos that nobody annotated: find the photos and predict.

Everything in this package is in pixels of the **upright** photo, turned as its orientation mark (EXIF) says.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from facelab.errors import ConfigError, DatasetError, ImageError, printable
from facelab.faces.crop import Crop
from facelab.faces.geometry import Array, from_cells, transform_points
from facelab.faces.image import SUFFIXES, CropError, PhotoFile
from facelab.files import at_home, walk
from facelab.inference.boxes_file import Boxes
from lightning_modules.landmark import LandmarkModule

LARGEST = 50
"""Largest side of a box that a face is cut out by, in sides of the photo."""


class Photos(NamedTuple):
    """The photos to predict."""

    folder: Path
    paths: dict[str, Path]  # name relative to the folder, with / on every system -> file
    left_aside: dict[str, int]  # ending -> how many files of the folder are no photos by their ending


class Skipped(NamedTuple):
    """A photo, or one face of it, that was not predicted."""

    image: str
    face: int | None  # None: the whole photo
    reason: str


class PredictedFace(NamedTuple):
    """The landmarks of one face."""

    face: int  # its place among the boxes of its photo, from 0
    box: Array  # (4,) that it was cut out by
    points: Array  # (N, 2)
    confidence: Array  # (N,) in [0, 1]
    pose: Array | None  # (3,) yaw, pitch, roll in degrees; None where the method predicts none


class PredictedPhoto(NamedTuple):
    """What was found on one photo."""

    name: str
    path: Path
    size: tuple[int, int] | None  # width and height; None where no box named the photo or it could not be read
    faces: list[PredictedFace]
    skipped: list[Skipped]


class _Found(NamedTuple):
    """What the network says of one crop, see :class:`PredictedFace`."""

    points: Array  # (N, 2) in pixels of the crop
    confidence: Array
    pose: Array | None


class Cuts(NamedTuple):
    """The faces of one photo as the network sees them."""

    size: tuple[int, int] | None
    faces: list[int]
    boxes: list[Array]
    crops: list[Array]  # (S, S, 3) uint8 RGB
    to_photo: list[Array]  # (3, 3)
    skipped: list[Skipped]


def find_photos(images: str) -> Photos:
    """The photos of a folder and the folders in it, a single photo, or those that a pattern matches.

    Files and folders whose name begins with a dot are not looked at. Names are relative to the folder, to the photo's
    folder, or to the last folder of the pattern before its first wildcard.

    Raises:
        ConfigError: there is no such file or folder, or no photo in it.
        DatasetError: a folder cannot be read.
    """
    given = at_home(images)
    if given.is_file():
        return Photos(given.parent, {printable(given.name): given}, {})
    if given.is_dir():
        folder = given
        try:
            files = list({os.path.realpath(file): file for file in reversed(walk(given))}.values())
        except OSError as error:
            raise DatasetError(f"{error.filename}: {error.strerror}") from error
    elif any(mark in images for mark in "*?["):
        wild = next(i for i, part in enumerate(given.parts) if any(mark in part for mark in "*?["))
        folder = Path(*given.parts[:wild])
        matches = folder.glob("/".join(given.parts[wild:]))
        shown = {os.path.realpath(file): file for file in sorted(matches) if file.is_file() and _is_shown(file, folder)}
        files = list(shown.values())
    else:
        raise ConfigError("images", f"={images}: there is no such file or folder")
    photos = sorted(file for file in files if file.suffix.lower() in SUFFIXES)
    others = Counter(file.suffix.lower() or "no ending" for file in files if file.suffix.lower() not in SUFFIXES)
    if not photos:
        held = f"only other files ({_counted(others)})" if others else "no file"
        raise ConfigError("images", f"={images}: {held} there; expected photos ({', '.join(sorted(SUFFIXES))})")
    return Photos(folder, {printable(file.relative_to(folder).as_posix()): file for file in photos}, dict(others))


def _is_shown(file: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def predict(
    module: LandmarkModule,
    crop: Crop,
    photos: Photos,
    boxes: Boxes | None,
    batch_size: int,
    pool: Executor,
    *,
    fractions: bool,
) -> Iterator[list[PredictedPhoto]]:
    """Find the landmarks of every face of every photo, some photos at a time.

    Args:
        module: in evaluation mode, on the device that is to be used.
        crop: how a face is cut out around its box.
        photos: to predict.
        boxes: of the faces; None takes each whole photo as one face.
        batch_size: faces that go through the network at once, and photos that are read at once.
        pool: threads that read photos.
        fractions: whether boxes are fractions of the photo's width and height, and not pixels.

    Yields:
        Up to ``batch_size`` photos, all of them and in their order. A photo that cannot be read, that has no box, or a
        face that has no usable one, is among its ``skipped``.
    """
    names = list(photos.paths)
    for start in range(0, len(names), batch_size):
        chunk = names[start : start + batch_size]
        cuts = list(pool.map(lambda name: cut_photo(name, photos.paths[name], boxes, crop, fractions=fractions), chunk))
        found = _find(module, [image for cut in cuts for image in cut.crops], batch_size)
        yield [_collect(name, photos.paths[name], cut, found) for name, cut in zip(chunk, cuts, strict=True)]


def cut_photo(name: str, path: Path, boxes: Boxes | None, crop: Crop, *, fractions: bool) -> Cuts:
    """Cut the faces out of a photo; a face that fails leaves the others alone."""
    cuts = Cuts(None, [], [], [], [], [])
    named = unicodedata.normalize("NFC", name)
    if boxes is not None and named not in boxes:
        cuts.skipped.append(Skipped(name, None, "the file of boxes does not name it"))
        return cuts
    photo = PhotoFile(path, "shown")
    try:
        whole = photo.box()
        for face, given in enumerate([whole] if boxes is None else boxes[named]):
            box = given.astype(np.float64)
            if fractions and boxes is not None:
                box = from_cells(box.reshape(2, 2), whole[2:] - whole[:2]).ravel()
            if reason := _unusable(box, whole):
                cuts.skipped.append(Skipped(name, face, reason))
                continue
            matrix = crop.matrix(box)
            try:
                image = photo.cut_out(matrix, crop.size)
            except CropError as error:
                cuts.skipped.append(Skipped(name, face, _without(path, error)))
                continue
            cuts.faces.append(face)
            cuts.boxes.append(box)
            cuts.crops.append(image)
            cuts.to_photo.append(np.linalg.inv(matrix))
    except ImageError as error:
        return Cuts(None, [], [], [], [], [Skipped(name, None, _without(path, error))])
    width, height = (whole[2:] - whole[:2]).round().astype(int).tolist()
    return cuts._replace(size=(width, height))


def _without(path: Path, error: ImageError) -> str:
    """Give the reason of an error without the photo's name."""
    return str(error).strip().removeprefix(f"{printable(str(path))}: ")


def _unusable(box: Array, whole: Array) -> str | None:
    """Say why a face cannot be cut out by a box, given the box of the whole photo."""
    shown = [float(f"{value:.6g}") for value in box]
    if not np.isfinite(box).all():
        return f"the box {shown} is not finite"
    if not (box[:2] < box[2:]).all():
        return f"the box {shown} has no area: expected x0 y0 x1 y1 (not width and height) with x0 < x1 and y0 < y1"
    if not ((box[:2] < whole[2:]) & (whole[:2] < box[2:])).all():
        return f"the box {shown} lies outside the photo"
    sides, photo = box[2:] - box[:2], whole[2:] - whole[:2]
    if (sides < 1).any():
        return f"the box {shown} is smaller than a pixel: units=fraction takes boxes as fractions of the photo's sides"
    if (sides > LARGEST * photo.max()).any():
        return f"the box {shown} is over {LARGEST} times as large as the photo"
    return None


def _find(module: LandmarkModule, crops: Sequence[Array], batch_size: int) -> Iterator[_Found]:
    """What is found in each crop in turn."""
    for start in range(0, len(crops), batch_size):
        with torch.inference_mode():
            image = torch.from_numpy(np.stack(crops[start : start + batch_size])).permute(0, 3, 1, 2)
            points, confidence, pose = module.predict(image.to(module.device))
        poses = [None] * len(points) if pose is None else pose.double().cpu().numpy()
        yield from map(_Found, points.double().cpu().numpy(), confidence.double().cpu().numpy(), poses)


def _collect(name: str, path: Path, cuts: Cuts, found: Iterator[_Found]) -> PredictedPhoto:
    photo = PredictedPhoto(name, path, cuts.size, [], list(cuts.skipped))
    for face, box, to_photo in zip(cuts.faces, cuts.boxes, cuts.to_photo, strict=True):
        points, confidence, pose = next(found)
        if np.isfinite(points).all():
            photo.faces.append(PredictedFace(face, box, transform_points(to_photo, points), confidence, pose))
        else:
            photo.skipped.append(Skipped(name, face, "the network's points are no numbers; did its training diverge?"))
    return photo


def unknown(boxes: Boxes, photos: Photos) -> list[Skipped]:
    """The photos that a file of boxes names and that are not there."""
    reason = f"the file of boxes names it, but it is not among the photos of {photos.folder}"
    known = {unicodedata.normalize("NFC", name) for name in photos.paths}
    return [Skipped(name, None, reason) for name in boxes if name not in known]
