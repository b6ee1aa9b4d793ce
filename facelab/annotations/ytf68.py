"""Frames of YouTube Faces with 68 points, in the format of Udacity's course on computer vision.

*Source.* The frames: Wolf, Hassner, Maoz: Face Recognition in Unconstrained Videos with Matched Background Similarity,
CVPR 2011, for research. The points: detected automatically and cleaned, published in the folder ``data`` of
https://github.com/udacity/P1_Facial_Keypoints.

*On disk.* ``training/``, ``training_frames_keypoints.csv``, ``test/``, ``test_frames_keypoints.csv``. A .csv has a
header, then one face per line: file name, x0, y0, ..., x67, y67. A file is called ``First_Last_NN.jpg``; frames are
about 200 pixels wide.

*Quirks.* The published parts **share people and clips**, and a file name that is in both parts is a different frame in
each. The reader therefore joins the parts and splits them by person. The person is the file name before its last
underscore (``Luis_Fonsi`` of ``Luis_Fonsi_21.jpg``). The first byte of the SHA-256 of the person determines the split:
below 0x26 test, below 0x40 val, else train. Results on these splits are not comparable with results on the published
ones. Coordinates are whole pixels, counted from 0 by this reader, and may be outside the image. A file that is in no
.csv has no points and is not part of the dataset.

*Orientation.* Photos are read as stored; their orientation tag (EXIF) is ignored.
"""

import re
from pathlib import Path

from facelab.annotations.points_file import (
    REMEDIES,
    check_faces,
    hash_fraction,
    not_found,
    plain_face,
    read_lines,
    read_table,
    with_images,
)
from facelab.bounds import Text
from facelab.errors import DatasetError
from facelab.faces.face import Photo, Split
from facelab.faces.layouts import Layout

SOURCE = "The frames and both .csv are the folder data of https://github.com/udacity/P1_Facial_Keypoints; download it"
"""Where to get the dataset, for error messages."""
TEST_BELOW, VAL_BELOW = 0x26 / 256, 0x40 / 256
"""Upper bounds of :func:`hash_fraction` for the splits test and val: about 15 % and 10 % of the people."""
FILE_NAME = re.compile(r"(?P<person>.+)_\d+\.jpg")
"""File name of a frame: the person and a number."""


class YTFaces:
    """Reader of the YouTube Faces frames. No face has a box, a pose or a tag.

    Args:
        name: name of the dataset, for run names and tables.
        root: the folder that contains the two .csv and the two folders of frames.
        layout: layout of the points.
        skip_unpaired: whether to skip faces with a missing image with a warning, instead of raising.
    """

    tags: tuple[str, ...] = ()

    def __init__(self, name: Text, root: Text, layout: Layout, skip_unpaired: bool) -> None:
        self.name = name
        self.root = Path(root)
        self.layout = layout
        self.skip_unpaired = skip_unpaired

    def photos(self, split: Split) -> list[Photo]:
        """Return the photos of a split, in the order of ``training_frames_keypoints.csv``, then of the other .csv.

        Raises:
            DatasetError: a .csv is missing, a line is malformed, an image is missing, or the split is empty.
        """
        if not all(self._csv(part).is_file() for part in ("training", "test")):
            raise not_found(self.root, "training_frames_keypoints.csv and test_frames_keypoints.csv", SOURCE)
        photos = [photo for part in ("training", "test") for photo in self._part(part, split)]
        if not photos:
            raise DatasetError(f"{self.root}: no person of this dataset is in the split {split!r}")
        return with_images(self.root, photos, skip=self.skip_unpaired)

    def _csv(self, part: str) -> Path:
        """Return the path of one of the two CSV files."""
        return self.root / f"{part}_frames_keypoints.csv"

    def _part(self, part: str, split: Split) -> list[Photo]:
        """Read one of the two CSV files and return its photos in this split."""
        path = self._csv(part)
        header, *lines = [line.partition(",") for line in read_lines(path)]
        if not lines or FILE_NAME.fullmatch(header[0]):
            raise DatasetError(f"{path}, line 1: expected a header, then one face per line")
        meaning = f"{self.layout.num_points} points of the layout {self.layout.name}, after the file's name"
        table = read_table(
            [numbers for *_, numbers in lines],
            2 * self.layout.num_points,
            meaning,
            path,
            2,
            delimiter=",",
            allow_nan=False,
        )
        points = table.reshape(len(table), -1, 2)
        check_faces(points, 2, path, REMEDIES)
        photos = []
        for number, ((file, *_), face) in enumerate(zip(lines, points, strict=True), 2):
            match = FILE_NAME.fullmatch(file)
            if match is None:
                raise DatasetError(f"{path}, line {number}: {file!r} is not Person_NN.jpg, so its person is unknown")
            if split in ("all", _split(match["person"])):
                photos.append(Photo(self.root / part / file, (plain_face(face),), "stored"))
        return photos


def _split(person: str) -> str:
    """Return the split of a person by a hash of the name."""
    number = hash_fraction(person)
    if number < TEST_BELOW:
        return "test"
    return "val" if number < VAL_BELOW else "train"
