"""Points in text files, and the images they belong to: what the readers of the datasets share."""

import hashlib
import logging
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from facelab.errors import DatasetError
from facelab.faces.face import Face, Photo
from facelab.faces.geometry import Array
from facelab.faces.layouts import Layout

log = logging.getLogger(__name__)

MissingCode = Literal["zero", "minus_one", "negated"]
"""How a file says that a point is not annotated, or hidden, beside ``nan nan``: ``zero`` by 0 0, ``minus_one`` by
-1 -1, ``negated`` by both coordinates negated, as MERL-RAV writes points that are annotated and hidden."""
SUSPECTS = 3
"""So many points of a face at exactly 0 0 or -1 -1 are taken for a code and not for places."""
FAR = 0.5
"""Points at one place this share of the face's larger side away from the others are taken for a code."""
SPREAD = 1.75
"""Negative points are taken for a code where the face is so many times as large as with their signs turned."""
LARGEST_FRACTION = 1.5
"""Numbers up to this one are taken for fractions."""


def read_lines(path: Path, errors: str = "replace") -> list[str]:
    """The lines of a text file without the blank ones at its end.

    A byte that is not UTF-8 is kept as a mark, so that the parser that meets it can name the line.

    Args:
        path: the file.
        errors: how, see :meth:`bytes.decode`.

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
    may_lack: bool,
) -> Array:
    """Parse lines of numbers.

    Args:
        lines: R lines, each with the same number of fields.
        width: how many numbers a line has to hold.
        meaning: what these numbers are, for the message.
        path: the file the lines come from, for the message.
        first_line: number of the first of them in that file, counted from 1, for the message.
        delimiter: what stands between two numbers; None is white space.
        may_lack: whether ``nan`` may stand for "not annotated".

    Returns:
        ``(R, width)`` float32.

    Raises:
        DatasetError: naming the first line that does not hold ``width`` finite numbers.
    """
    try:
        table = np.loadtxt(lines, np.float32, comments=None, delimiter=delimiter, ndmin=2)
    except ValueError as error:
        fault = str(error)
    else:
        allowed = ~np.isinf(table) if may_lack else np.isfinite(table)
        if table.shape == (len(lines), width) and allowed.all():
            return table
        fault = f"found {table.shape[0]} x {table.shape[1]} numbers, expected {len(lines)} x {width}"
    for number, line in enumerate(lines, first_line):
        _check_line(line.split(delimiter), width, meaning, f"{path}, line {number}", may_lack)
    raise DatasetError(f"{path}: {fault}")


def _check_line(fields: Sequence[str], width: int, meaning: str, place: str, may_lack: bool) -> None:
    if len(fields) != width:
        raise DatasetError(f"{place}: found {len(fields)} values, expected {width} ({meaning})")
    for field in fields:
        try:
            value = float(field.replace("_", "x"))  # Python reads 1_0 as 10, which a coordinate never means
        except ValueError as error:
            raise DatasetError(f"{place}: {field!r} is not a number") from error
        if abs(value) > float(np.finfo(np.float32).max):
            raise DatasetError(f"{place}: {field!r} is not a finite number")
        if np.isnan(value) and not may_lack:
            raise DatasetError(f"{place}: {field!r}, but every point of this dataset is annotated")


def read_txt(path: Path, layout: Layout, *, may_lack: bool) -> Array:
    """Read a .txt of one face: "x y" per line, with or without the number of points on a line before them.

    Args:
        path: the file; coordinates count from 0.
        layout: how many points there have to be.
        may_lack: whether ``nan nan`` may stand for a point that is not annotated.

    Returns:
        ``(N, 2)`` float32, pixels of the image.

    Raises:
        DatasetError: naming file and line.
    """
    lines = read_lines(path)
    first = lines[0].split()
    if len(first) != 1:
        return _points(lines, path, 1, layout, may_lack)
    _check_announced(first[0], f"{path}, line 1", layout)
    return _points(lines[1:], path, 2, layout, may_lack)


def read_pts(path: Path, layout: Layout, *, origin: int, may_lack: bool) -> Array:
    """Read a .pts of one face, the format of 300-W: a header, then "x y" per line between braces.

    Args:
        path: the file.
        layout: how many points there have to be.
        origin: the file's coordinates of the centre of the top-left pixel: 1 in the files of 300-W, made with Matlab.
        may_lack: whether ``nan nan`` may stand for a point that is not annotated.

    Returns:
        ``(N, 2)`` float32, pixels of the image.

    Raises:
        DatasetError: naming file and line.
    """
    lines = [line.strip() for line in read_lines(path)]
    if "{" not in lines or lines[-1] != "}":
        raise DatasetError(f"{path}: not a .pts file; expected the points between a line '{{' and a last line '}}'")
    start = lines.index("{")
    for number, line in enumerate(lines[:start], 1):
        key, _, value = line.partition(":")
        if key.strip() == "n_points":
            _check_announced(value.strip(), f"{path}, line {number}", layout)
    return _points(lines[start + 1 : -1], path, start + 2, layout, may_lack) - np.float32(origin)


def _check_announced(count: str, place: str, layout: Layout) -> None:
    if count != str(layout.num_points):
        raise DatasetError(
            f"{place}: expected the number of points of the layout {layout.name}, {layout.num_points}, found {count!r}"
        )


def _points(lines: Sequence[str], path: Path, first_line: int, layout: Layout, may_lack: bool) -> Array:
    points = np.empty((0, 2), np.float32)
    if lines:
        points = read_table(lines, 2, "x y", path, first_line, delimiter=None, may_lack=may_lack)
    if len(points) != layout.num_points:
        raise DatasetError(
            f"{path}, line {first_line + len(points)}: expected the {layout.num_points} points of the layout "
            f"{layout.name}, found {len(points)}"
        )
    missing = np.isnan(points)
    half = missing.any(axis=-1) & ~missing.all(axis=-1)
    if half.any():
        raise DatasetError(f"{path}, line {first_line + half.argmax()}: one coordinate is nan and the other is not")
    return points


def resolve_codes(points: Array, codes: Collection[MissingCode]) -> tuple[Array, Array]:
    """Read the codes for points that are not annotated, or hidden.

    Args:
        points: ``(N, 2)`` as they stand in the file.
        codes: those that the set uses.

    Returns:
        ``(N, 2)`` with NaN where a point is not annotated, and ``(N,)`` bool: annotated and not hidden.
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


