"""Boxes in the files of PASCAL VOC, as label tools write them: one XML file per photo.

*Source of the format.* Everingham, Van Gool, Williams, Winn, Zisserman: The PASCAL Visual Object Classes (VOC)
Challenge, IJCV 2010. ``conf/data/mask_voc.yaml`` is a set of web photos of people with and without masks in it.

*On disk.* ``JPEGImages/NAME.jpg``, ``Annotations/NAME.xml`` and ``ImageSets/Main/{train,val,test}.txt``, one NAME per
line; some of the lists may be missing. An ``object`` of an XML file has a ``name``, which is its class, the flags
``difficult``, ``truncated`` and ``occluded``, and a ``bndbox`` with ``xmin ymin xmax ymax``.

*Quirks.* The corners are the first and the last covered pixel, and the first pixel of a photo is 1: a box from 1 to 10
covers ten pixels, and reaches from -0.5 to 9.5 here. Some tools count from 0, see ``origin``. VOC counts a detection of
a ``difficult`` object neither as a hit nor as false; the tag of that name is for such a list.

*Orientation.* Photos are read as stored; their orientation tag (EXIF) is ignored.
"""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal
from xml.etree import ElementTree

import numpy as np
from annotated_types import MinLen

from facelab.annotations.box_rows import BoxRows, check_names, check_numbers, check_sizes, faces_of, without_points
from facelab.annotations.points_file import by_stem, not_found, read_lines, report_unpaired
from facelab.bounds import Text
from facelab.errors import ConfigError, DatasetError
from facelab.faces.boxes import from_corner_and_size
from facelab.faces.face import Photo, Split
from facelab.faces.layouts import Layout
from facelab.files import MAX_FILE_BYTES, read_bytes

log = logging.getLogger(__name__)

SOURCE = "The format is that of PASCAL VOC, which label tools export"
"""Where to get a dataset, for error messages."""
FLAGS = ("difficult", "truncated", "occluded")
"""Flags of an object, which are tags; a missing one is 0."""
FLAG_TEXTS = {"0": False, "1": True, "false": False, "true": True, "unspecified": False}
"""Values of a flag, in lower case."""
CORNERS = ("xmin", "ymin", "xmax", "ymax")
"""Elements of a box."""


class VOC:
    """Reader of boxes in the files of PASCAL VOC. No face has points or a pose.

    Args:
        name: name of the dataset, for run names and tables.
        root: the folder that contains ``JPEGImages``, ``Annotations`` and ``ImageSets``.
        layout: layout of the points, which are all missing.
        classes: classes of objects that are faces; each is a tag. Objects of other classes are not read.
        origin: coordinate of the first pixel in the files.
        skip_unpaired: whether to skip listed photos without an image or an XML file with a warning, instead of raising.

    Raises:
        ConfigError: a class is named twice or like a flag.
    """

    def __init__(
        self,
        name: Text,
        root: Text,
        layout: Layout,
        classes: Annotated[Sequence[Text], MinLen(1)],
        origin: Literal[0, 1],
        skip_unpaired: bool,
    ) -> None:
        self.name = name
        self.root = Path(root)
        self.layout = layout
        self.classes = tuple(classes)
        self.origin = origin
        self.skip_unpaired = skip_unpaired
        self.tags: tuple[str, ...] = (*self.classes, *FLAGS)
        if len({*self.tags}) < len(self.tags):
            raise ConfigError(
                "classes", f"={list(classes)}: a class is named twice, or like a flag ({', '.join(FLAGS)})"
            )

    def photos(self, split: Split) -> list[Photo]:
        """Return the photos of a split, in the order of its list; ``all`` is every existing list.

        Raises:
            DatasetError: a list, a file or every photo is missing, or a file is malformed.
        """
        lists = {part: self._list(part) for part in ("train", "val", "test") if self._list(part).is_file()}
        if not lists:
            raise not_found(self.root, str(self._list("{train,val,test}").relative_to(self.root)), SOURCE)
        if split not in (*lists, "all"):
            raise DatasetError(f"{self.root}: there is no split {split!r}, only {', '.join(lists)}")
        names = [name for part, path in lists.items() if split in (part, "all") for name in _names(path)]
        check_names(names, f"{self.root}, lists of {split}")
        return self._read(names)

    def _list(self, part: str) -> Path:
        """Return the path of the list of a split."""
        return self.root / "ImageSets" / "Main" / f"{part}.txt"

    def _read(self, names: list[str]) -> list[Photo]:
        """Read the photos with these names."""
        images = by_stem(self.root / "JPEGImages", {".jpg", ".jpeg", ".png"})
        files = by_stem(self.root / "Annotations", {".xml"})
        unpaired = {
            "listed without JPEGImages/*.jpg": [name for name in names if name not in images],
            "listed without Annotations/*.xml": [name for name in names if name not in files],
        }
        complete = [name for name in names if name in images and name in files]
        report_unpaired(self.root, unpaired, complete=len(complete), skip=self.skip_unpaired)
        rows, tags = self._rows([files[name] for name in complete])
        paths = [images[name] for name in complete]
        first, last = np.split(rows.boxes, 2, axis=1)
        boxes = from_corner_and_size(np.concatenate([first - self.origin, last - first + 1], axis=1))
        check_numbers(rows)
        check_sizes(rows, paths, boxes)
        if outside := int((first < self.origin).any(axis=1).sum()):
            place = rows.places[int((first < self.origin).any(axis=1).argmax())]
            log.warning(
                "%s: the box begins before the first pixel, %d (%d such); for a tool that counts from 0, set "
                "data.origin=0",
                *(place, self.origin, outside),
            )
        faces = faces_of(boxes, *without_points(len(boxes), self.layout), tags)
        starts = [0, *rows.ends[:-1]]
        return [
            Photo(path, tuple(faces[start:end]), "stored")
            for path, start, end in zip(paths, starts, rows.ends, strict=True)
        ]

    def _rows(self, paths: list[Path]) -> tuple[BoxRows, list[frozenset[str]]]:
        """Read the objects that are faces: their corners as in the files, and their tags."""
        rows = BoxRows([path.stem for path in paths], [], np.empty((0, 4), np.float32), [])
        corners, tags = [], []
        others: Counter[str] = Counter()
        for path in paths:
            for number, element in enumerate(_tree(path).iter("object"), 1):
                place = f"{path}, object {number}"
                if (name := _text(element, "name", place)) not in self.classes:
                    others[name] += 1
                    continue
                flags = [flag for flag in FLAGS if _flag(element, flag, place)]
                corners.append(_corners(element, place))
                tags.append(frozenset((name, *flags)))
                rows.places.append(place)
            rows.ends.append(len(corners))
        if others and not corners:
            raise DatasetError(
                f"{self.root}: no object is a face: data.classes={list(self.classes)}, but the files have "
                f"{', '.join(others)}"
            )
        if others:
            found = ", ".join(f"{name} ({times})" for name, times in others.most_common(5))
            log.warning("%s: objects that are not in data.classes were not read: %s", self.root, found)
        return rows._replace(boxes=np.array(corners, np.float32).reshape(-1, 4)), tags


