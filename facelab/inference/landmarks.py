"""Landmark prediction on photos without annotations."""

import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from facelab.errors import ImageError
from facelab.faces.crop import Crop
from facelab.faces.geometry import Array, from_cells
from facelab.faces.image import CropError, PhotoFile
from facelab.inference.boxes_file import Boxes
from facelab.inference.photos import Photos, PredictedPhoto, Skipped, reason_of
from lightning_modules.landmark import LandmarkModule

MAX_BOX_FACTOR = 50
"""Maximum side of a face box, as a multiple of the photo's longer side; a larger box is a mistake in its units."""


class PredictedFace(NamedTuple):
    """The landmarks of one face."""

    face: int  # index among the boxes of its photo
    box: Array  # (4,) from which its crop was made
    points: Array  # (N, 2)
    confidence: Array  # (N,) in [0, 1]
    pose: Array | None  # (3,) yaw, pitch, roll in degrees; None if the model predicts no pose


class CropPrediction(NamedTuple):
    """The prediction for one crop, see :class:`PredictedFace`."""

    points: Array  # (N, 2) in pixels of the crop
    confidence: Array
    pose: Array | None


class FaceCrops(NamedTuple):
    """The crops of the faces of one photo."""

    size: tuple[int, int] | None
    faces: list[int]
    boxes: list[Array]
    images: list[Array]  # (S, S, 3) uint8 RGB
    to_photo: list[Array]  # (3, 3)
    skipped: list[Skipped]


def predict(
    module: LandmarkModule,
    crop: Crop,
    photos: Photos,
    boxes: Boxes | None,
    batch_size: int,
    pool: Executor,
    *,
    fractions: bool,
) -> Iterator[list[PredictedPhoto[PredictedFace]]]:
    """Predict the landmarks of all faces of all photos, a chunk of photos at a time.

    Args:
        module: model in evaluation mode on its device.
        crop: crop of a face around its box.
        photos: photos to predict.
        boxes: boxes of the faces; with None each whole photo is one face.
        batch_size: maximum number of faces in a forward pass and of photos in a chunk.
        pool: executor of the threads that read photos.
        fractions: whether boxes are fractions of the photo's width and height instead of pixels.

    Yields:
        Up to ``batch_size`` photos, all photos in their order. ``skipped`` of a photo contains the photo if it cannot
        be read or has no box, and each face whose box cannot be used.
    """
    names = list(photos.paths)
    for start in range(0, len(names), batch_size):
        chunk = names[start : start + batch_size]
        cut = list(pool.map(lambda name: cut_photo(name, photos.paths[name], boxes, crop, fractions=fractions), chunk))
        predictions = predict_crops(module, [image for faces in cut for image in faces.images], batch_size)
        yield [
            collect(module, name, photos.paths[name], faces, predictions)
            for name, faces in zip(chunk, cut, strict=True)
        ]


def cut_photo(name: str, path: Path, boxes: Boxes | None, crop: Crop, *, fractions: bool) -> FaceCrops:
    """Crop the faces of a photo file, see :func:`cut_faces`; without its boxes the photo is skipped."""
    key = unicodedata.normalize("NFC", name)
    if boxes is not None and key not in boxes:
        return FaceCrops(None, [], [], [], [], [Skipped(name, None, "the file of boxes does not contain it")])
    return cut_faces(name, PhotoFile(path, "shown"), None if boxes is None else boxes[key], crop, fractions=fractions)


def cut_faces(
    name: str, photo: PhotoFile, boxes: Sequence[Array] | None, crop: Crop, *, fractions: bool = False
) -> FaceCrops:
    """Crop the faces of a photo. A face that fails is skipped without effect on the others.

    Args:
        name: name of the photo in the list of skipped faces.
        photo: the photo.
        boxes: boxes ``(4,)`` of its faces; with None the whole photo is one face.
        crop: crop of a face around its box.
        fractions: whether boxes are fractions of the photo's width and height instead of pixels.
    """
    crops = FaceCrops(None, [], [], [], [], [])
    try:
        whole = photo.box()
        for face, given in enumerate([whole] if boxes is None else boxes):
            box = given.astype(np.float64)
            if fractions and boxes is not None:
                box = from_cells(box.reshape(2, 2), whole[2:] - whole[:2]).ravel()
            if reason := _fault_of(box, whole):
                crops.skipped.append(Skipped(name, face, reason))
                continue
            try:
                matrix = crop.matrix(box, whole)
                image = crop.cut_out(photo, box, whole)
            except CropError as error:
                crops.skipped.append(Skipped(name, face, reason_of(photo.path, error)))
                continue
            crops.faces.append(face)
            crops.boxes.append(box)
            crops.images.append(image)
            crops.to_photo.append(np.linalg.inv(matrix))
    except ImageError as error:
        return FaceCrops(None, [], [], [], [], [Skipped(name, None, reason_of(photo.path, error))])
    width, height = (whole[2:] - whole[:2]).round().astype(int).tolist()
    return crops._replace(size=(width, height))


def _fault_of(box: Array, whole: Array) -> str | None:
    """Return why a box cannot be used for a crop, or None if it can; ``whole`` is the box of the whole photo."""
    rounded = [float(f"{value:.6g}") for value in box]
    if not np.isfinite(box).all():
        return f"the box {rounded} is not finite"
    if not (box[:2] < box[2:]).all():
        return f"the box {rounded} has no area: expected x0 y0 x1 y1 (not width and height) with x0 < x1 and y0 < y1"
    if not ((box[:2] < whole[2:]) & (whole[:2] < box[2:])).all():
        return f"the box {rounded} is outside the photo"
    sides, photo = box[2:] - box[:2], whole[2:] - whole[:2]
    if (sides < 1).any():
        return f"the box {rounded} is smaller than a pixel; use units=fraction for fractions of the photo's sides"
    if (sides > MAX_BOX_FACTOR * photo.max()).any():
        return f"the box {rounded} is over {MAX_BOX_FACTOR} times as large as the photo"
    return None


def predict_crops(module: LandmarkModule, crops: Sequence[Array], batch_size: int) -> Iterator[CropPrediction]:
    """Yield the prediction of each crop, in the order of the crops."""
    for start in range(0, len(crops), batch_size):
        with torch.inference_mode():
            image = torch.from_numpy(np.stack(crops[start : start + batch_size])).permute(0, 3, 1, 2)
            points, confidence, pose = module.predict(image.to(module.device))
        poses = [None] * len(points) if pose is None else pose.double().cpu().numpy()
        yield from map(CropPrediction, points.double().cpu().numpy(), confidence.double().cpu().numpy(), poses)


def collect(
    module: LandmarkModule, name: str, path: Path, crops: FaceCrops, predictions: Iterator[CropPrediction]
) -> PredictedPhoto[PredictedFace]:
    """Take the predictions of the faces of one photo from the iterator."""
    photo = PredictedPhoto[PredictedFace](name, path, crops.size, [], list(crops.skipped))
    for face, box, to_photo in zip(crops.faces, crops.boxes, crops.to_photo, strict=True):
        points, confidence, pose = next(predictions)
        if np.isfinite(points).all():
            in_photo = module.map_to_photo(torch.from_numpy(points), torch.from_numpy(to_photo)).numpy()
            photo.faces.append(PredictedFace(face, box, in_photo, confidence, pose))
        else:
            photo.skipped.append(Skipped(name, face, "the predicted points are not finite; did the training diverge?"))
    return photo