def check_face(points: Array, place: str, remedies: Mapping[str, str]) -> None:
    """Refuse a face whose numbers seem to mean something else than places in pixels.

    Points that coincide are normal: closed lips, whole pixels.

    Args:
        points: ``(N, 2)`` pixels of the photo, as they were read; NaN where not annotated.
        place: of the face: file and line.
        remedies: a code of :data:`MissingCode`, or ``fraction``, to what to do about it.

    Raises:
        DatasetError: several points at exactly (0, 0) or (-1, -1), or at another place far from all others; negative
            points without whose signs the face is much smaller; a face smaller than a pixel, or whose numbers all
            seem to be fractions.
    """
    known = points[np.isfinite(points).all(axis=1)].astype(np.float64)
    for code, value in (("zero", 0), ("minus_one", -1)):
        count = int((known == value).all(axis=1).sum())
        if count >= SUSPECTS:
            raise DatasetError(
                f"{place}: {count} points at exactly {value} {value}, which seem not to be annotated; {remedies[code]}"
            )
    if not len(known):
        return
    places, counts = np.unique(known, axis=0, return_counts=True)
    for spot, count in zip(places[counts >= SUSPECTS], counts[counts >= SUSPECTS], strict=True):
        rest = known[(known != spot).any(axis=1)]
        if len(rest) > 1:
            low, high = rest.min(axis=0), rest.max(axis=0)
            margin = FAR * (high - low).max()
            if margin and ((spot < low - margin) | (spot > high + margin)).any():
                raise DatasetError(
                    f"{place}: {count} points at exactly {spot[0]:g} {spot[1]:g}, far from the others, which seem not "
                    "to be annotated; write nan nan for such points"
                )
    negative = np.asarray((known < 0).all(axis=1))
    turned = np.where(negative[:, None], -known, known)
    extent, compact = ((each.max(axis=0) - each.min(axis=0)).max() for each in (known, turned))
    if negative.any() and len(known) > 1 and (negative.all() or extent > SPREAD * compact):
        raise DatasetError(
            f"{place}: {int(negative.sum())} points have both coordinates below 0 and lie in the face with their signs "
            f"turned, so they seem to be hidden or not annotated; {remedies['negated']}"
        )
    if len(known) > 1 and (extent < 1 or abs(known).max() <= LARGEST_FRACTION):
        width, height = known.max(axis=0) - known.min(axis=0)
        raise DatasetError(f"{place}: the face is {width:.3g} x {height:.3g} pixels large; {remedies['fraction']}")


