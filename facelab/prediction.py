"""Landmarks on photos that nobody annotated: find the photos, read the boxes of the faces, predict, write the results.

Everything here is in pixels of the **upright** photo, turned as its orientation mark (EXIF) says.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch

from facelab.annotations.points_file import read_lines, read_table
from facelab.atomic import replacing
from facelab.landmarks.crop import Crop
from facelab.landmarks.drawing import PREDICTION, draw_landmarks
from facelab.landmarks.face import DataFault
from facelab.landmarks.geometry import Array, apply, tight_box
from facelab.landmarks.image import SUFFIXES, FaultyImage, read_image, reduction, upright, warp
from facelab.landmarks.layouts import Layout
from facelab.metrics.landmarks import ANGLES

if TYPE_CHECKING:
    from lightning_modules.landmark import LandmarkModule

COLUMNS = ("image", "x0", "y0", "x1", "y1")
"""Of a CSV file of boxes."""
UNITS = "pixels of the upright photo, x right, y down; the centre of the top-left pixel is (0, 0)"
POSE = "yaw, pitch, roll in degrees, positive: nose towards image-left, chin up, clockwise"
DECIMALS = 3
"""Of what is written: a thousandth of a pixel."""

Boxes = dict[str, list[Array]]  # name of a photo -> (4,) x0 y0 x1 y1 of each of its faces


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


class _Cuts(NamedTuple):
    """The faces of one photo as the network sees them."""

    size: tuple[int, int] | None
    faces: list[int]
    boxes: list[Array]
    crops: list[Array]  # (S, S, 3) uint8 RGB
    to_photo: list[Array]  # (3, 3)
    skipped: list[Skipped]


# Input


def find_photos(images: str) -> Photos:
    """The photos of a folder and the folders in it, a single photo, or those that a pattern matches.

    Files and folders whose name begins with a dot are not looked at. Names are relative to the folder, to the photo's
    folder, or to the last folder of the pattern before its first wildcard.

    Raises:
        DataFault: there is no such file or folder, or no photo in it.
    """
    given = Path(images).expanduser()
    if given.is_file():
        return Photos(given.parent, {given.name: given}, {})
    if given.is_dir():
        folder, files = given, list(_walk(given))
    elif any(mark in images for mark in "*?["):
        wild = next(i for i, part in enumerate(given.parts) if any(mark in part for mark in "*?["))
        folder = Path(*given.parts[:wild])
        files = [
            file for file in folder.glob("/".join(given.parts[wild:])) if file.is_file() and _is_shown(file, folder)
        ]
    else:
        raise DataFault(f"images={images}: there is no such file or folder")
    photos = sorted(file for file in files if file.suffix.lower() in SUFFIXES)
    others = Counter(file.suffix.lower() or "no ending" for file in files if file.suffix.lower() not in SUFFIXES)
    if not photos:
        held = f"only other files ({_counted(others)})" if others else "no file"
        raise DataFault(f"images={images}: {held} there; expected photos ({', '.join(sorted(SUFFIXES))})")
    return Photos(folder, {file.relative_to(folder).as_posix(): file for file in photos}, dict(others))


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in files if not name.startswith("."))


def _is_shown(file: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _refuse(error: OSError) -> None:
    raise DataFault(f"{error.filename}: {error.strerror}") from error


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def read_boxes(path: Path) -> Boxes:
    """The boxes of the faces of each photo.

    Args:
        path: a CSV file, ``image,x0,y0,x1,y1`` on its first line and one face on each other, or a JSON file,
            ``{"photo.jpg": [[x0, y0, x1, y1], ...], ...}``. Photos are named relative to the folder of the photos.

    Raises:
        DataFault: the file is not as described; names the line or the photo and the face.
    """
    if path.suffix.lower() == ".json":
        return _boxes_of_json(path)
    if path.suffix.lower() == ".csv":
        return _boxes_of_csv(path)
    raise DataFault(f"boxes={path}: expected a file that ends in .csv or .json")


def _name(text: str) -> str:
    return str(PurePosixPath(text.strip()))


def _boxes_of_csv(path: Path) -> Boxes:
    boxes: Boxes = {}
    rows = csv.reader(read_lines(path))
    meaning = ",".join(COLUMNS)
    if tuple(field.strip() for field in next(rows)) != COLUMNS:
        raise DataFault(f"{path}, line 1: expected the header {meaning}")
    for row in filter(None, rows):
        place = f"{path}, line {rows.line_num}"
        if len(row) != len(COLUMNS):
            raise DataFault(f"{place}: found {len(row)} values, expected {len(COLUMNS)} ({meaning})")
        name, *numbers = row
        if not name.strip():
            raise DataFault(f"{place}: no image is named, expected {meaning}")
        table = read_table(
            [",".join(numbers)], 4, ",".join(COLUMNS[1:]), path, rows.line_num, delimiter=",", may_lack=False
        )
        boxes.setdefault(_name(name), []).append(table[0].astype(np.float64))
    return boxes


def _boxes_of_json(path: Path) -> Boxes:
    try:
        content = json.loads("\n".join(read_lines(path)), object_pairs_hook=lambda pairs: _unique(pairs, path))
    except json.JSONDecodeError as error:
        raise DataFault(f"{path}, line {error.lineno}: not JSON, {error.msg}") from error
    if not isinstance(content, dict):
        raise DataFault(f'{path}: expected {{"photo.jpg": [[x0, y0, x1, y1], ...], ...}}, found {_kind(content)}')
    boxes: Boxes = {}
    for name, faces in content.items():
        if not isinstance(faces, list):
            raise DataFault(f"{path}, {name!r}: expected a list of boxes, found {_kind(faces)}")
        for number, box in enumerate(faces):
            if not _is_box(box):
                raise DataFault(f"{path}, {name!r}, face {number}: expected [x0, y0, x1, y1] in numbers, found {box}")
        boxes.setdefault(_name(name), []).extend(np.array(box, np.float64) for box in faces)
    return boxes


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    if double := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise DataFault(f"{path}: {double[0]!r} stands there twice; put all boxes of a photo into one list")
    return dict(pairs)


def _kind(content: Any) -> str:
    return "a mapping" if isinstance(content, dict) else "a list" if isinstance(content, list) else repr(content)


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in box)
        and bool(np.isfinite(np.array(box, np.float64)).all())
    )


# Prediction


def predict(
    module: "LandmarkModule", crop: Crop, photos: Photos, boxes: Boxes | None, batch_size: int, pool: Executor
) -> Iterator[list[PredictedPhoto]]:
    """Find the landmarks of every face of every photo, some photos at a time.

    Args:
        module: in evaluation mode, on the device that is to be used.
        crop: how a face is cut out around its box.
        photos: to predict.
        boxes: of the faces; None takes each whole photo as one face.
        batch_size: faces that go through the network at once, and photos that are read at once.
        pool: threads that read photos.

    Yields:
        Up to ``batch_size`` photos, all of them and in their order. A photo that cannot be read, that has no box, or a
        face that has no usable one, is among its ``skipped``.
    """
    names = list(photos.paths)
    for start in range(0, len(names), batch_size):
        chunk = names[start : start + batch_size]
        cuts = list(pool.map(lambda name: _cut(name, photos.paths[name], boxes, crop), chunk))
        found = _find(module, [image for cut in cuts for image in cut.crops], batch_size)
        yield [_collect(name, photos.paths[name], cut, found) for name, cut in zip(chunk, cuts, strict=True)]


def _cut(name: str, path: Path, boxes: Boxes | None, crop: Crop) -> _Cuts:
    cuts = _Cuts(None, [], [], [], [], [])
    if boxes is not None and name not in boxes:
        cuts.skipped.append(Skipped(name, None, "the file of boxes does not name it"))
        return cuts
    try:
        to_upright, whole = upright(path)
        decoded: dict[int, Array] = {}
        for face, box in enumerate([whole] if boxes is None else boxes[name]):
            if reason := _unusable(box, whole):
                cuts.skipped.append(Skipped(name, face, reason))
                continue
            matrix = crop.matrix(box)
            from_stored = matrix @ to_upright
            reduce = reduction(path, from_stored)
            if reduce not in decoded:
                decoded[reduce] = read_image(path, reduce=reduce)
            cuts.faces.append(face)
            cuts.boxes.append(box)
            cuts.crops.append(warp(decoded[reduce], from_stored, crop.size, reduce=reduce))
            cuts.to_photo.append(np.linalg.inv(matrix))
    except (FaultyImage, cv2.error) as error:
        reason = str(error).strip().removeprefix(f"{path}: ")
        return _Cuts(None, [], [], [], [], [Skipped(name, None, reason)])
    width, height = (whole[2:] - whole[:2]).round().astype(int).tolist()
    return cuts._replace(size=(width, height))


def _unusable(box: Array, whole: Array) -> str | None:
    """Why a face cannot be cut out by a box, given the box of the whole photo."""
    shown = np.round(box, 1).tolist()
    if not (box[:2] < box[2:]).all():
        return f"the box {shown} has no area: expected x0 y0 x1 y1 (not width and height) with x0 < x1 and y0 < y1"
    if not ((box[:2] < whole[2:]) & (whole[:2] < box[2:])).all():
        return f"the box {shown} lies outside the photo"
    return None


def _find(module: "LandmarkModule", crops: Sequence[Array], batch_size: int) -> Iterator[_Found]:
    """What is found in each crop in turn."""
    for start in range(0, len(crops), batch_size):
        with torch.inference_mode():
            image = torch.from_numpy(np.stack(crops[start : start + batch_size])).permute(0, 3, 1, 2)
            points, confidence, pose = module.predict(image.to(module.device))
        poses = [None] * len(points) if pose is None else pose.double().cpu().numpy()
        yield from map(_Found, points.double().cpu().numpy(), confidence.double().cpu().numpy(), poses)


def _collect(name: str, path: Path, cuts: _Cuts, found: Iterator[_Found]) -> PredictedPhoto:
    photo = PredictedPhoto(name, path, cuts.size, [], list(cuts.skipped))
    for face, box, to_photo in zip(cuts.faces, cuts.boxes, cuts.to_photo, strict=True):
        points, confidence, pose = next(found)
        if np.isfinite(points).all():
            photo.faces.append(PredictedFace(face, box, apply(to_photo, points), confidence, pose))
        else:
            photo.skipped.append(Skipped(name, face, "the network's points are no numbers; did its training diverge?"))
    return photo


# Output


def unknown(boxes: Boxes, photos: Photos) -> list[Skipped]:
    """The photos that a file of boxes names and that are not there."""
    reason = f"the file of boxes names it, but it is not among the photos of {photos.folder}"
    return [Skipped(name, None, reason) for name in boxes if name not in photos.paths]


def contents(photos: Sequence[PredictedPhoto], layout: Layout) -> dict[str, Any]:
    """What ``landmarks.json`` says of the photos that could be read, and what its numbers mean."""
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


def _face_contents(face: PredictedFace) -> dict[str, Any]:
    numbers = {"box": face.box, "points": face.points, "confidence": face.confidence}
    numbers |= {} if face.pose is None else {"pose": face.pose}
    return {"face": face.face, **{name: value.round(DECIMALS).tolist() for name, value in numbers.items()}}


def _has_pose(photos: Iterable[PredictedPhoto]) -> bool:
    return any(face.pose is not None for photo in photos for face in photo.faces)


def write_csv(path: Path, photos: Sequence[PredictedPhoto], layout: Layout) -> None:
    """Write one line per face: photo, face, box, points, the mean of the points' confidence, the pose if known."""
    points = [f"p{i}_{axis}" for i in range(layout.num_points) for axis in "xy"]
    pose = ANGLES if _has_pose(photos) else ()
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([COLUMNS[0], "face", *COLUMNS[1:], *points, "mean_confidence", *pose])
        for photo in photos:
            for face in photo.faces:
                angles = np.empty(0) if face.pose is None else face.pose
                numbers = np.concatenate([face.box, face.points.ravel(), [face.confidence.mean()], angles])
                writer.writerow([photo.name, face.face, *numbers.round(DECIMALS).tolist()])


