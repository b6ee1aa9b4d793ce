"""Text files of points and their images: functions shared by the readers of datasets."""

import hashlib
import logging
import os
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from facelab.errors import DatasetError
from facelab.faces.face import Face, Photo
from facelab.faces.geometry import Array
from facelab.faces.layouts import Layout

log = logging.getLogger(__name__)

MissingCode = Literal["zero", "minus_one", "negated"]
"""Code for points that are not annotated or hidden, in addition to ``nan nan``. ``zero``: 0 0 is not annotated;
``minus_one``: -1 -1 is not annotated; ``negated``: a point with both coordinates negated is annotated and hidden, as in
MERL-RAV."""
MIN_CODED = 3
"""Minimum number of equal points of a face, such as 0 0, that count as a code for 'not annotated'; fewer may be real
positions."""
MIN_DISTANCE = 0.5
"""Minimum distance of :data:`MIN_CODED` equal points from the box of the others that marks them as a code, as a
fraction of the longer side of that box."""
MIN_SPREAD = 1.75
"""Negative points count as hidden (``negated``) if changing their signs makes the face smaller by more than this
factor."""
MAX_FRACTION = 1.5
"""Largest coordinate that is taken for a fraction of the photo: points may be outside of the photo."""


CHUNK = 10_000
"""Number of faces that are checked at a time, which limits the memory."""


