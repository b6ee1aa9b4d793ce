"""The photos of a prediction: finding of the files, and what is found in each of them.

All coordinates in this package are in pixels of the **upright** photo, rotated by its EXIF orientation.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from facelab.errors import ConfigError, DatasetError, ImageError, printable
from facelab.faces.image import SUFFIXES
from facelab.files import expand_home, walk
from facelab.inference.boxes_file import Boxes

Face = TypeVar("Face")
"""What is predicted for one face."""


class Photos(NamedTuple):
    """The photos to predict."""

    folder: Path
    paths: dict[str, Path]  # name relative to the folder, with / on every system -> file
    left_aside: dict[str, int]  # number of other files in the folder, by their ending


class Skipped(NamedTuple):
    """Photo, or one face of it, without a prediction, and the reason."""

    image: str
    face: int | None  # None for the whole photo
    reason: str


class PredictedPhoto(NamedTuple, Generic[Face]):
    """The predictions on one photo."""

    name: str
    path: Path
    size: tuple[int, int] | None  # width and height; None if the photo could not be read, or has no box
    faces: list[Face]
    skipped: list[Skipped]


def find_photos(images: str) -> Photos:
    """Find the photos of a folder and its subfolders, a single photo, or the photos that match a pattern.

    Files and folders whose names begin with a dot are skipped. The names of the photos are relative to the folder, to
    the photo's folder, or to the last folder of the pattern before its first wildcard.

    Raises:
        ConfigError: there is no such file or folder, or it contains no photo.
        DatasetError: a folder cannot be read.
    """
    given = expand_home(images)
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
        found = {
            os.path.realpath(file): file for file in sorted(matches) if file.is_file() and _is_visible(file, folder)
        }
        files = list(found.values())
    else:
        raise ConfigError("images", f"={images}: there is no such file or folder")
    photos = sorted(file for file in files if file.suffix.lower() in SUFFIXES)
    others = Counter(file.suffix.lower() or "no ending" for file in files if file.suffix.lower() not in SUFFIXES)
    if not photos:
        content = f"only other files ({_counted(others)})" if others else "no file"
        raise ConfigError("images", f"={images}: contains {content}; expected photos ({', '.join(sorted(SUFFIXES))})")
    return Photos(folder, {printable(file.relative_to(folder).as_posix()): file for file in photos}, dict(others))


def _is_visible(file: Path, folder: Path) -> bool:
    """Return whether no part of a path within the folder begins with a dot."""
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _counted(counts: Mapping[str, int]) -> str:
    """Join counts and names for a message."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def reason_of(path: Path, error: ImageError) -> str:
    """Return the message of an error without the photo's name."""
    return str(error).strip().removeprefix(f"{printable(str(path))}: ")


def boxes_without_photo(boxes: Boxes, photos: Photos) -> list[Skipped]:
    """List the photos of a file of boxes that are not among the photos to predict."""
    reason = f"the file of boxes contains it, but it is not among the photos of {photos.folder}"
    existing = {unicodedata.normalize("NFC", name) for name in photos.paths}
    return [Skipped(name, None, reason) for name in boxes if name not in existing]