def write_picture(photo: PredictedPhoto, layout: Layout, folder: Path) -> None:
    """Draw points and outlines on a photo at its own resolution, under its name in a folder.

    What is not JPEG or PNG becomes PNG. The dots are as large as suits the face.

    Raises:
        OSError: the picture cannot be written.
    """
    image = read_image(photo.path, upright=True)
    for face in photo.faces:
        _draw(image, face.points, layout)
    kept = PurePosixPath(photo.name).suffix.lower() in {".jpg", ".jpeg", ".png"}
    path = folder / (photo.name if kept else f"{photo.name}.png")
    with replacing(path) as temporary:
        if not cv2.imwrite(str(temporary), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
            raise OSError(f"{path} could not be written")


def _draw(image: Array, points: Array, layout: Layout) -> None:
    """Draw a face into an image, on the part around the face, whose size sets that of the dots."""
    low, high = tight_box(points).reshape(2, 2)
    margin = max(8.0, 0.1 * (high - low).max())
    height, width = image.shape[:2]
    x0, y0 = np.floor(low - margin).clip(0, (width, height)).astype(int)
    x1, y1 = np.ceil(high + margin).clip(0, (width, height)).astype(int)
    if x0 < x1 and y0 < y1:
        part = image[y0:y1, x0:x1]
        part[:] = draw_landmarks(part, points - np.array([x0, y0]), layout, PREDICTION, lines=True)
