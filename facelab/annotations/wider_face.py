"""WIDER FACE: boxes and six attributes of faces in crowds, and the five points of RetinaFace.

*Source.* Yang, Luo, Loy, Tang: WIDER FACE: A Face Detection Benchmark, CVPR 2016;
http://shuoyang1213.me/WIDERFACE. For non-commercial research, without derivatives. The points are those of Deng, Guo,
Ververas, Kotsia, Zafeiriou: RetinaFace, CVPR 2020; https://github.com/deepinsight/insightface.

*On disk.* ``WIDER_{train,val}/images/EVENT/NAME.jpg`` and ``wider_face_split/wider_face_{train,val}_bbx_gt.txt``: the
line ``EVENT/NAME.jpg``, a line with the number of faces, then one line of 10 whole numbers per face: x y w h blur
expression illumination invalid occlusion pose. ``retinaface_gt/{train,val}/label.txt``: the line ``# EVENT/NAME.jpg``,
then one line per face: x y w h, or these with five times x y flag and one more number, which is not read.
``ground_truth/wider_{easy,medium,hard}_val.mat``, of the evaluation tools: the rows of the faces in three lists.

*Counts.* 12,880 photos in train, 3,226 with 39,708 rows in val. The annotations of the official test are not public:
the official val is the test here, and val is a share of the train photos, drawn by the SHA-256 of ``EVENT/NAME.jpg``.

*Quirks.* Coordinates count from the edge of the first pixel, as in the codes that multiply them by the scale of an
image: 0.5 is subtracted from boxes and points. A photo with 0 faces has one row of zeros in the official files, which
is a face without an area here, because the evaluation code counts rows. A few boxes have no width or height, one a
negative width, and one photo the same box twice; all rows are kept. Faces with the tag ``invalid`` cannot be
recognised. A point with the flag 0 is visible, with 1 it is hidden, and with -1 or a negative x it is not annotated.

*Orientation.* Photos are read as stored; their orientation tag (EXIF) is ignored.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval
from scipy.io import loadmat

from facelab.annotations.box_rows import BoxRows, check_names, check_numbers, check_sizes, faces_of, without_points
from facelab.annotations.points_file import MAX_FRACTION, hash_fraction, not_found, read_lines, read_table, with_images
from facelab.bounds import Text
from facelab.errors import ConfigError, DatasetError
from facelab.faces.boxes import from_corner_and_size
from facelab.faces.face import Photo, Split
from facelab.faces.geometry import Array, from_cells
from facelab.faces.layouts import FIVE5, Layout

log = logging.getLogger(__name__)

SOURCE = "WIDER FACE is at http://shuoyang1213.me/WIDERFACE; unpack its files into one folder"
"""Where to get the dataset, for error messages."""
ATTRIBUTES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("blur", ("blur_normal", "blur_heavy")),
    ("expression", ("expression",)),
    ("illumination", ("illumination",)),
    ("invalid", ("invalid",)),
    ("occlusion", ("occlusion_partial", "occlusion_heavy")),
    ("pose", ("pose",)),
)
"""Columns of attributes, in the order of the official files, and the tags of their values from 1; 0 has no tag."""
LISTS = ("easy", "medium", "hard")
"""Lists of the faces of the official val, which the evaluation of WIDER FACE uses, and their tags."""
PHOTO_NAME = re.compile(r".+\.(jpe?g|png)", re.IGNORECASE)
"""Line that names a photo."""
LABEL_WIDTHS = (4, 4 + 3 * FIVE5.num_points + 1)
"""Numbers in a row of a label.txt, without and with points."""


class WiderFace:
    """Reader of WIDER FACE and of datasets in its format or that of RetinaFace's label.txt.

    Args:
        name: name of the dataset, for run names and tables.
        root: the folder that contains ``WIDER_train``, ``WIDER_val`` and the folders of the annotations.
        layout: layout of the points, five points.
        labels: files of the faces. ``official`` has attributes and no points; ``retinaface`` is label.txt and has no
            attributes; ``both`` has the rows of ``official``, with the points of the face in label.txt that has the
            same box.
        lists: folder of the .mat files of the three lists, relative to the root, which give tags to the faces of test;
            None for no such tags. The lists name rows of the official files.
        val_share: share of the train photos that is val: the photos with a :func:`hash_fraction` below it.
        skip_unpaired: whether to skip photos with a missing image with a warning, instead of raising.

    Raises:
        ConfigError: the layout has another number of points, or there are lists of rows that ``labels`` does not read.
    """

    def __init__(
        self,
        name: Text,
        root: Text,
        layout: Layout,
        labels: Literal["official", "retinaface", "both"],
        lists: Text | None,
        val_share: Annotated[float, Interval(ge=0, lt=1)],
        skip_unpaired: bool,
    ) -> None:
        if layout.num_points != FIVE5.num_points:
            raise ConfigError("layout", f" must have the 5 points of {FIVE5.name}, found {layout.name}")
        if labels == "retinaface" and lists:
            raise ConfigError("lists", " needs the rows of the official files; set lists=null with labels=retinaface")
        self.name = name
        self.root = Path(root)
        self.layout = layout
        self.labels = labels
        self.lists = lists
        self.val_share = val_share
        self.skip_unpaired = skip_unpaired
        attributes = () if labels == "retinaface" else tuple(tag for _, tags in ATTRIBUTES for tag in tags)
        self.tags: tuple[str, ...] = (*attributes, *(LISTS if lists else ()))

    def photos(self, split: Split) -> list[Photo]:
        """Return the photos of a split, in the order of the file.

        Raises:
            DatasetError: a file is missing or malformed, an image is missing, or the split is empty.
        """
        parts = [part for part in ("train", "val") if self._file(part).is_file()]
        if not parts:
            raise not_found(self.root, str(self._file("{train,val}").relative_to(self.root)), SOURCE)
        part = "val" if split == "test" else "train"  # the official val is the test
        if split not in ("train", "val", "test", "all") or (split != "all" and part not in parts):
            raise DatasetError(
                f"{self.root}: there is no split {split!r}; train and val are parts of {self._file('train').name} in "
                f"{self._file('train').parent}, test is {self._file('val').name}"
            )
        photos = [photo for each in (parts if split == "all" else (part,)) for photo in self._part(each, split)]
        if not photos and split == "val" and not self.val_share:
            return []
        if not photos:
            raise DatasetError(f"{self.root}: the split {split!r} is empty with val_share={self.val_share}")
        return with_images(self.root, photos, skip=self.skip_unpaired)

    def _is_in(self, split: Split, name: str) -> bool:
        """Return whether a photo, EVENT/NAME.jpg in the file of a split, belongs to the split."""
        return split in ("test", "all") or (hash_fraction(name) < self.val_share) == (split == "val")

    def _file(self, part: str) -> Path:
        """Return the path of the file of an official split whose rows are the faces."""
        if self.labels == "retinaface":
            return self.root / "retinaface_gt" / part / "label.txt"
        return self.root / "wider_face_split" / f"wider_face_{part}_bbx_gt.txt"

    def _part(self, part: str, split: Split) -> list[Photo]:
        """Read an official split and return its photos in a split."""
        path = self._file(part)
        rows, table = _read_labels(path) if self.labels == "retinaface" else _read_official(path)
        paths = [self.root / f"WIDER_{part}" / "images" / name for name in rows.names]
        boxes = from_corner_and_size(rows.boxes)
        check_names(rows.names, str(path))
        check_numbers(rows)
        check_sizes(rows, paths, boxes)
        points, visible = without_points(len(boxes), self.layout)
        tags: list[frozenset[str]] = [frozenset()] * len(boxes)
        if self.labels == "retinaface":
            points, visible = _points(table)
        else:
            flags = _flags(table, rows)
            if self.lists and part == "val":
                flags = np.column_stack([flags, *(self._listed(name, rows) for name in LISTS)])
            tags = _sets(flags, self.tags)
        if self.labels == "both":
            label = self.root / "retinaface_gt" / part / "label.txt"
            if not label.is_file():
                raise DatasetError(f"{label} does not exist; it has the points of RetinaFace. Without: labels=official")
            points, visible = _joined(rows, *_read_labels(label))
        faces = faces_of(boxes, points, visible, tags)
        photos = zip(rows.names, paths, pairwise([0, *rows.ends]), strict=True)
        return [Photo(path, tuple(faces[i:j]), "stored") for name, path, (i, j) in photos if self._is_in(split, name)]

    def _listed(self, name: str, rows: BoxRows) -> Array:
        """Return which rows of the official val are in a list, ``(R,)`` bool."""
        path = self.root / str(self.lists) / f"wider_{name}_val.mat"
        listed = _read_list(path)
        result, start = np.zeros(len(rows.boxes), np.bool_), 0
        for photo, end in zip(rows.names, rows.ends, strict=True):
            stem = photo.rpartition(".")[0]
            if stem not in listed:
                raise DatasetError(f"{path} does not list the photo {photo}; without the lists: lists=null")
            boxes, numbers = listed[stem]
            if end > start and not np.array_equal(boxes, rows.boxes[start:end]):
                raise DatasetError(f"{rows.places[start]}: {path} has other boxes of the photo {photo}")
            result[start + numbers - 1] = True
            start = end
        return result


def _read_official(path: Path) -> tuple[BoxRows, Array]:
    """Read an official file: its boxes x y w h, and all columns ``(R, 10)``."""
    lines = read_lines(path)
    meaning = ", ".join(("x y w h", *(name for name, _ in ATTRIBUTES)))
    names, ends, places, tables = [], [], [], [np.empty((0, 4 + len(ATTRIBUTES)), np.float32)]
    at = 0
    while at < len(lines):
        hint = "Is the number of faces of the photo before too small?" if at else "The first line names a photo."
        name = _photo_name(lines[at].strip(), f"{path}, line {at + 1}", hint)
        number = lines[at + 1].strip() if at + 1 < len(lines) else "the end of the file"
        if not number.isdecimal():
            raise DatasetError(f"{path}, line {at + 2}: expected the number of faces of {name}, found {number[:60]!r}")
        at += 2
        dummy = number == "0" and at < len(lines) and not PHOTO_NAME.fullmatch(lines[at].strip())
        rows = lines[at : at + max(int(number), dummy)]
        if early := next((row for row in rows if PHOTO_NAME.fullmatch(row.strip())), None):
            raise DatasetError(
                f"{path}, line {at}: {number} faces of {name}, but the photo {early.strip()[:60]} follows after "
                f"{rows.index(early)}"
            )
        if len(rows) < int(number):
            raise DatasetError(f"{path}, line {at}: {number} faces of {name}, but the file ends after {len(rows)}")
        if rows:
            table = read_table(rows, 4 + len(ATTRIBUTES), meaning, path, at + 1, delimiter=None, allow_nan=False)
            if dummy and table.any():
                raise DatasetError(f"{path}, line {at + 1}: {name} has 0 faces, but a row of one follows")
            tables.append(table)
        places += [f"{path}, line {line}" for line in range(at + 1, at + 1 + len(rows))]
        at += len(rows)
        names.append(name)
        ends.append(len(places))
    table = np.concatenate(tables)
    return BoxRows(names, ends, table[:, :4], places), table


def _photo_name(line: str, place: str, hint: str) -> str:
    """Refuse a line that does not name a photo in the folder of the photos.

    Args:
        line: the line.
        place: file and line, for the message.
        hint: sentence about the probable mistake.
    """
    if not PHOTO_NAME.fullmatch(line):
        raise DatasetError(
            f"{place}: expected the name of a photo, EVENT/NAME.jpg (or .jpeg, .png), found {line[:60]!r}. {hint}"
        )
    if line.startswith("/") or ".." in Path(line).parts:
        raise DatasetError(f"{place}: the name of a photo must be relative to its folder, found {line[:60]!r}")
    return line


def _read_labels(path: Path) -> tuple[BoxRows, Array]:
    """Read a label.txt: its boxes x y w h, and all columns ``(R, 20)``; -1 in rows without points."""
    lines = read_lines(path)
    starts = [i for i, line in enumerate(lines) if line.startswith("#")]
    if not starts or starts[0]:
        raise DatasetError(f"{path}, line 1: expected '# EVENT/NAME.jpg', found {lines[0][:60]!r}")
    names, ends, places, tables = [], [], [], [np.empty((0, LABEL_WIDTHS[1]), np.float32)]
    for start, end in pairwise([*starts, len(lines)]):
        hint = "Nothing may follow the name."
        names.append(_photo_name(lines[start][1:].strip(), f"{path}, line {start + 1}", hint))
        places += [f"{path}, line {line}" for line in range(start + 2, end + 1)]
        ends.append(len(places))
        if end == start + 1:
            continue
        width = LABEL_WIDTHS[len(lines[start + 1].split()) > LABEL_WIDTHS[0]]
        meaning = "x y w h, or these with five times x y flag and one number, as in the row before"
        table = read_table(lines[start + 1 : end], width, meaning, path, start + 2, delimiter=None, allow_nan=False)
        tables.append(np.pad(table, [(0, 0), (0, LABEL_WIDTHS[1] - width)], constant_values=-1))
    table = np.concatenate(tables)
    rows = BoxRows(names, ends, table[:, :4], places)
    wrong = ~np.isin(table[:, 6:19:3], (-1, 0, 1)).all(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        flags = table[row, 6:19:3].tolist()
        raise DatasetError(f"{places[row]}: the flags of the points must be -1, 0 or 1, found {flags}")
    xy = np.column_stack([table[:, 4:19:3], table[:, 5:19:3]])
    small = (xy.max(axis=1) > 0) & (xy.max(axis=1) <= MAX_FRACTION) & (table[:, 2:4].max(axis=1) > 2 * MAX_FRACTION)
    if small.any():
        row = int(small.argmax())
        raise DatasetError(
            f"{places[row]}: the points look like fractions; multiply x and y by the width and the height of the photo"
        )
    return rows, table


def _points(table: Array) -> tuple[Array, Array]:
    """Return the points ``(R, 5, 2)`` of the rows of a label.txt, and which are visible ``(R, 5)``."""
    columns = table[:, 4:19].reshape(-1, FIVE5.num_points, 3)
    annotated = (columns[..., 0] >= 0) & (columns[..., 2] >= 0)
    points = np.where(annotated[..., None], from_cells(columns[..., :2], 1), np.float32(np.nan))
    return points, annotated & (columns[..., 2] == 0)


def _joined(rows: BoxRows, others: BoxRows, table: Array) -> tuple[Array, Array]:
    """Return the points and visibilities of the faces that have the same box in a label.txt."""
    points, visible = _points(table)
    at: dict[Any, list[int]] = {}  # rows of equal boxes of a photo, in their order
    for row, key in enumerate(_keys(others)):
        at.setdefault(key, []).append(row)
    found = np.array([at[key].pop(0) if at.get(key) else -1 for key in _keys(rows)], np.int64)
    if lost := [row for left in at.values() for row in left if np.isfinite(points[row]).any()]:
        place, number = others.places[lost[0]], len(lost)
        log.warning("%s: points of a face whose box is not in the official file (%d such)", place, number)
    missing = found < 0
    points, visible = points[found], visible[found]
    points[missing], visible[missing] = np.nan, False
    return points, visible


def _keys(rows: BoxRows) -> Iterator[tuple[Any, ...]]:
    """Yield the photo and the box of each row."""
    names = np.repeat(np.array(rows.names, np.object_), np.diff(rows.ends, prepend=0)).tolist()
    return zip(names, *rows.boxes.T.tolist(), strict=True)


def _flags(table: Array, rows: BoxRows) -> Array:
    """Return the tags ``(R, T)`` bool of the rows of an official file."""
    columns = []
    for (name, tags), values in zip(ATTRIBUTES, table[:, 4:].T, strict=True):
        wrong = ~np.isin(values, range(len(tags) + 1))
        if wrong.any():
            row = int(wrong.argmax())
            raise DatasetError(f"{rows.places[row]}: {name} must be 0 to {len(tags)}, found {values[row]:g}")
        columns += [values == value for value in range(1, len(tags) + 1)]
    return np.column_stack(columns)


def _sets(flags: Array, tags: Sequence[str]) -> list[frozenset[str]]:
    """Return the tags of each row, of which few are different."""
    different, which = np.unique(flags, axis=0, return_inverse=True)
    sets = [frozenset(tag for tag, flag in zip(tags, row, strict=False) if flag) for row in different]
    return [sets[i] for i in which.ravel()]  # numpy 2.0 has a column


def _read_list(path: Path) -> dict[str, tuple[Array, Array]]:
    """Read a .mat file of the evaluation tools: EVENT/NAME without ending -> boxes, and rows in the list from 1."""
    if not path.is_file():
        raise DatasetError(
            f"{path} does not exist; it is in the evaluation tools of WIDER FACE. Without the lists: lists=null"
        )
    keys = ("event_list", "file_list", "face_bbx_list", "gt_list")
    listed = {}
    try:
        content = loadmat(path, variable_names=keys)
        for event, *photos in zip(*(content[key][:, 0] for key in keys), strict=True):
            for name, boxes, numbers in zip(*(column[:, 0] for column in photos), strict=True):
                listed[f"{event[0]}/{name[0]}"] = boxes, numbers.ravel().astype(np.int64)
    except Exception as error:  # loadmat raises whatever the bytes lead to
        raise DatasetError(f"{path} cannot be read as a list of WIDER FACE: {error}") from error
    return listed