def read_lines(path: Path, errors: str = "replace") -> list[str]:
    """Read the lines of a text file, without blank lines at its end.

    By default a byte that is not UTF-8 becomes a replacement character, so the parser can report the line.

    Args:
        path: the file.
        errors: handling of bytes that are not UTF-8, see :meth:`bytes.decode`.

    Raises:
        DatasetError: the file cannot be read or is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig", errors=errors).rstrip().splitlines()
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from error
    if not lines:
        raise DatasetError(f"{path} is empty")
    return lines


def read_table(
    lines: Sequence[str],
    width: int,
    meaning: str,
    path: Path,
    first_line: int,
    *,
    delimiter: str | None,
    allow_nan: bool,
    dtype: type[np.floating[Any]] = np.float32,
) -> Array:
    """Parse lines of numbers.

    Args:
        lines: R lines.
        width: required number of values per line.
        meaning: description of the values, for the message.
        path: file of the lines, for the message.
        first_line: number of the first line in the file, counted from 1, for the message.
        delimiter: separator of the values; None is white space.
        allow_nan: whether ``nan`` is allowed, for points that are not annotated.
        dtype: type of the numbers.

    Returns:
        ``(R, width)``.

    Raises:
        DatasetError: a line does not contain ``width`` finite numbers; the message contains the file and the line.
    """
    try:
        table = np.loadtxt(lines, dtype, comments=None, delimiter=delimiter, ndmin=2)
    except ValueError as error:
        fault = str(error)
    else:
        allowed = ~np.isinf(table) if allow_nan else np.isfinite(table)
        if table.shape == (len(lines), width) and allowed.all():
            return table
        fault = f"found {table.shape[0]} x {table.shape[1]} numbers, expected {len(lines)} x {width}"
    for number, line in enumerate(lines, first_line):
        _check_line(line.split(delimiter), width, meaning, f"{path}, line {number}", allow_nan)
    raise DatasetError(f"{path}: {fault}")


def _check_line(fields: Sequence[str], width: int, meaning: str, place: str, allow_nan: bool) -> None:
    """Refuse a line that does not contain ``width`` finite numbers."""
    if len(fields) != width:
        raise DatasetError(f"{place}: found {len(fields)} values, expected {width} ({meaning})")
    for field in fields:
        try:
            value = float(field.replace("_", "x"))  # Python parses 1_0 as 10
        except ValueError as error:
            raise DatasetError(f"{place}: {field!r} is not a number") from error
        if abs(value) > float(np.finfo(np.float32).max):
            raise DatasetError(f"{place}: {field!r} is not a finite number")
        if np.isnan(value) and not allow_nan:
            raise DatasetError(f"{place}: {field!r}, but every number is needed")


def read_txt(path: Path, layout: Layout, *, allow_nan: bool) -> Array:
    """Read a .txt file of one face: "x y" per line, optionally after a line with the number of points.

    Args:
        path: the file; coordinates count from 0.
        layout: layout of the points.
        allow_nan: whether ``nan nan`` is allowed, for a point that is not annotated.

    Returns:
        ``(N, 2)`` float32 in pixels of the image.

    Raises:
        DatasetError: the file is malformed; the message contains the file and the line.
    """
    lines = read_lines(path)
    first = lines[0].split()
    if len(first) != 1:
        return _points(lines, path, 1, layout, allow_nan)
    _check_count(first[0], f"{path}, line 1", layout)
    return _points(lines[1:], path, 2, layout, allow_nan)


def read_pts(path: Path, layout: Layout, *, origin: int, allow_nan: bool) -> Array:
    """Read a .pts file of one face, the format of 300-W: a header, then "x y" per line between braces.

    Args:
        path: the file.
        layout: layout of the points.
        origin: coordinates of the centre of the top-left pixel in the file: 1 in the files of 300-W, made with Matlab.
        allow_nan: whether ``nan nan`` is allowed, for a point that is not annotated.

    Returns:
        ``(N, 2)`` float32 in pixels of the image.

    Raises:
        DatasetError: the file is malformed; the message contains the file and the line.
    """
    lines = [line.strip() for line in read_lines(path)]
    if "{" not in lines or lines[-1] != "}":
        raise DatasetError(f"{path}: not a .pts file; expected the points between a line '{{' and the last line '}}'")
    start = lines.index("{")
    for number, line in enumerate(lines[:start], 1):
        key, _, value = line.partition(":")
        if key.strip() == "n_points":
            _check_count(value.strip(), f"{path}, line {number}", layout)
    return _points(lines[start + 1 : -1], path, start + 2, layout, allow_nan) - np.float32(origin)


def _check_count(count: str, place: str, layout: Layout) -> None:
    """Refuse another number of points than that of the layout."""
    if count != str(layout.num_points):
        raise DatasetError(
            f"{place}: expected the number of points of the layout {layout.name}, {layout.num_points}, found {count!r}"
        )


def _points(lines: Sequence[str], path: Path, first_line: int, layout: Layout, allow_nan: bool) -> Array:
    """Parse one line ``x y`` per point; refuse another number of points and a point with one NaN."""
    points = np.empty((0, 2), np.float32)
    if lines:
        points = read_table(lines, 2, "x y", path, first_line, delimiter=None, allow_nan=allow_nan)
    if len(points) != layout.num_points:
        raise DatasetError(
            f"{path}, line {first_line + len(points)}: expected the {layout.num_points} points of the layout "
            f"{layout.name}, found {len(points)}"
        )
    missing = np.isnan(points)
    half_missing = missing.any(axis=-1) & ~missing.all(axis=-1)
    if half_missing.any():
        raise DatasetError(f"{path}, line {first_line + half_missing.argmax()}: one coordinate is nan, the other not")
    return points


def resolve_codes(points: Array, codes: Collection[MissingCode]) -> tuple[Array, Array]:
    """Replace the codes for points that are not annotated or hidden.

    Args:
        points: ``(N, 2)`` as in the file.
        codes: codes that the dataset uses.

    Returns:
        ``(N, 2)``, NaN where not annotated, and ``(N,)`` bool: annotated and not hidden.
    """
    points, visible = points.copy(), np.ones(len(points), np.bool_)
    for code, value in (("zero", 0), ("minus_one", -1)):
        if code in codes:
            points[(points == value).all(axis=1)] = np.nan
    if "negated" in codes:
        negated = (points < 0).all(axis=1)
        points[negated] *= -1
        visible &= ~negated
    return points, visible & ~np.isnan(points).any(axis=1)


def check_faces(points: Array, first_line: int, path: Path, remedies: Mapping[str, str]) -> None:
    """Apply :func:`check_face` to the faces of a file with one face per line.

    Args:
        points: ``(F, N, 2)``.
        first_line: number of the line of the first face, counted from 1.
        path: the file.
        remedies: see :func:`check_face`.

    Raises:
        DatasetError: see :func:`check_face`.
    """
    for start in range(0, len(points), CHUNK):
        for row in np.flatnonzero(_may_be_faulty(points[start : start + CHUNK])) + start:
            check_face(points[row], f"{path}, line {first_line + row}", remedies)


def _may_be_faulty(points: Array) -> Array:
    """Return which faces ``(F,)`` of ``(F, N, 2)`` need :func:`check_face`, by conditions without which none is faulty.

    These are a point that is not annotated, negative coordinates, small coordinates, a small face, and
    :data:`MIN_CODED` equal points.
    """
    low, high = points.min(axis=1), points.max(axis=1)  # NaN if a point is not annotated
    ordinary = (low >= 0).all(axis=1) & (high.max(axis=1) > MAX_FRACTION) & ((high - low).max(axis=1) >= 1)
    pixels = np.sort(np.where(ordinary[:, None, None], points, 0).astype(np.float64) @ np.array([1, 1j]), axis=1)
    last = MIN_CODED - 1
    return ~ordinary | (pixels[:, last:] == pixels[:, :-last]).any(axis=1)


def check_face(points: Array, place: str, remedies: Mapping[str, str]) -> None:
    """Refuse a face whose numbers do not look like positions in pixels.

    Coinciding points are allowed: lips may be closed, and positions may be whole pixels.

    Args:
        points: ``(N, 2)`` in pixels of the photo, as read; NaN where not annotated.
        place: file and line of the face, for the message.
        remedies: remedy for each code of :data:`MissingCode` and for ``fraction``, for the message.

    Raises:
        DatasetError: several points are exactly (0, 0) or (-1, -1), or equal and far from all others; the face is much
            smaller if the signs of negative points are changed; the face is smaller than a pixel, or all its numbers
            look like fractions.
    """
    annotated = points[np.isfinite(points).all(axis=1)].astype(np.float64)
    for code, value in (("zero", 0), ("minus_one", -1)):
        count = int((annotated == value).all(axis=1).sum())
        if count >= MIN_CODED:
            raise DatasetError(
                f"{place}: {count} points at exactly {value} {value}, probably not annotated; {remedies[code]}"
            )
    if not len(annotated):
        return
    positions, counts = np.unique(annotated, axis=0, return_counts=True)
    for point, count in zip(positions[counts >= MIN_CODED], counts[counts >= MIN_CODED], strict=True):
        others = annotated[(annotated != point).any(axis=1)]
        if len(others) > 1:
            low, high = others.min(axis=0), others.max(axis=0)
            margin = MIN_DISTANCE * (high - low).max()
            if margin and ((point < low - margin) | (point > high + margin)).any():
                raise DatasetError(
                    f"{place}: {count} points at exactly {point[0]:g} {point[1]:g}, far from the others, probably not "
                    "annotated; write nan nan for such points"
                )
    negative = np.asarray((annotated < 0).all(axis=1))
    positive = np.where(negative[:, None], -annotated, annotated)
    extent, compact = ((each.max(axis=0) - each.min(axis=0)).max() for each in (annotated, positive))
    if negative.any() and len(annotated) > 1 and (negative.all() or extent > MIN_SPREAD * compact):
        raise DatasetError(
            f"{place}: {int(negative.sum())} points have both coordinates below 0 and would be in the face with both "
            f"signs changed, so they are probably hidden or not annotated; {remedies['negated']}"
        )
    if len(annotated) > 1 and (extent < 1 or abs(annotated).max() <= MAX_FRACTION):
        width, height = annotated.max(axis=0) - annotated.min(axis=0)
        raise DatasetError(f"{place}: the face is {width:.3g} x {height:.3g} pixels large; {remedies['fraction']}")


def check_boxes(boxes: Array, first_line: int, path: Path, remedies: Mapping[str, str]) -> None:
    """Refuse boxes whose numbers look like fractions of the photo.

    Args:
        boxes: ``(F, 4)`` as read, one per line.
        first_line: number of the line of the first box, counted from 1.
        path: the file.
        remedies: remedy for ``fraction``, for the message.

    Raises:
        DatasetError: no number of a box exceeds :data:`MAX_FRACTION`, and not all are 0.
    """
    faulty = np.isfinite(boxes).all(axis=1) & boxes.any(axis=1) & (abs(boxes).max(axis=1) <= MAX_FRACTION)
    if faulty.any():
        row = int(faulty.argmax())
        raise DatasetError(
            f"{path}, line {first_line + row}: the box {[float(f'{value:.4g}') for value in boxes[row]]} looks like "
            f"fractions; {remedies['fraction']}"
        )


USE_FOLDER = "this reader has no option for it; read the dataset with data=folder and data.{}"
"""Remedy for a reader without options for codes and units; the placeholder is the option of ``data=folder``."""
REMEDIES = {
    "zero": USE_FOLDER.format("missing=[zero]"),
    "minus_one": USE_FOLDER.format("missing=[minus_one]"),
    "negated": USE_FOLDER.format("missing=[negated]"),
    "fraction": USE_FOLDER.format("units=fraction"),
}
"""Remedies for :func:`check_face` and :func:`check_boxes` in such a reader."""


def plain_face(points: Array, visible: Array | None = None) -> Face:
    """Create the face of a dataset that has points only.

    Args:
        points: ``(N, 2)``, NaN where not annotated.
        visible: ``(N,)`` bool; None if every annotated point is visible.
    """
    return Face(
        box=np.full(4, np.nan, np.float32),
        points=points,
        visible=~np.isnan(points[:, 0]) if visible is None else visible,
        pose=np.full(3, np.nan, np.float32),
        tags=frozenset(),
    )


def by_stem(folder: Path, endings: Collection[str]) -> dict[str, Path]:
    """Map stem to path for the files of a folder with one of these endings, in upper or lower case.

    Hidden files are ignored. The stem is in Unicode normal form C.

    Raises:
        DatasetError: two files have the same stem.
    """
    paths: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in endings and not path.name.startswith("."):
            name = unicodedata.normalize("NFC", path.stem)
            if name in paths:
                raise DatasetError(f"{paths[name]} and {path} have the same name: keep one of them")
            paths[name] = path
    return paths


def hash_fraction(name: str) -> float:
    """Map a name to a number in [0, 1), the first byte of its SHA-256 divided by 256, equal on every machine."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[0] / 256


