"""Images of your own with one file of points each.

*On disk.* Any folders of images (.jpg, .jpeg, .png, .bmp, .webp, .tif, .tiff) with one face each. The points of an
image are in a file of the same name that ends in .txt or .pts, beside the image, or in a folder ``landmarks`` that
flips it: folders called ``images`` and ``landmarks`` do not count when names are compared, so that ``a.jpg`` goes
with ``a.txt`` or ``landmarks/a.txt``, and ``train/images/a.jpg`` with ``train/landmarks/a.txt``. Names that begin with
a dot are not looked at, nor are files with other endings.

*Files of points.* .txt: ``x y`` per line, in pixels, the centre of the top-left pixel is 0 0; the number of points may
stand on a line before them. .pts, the format of 300-W (https://ibug.doc.ic.ac.uk/resources/300-W): ``version: 1``,
``n_points: N``, then the lines ``x y`` between braces, usually counted from 1. ``a.jpg.txt`` goes with ``a.jpg`` too.
Pixels are those of the photo as viewers show it, turned by its orientation mark (EXIF), unless ``orientation`` is
``stored``; ``units: fraction`` takes numbers as fractions of the photo's width and height. In both formats ``nan nan``
says that a point is not annotated, and what ``missing`` names. Files that seem to use a code that is not named there,
or fractions, are refused.

*Splits.* Folders called ``train``, ``training`` or ``trainset``, ``val``, ``valid``, ``validation`` or ``valset``,
``test``, ``testing`` or ``testset``, in any case and at any depth, are the splits, and those that ``splits`` names. If
there is a train and no val, a fixed share of the photos of train is val (``val_share``; 0 trains without validation).
Without such folders fixed shares of all photos are test and val. The share is drawn from the SHA-256 of the photo's
name (with its folders, but without ``images`` and its ending), so it does not change when photos are added. Photos of
one person may then lie in several splits, which flatters the numbers: make the folders yourself if there are several
photos of a person.
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
from facelab.faces.image import SUFFIXES, Orientation, PhotoFile, has_mark
from facelab.faces.layouts import Layout
from facelab.files import walk

log = logging.getLogger(__name__)

SOURCE = "Put a file of points (.txt or .pts) beside each image"
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}
"""Name of a folder, in lower case, to its split."""
LIKELY = {*SPLIT_NAMES, "validate", "dev", "eval", "evaluation", "learn"}
"""Words in the names of folders that look like splits."""
REMEDIES = {
    "zero": "data.missing=[zero] takes 0 0 as not annotated",
    "minus_one": "data.missing=[minus_one] takes -1 -1 as not annotated",
    "negated": "data.missing=[negated] takes them as hidden points, with the signs turned",
    "fraction": "data.units=fraction takes the numbers as fractions of the photo's width and height",
}


class Folder:
    """Reader of images with a file of points each. No face has a box, a pose or a tag.

    Args:
        name: of the set, for run names and tables.
        root: the folder with all of it.
        layout: what the points mean, and how many there have to be.
        orientation: whether points are pixels of the photos as they are shown, or as they are stored.
        units: ``pixels``, or ``fraction`` of the photo's width and height.
        missing: codes for points that are not annotated, or hidden, beside ``nan nan``.
        pts_origin: the coordinates of the centre of the top-left pixel in the .pts files: 1 as in 300-W, or 0.
        splits: name of a folder at any depth to ``train``, ``val`` or ``test``, beside the usual names; None for none.
        val_share: share of the photos of train that is val if there is no folder ``val``; without any of the three
            folders, share of all photos.
        test_share: share of all photos that is test if there is none of the three folders.
        skip_unpaired: leave out an image without points and points without an image, with a warning, instead of
            refusing the set.

    Raises:
        ConfigError: a share that is none, or a folder of ``splits`` for something else than a split.
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
            raise ConfigError("val_share", f"={val_share} and test_share={test_share} leave nothing to train with")
        splits = splits or {}
        if alien := [split for split in splits.values() if split not in SPLITS]:
            raise ConfigError("splits", f": {alien[0]!r} is no split; a folder is train, val or test")
        self.orientation, self.units, self.missing = orientation, units, tuple(missing)
        self.split_names = SPLIT_NAMES | {name.lower(): split for name, split in splits.items()}
        self._told = False  # how the splits were made
        self.name = name
        self.root = Path(root)
        self.layout = layout
        self.pts_origin = pts_origin
        self.val_share = val_share
        self.test_share = test_share
        self.skip_unpaired = skip_unpaired

    def photos(self, split: Split) -> list[Photo]:
        """The photos of a split by name.

        Raises:
            DatasetError: nothing found; no such split; an image without points or points without an image; two files of
                one name; a file of points that is not as described, or that seems to mean something else.
        """
        images, points = self._files() if self.root.is_dir() else ({}, {})
        if not images:
            raise not_found(self.root, "images", SOURCE)
        every = images.keys() | points.keys()
        splits = {} if split == "all" else self._splits(every)
        names = sorted(every if split == "all" else (name for name, its in splits.items() if its == split))
        double = self._linked_twice(images, splits)
        names = [name for name in names if name not in double]
        if not names and split == "val" and not self.val_share:
            return []
        if not names:
            raise DatasetError(
                f"{self.root}: no photo is in the split {split!r}, only in {', '.join(sorted(set(splits.values())))}"
                + (f"; data.val_share={self.val_share} of so few photos is none" if split == "val" else "")
                + ("; test=false trains without a test" if split == "test" else "")
            )
        unpaired = {
            "images without a file of points": [name for name in names if name not in points],
            "files of points without an image": [name for name in names if name not in images],
        }
        names = [name for name in names if name in images and name in points]
        report_unpaired(self.root, unpaired, left=len(names), skip=self.skip_unpaired)
        self._tell_marks([images[name] for name in names], split)
        return [Photo(images[name], (self._face(points[name], images[name]),), self.orientation) for name in names]

    def _files(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """Name of a photo -> its image, and -> its file of points."""
        images: dict[str, list[Path]] = defaultdict(list)
        points: dict[str, list[Path]] = defaultdict(list)
        try:
            files = walk(self.root)
        except OSError as error:
            raise DatasetError(f"{error.filename}: {error.strerror}") from error
        for path in files:
            kind = path.suffix.lower()
            found = images if kind in SUFFIXES else points if kind in (".txt", ".pts") else None
            if found is not None:
                found[_name(path.relative_to(self.root))].append(path)
        for found in (images, points):
            double = next((paths for paths in found.values() if len(paths) > 1), None)
            if double:
                raise DatasetError(f"{double[0]} and {double[1]} have the same name: keep one of them")
        by_name = {name: path for name, (path,) in images.items()}
        # a.jpg.txt goes with a.jpg, unless there is an a.jpg.png
        own = {name: name if name in images else _without_ending(name) for name in points}
        if len(set(own.values())) < len(own):
            twice = Counter(own.values()).most_common(1)[0][0]
            raise DatasetError(f"{self.root}: {twice} has two files of points: keep one of them")
        return by_name, {own[name]: path for name, (path,) in points.items()}

    def _splits(self, names: set[str]) -> dict[str, str]:
        """Give each photo its split, by its folders or by a draw, and say once which."""
        found = {name: self._named(name) for name in names}
        folders = {split for split in found.values() if split}
        if not folders:
            self._refuse_likely(names)
            splits = {name: self._drawn(name, self.test_share) for name in names}
            how = f"drawn by the hash of each name (data.test_share={self.test_share}, data.val_share={self.val_share})"
        elif outside := sorted(name for name, split in found.items() if not split):
            raise DatasetError(
                f"{self.root}: {len(outside)} images or files of points lie outside {', '.join(sorted(folders))}, for "
                f"example {outside[0]}; move them into train, val or test, or away, or say what their folder is: "
                f"'data.splits={{{_top(outside[0]) or 'FOLDER'}: train}}'"
            )
        else:
            splits = {
                name: self._drawn(name, 0.0) if split == "train" and "val" not in folders else split
                for name, split in found.items()
            }
            how = "by their folders"
            if "val" not in folders and self.val_share:
                how += f", val drawn from train by the hash of each name (data.val_share={self.val_share})"
        if not self._told:
            self._told = True
            counts = Counter(splits.values())
            words = ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts[split])
            log.info("%s: %d photos: %s, %s", self.name, len(splits), words, how)
        return splits

    def _linked_twice(self, images: Mapping[str, Path], splits: Mapping[str, str]) -> set[str]:
        """Find the names of photos that are there by another name too, which then is their only one.

        Raises:
            DatasetError: both lie in different splits.
        """
        double, first = set(), dict[str, str]()
        for name in sorted(images, key=lambda name: (images[name].is_symlink(), name)):
            real = os.path.realpath(images[name])
            other = first.setdefault(real, name)
            if other != name and splits.get(other) != splits.get(name):
                where = f"in {splits[other]} and {splits[name]}"
                raise DatasetError(f"{self.root}: {images[other]} and {images[name]} are one photo, {where}")
            if other != name:
                double.add(name)
        return double

    def _named(self, name: str) -> str:
        """Return the split that the folders of a photo name; empty where none does.

        Raises:
            DatasetError: they name two.
        """
        folders = name.split("/")[:-1]
        named = {split for folder in folders if (split := self.split_names.get(folder.lower()))}
        if len(named) > 1:
            raise DatasetError(f"{self.root}: {name} lies in folders of two splits, {' and '.join(sorted(named))}")
        return next(iter(named), "")

    def _refuse_likely(self, names: set[str]) -> None:
        """Refuse to pool and redraw photos whose folders look like splits.

        Raises:
            DatasetError: with the folders.
        """
        folders = {folder for name in names for folder in name.split("/")[:-1]}
        apart = {folder: re.sub(r"(?<=[a-z])(?=[A-Z])", " ", folder).lower() for folder in folders}
        likely = sorted(folder for folder in folders if set(re.split(r"[\W_\d]+", apart[folder])) & LIKELY)
        if likely:
            raise DatasetError(
                f"{self.root}: {', '.join(likely[:3])} look like splits and are called otherwise; name them train, val "
                f"and test, or say what they are: 'data.splits={{{likely[0]}: train}}'"
            )

    def _tell_marks(self, images: Sequence[Path], split: str) -> None:
        """Log how many photos are shown other than they are stored."""
        if marked := sum(map(has_mark, images)):
            log.info(
                "%s %s: %d of %d photos carry an orientation mark; their points are taken as pixels of the photo as it "
                "is %s (data.orientation)",
                *(self.name, split, marked, len(images), self.orientation),
            )

    def _drawn(self, name: str, test_share: float) -> str:
        number = hash_fraction(name)
        if number < test_share:
            return "test"
        return "val" if number < test_share + self.val_share else "train"

    def _face(self, path: Path, image: Path) -> Face:
        """Read a file of points."""
        if path.suffix.lower() == ".pts":
            raw = read_pts(path, self.layout, origin=0, may_lack=True)
        else:
            raw = read_txt(path, self.layout, may_lack=True)
        points, visible = resolve_codes(raw, self.missing)
        if self.units == "fraction":
            points = _from_fractions(points, path, image, self.orientation)
        check_face(points, str(path), REMEDIES)
        if path.suffix.lower() == ".pts" and self.units == "pixels":
            points = points - points.dtype.type(self.pts_origin)
        return plain_face(points, visible)


def _from_fractions(points: Array, path: Path, image: Path, orientation: Orientation) -> Array:
    """Turn fractions of the photo's width and height into pixels.

    Raises:
        DatasetError: they are no fractions.
    """
    if (abs(points) > 2).any():  # NaN is not
        raise DatasetError(f"{path}: numbers up to {abs(points).max():.6g} are no fractions; data.units=pixels")
    try:
        x0, y0, x1, y1 = PhotoFile(image, orientation).box().tolist()
    except ImageError:
        return np.full_like(points, np.nan)  # the photo is named and counted when it is asked for
    return from_cells(points, np.array([x1 - x0, y1 - y0], points.dtype))


def _name(path: Path) -> str:
    """Folders and stem of a file, the same for an image and its points."""
    folders = [part for part in path.parent.parts if part not in ("images", "landmarks")]
    # A zip from a Mac takes letters with accents apart; the image and its points may come from two systems.
    return unicodedata.normalize("NFC", str(PurePosixPath(*folders, path.stem)))


def _without_ending(name: str) -> str:
    """Take the ending of an image off a name, of ``a.jpg`` for the file ``a.jpg.txt``."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in SUFFIXES else name


def _top(name: str) -> str:
    return name.partition("/")[0] if "/" in name else ""
