"""LaPa: 106 points on one face per image.

*Source.* Liu, Shi, Shen, Si, Wang, Mei: A New Dataset and Boundary-Attention Semantic Segmentation for Face Parsing,
AAAI 2020; https://github.com/jd-opensource/lapa-dataset. Free for non-commercial purposes (its README).

*On disk.* ``{train,val,test}/images/NAME.jpg``, ``{train,val,test}/landmarks/NAME.txt`` and ``labels/NAME.png``, the
parsing maps, which are not used. A .txt holds ``106`` on its first line, then 106 lines ``x y``.

*Counts.* More than 22,000 images; 18,176 / 2,000 / 2,000 in the split that is in circulation.

*Quirks.* The coordinates are whole numbers written with decimals; whether they count from 0 or from 1 is nowhere
stated, and they are taken as counting from 0, as everybody does. There are no face boxes. The point at the centre of
an eye and the pupil are practically the same. A set of your own in these folders opens with the same reader; it need
not have all three splits.

*Orientation.* Photos are read as they are stored, without regard to their orientation mark (EXIF).
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


class LaPa:
    """Reader of LaPa and of sets in its folders. No face has a box, a pose or a tag.

    Args:
        name: of the set, for run names and tables.
        root: the folder that holds ``train``, ``val`` and ``test``, or some of them.
        layout: what the points mean, and how many there have to be.
        skip_unpaired: leave out an image without points and points without an image, with a warning, instead of
            refusing the set.
    """

    tags: tuple[str, ...] = ()

    def __init__(self, name: Text, root: Text, layout: Layout, skip_unpaired: bool) -> None:
        self.name = name
        self.root = Path(root)
        self.layout = layout
        self.skip_unpaired = skip_unpaired

    def photos(self, split: Split) -> list[Photo]:
        """The photos of a split by name; ``all`` is train, val and test as far as they exist.

        Raises:
            DatasetError: no such folder; no photo; an image without points or points without an image; a file of points
                that is not as described.
        """
        present = [part for part in ("train", "val", "test") if (self.root / part).is_dir()]
        if not present:
            raise not_found(self.root, "train/, val/ or test/ with images/ and landmarks/ in it", SOURCE)
        if split == "all":
            return [photo for part in present for photo in self._part(part)]
        if split not in present:
            raise DatasetError(f"{self.root}: there is no split {split!r}, only {', '.join(present)}")
        return self._part(split)

    def _part(self, part: str) -> list[Photo]:
        folder = self.root / part
        images = by_stem(folder / "images", {".jpg", ".jpeg"})
        points = by_stem(folder / "landmarks", {".txt"})
        unpaired = {
            "images/*.jpg without landmarks/*.txt": sorted(images.keys() - points.keys()),
            "landmarks/*.txt without images/*.jpg": sorted(points.keys() - images.keys()),
        }
        names = sorted(images.keys() & points.keys())
        report_unpaired(folder, unpaired, left=len(names), skip=self.skip_unpaired)
        if not names:
            raise not_found(folder, "images/*.jpg and landmarks/*.txt", SOURCE)
        return [Photo(images[name], (self._face(points[name]),), "stored") for name in names]

    def _face(self, path: Path) -> Face:
        points = read_txt(path, self.layout, may_lack=False)
        check_face(points, str(path), REMEDIES)
        return plain_face(points)
