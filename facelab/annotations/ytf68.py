"""Frames of YouTube Faces with 68 points, in the form of Udacity's course on computer vision.

*Source.* The frames: Wolf, Hassner, Maoz: Face Recognition in Unconstrained Videos with Matched Background Similarity,
CVPR 2011, for research. The points: found by a machine and cleaned, as published with
https://github.com/udacity/P1_Facial_Keypoints in its folder ``data``.

*On disk.* ``training/``, ``training_frames_keypoints.csv``, ``test/``, ``test_frames_keypoints.csv``. A .csv has a
header, then one face per line: the file's name, x0, y0, ..., x67, y67. A file is called ``First_Last_NN.jpg``; frames
are about 200 pixels wide.

*Quirks.* The published parts **share people and clips**, and the same file name in both is another frame. So the parts
are put together and split anew by person: the person is the file's name before its last underscore (``Luis_Fonsi`` of
``Luis_Fonsi_21.jpg``), and the first byte of the SHA-256 of that decides: below 0x26 test, below 0x40 val, else train.
Numbers on these splits do not compare with those on the published ones. Coordinates are whole pixels, taken as
counting from 0, and may lie outside the image. A file that no .csv names has no points and is not part of the set.

*Orientation.* Photos are read as they are stored, without regard to their orientation mark (EXIF).
"""

import re
from pathlib import Path

from facelab.annotations.points_file import (
    REMEDIES,
    check_face,
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
TEST_BELOW, VAL_BELOW = 0x26 / 256, 0x40 / 256
FILE_NAME = re.compile(r"(?P<person>.+)_\d+\.jpg")


class YTFaces:
    """Reader of the YouTube Faces frames. No face has a box, a pose or a tag.

    Args:
        name: of the set, for run names and tables.
        root: the folder that holds the two .csv and the two folders of frames.
        layout: what the points mean, and how many there have to be.
        skip_unpaired: leave out faces whose image is absent, with a warning, instead of refusing the set.
    """

    tags: tuple[str, ...] = ()

    def __init__(self, name: Text, root: Text, layout: Layout, skip_unpaired: bool) -> None:
        self.name = name
        self.root = Path(root)
        self.layout = layout
        self.skip_unpaired = skip_unpaired

    def photos(self, split: Split) -> list[Photo]:
        """The photos of a split, in the order of ``training_frames_keypoints.csv``, then of the other.

        Raises:
            DatasetError: a .csv is missing; a line that is not as described; an image that is absent; no photo.
        """
        if not all(self._csv(part).is_file() for part in ("training", "test")):
            raise not_found(self.root, "training_frames_keypoints.csv and test_frames_keypoints.csv", SOURCE)
        photos = [photo for part in ("training", "test") for photo in self._part(part, split)]
        if not photos:
            raise DatasetError(f"{self.root}: no person of this set is in the split {split!r}")
        return with_images(self.root, photos, skip=self.skip_unpaired)

    def _csv(self, part: str) -> Path:
        return self.root / f"{part}_frames_keypoints.csv"

    def _part(self, part: str, split: Split) -> list[Photo]:
        path = self._csv(part)
        header, *lines = [line.partition(",") for line in read_lines(path)]
        if not lines or FILE_NAME.fullmatch(header[0]):
            raise DatasetError(f"{path}, line 1: expected a header, and a face per line after it")
        meaning = f"{self.layout.num_points} points of the layout {self.layout.name}, after the file's name"
        table = read_table(
            [numbers for *_, numbers in lines],
            2 * self.layout.num_points,
            meaning,
            path,
            2,
            delimiter=",",
            may_lack=False,
        )
        photos = []
        for number, ((file, *_), row) in enumerate(zip(lines, table, strict=True), 2):
            match = FILE_NAME.fullmatch(file)
            if match is None:
                raise DatasetError(f"{path}, line {number}: {file!r} is not Person_NN.jpg, so its person is not known")
            if split in ("all", _split(match["person"])):
                face = row.reshape(-1, 2)
                check_face(face, f"{path}, line {number}", REMEDIES)
                photos.append(Photo(self.root / part / file, (plain_face(face),), "stored"))
        return photos


def _split(person: str) -> str:
    number = hash_fraction(person)
    if number < TEST_BELOW:
        return "test"
    return "val" if number < VAL_BELOW else "train"
