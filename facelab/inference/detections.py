"""Face detection on photos without annotations."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from facelab import MAX_PIXELS
from facelab.errors import ImageError
from facelab.faces.detections import CascadeRule, DetectionRule
from facelab.faces.geometry import Array
from facelab.faces.image import PhotoFile, read_image
from facelab.faces.pose import estimate_pose_of_five
from facelab.inference.photos import Photos, PredictedPhoto, Skipped, reason_of
from lightning_modules.detector import DetectorModule

THRESHOLD = 0.5
"""Smallest score of a predicted face, unless another one is chosen. On 74 photos of WIDER FACE's val, RetinaFace's
published ``mobilenet0.25`` finds 184 of 197 faces from this score on, beside 19 false ones; from the 0.02 of its rule
on, which is for the AP, 188 beside 879."""
DECODED_PIXELS = 64_000_000
"""Largest number of pixels of the photos that are in memory at a time, 0.2 GB, unless a single photo has more."""
SEARCHED_PIXELS = 4_000_000
"""Largest number of pixels of the images in a forward pass, unless a single photo has more; ResNet-50 needs about 1 GB
for them."""


class DetectedFace(NamedTuple):
    """A face that a detector found, in pixels of the photo."""

    face: int  # place among the faces of its photo, highest score first
    box: Array  # (4,) x0 y0 x1 y1, which may extend beyond the photo
    score: float  # 0 to 1
    points: Array | None  # (5, 2) in the order of FIVE5; None from a detector without points
    pose: Array | None  # (3,) yaw, pitch, roll in degrees, estimated from the points; None without them


class DetectedFaces(NamedTuple):
    """The faces that a detector found in one photo."""

    faces: list[DetectedFace]
    left_out: list[tuple[int | None, str]]  # a detection, or None for several, and why it is not among the faces


def predict(
    module: DetectorModule, photos: Photos, batch_size: int, pool: Executor
) -> Iterator[list[PredictedPhoto[DetectedFace]]]:
    """Find the faces in all photos, a chunk of photos at a time.

    Args:
        module: detector in evaluation mode on its device.
        photos: photos to search.
        batch_size: maximum number of photos in a forward pass and in a chunk.
        pool: executor of the threads that read photos.

    Yields:
        Up to ``batch_size`` photos, all photos in their order. ``skipped`` of a photo contains the photo if it cannot
        be read or is too large to be searched, and each detection that is not finite.
    """
    names = list(photos.paths)
    for start in range(0, len(names), batch_size):
        chunk = names[start : start + batch_size]
        pixels = np.cumsum(list(pool.map(lambda name: _pixels(photos.paths[name]), chunk)))
        found: list[PredictedPhoto[DetectedFace]] = []
        for _, part in groupby(zip(chunk, pixels // DECODED_PIXELS, strict=True), key=lambda pair: int(pair[1])):
            found += _search_photos(module, photos, [name for name, _ in part], batch_size, pool)
        yield found


def _pixels(path: Path) -> int:
    """Read the number of pixels of a photo from its header; 0 if the header cannot be read."""
    try:
        x0, y0, x1, y1 = PhotoFile(path, "shown").box().tolist()
    except ImageError:
        return 0
    return round((x1 - x0) * (y1 - y0))


def _search_photos(
    module: DetectorModule, photos: Photos, names: Sequence[str], batch_size: int, pool: Executor
) -> list[PredictedPhoto[DetectedFace]]:
    """Read photos and find the faces in them."""
    images = list(pool.map(lambda name: _read(photos.paths[name], module.detection), names))
    searched = iter(search(module, [image for image in images if isinstance(image, np.ndarray)], batch_size))
    found = []
    for name, image in zip(names, images, strict=True):
        path = photos.paths[name]
        if isinstance(image, np.ndarray):
            faces, left_out = next(searched)
            skipped = [Skipped(name, face, reason) for face, reason in left_out]
            found.append(PredictedPhoto(name, path, (image.shape[1], image.shape[0]), faces, skipped))
        else:
            found.append(PredictedPhoto(name, path, None, [], [Skipped(name, None, image)]))
    return found


def _read(path: Path, rule: DetectionRule | CascadeRule) -> Array | str:
    """Read a photo in the orientation of its tag, or return why it cannot be searched."""
    try:
        image = read_image(path, orientation="shown")
        check_searched(rule, image, str(path))
    except ImageError as error:
        return reason_of(path, error)
    return image


def check_searched(rule: DetectionRule | CascadeRule, image: Array, name: str) -> None:
    """Refuse an image ``(H, W, 3)`` that the rule enlarges beyond the memory of any machine.

    Raises:
        ImageError: it has more than :data:`facelab.MAX_PIXELS` pixels where it is searched.
    """
    height, width = rule.largest(*image.shape[:2])
    if height * width > MAX_PIXELS:
        cause, remedy = _size_options(rule)
        raise ImageError(
            f"{name}: {cause} enlarges {image.shape[1]} x {image.shape[0]} pixels to {width} x {height}; the largest "
            f"allowed is {MAX_PIXELS // 10**6} megapixels, and {remedy}"
        )


def _size_options(rule: DetectionRule | CascadeRule) -> tuple[str, str]:
    """Return the option that sets the size of the searched image, and a value that makes it smaller."""
    if isinstance(rule, CascadeRule):
        return f"detection.min_face={rule.min_face}", "a larger one has a smaller image"
    return f"detection.scale={rule.scale}", "detection.scale=vga has a longer side of 640"


def search(module: DetectorModule, images: Sequence[Array], batch_size: int) -> list[DetectedFaces]:
    """Find the faces in images.

    Images of one size are searched together, as many as :data:`SEARCHED_PIXELS` allows.

    Args:
        module: detector in evaluation mode on its device.
        images: ``(H, W, 3)`` uint8 RGB each, of any sizes; see :func:`check_searched`.
        batch_size: maximum number of images in a forward pass.

    Returns:
        The faces of each image, highest score first.
    """
    found: dict[int, DetectedFaces] = {}
    rows = sorted(range(len(images)), key=lambda row: images[row].shape)
    for (height, width, _), same in groupby(rows, key=lambda row: images[row].shape):
        pixels = math.prod(module.detection.largest(height, width))
        together, waiting = min(batch_size, max(1, SEARCHED_PIXELS // pixels)), list(same)
        for start in range(0, len(waiting), together):
            batch = waiting[start : start + together]
            found |= dict(zip(batch, _search(module, np.stack([images[row] for row in batch])), strict=True))
    return [found[row] for row in range(len(images))]


def _search(module: DetectorModule, images: Array) -> Iterator[DetectedFaces]:
    """Yield the faces of each of ``(B, H, W, 3)`` images of one size."""
    rule = module.detection
    try:
        with torch.inference_mode():
            image = torch.from_numpy(images).permute(0, 3, 1, 2).to(module.device)
            size = torch.tensor([images.shape[1:3]] * len(images), device=module.device)
            found = module.detect(image, size)
    except torch.OutOfMemoryError:
        cause, remedy = _size_options(rule)
        reason = f"the memory of the device is too small at {cause}; device=cpu may do, and {remedy}"
        yield from [DetectedFaces([], [(None, reason)])] * len(images)
        return
    boxes, scores, points, photo, cut = (column.cpu().numpy() for column in found)
    boxes, points = boxes.astype(np.float64), points.astype(np.float64)
    poses = estimate_pose_of_five(np.where(np.isfinite(points), points, np.nan)).astype(np.float64)
    for row in range(len(images)):
        result = DetectedFaces([], [])
        if cut[row]:
            limits = f"detection.candidates={rule.candidates} or detection.most={rule.most}"
            result.left_out.append((None, f"some detections of the lowest scores, more than {limits}"))
        for face, each in enumerate(np.flatnonzero(photo == row)):
            if not np.isfinite(boxes[each]).all():
                result.left_out.append((face, "the predicted box is not finite; did the training diverge?"))
                continue
            pointed, posed = np.isfinite(points[each]).all(), np.isfinite(poses[each]).all()
            result.faces.append(
                DetectedFace(
                    face,
                    boxes[each],
                    float(scores[each]),
                    points[each] if pointed else None,
                    poses[each] if posed else None,
                )
            )
        yield result
