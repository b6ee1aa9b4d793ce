"""WFLW: 98 points, a detection rectangle and six attributes per face; several faces per image.

*Source.* Wu, Qian, Yang, Wang, Cai, Zhou: Look at Boundary: A Boundary-Aware Face Alignment Algorithm, CVPR 2018;
https://wywu.github.io/projects/LAB/WFLW.html. The images are from WIDER FACE, for research.

*On disk.* ``WFLW_images/EVENT/NAME.jpg`` and
``WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{train,test}.txt``, one face per line in 207
fields: x0 y0 ... x97 y97, the rectangle x_min y_min x_max y_max, six flags, ``EVENT/NAME.jpg``. The lists of the test
subsets in ``list_98pt_test/`` repeat the flags (326 large pose, 314 expression, 698 illumination, 206 make-up, 736
occlusion, 773 blur) and are not needed.

*Counts.* 7,500 faces in train, 2,500 faces on 2,118 images in test.

*Quirks.* Coordinates may be negative or beyond the image, down to -105; these points are annotated, not missing. The
authors do not state whether coordinates count from 0 or from 1; this reader counts from 0, as is usual. The rectangle
is the box of a detector, taller than the points. There is no official val: a fixed share of the train photos is val,
drawn by the SHA-256 of ``EVENT/NAME.jpg`` to keep the faces of a photo in one split.

*Orientation.* Photos are read as stored; their orientation tag (EXIF) is ignored.
"""

import itertools
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Interval

from facelab.annotations.points_file import (
    REMEDIES,
    check_boxes,
    check_faces,
    hash_fraction,
    not_found,
    read_lines,
    read_table,
    with_images,
)
from facelab.bounds import Text
from facelab.errors import DatasetError
from facelab.faces.face import Face, Photo, Split
from facelab.faces.layouts import Layout

SOURCE = "WFLW's images and lists are at https://wywu.github.io/projects/LAB/WFLW.html; unpack both into one folder"
"""Where to get the dataset, for error messages."""
LISTS = Path("WFLW_annotations", "list_98pt_rect_attr_train_test")
"""Folder of the lists, relative to the root."""


class WFLW:
    """Reader of WFLW and of datasets in its format. ``Face.box`` is the detection rectangle; no face has a pose.

    Args:
        name: name of the dataset, for run names and tables.
        root: the folder that contains ``WFLW_images`` and ``WFLW_annotations``.
        layout: layout of the points.
        val_share: share of the train photos that is val: the photos with a :func:`hash_fraction` below it. With 0 val
            is empty and the whole list is train, as in the papers.
        skip_unpaired: whether to skip faces with a missing image with a warning, instead of raising.
    """

    tags: tuple[str, ...] = ("pose", "expression", "illumination", "makeup", "occlusion", "blur")

    def __init__(
        self,
        name: Text,
        root: Text,
        layout: Layout,
        val_share: Annotated[float, Interval(ge=0, lt=1)],
        skip_unpaired: bool,
    ) -> None:
        self.name = name
        self.root = Path(root)
        self.layout = layout
        self.val_share = val_share
        self.skip_unpaired = skip_unpaired
        self._read: dict[str, dict[str, Photo]] = {}

    def photos(self, split: Split) -> list[Photo]:
        """Return the photos of a split, in the order of their first line in the list.

        Raises:
            DatasetError: the list of the split is missing, a line is malformed, an image is missing, or the split is
                empty.
        """
        lists = {part: self._list(part) for part in ("train", "test") if self._list(part).is_file()}
        if not lists:
            raise not_found(self.root, str(LISTS / "list_98pt_rect_attr_{train,test}.txt"), SOURCE)
        if split == "all":
            photos = [photo for part in lists for photo in self._photos(part).values()]
            return with_images(self.root, photos, skip=self.skip_unpaired)
        part = "train" if split == "val" else split
        if part not in lists:
            raise DatasetError(
                f"{self._list(part)} does not exist, so there is no split {split!r}; there are lists for "
                f"{', '.join(lists)}"
            )
        photos = [photo for name, photo in self._photos(part).items() if self._split(part, name) == split]
        if not photos and split == "val" and not self.val_share:
            return []
        if not photos:
            raise DatasetError(f"{lists[part]}: the split {split!r} is empty with val_share={self.val_share}")
        return with_images(self.root, photos, skip=self.skip_unpaired)

    def _list(self, part: str) -> Path:
        """Return the path of the list of a part."""
        return self.root / LISTS / f"list_98pt_rect_attr_{part}.txt"

    def _split(self, part: str, name: str) -> str:
        """Return the split of a photo of the list of a part."""
        return "val" if part == "train" and hash_fraction(name) < self.val_share else part

    def _photos(self, part: str) -> dict[str, Photo]:
        """Return the photos of the list of a part by name; a list is read once, for train and val."""
        if part not in self._read:
            self._read[part] = self._read_list(self._list(part))
        return self._read[part]

    def _read_list(self, path: Path) -> dict[str, Photo]:
        """Read a list into a dict: name of a photo -> photo."""
        lines = [line.rsplit(maxsplit=1) for line in read_lines(path)]
        numbers = [line[0] if len(line) > 1 else "" for line in lines]
        end = 2 * self.layout.num_points
        width = end + 4 + len(self.tags)
        meaning = f"{self.layout.num_points} points of the layout {self.layout.name}, rectangle, flags; then the name"
        table = read_table(numbers, width, meaning, path, 1, delimiter=None, allow_nan=False)
        points, boxes, flags = np.split(table, [end, end + 4], axis=1)
        wrong = ~np.isin(flags, (0, 1)).all(axis=1)
        if wrong.any():
            row = wrong.argmax()
            raise DatasetError(f"{path}, line {row + 1}: the flags must be 0 or 1, found {flags[row].tolist()}")
        points = points.reshape(len(points), -1, 2)
        check_faces(points, 1, path, REMEDIES)
        check_boxes(boxes, 1, path, REMEDIES)
        # Equal values are one object: a list of 100,000 faces would have as many copies.
        visible, pose = np.ones(self.layout.num_points, np.bool_), np.full(3, np.nan, np.float32)
        tags = [
            frozenset(itertools.compress(self.tags, flag)) for flag in itertools.product((0, 1), repeat=len(self.tags))
        ]
        codes = (flags @ (2 ** np.arange(len(self.tags))[::-1])).astype(int).tolist()
        faces: dict[str, list[Face]] = {}
        for (_, name), xy, box, code in zip(lines, points, boxes, codes, strict=True):
            faces.setdefault(name, []).append(Face(box, xy, visible, pose, tags[code]))
        folder = self.root / "WFLW_images"
        return {name: Photo(folder / name, tuple(its), "stored") for name, its in faces.items()}