def not_found(root: Path, expected: str, source: str) -> DatasetError:
    """Create the error for a folder that does not contain the expected dataset.

    Args:
        root: the folder.
        expected: the expected files or folders.
        source: one sentence on how to get the dataset, without the full stop.
    """
    state = "is not an existing folder"
    if root.is_dir():
        names = sorted(path.name for path in root.iterdir())
        state = f"contains {_first_three(names)}" if names else "is empty"
    return DatasetError(f"{root} {state}; expected {expected}. {source}, and set data.root=FOLDER")


def with_images(root: Path, photos: Sequence[Photo], *, skip: bool) -> list[Photo]:
    """Select the photos whose image file exists.

    Args:
        root: the folder of the dataset.
        photos: the listed photos.
        skip: whether to log a warning about missing images instead of raising.

    Raises:
        DatasetError: images are missing and ``skip`` is False, or all images are missing.
    """
    missing = [photo.path for photo in photos if not os.path.isfile(photo.path)]  # noqa: PTH113 (is_file is slower)
    names = [str(path.relative_to(root)) for path in missing]
    problem = f"of {len(photos)} listed images are missing"
    report_unpaired(root, {problem: names}, complete=len(photos) - len(missing), skip=skip)
    excluded = set(missing)
    return [photo for photo in photos if photo.path not in excluded]


def report_unpaired(root: Path, unpaired: Mapping[str, Sequence[str]], *, complete: int, skip: bool) -> None:
    """Refuse a dataset with missing images or annotations, or log a warning about them.

    Args:
        root: the folder of the dataset.
        unpaired: problem -> names of the affected photos.
        complete: number of complete photos.
        skip: whether to log a warning instead of raising.

    Raises:
        DatasetError: a photo is affected, and ``skip`` is False or no photo is complete.
    """
    text = "; ".join(f"{len(names)} {problem} ({_first_three(names)})" for problem, names in unpaired.items() if names)
    if not text:
        return
    if not complete:
        raise DatasetError(f"{root}: {text}, and no photo is complete. Add the missing files")
    if not skip:
        raise DatasetError(f"{root}: {text}. Add the missing files, or skip these with data.skip_unpaired=true")
    log.warning("%s: skipped %s", root, text)


def _first_three(names: Sequence[str]) -> str:
    """Join the first three names for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
