"""Custom dataset: images with one file of points each.

*On disk.* Any folders of images (.jpg, .jpeg, .png, .bmp, .webp, .tif, .tiff) with one face each. The file of points of
an image has the same name with the ending .txt or .pts. It is beside the image or in a parallel folder ``landmarks``:
the comparison of names ignores folders called ``images`` and ``landmarks``. So ``a.jpg`` belongs to ``a.txt`` or
``landmarks/a.txt``, and ``train/images/a.jpg`` to ``train/landmarks/a.txt``. Names that begin with a dot and files with
other endings are ignored.

*Files of points.* A .txt has ``x y`` per line in pixels, the centre of the top-left pixel is 0 0; a first line may
contain the number of points. A .pts has the format of 300-W (https://ibug.doc.ic.ac.uk/resources/300-W):
``version: 1``, ``n_points: N``, then lines ``x y`` between braces, usually counted from 1. ``a.jpg.txt`` also belongs
to ``a.jpg``. Pixels are those of the photo as viewers show it, rotated by its orientation tag (EXIF), unless
``orientation`` is ``stored``. With ``units: fraction`` the numbers are fractions of the width and height of the photo.
In both formats ``nan nan`` and the codes in ``missing`` mark points that are not annotated or hidden.
A file that appears to use another code, or fractions without ``units: fraction``, is refused.

*Splits.* The splits are the folders called ``train``, ``training`` or ``trainset``, ``val``, ``valid``, ``validation``
or ``valset``, ``test``, ``testing`` or ``testset``, in upper or lower case and at any depth, and the folders in
``splits``. If there is a train and no val, a fixed share of the train photos is val (``val_share``; 0 trains without
validation). Without such folders fixed shares of all photos are test and val. The SHA-256 of the name of a photo (with
its folders, without ``images`` and without its ending) determines its split, so adding photos does not move others.
Photos of one person may then be in several splits, which makes the results too good: create the folders yourself if a
person has several photos.
"""

import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from facelab.annotations.points_file import (
    MissingCode,
    check_face,
    hash_fraction,
    not_found,
    plain_face,
    read_pts,
    read_txt,
    report_unpaired,
    resolve_codes,
)
from facelab.bounds import Text
from facelab.errors import ConfigError, DatasetError, ImageError
from facelab.faces.face import Face, Photo, Split
from facelab.faces.geometry import Array, from_cells
from facelab.faces.image import SUFFIXES, Orientation, PhotoFile, is_rotated_by_tag
from facelab.faces.layouts import Layout
from facelab.files import walk

log = logging.getLogger(__name__)

SOURCE = "Put a file of points (.txt or .pts) beside each image"
"""How to create the dataset, for error messages."""
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}
"""Split by name of a folder in lower case."""
SPLIT_WORDS = {*SPLIT_NAMES, "validate", "dev", "eval", "evaluation", "learn"}
"""Words in the name of a folder that suggest that it is a split."""
REMEDIES = {
    "zero": "data.missing=[zero] reads 0 0 as not annotated",
    "minus_one": "data.missing=[minus_one] reads -1 -1 as not annotated",
    "negated": "data.missing=[negated] reads them as hidden points and changes their signs",
    "fraction": "data.units=fraction reads the numbers as fractions of the photo's width and height",
}
"""Remedies for :func:`check_face`: the option that reads a code or ``fraction``, by that name."""


