"""Images of your own with one file of points each.

*On disk.* Any folders of images (.jpg, .jpeg, .png, .bmp, .webp, .tif, .tiff) with one face each. The points of an
image are in a file of the same name that ends in .txt or .pts, beside the image, or in a folder ``landmarks`` that
mirrors it: folders called ``images`` and ``landmarks`` do not count when names are compared, so that ``a.jpg`` goes
with ``a.txt`` or ``landmarks/a.txt``, and ``train/images/a.jpg`` with ``train/landmarks/a.txt``. Names that begin with
a dot are not looked at, nor are files with other endings.

*Files of points.* .txt: ``x y`` per line, in pixels, the centre of the top-left pixel is 0 0; the number of points may
stand on a line before them. .pts, the format of 300-W (https://ibug.doc.ic.ac.uk/resources/300-W): ``version: 1``,
``n_points: N``, then the lines ``x y`` between braces, usually counted from 1. In both ``nan nan`` says that a point
is not annotated; nothing else does, and a negative coordinate is a place left of or above the image.

*Splits.* The folders ``train``, ``val`` and ``test`` are the splits if there is any of them; if there is a ``train``
and no ``val``, a fixed share of the photos of train is val. Without such folders fixed shares of all photos are test
and val. The share is drawn from the SHA-256 of the photo's name (with its folders, but without ``images`` and its
ending), so it does not change when photos are added. Photos of one person may then lie in several splits, which
flatters the numbers: make the folders yourself if there are several photos of a person.
"""

import os
from collections import defaultdict
from pathlib import Path, PurePosixPath

from facelab.annotations.points_file import draw, not_found, plain_face, read_pts, read_txt, report_unpaired
from facelab.errors import DatasetError
from facelab.faces.face import Face, Photo, Split
from facelab.faces.image import SUFFIXES
from facelab.faces.layouts import Layout

SOURCE = "Put a file of points (.txt or .pts) beside each image"
SPLITS = ("train", "val", "test")


class Folder:
    """Reader of images with a file of points each. No face has a box, a pose or a tag.

    Args:
        name: of the set, for run names and tables.
        root: the folder with all of it.
        layout: what the points mean, and how many there have to be.
        pts_origin: the coordinates of the centre of the top-left pixel in the .pts files: 1 as in 300-W, or 0.
        val_share: share of the photos of train that is val if there is no folder ``val``; without any of the three
            folders, share of all photos.
        test_share: share of all photos that is test if there is none of the three folders.
        skip_unpaired: leave out an image without points and points without an image, with a warning, instead of
            refusing the set.
    """

    tags: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        root: str,
        layout: Layout,
        pts_origin: int,
        val_share: float,
        test_share: float,
        skip_unpaired: bool,
    ) -> None:
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
                one name; a file of points that is not as described.
        """
        images, points = self._files() if self.root.is_dir() else ({}, {})
        if not images:
            raise not_found(self.root, "images", SOURCE)
        splits = self._splits(images.keys() | points.keys())
        names = sorted(name for name, its_split in splits.items() if split in ("all", its_split))
        if not names:
            raise DatasetError(
                f"{self.root}: no photo is in the split {split!r}, only in {', '.join(sorted(set(splits.values())))}"
            )
        unpaired = {
            "images without a file of points": [name for name in names if name not in points],
            "files of points without an image": [name for name in names if name not in images],
        }
        names = [name for name in names if name in images and name in points]
        report_unpaired(self.root, unpaired, left=len(names), skip=self.skip_unpaired)
        return [Photo(images[name], (self._face(points[name]),)) for name in names]

    def _files(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """Name of a photo -> its image, and -> its file of points."""
        images: dict[str, list[Path]] = defaultdict(list)
        points: dict[str, list[Path]] = defaultdict(list)
        for folder, folders, files in os.walk(self.root, onerror=_refuse, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in (Path(folder, name) for name in files if not name.startswith(".")):
                kind = path.suffix.lower()
                found = images if kind in SUFFIXES else points if kind in (".txt", ".pts") else None
                if found is not None:
                    found[_name(path.relative_to(self.root))].append(path)
        for found in (images, points):
            double = next((paths for paths in found.values() if len(paths) > 1), None)
            if double:
                raise DatasetError(f"{double[0]} and {double[1]} have the same name: keep one of them")
        return {name: path for name, (path,) in images.items()}, {name: path for name, (path,) in points.items()}

    def _splits(self, names: set[str]) -> dict[str, str]:
        tops = {name: name.partition("/")[0] if "/" in name else "" for name in names}
        folders = set(SPLITS) & set(tops.values())
        if not folders:
            return {name: self._drawn(name, self.test_share) for name in names}
        outside = sorted(name for name, top in tops.items() if top not in folders)
        if outside:
            raise DatasetError(
                f"{self.root}: {len(outside)} images or files of points lie outside {', '.join(sorted(folders))}, for "
                f"example {outside[0]}; move them into train, val or test, or away"
            )
        if "val" in folders:
            return tops
        return {name: self._drawn(name, 0.0) if top == "train" else top for name, top in tops.items()}

    def _drawn(self, name: str, test_share: float) -> str:
        number = draw(name)
        if number < test_share:
            return "test"
        return "val" if number < test_share + self.val_share else "train"

    def _face(self, path: Path) -> Face:
        if path.suffix.lower() == ".pts":
            return plain_face(read_pts(path, self.layout, origin=self.pts_origin, may_lack=True))
        return plain_face(read_txt(path, self.layout, may_lack=True))


def _refuse(error: OSError) -> None:
    raise DatasetError(f"{error.filename}: {error.strerror}") from error


def _name(path: Path) -> str:
    """Folders and stem of a file, the same for an image and its points."""
    folders = [part for part in path.parent.parts if part not in ("images", "landmarks")]
    return str(PurePosixPath(*folders, path.stem))
