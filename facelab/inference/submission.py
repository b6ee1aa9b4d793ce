"""Detections in the format in which WIDER FACE accepts them.

*On disk.* One file ``EVENT/PHOTO.txt`` per photo, also for a photo without a detection: the name of the photo, the
number of detections, then one line ``x y width height score`` per detection, in falling order of the score.

*Coordinates.* x and y count from the edge of the first pixel, as those of the annotations (see
:mod:`facelab.annotations.wider_face`): 0.5 is added to the coordinates of :mod:`facelab.faces.geometry`. The width is
x1 - x0; the evaluation code adds the last pixel itself. The code of biubug6/Pytorch_Retinaface truncates x0, y0, x1 and
y1 to whole numbers before it subtracts them.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facelab.annotations.box_rows import BoxRows
from facelab.annotations.points_file import read_lines, read_table
from facelab.errors import DatasetError
from facelab.faces.boxes import to_corner_and_size
from facelab.faces.geometry import Array
from facelab.files import walk
from facelab.metrics.detection_table import DetectionTable

log = logging.getLogger(__name__)

HEADER = 2
"""Lines before the detections: the name of the photo and the number of detections."""
ROW = "x y width height score"
"""Numbers of a detection."""


def write_submission(table: DetectionTable, photos: Sequence[Path], folder: Path, *, truncated: bool) -> None:
    """Write the detections of a test, one file for each of its photos.

    Args:
        table: the photos.
        photos: path of each photo of the split, indexed by ``photo_id``; its folder is the event.
        folder: new folder; it is complete when it has its name.
        truncated: whether to truncate the corners to whole numbers.

    Raises:
        DatasetError: two photos would have the same file.
    """
    rows = to_corner_and_size(table.boxes)
    if truncated:
        corners = np.trunc(np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], axis=1))
        rows = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).astype(np.int64)
    lines = [
        " ".join(map(repr, (*row, score))) for row, score in zip(rows.tolist(), table.scores.tolist(), strict=True)
    ]
    ends = np.searchsorted(table.photo, np.arange(len(table.photo_id) + 1)).tolist()
    temporary = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    for row, photo_id in enumerate(table.photo_id.tolist()):
        photo = photos[photo_id]
        file = temporary / photo.parent.name / f"{photo.stem}.txt"
        if file.exists():
            raise DatasetError(
                f"{photo}: the split has two photos {photo.parent.name}/{photo.stem}, which the format lacks"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        its = lines[ends[row] : ends[row + 1]]
        file.write_text("\n".join([photo.stem, str(len(its)), *its, ""]), encoding="utf-8", errors="surrogateescape")
    temporary.rename(folder)


def read_submission(folder: Path) -> tuple[BoxRows, Array]:
    """Read the detections of photos.

    The path of a file names its photo, as in the evaluation code; the name in its first line is not used.

    Args:
        folder: contains the files, ``EVENT/PHOTO.txt`` or ``PHOTO.txt``.

    Returns:
        The boxes x y width height ``(D, 4)`` of the photos, which are called EVENT/PHOTO, and the scores ``(D,)``.

    Raises:
        DatasetError: there is no file, or one is malformed; the message contains the file and the line.
    """
    try:
        files = [file for file in walk(folder) if file.suffix == ".txt"]
    except OSError as error:
        raise DatasetError(f"{error.filename}: {error.strerror}") from error
    if not files:
        raise DatasetError(f"{folder} contains no file EVENT/PHOTO.txt with the detections of a photo")
    tables, ends, places, misnamed = [np.empty((0, 5))], [], [], []
    for file in files:
        table, name = _read_photo(file)
        tables.append(table)
        places += [f"{file}, line {line}" for line in range(HEADER + 1, HEADER + 1 + len(table))]
        ends.append(len(places))
        if file.stem not in (Path(name).name, Path(name).stem):
            misnamed.append(file)
    if misnamed:
        log.warning("%s, line 1: names another photo than the file does (%d such files)", misnamed[0], len(misnamed))
    table = np.concatenate(tables)
    names = [file.relative_to(folder).with_suffix("").as_posix() for file in files]
    return BoxRows(names, ends, table[:, :4], places), table[:, 4]


def _read_photo(file: Path) -> tuple[Array, str]:
    """Read the detections ``(D, 5)`` of a file, and the name in its first line."""
    lines = read_lines(file)
    if len(lines) < HEADER or not lines[1].strip().isdecimal():
        found = repr(lines[1].strip()[:60]) if len(lines) > 1 else "the end of the file"
        raise DatasetError(
            f"{file}, line 2: expected the number of detections, found {found}. A file has the name of its photo, the "
            f"number of detections, and one line {ROW} for each"
        )
    rows, number = lines[HEADER:], int(lines[1])
    if len(rows) != number:
        raise DatasetError(f"{file}, line 2: {number} detections are announced, but {len(rows)} lines follow")
    if not rows:
        return np.empty((0, 5)), lines[0].strip()
    width = len(ROW.split())
    table = read_table(rows, width, ROW, file, HEADER + 1, delimiter=None, allow_nan=False, dtype=np.float64)
    return table, lines[0].strip()