class Folder:
    """Reader of images with a file of points each. No face has a box, a pose or a tag.

    Args:
        name: name of the dataset, for run names and tables.
        root: the folder that contains all files.
        layout: layout of the points.
        orientation: whether points are pixels of the photo as shown or as stored.
        units: ``pixels``, or ``fraction`` of the width and height of the photo.
        missing: codes for points that are not annotated or hidden, in addition to ``nan nan``.
        pts_origin: coordinates of the centre of the top-left pixel in .pts files: 1 as in 300-W, or 0.
        splits: name of a folder at any depth to ``train``, ``val`` or ``test``, in addition to the usual names; None
            for none.
        val_share: share of the train photos that is val if there is no folder ``val``; share of all photos if there is
            none of the three folders.
        test_share: share of all photos that is test if there is none of the three folders.
        skip_unpaired: whether to skip an image without points and points without an image with a warning, instead of
            raising.

    Raises:
        ConfigError: a share is out of range, or a value of ``splits`` is not a split.
    """

    tags: tuple[str, ...] = ()

    def __init__(
        self,
        name: Text,
        root: Text,
        layout: Layout,
        orientation: Orientation,
        units: Literal["pixels", "fraction"],
        missing: Sequence[MissingCode],
        pts_origin: Literal[0, 1],
        splits: Mapping[str, str] | None,
        val_share: float,
        test_share: float,
        skip_unpaired: bool,
    ) -> None:
        for key, share in (("val_share", val_share), ("test_share", test_share)):
            if not 0 <= share < 1:
                raise ConfigError(key, f"={share} must be in [0, 1)")
        if val_share + test_share >= 1:
            raise ConfigError("val_share", f"={val_share} and test_share={test_share} leave no photos for train")
        splits = splits or {}
        if invalid := [split for split in splits.values() if split not in SPLITS]:
            raise ConfigError("splits", f": {invalid[0]!r} is not a split; use train, val or test")
        self.orientation, self.units, self.missing = orientation, units, tuple(missing)
        self.split_names = SPLIT_NAMES | {name.lower(): split for name, split in splits.items()}
        self._splits_logged = False
        self.name = name
        self.root = Path(root)
        self.layout = layout
        self.pts_origin = pts_origin
        self.val_share = val_share
        self.test_share = test_share
        self.skip_unpaired = skip_unpaired

    def photos(self, split: Split) -> list[Photo]:
        """Return the photos of a split, sorted by name.

        Raises:
            DatasetError: there are no images, the split is empty, an image has no points, points have no image, two
                files have the same name, or a file of points is malformed or appears to use an unexpected code.
        """
        images, points = self._files() if self.root.is_dir() else ({}, {})
        if not images:
            raise not_found(self.root, "images", SOURCE)
        all_names = images.keys() | points.keys()
        splits = {} if split == "all" else self._splits(all_names)
        names = sorted(all_names if split == "all" else (name for name, its in splits.items() if its == split))
        duplicates = self._duplicates(images, splits)
        names = [name for name in names if name not in duplicates]
        if not names and split == "val" and not self.val_share:
            return []
        if not names:
            raise DatasetError(
                f"{self.root}: the split {split!r} has no photo; there are photos in "
                f"{', '.join(sorted(set(splits.values())))}"
                + (f"; data.val_share={self.val_share} is too small for so few photos" if split == "val" else "")
                + ("; test=false trains without a test" if split == "test" else "")
            )
        unpaired = {
            "images without a file of points": [name for name in names if name not in points],
            "files of points without an image": [name for name in names if name not in images],
        }
        names = [name for name in names if name in images and name in points]
        report_unpaired(self.root, unpaired, complete=len(names), skip=self.skip_unpaired)
        self._log_orientation([images[name] for name in names], split)
        return [Photo(images[name], (self._face(points[name], images[name]),), self.orientation) for name in names]

    def _files(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """Find the files: name of a photo -> its image, and name -> its file of points."""
        images: dict[str, list[Path]] = defaultdict(list)
        points: dict[str, list[Path]] = defaultdict(list)
        try:
            files = walk(self.root)
        except OSError as error:
            raise DatasetError(f"{error.filename}: {error.strerror}") from error
        for path in files:
            suffix = path.suffix.lower()
            by_name = images if suffix in SUFFIXES else points if suffix in (".txt", ".pts") else None
            if by_name is not None:
                by_name[_name(path.relative_to(self.root))].append(path)
        for by_name in (images, points):
            same_name = next((paths for paths in by_name.values() if len(paths) > 1), None)
            if same_name:
                raise DatasetError(f"{same_name[0]} and {same_name[1]} have the same name: keep one of them")
        image_of = {name: path for name, (path,) in images.items()}
        # a.jpg.txt belongs to a.jpg, unless there is an a.jpg.png
        photo_of = {name: name if name in images else _without_ending(name) for name in points}
        if len(set(photo_of.values())) < len(photo_of):
            duplicate = Counter(photo_of.values()).most_common(1)[0][0]
            raise DatasetError(f"{self.root}: {duplicate} has two files of points: keep one of them")
        return image_of, {photo_of[name]: path for name, (path,) in points.items()}

    def _splits(self, names: set[str]) -> dict[str, str]:
        """Assign each photo to a split by its folders or by a draw, and log the result once."""
        by_folder = {name: self._folder_split(name) for name in names}
        folders = {split for split in by_folder.values() if split}
        if not folders:
            self._refuse_split_words(names)
            splits = {name: self._draw(name, self.test_share) for name in names}
            rule = f"drawn by the hash of the name (data.test_share={self.test_share}, data.val_share={self.val_share})"
        elif outside := sorted(name for name, split in by_folder.items() if not split):
            raise DatasetError(
                f"{self.root}: {len(outside)} images or files of points are outside {', '.join(sorted(folders))}, for "
                f"example {outside[0]}; move them into train, val or test, remove them, or set their split: "
                f"'data.splits={{{_top_folder(outside[0]) or 'FOLDER'}: train}}'"
            )
        else:
            splits = {
                name: self._draw(name, 0.0) if split == "train" and "val" not in folders else split
                for name, split in by_folder.items()
            }
            rule = "by their folders"
            if "val" not in folders and self.val_share:
                rule += f", val drawn from train by the hash of the name (data.val_share={self.val_share})"
        if not self._splits_logged:
            self._splits_logged = True
            counts = Counter(splits.values())
            sizes = ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts[split])
            log.info("%s: %d photos: %s, %s", self.name, len(splits), sizes, rule)
        return splits

    def _duplicates(self, images: Mapping[str, Path], splits: Mapping[str, str]) -> set[str]:
        """Find the names that are links to a photo with another name, to use each photo once.

        Raises:
            DatasetError: the two names are in different splits.
        """
        duplicates, first = set(), dict[str, str]()
        for name in sorted(images, key=lambda name: (images[name].is_symlink(), name)):
            target = os.path.realpath(images[name])
            other = first.setdefault(target, name)
            if other != name and splits.get(other) != splits.get(name):
                where = f"in the splits {splits[other]} and {splits[name]}"
                raise DatasetError(
                    f"{self.root}: {images[other]} and {images[name]} are one photo, {where}; remove one"
                )
            if other != name:
                duplicates.add(name)
        return duplicates

    def _folder_split(self, name: str) -> str:
        """Return the split of the folders of a photo; empty if no folder is a split.

        Raises:
            DatasetError: the folders belong to two splits.
        """
        folders = name.split("/")[:-1]
        splits = {split for folder in folders if (split := self.split_names.get(folder.lower()))}
        if len(splits) > 1:
            raise DatasetError(f"{self.root}: {name} is in folders of two splits, {' and '.join(sorted(splits))}")
        return next(iter(splits), "")

    def _refuse_split_words(self, names: set[str]) -> None:
        """Refuse to join and redraw photos whose folders look like splits.

        Raises:
            DatasetError: the name of a folder contains one of :data:`SPLIT_WORDS`.
        """
        folders = {folder for name in names for folder in name.split("/")[:-1]}
        spaced = {folder: re.sub(r"(?<=[a-z])(?=[A-Z])", " ", folder).lower() for folder in folders}
        likely = sorted(folder for folder in folders if set(re.split(r"[\W_\d]+", spaced[folder])) & SPLIT_WORDS)
        if likely:
            raise DatasetError(
                f"{self.root}: {', '.join(likely[:3])} look like splits with unknown names; rename them to train, val "
                f"and test, or set their splits: 'data.splits={{{likely[0]}: train}}'"
            )

    def _log_orientation(self, images: Sequence[Path], split: str) -> None:
        """Log how many photos have an orientation tag that changes how they are shown."""
        if rotated := sum(map(is_rotated_by_tag, images)):
            log.info(
                "%s %s: %d of %d photos have an orientation tag; their points are pixels of the photo as %s "
                "(data.orientation)",
                *(self.name, split, rotated, len(images), self.orientation),
            )

    def _draw(self, name: str, test_share: float) -> str:
        """Return the split of a photo or group by a hash of its name."""
        number = hash_fraction(name)
        if number < test_share:
            return "test"
        return "val" if number < test_share + self.val_share else "train"

    def _face(self, path: Path, image: Path) -> Face:
        """Read a file of points."""
        if path.suffix.lower() == ".pts":
            raw = read_pts(path, self.layout, origin=0, allow_nan=True)
        else:
            raw = read_txt(path, self.layout, allow_nan=True)
        points, visible = resolve_codes(raw, self.missing)
        if self.units == "fraction":
            points = _from_fractions(points, path, image, self.orientation)
        check_face(points, str(path), REMEDIES)
        if path.suffix.lower() == ".pts" and self.units == "pixels":
            points = points - points.dtype.type(self.pts_origin)
        return plain_face(points, visible)


