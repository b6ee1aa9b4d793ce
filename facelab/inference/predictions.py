"""Detections of any program for the photos of a dataset, to be measured like those of a run."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facelab.annotations.box_rows import BoxRows, check_numbers, check_sizes
from facelab.errors import DatasetError, printable
from facelab.faces.boxes import from_corner_and_size, to_corner_and_size
from facelab.faces.face import Photo
from facelab.faces.geometry import Array
from facelab.faces.layouts import FIVE5
from facelab.inference.coco_results import read_results
from facelab.inference.submission import read_submission
from facelab.metrics.detection_files import read_detection_table
from facelab.run_folder import RunFolder

FRACTIONS = 0.5
"""Share of boxes up to which detections may look like fractions of the photo."""


class Predictions(NamedTuple):
    """D detections in P photos. Boxes and points are pixels of the photo."""

    rows: BoxRows  # x y width height of the D detections, with the names of the photos, and their places
    boxes: Array  # (D, 4) x0 y0 x1 y1
    scores: Array  # (D,)
    points: Array  # (D, 5, 2), NaN from a detector without points
    skipped: NDArray[np.bool_]  # (P,) the photo could not be read
    cut: Array  # (P,) a limit removed detections; NaN if nobody knows
    lists_all: bool  # False: a photo without a detection does not appear

    @property
    def photo(self) -> NDArray[np.int64]:
        """Return the row of the photo of each detection, ``(D,)``."""
        return np.repeat(np.arange(len(self.rows.names)), np.diff(self.rows.ends, prepend=0))


def read_predictions(path: Path, images: Path | None) -> Predictions:
    """Read detections.

    Args:
        path: a folder in the format of WIDER FACE (:mod:`facelab.inference.submission`), results of COCO
            (:mod:`facelab.inference.coco_results`) with the ending .json, or the folder of a detector's test or its
            ``detections.npz``.
        images: see :func:`facelab.inference.coco_results.read_results`.

    Raises:
        DatasetError: the file or folder cannot be read, or its numbers are not plausible; the message contains the
            place.
    """
    if images is not None and path.suffix.lower() != ".json":
        raise DatasetError(f"predicted.images={images} belongs to results of COCO (.json), but predictions={path}")
    if (own := RunFolder(path).detections).is_file():
        return _own(own)
    if path.is_dir():
        return _foreign(*read_submission(path), lists_all=True)
    if path.suffix.lower() == ".json":
        rows, scores, points = read_results(path, images)
        return _foreign(rows, scores, points, lists_all=images is not None)
    if path.suffix.lower() == ".npz":
        return _own(path)
    if not path.exists():
        raise DatasetError(f"predictions={path}: there is no such file or folder")
    raise DatasetError(
        f"predictions={path}: expected a folder of EVENT/PHOTO.txt (WIDER FACE), a .json (COCO) or a detections.npz"
    )


def _foreign(rows: BoxRows, scores: Array, points: Array | None = None, *, lists_all: bool) -> Predictions:
    """Check boxes and convert them to pixels of the photo."""
    check_numbers(rows, FRACTIONS)
    photos = len(rows.names)
    if points is None:
        points = np.full((len(scores), FIVE5.num_points, 2), np.nan)
    unknown = np.full(photos, np.nan)
    return Predictions(
        rows, from_corner_and_size(rows.boxes), scores, points, np.zeros(photos, np.bool_), unknown, lists_all
    )


def _own(path: Path) -> Predictions:
    """Read a ``detections.npz``; its annotated faces are not used."""
    try:
        table, names = read_detection_table(path)
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise DatasetError(str(error)) from error
    ends = np.searchsorted(table.photo, np.arange(len(names)), side="right").tolist()
    places = [f"{path}, detection {row + 1}" for row in range(len(table.scores))]
    rows = BoxRows(names, ends, to_corner_and_size(table.boxes), places)
    return Predictions(rows, table.boxes, table.scores, table.points, table.skipped, table.cut, lists_all=True)


def columns_of(
    predictions: Predictions, photos: Sequence[Photo], source: str, *, may_lack: bool
) -> tuple[dict[str, Array], list[str]]:
    """Find the detections of the photos of a split.

    A name belongs to the photo whose path ends with it, with or without the ending of the file: ``PHOTO``,
    ``PHOTO.jpg`` and ``EVENT/PHOTO.jpg`` are one photo.

    Args:
        predictions: the detections.
        photos: photos of the split.
        source: name of dataset and split, for messages.
        may_lack: whether a photo that the predictions lack counts as one without a detection.

    Returns:
        The columns of the photos and detections of :func:`facelab.metrics.detection_table.detection_table`, with the
        rows of ``photos`` as ``photo_id``; and remarks about photos of one side only and about the scores.

    Raises:
        DatasetError: the split has no photo, a name is ambiguous, two names are one photo, no photo or not every photo
            of the split has predictions, or the boxes do not fit the photos.
    """
    if not photos:
        raise DatasetError(f"{source} has no photo; choose another split")
    found = _match(predictions.rows.names, photos, source)
    if (known := found >= 0).sum() == 0:
        example, other = predictions.rows.names[:1], printable(str(photos[0].path))
        raise DatasetError(f"no photo of the predictions is in {source}: they have {example}, the dataset {other}")
    lacking = np.setdiff1d(np.arange(len(photos)), found)
    if len(lacking) and predictions.lists_all and not may_lack:
        raise DatasetError(
            f"{len(lacking)} of the {len(photos)} photos of {source} are missing in the predictions, such as "
            f"{printable(str(photos[lacking[0]].path))}. predicted.missing=empty counts them as photos without a "
            "detection"
        )
    remarks = []
    if len(lacking):
        remarks.append(f"{len(lacking)} photos are not in the predictions and count as photos without a detection")
    if unknown := int((~known).sum()):
        remarks.append(f"{unknown} photos of the predictions are not in {source} and are left out")
    photo = found[predictions.photo]
    _check_sizes(predictions, photos, found)
    kept = photo >= 0
    scores = predictions.scores[kept]
    if len(scores) and not 0 <= scores.min() <= scores.max() <= 1:
        remarks.append(
            f"the scores are {scores.min():.4g} to {scores.max():.4g}, not 0 to 1: metrics need their order only, but "
            "detections.csv and photos.csv begin at a score of 0.3"
        )
    skipped, cut = np.zeros(len(photos), np.bool_), np.full(len(photos), np.nan)
    skipped[found[known]], cut[found[known]] = predictions.skipped[known], predictions.cut[known]
    return {
        "photo_id": np.arange(len(photos)),
        "skipped": skipped,
        "cut": cut,
        "boxes": predictions.boxes[kept],
        "scores": scores,
        "points": predictions.points[kept],
        "photo": photo[kept],
    }, remarks


def _match(names: Sequence[str], photos: Sequence[Photo], source: str) -> NDArray[np.int64]:
    """Return the row of the photo of each name, ``(P,)``; -1 for an unknown one."""
    paths = [PurePosixPath(_normal(photo.path.as_posix())).parts for photo in photos]
    keys = [PurePosixPath(_normal(name)).parts for name in names]
    rows: dict[tuple[str, ...], list[int]] = {}
    for depth in {len(key) for key in keys}:
        for row, path in enumerate(paths):
            *folders, name = path[-depth:]
            for each in {name, PurePosixPath(name).stem}:
                rows.setdefault((*folders, each), []).append(row)
    found = np.full(len(names), -1)
    taken: dict[int, str] = {}
    for i, key in enumerate(keys):
        if len(of_name := rows.get(key, ())) > 1:
            both = " and ".join(printable(str(photos[row].path)) for row in of_name[:2])
            raise DatasetError(f"the photo {names[i]} of the predictions is ambiguous in {source}: {both}")
        for row in of_name:
            if row in taken:
                raise DatasetError(f"{taken[row]} and {names[i]} of the predictions are one photo of {source}")
            taken[row] = names[i]
            found[i] = row
    return found


def _normal(name: str) -> str:
    """Return a name in one form of its accents, without bytes that are no text."""
    return unicodedata.normalize("NFC", printable(name.strip()))


def _check_sizes(predictions: Predictions, photos: Sequence[Photo], found: Array) -> None:
    """Compare the boxes with the sizes of some photos, see :func:`check_sizes`."""
    known = np.flatnonzero(found >= 0)
    kept = found[predictions.photo] >= 0
    rows = predictions.rows
    ends = np.cumsum(np.diff(rows.ends, prepend=0)[known]).tolist()
    places = [rows.places[row] for row in np.flatnonzero(kept)]
    matched = BoxRows([rows.names[i] for i in known], ends, rows.boxes[kept], places)
    check_sizes(matched, [photos[row].path for row in found[known]], predictions.boxes[kept])