def check_box(box: Array, place: str, remedies: Mapping[str, str]) -> None:
    """Refuse a box ``(4,)`` whose numbers seem to be fractions of the photo.

    Raises:
        DatasetError: all are within 0 .. 1, or nearly so.
    """
    if np.isfinite(box).all() and box.any() and abs(box).max() <= LARGEST_FRACTION:
        raise DatasetError(f"{place}: the box {[float(f'{value:.4g}') for value in box]}; {remedies['fraction']}")


FIXED = "this set knows no such code; read it with data=folder, whose data.{} says what it means"
"""The remedy in a set whose files have but one meaning, with the option of ``data=folder`` to fill in."""
REMEDIES = {
    "zero": FIXED.format("missing=[zero]"),
    "minus_one": FIXED.format("missing=[minus_one]"),
    "negated": FIXED.format("missing=[negated]"),
    "fraction": FIXED.format("units=fraction"),
}
"""Remedies for :func:`check_face` and :func:`check_box` in such a set."""


def plain_face(points: Array, visible: Array | None = None) -> Face:
    """Make the face of a dataset that gives points ``(N, 2)`` and nothing else.

    Args:
        points: NaN where not annotated.
        visible: ``(N,)`` bool; None where every annotated point is.
    """
    return Face(
        box=np.full(4, np.nan, np.float32),
        points=points,
        visible=~np.isnan(points[:, 0]) if visible is None else visible,
        pose=np.full(3, np.nan, np.float32),
        tags=frozenset(),
    )


def by_stem(folder: Path, endings: Collection[str]) -> dict[str, Path]:
    """List the files of a folder with one of these endings, in any case, by their name without it.

    Raises:
        DatasetError: two files differ in their ending alone.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in endings and not path.name.startswith("."):
            name = unicodedata.normalize("NFC", path.stem)
            if name in found:
                raise DatasetError(f"{found[name]} and {path} have the same name: keep one of them")
            found[name] = path
    return found


def hash_fraction(name: str) -> float:
    """A number in [0, 1) that is the same for a name on every machine: the first byte of its SHA-256 over 256."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[0] / 256


def not_found(root: Path, expected: str, source: str) -> DatasetError:
    """The fault of a folder that is not the dataset it should be.

    Args:
        root: the folder.
        expected: what was looked for in it.
        source: one sentence on how to get the dataset, without its full stop.
    """
    held = "is not an existing folder"
    if root.is_dir():
        names = sorted(path.name for path in root.iterdir())
        held = f"holds {_first_three(names)}" if names else "is empty"
    return DatasetError(f"{root} {held}; looked for {expected}. {source}, and give its place with data.root=FOLDER")


def with_images(root: Path, photos: Sequence[Photo], *, skip: bool) -> list[Photo]:
    """The listed photos whose image is there.

    Raises:
        DatasetError: images are absent and ``skip`` is False, or all are.
    """
    absent = [photo.path for photo in photos if not photo.path.is_file()]
    names = [str(path.relative_to(root)) for path in absent]
    what = f"of {len(photos)} listed images are absent"
    report_unpaired(root, {what: names}, left=len(photos) - len(absent), skip=skip)
    left_out = set(absent)
    return [photo for photo in photos if photo.path not in left_out]


def report_unpaired(root: Path, unpaired: Mapping[str, Sequence[str]], *, left: int, skip: bool) -> None:
    """Refuse a dataset of which images or annotations are absent, or warn how many are left out.

    Args:
        root: the folder of the dataset.
        unpaired: what is wrong -> the names of which it is true.
        left: how many photos there are without these.
        skip: warn instead.

    Raises:
        DatasetError: there is any name, and ``skip`` is False or nothing is left.
    """
    text = "; ".join(f"{len(names)} {what} ({_first_three(names)})" for what, names in unpaired.items() if names)
    if not text:
        return
    if not left:
        raise DatasetError(f"{root}: {text}, and nothing else is there. Complete the dataset")
    if not skip:
        raise DatasetError(f"{root}: {text}. Complete the dataset, or leave these out with data.skip_unpaired=true")
    log.warning("%s: left out %s", root, text)


def _first_three(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
