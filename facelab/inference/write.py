"""Files of a prediction: landmarks and detections as JSON and CSV, and pictures."""

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from facelab.errors import ImageError
from facelab.faces.drawing import PREDICTION, draw_landmarks
from facelab.faces.geometry import Array, bounding_box
from facelab.faces.image import read_image
from facelab.faces.layouts import FIVE5, Layout
from facelab.files import replacing
from facelab.inference.boxes_file import COLUMNS
from facelab.inference.detections import DetectedFace
from facelab.inference.landmarks import PredictedFace
from facelab.inference.photos import PredictedPhoto
from facelab.metrics.face_table import ANGLES, cells

UNITS = "pixels of the upright photo, x right, y down; the centre of the top-left pixel is (0, 0)"
POSE = "yaw, pitch, roll in degrees, positive: nose towards image-left, chin up, clockwise"
DECIMALS = 3
"""Decimal places of written numbers: a thousandth of a pixel."""


def contents(photos: Sequence[PredictedPhoto[Any]], layout: Layout) -> dict[str, Any]:
    """Return the content of a JSON file: the predictions on all readable photos, and the units.

    Args:
        photos: photos with :class:`PredictedFace` or :class:`DetectedFace`.
        layout: layout of their points.
    """
    return {
        "units": f"{UNITS}; boxes are x0 y0 x1 y1, sizes width and height",
        **({"pose": POSE} if _has_pose(photos) else {}),
        "layout": layout.name,
        "images": {
            photo.name: {"size": photo.size, "faces": [_face_contents(face) for face in photo.faces]}
            for photo in photos
            if photo.size
        },
    }


def _face_contents(face: PredictedFace | DetectedFace) -> dict[str, Any]:
    """Return a face as JSON content, without what was not predicted."""
    given = {name: value for name, value in face._asdict().items() if value is not None}
    return {name: np.round(value, DECIMALS).tolist() for name, value in given.items()}


def _has_pose(photos: Iterable[PredictedPhoto[Any]]) -> bool:
    """Return whether any face has a predicted pose."""
    return any(face.pose is not None for photo in photos for face in photo.faces)


def write_landmarks(path: Path, photos: Sequence[PredictedPhoto[PredictedFace]], layout: Layout) -> None:
    """Write one line per face: photo, face, box, points, mean confidence of the points, and the pose if predicted."""
    _write_csv(path, photos, layout, "mean_confidence", lambda face: face.confidence.mean())


def write_detections(path: Path, photos: Sequence[PredictedPhoto[DetectedFace]]) -> None:
    """Write one line per face: photo, face, box, points, score, and the pose if any was estimated."""
    _write_csv(path, photos, FIVE5, "score", lambda face: face.score)


def _write_csv(
    path: Path,
    photos: Sequence[PredictedPhoto[Any]],
    layout: Layout,
    certainty: str,
    certainty_of: Callable[[Any], float],
) -> None:
    """Write one line per face; what a face lacks is an empty cell."""
    columns = [f"p{i}_{axis}" for i in range(layout.num_points) for axis in "xy"]
    pose = ANGLES if _has_pose(photos) else ()
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([COLUMNS[0], "face", *COLUMNS[1:], *columns, certainty, *pose])
        for photo in photos:
            for face in photo.faces:
                points = np.full(len(columns), np.nan) if face.points is None else face.points.ravel()
                angles = np.full(len(pose), np.nan) if face.pose is None else face.pose
                numbers = np.concatenate([face.box, points, [certainty_of(face)], angles])
                writer.writerow([photo.name, face.face, *cells(numbers.round(DECIMALS))])


def write_picture(photo: PredictedPhoto[Any], draw: Callable[[Array, Any], Array], folder: Path) -> None:
    """Draw the faces on a photo at full resolution and write it under its name into a folder.

    A photo that is neither JPEG nor PNG is written as PNG.

    Args:
        photo: the photo.
        draw: function of the image and the faces that returns the picture.
        folder: folder of the pictures.

    Raises:
        ImageError: the photo cannot be read again, or is too large for its format.
        OSError: the picture cannot be written.
    """
    picture = draw(read_image(photo.path, orientation="shown"), photo.faces)
    keeps_format = PurePosixPath(photo.name).suffix.lower() in {".jpg", ".jpeg", ".png"}
    path = folder / (photo.name if keeps_format else f"{photo.name}.png")
    # Python writes the file because OpenCV cannot open every file name that the system allows.
    try:
        _, content = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise ImageError(f"{photo.path}: {error.err}") from error
    with replacing(path) as temporary:
        temporary.write_bytes(content.tobytes())


def draw_face(image: Array, points: Array, layout: Layout) -> None:
    """Draw a face into an image, only on the part around it: the size of the part determines the size of the dots."""
    low, high = bounding_box(points).reshape(2, 2)
    margin = max(8.0, 0.1 * (high - low).max())
    height, width = image.shape[:2]
    x0, y0 = np.floor(low - margin).clip(0, (width, height)).astype(int)
    x1, y1 = np.ceil(high + margin).clip(0, (width, height)).astype(int)
    if x0 < x1 and y0 < y1:
        part = image[y0:y1, x0:x1]
        part[:] = draw_landmarks(part, points - np.array([x0, y0]), layout, PREDICTION, lines=True)
