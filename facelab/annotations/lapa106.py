"""LaPa: 106 points on one face per image.

*Source.* Liu, Shi, Shen, Si, Wang, Mei: A New Dataset and Boundary-Attention Semantic Segmentation for Face Parsing,
AAAI 2020; https://github.com/jd-opensource/lapa-dataset. Free for non-commercial use (README of the dataset).

*On disk.* ``{train,val,test}/images/NAME.jpg``, ``{train,val,test}/landmarks/NAME.txt`` and ``labels/NAME.png``, the
parsing maps, which this reader ignores. A .txt has ``106`` on its first line, then 106 lines ``x y``.

*Counts.* More than 22,000 images; 18,176 / 2,000 / 2,000 in the distributed split.

*Quirks.* The coordinates are whole numbers written with decimals. The authors do not state whether they count from 0 or
from 1; this reader counts from 0, as is usual. There are no face boxes. The centre of an eye and its pupil almost
coincide. The reader also opens a custom dataset in these folders, which may have fewer than three splits.

*Orientation.* Photos are read as stored; their orientation tag (EXIF) is ignored.
"""

from pathlib import Path

from facelab.annotations.points_file import (
    REMEDIES,
    by_stem,
    check_face,
    not_found,
    plain_face,
    read_txt,
    report_unpaired,
)
from facelab.bounds import Text
from facelab.errors import DatasetError
from facelab.faces.face import Face, Photo, Split
from facelab.faces.layouts import Layout

SOURCE = "LaPa is linked from https://github.com/jd-opensource/lapa-dataset; unpack it"
"""Where to get the dataset, for error messages."""


class LaPa:
    """Reader of LaPa and of datasets in the same folders. No face has a box, a pose or a tag.

    Args:
        name: name of the dataset, for run names and tables.
        root: the folder that contains ``train``, ``val`` and ``test``, or some of them.
        layout: layout of the points.
        skip_unpaired: whether to skip an image without points and points without an image with a warning, instead of
            raising.
    """

    tags: tuple[str, ...] = ()

    def __init__(self, name: Text, root: Text, layout: Layout, skip_unpaired: bool) -> None:
        self.name = name
        self.root = Path(root)
        self.layout = layout
        self.skip_unpaired = skip_unpaired

    def photos(self, split: Split) -> list[Photo]:
        """Return the photos of a split, sorted by name; ``all`` is every existing split.

        Raises:
            DatasetError: the folder or every photo is missing, an image has no points, points have no image, or a file
                of points is malformed.
        """
        existing = [part for part in ("train", "val", "test") if (self.root / part).is_dir()]
        if not existing:
            raise not_found(self.root, "train/, val/ or test/, with images/ and landmarks/ in it", SOURCE)
        if split == "all":
            return [photo for part in existing for photo in self._part(part)]
        if split not in existing:
            raise DatasetError(f"{self.root}: there is no split {split!r}, only {', '.join(existing)}")
        return self._part(split)

    def _part(self, part: str) -> list[Photo]:
        """Return the photos in the folder of a split."""
        folder = self.root / part
        images = by_stem(folder / "images", {".jpg", ".jpeg"})
        points = by_stem(folder / "landmarks", {".txt"})
        unpaired = {
            "images/*.jpg without landmarks/*.txt": sorted(images.keys() - points.keys()),
            "landmarks/*.txt without images/*.jpg": sorted(points.keys() - images.keys()),
        }
        names = sorted(images.keys() & points.keys())
        report_unpaired(folder, unpaired, complete=len(names), skip=self.skip_unpaired)
        if not names:
            raise not_found(folder, "images/*.jpg and landmarks/*.txt", SOURCE)
        return [Photo(images[name], (self._face(points[name]),), "stored") for name in names]

    def _face(self, path: Path) -> Face:
        """Read a file of points."""
        points = read_txt(path, self.layout, allow_nan=False)
        check_face(points, str(path), REMEDIES)
        return plain_face(points)