def _names(path: Path) -> list[str]:
    """Read the names of a list; a list of one class has -1, 0 or 1 behind each name."""
    lines = [unicodedata.normalize("NFC", line.strip()) for line in read_lines(path)]
    if "" in lines:
        raise DatasetError(f"{path}, line {lines.index('') + 1}: expected the name of a photo, found a blank line")
    shortened = [re.sub(r"\s+(-1|0|1)$", "", line) for line in lines]
    # Names may end with such a number: only a list that has one in every line is a list of one class.
    return shortened if all(map(str.__ne__, lines, shortened)) else lines


def _tree(path: Path) -> ElementTree.Element:
    """Parse an XML file."""
    try:
        root = ElementTree.fromstring(read_bytes(path, MAX_FILE_BYTES))
    except (ElementTree.ParseError, ValueError, OSError) as error:
        raise DatasetError(f"{path}: {error}") from error
    if root.tag != "annotation":
        raise DatasetError(f"{path}: the root is <{root.tag}>, expected <annotation> as in PASCAL VOC")
    return root


def _text(element: ElementTree.Element, name: str, place: str) -> str:
    """Return the text of an element in an object."""
    if not (text := (element.findtext(name) or "").strip()):
        raise DatasetError(f"{place}: has no <{name.replace('/', '><')}>")
    return text


def _flag(element: ElementTree.Element, name: str, place: str) -> bool:
    """Return a flag of an object; it is false if it is missing."""
    text = (element.findtext(name) or "0").strip().lower()
    if text not in FLAG_TEXTS:
        raise DatasetError(f"{place}: <{name}> is {text!r}, expected 0 or 1")
    return FLAG_TEXTS[text]


def _corners(element: ElementTree.Element, place: str) -> list[float]:
    """Return the corners of an object as in the file."""
    corners = []
    for name in CORNERS:
        text = _text(element, f"bndbox/{name}", place)
        try:
            corners.append(float(text.replace("_", "x")))  # Python parses 1_0 as 10
        except ValueError as error:
            raise DatasetError(f"{place}: <{name}> is {text!r}, expected a number") from error
        if not np.isfinite(np.float32(corners[-1])):
            raise DatasetError(f"{place}: <{name}> is {text!r}, expected a finite number")
    for low, high in ((0, 2), (1, 3)):
        if corners[high] < corners[low]:
            raise DatasetError(
                f"{place}: <{CORNERS[high]}> {corners[high]:g} is below <{CORNERS[low]}> {corners[low]:g}; expected "
                "the last covered pixel, not a width or height"
            )
    return corners