def _from_fractions(points: Array, path: Path, image: Path, orientation: Orientation) -> Array:
    """Convert fractions of the width and height of a photo to pixels.

    Raises:
        DatasetError: a number exceeds 2 in absolute value, so it is not a fraction.
    """
    if (abs(points) > 2).any():  # False for NaN
        raise DatasetError(f"{path}: numbers up to {abs(points).max():.6g} are not fractions; use data.units=pixels")
    try:
        x0, y0, x1, y1 = PhotoFile(image, orientation).box().tolist()
    except ImageError:
        return np.full_like(points, np.nan)  # the datamodule reports and counts the photo when it reads it
    return from_cells(points, np.array([x1 - x0, y1 - y0], points.dtype))


def _name(path: Path) -> str:
    """Return folders and stem of a file, equal for an image and its points."""
    folders = [part for part in path.parent.parts if part not in ("images", "landmarks")]
    # macOS may decompose accented letters in file names, and the image and its points may be from two systems.
    return unicodedata.normalize("NFC", str(PurePosixPath(*folders, path.stem)))


def _without_ending(name: str) -> str:
    """Remove the ending of an image from a name, such as ``a.jpg`` of the file ``a.jpg.txt``."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in SUFFIXES else name


def _top_folder(name: str) -> str:
    """Return the first folder of a path; empty if it has none."""
    return name.partition("/")[0] if "/" in name else ""
