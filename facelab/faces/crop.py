"""Crop of a photo around a face, which is the input of a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import cv2
import numpy as np
from annotated_types import Interval

from facelab.bounds import Pixels, Seed
from facelab.errors import ConfigError
from facelab.faces.face import Face
from facelab.faces.geometry import Array, bounding_box, box_to_image, from_cells
from facelab.faces.image import CropError, PhotoFile

MAX_FACTOR = 100
"""Upper bound of ``scale`` and ``shift`` in box sides. Beyond it a face would cover almost no pixel of a crop."""
BoxSource = Literal["points", "given", "image"]


@dataclass(frozen=True)
class Crop:
    """Input of a method: the reference box, the margin around it and the size of the crop.

    Training and prediction build the same object from the ``crop`` node of the configuration.
    Pixels outside the photo are black.

    Args:
        size: side of the crop in pixels.
        scale: factor on the width and height of the box about its centre, one number for both or two; 1.1 adds 5 % per
            side.
        square: True uses the longer side for both, which keeps the proportions of the face (a letterbox with
            ``box="image"``); False stretches the box to the square crop, as PIPNet does.
        shift: displacement of the centre in x and y, as fractions of the unscaled width and height of the box.
            ``scale: [1.2, 1.0]`` with ``shift: [0, 0.1]`` moves the top edge down by 0.1 of the height and the other
            edges outwards by 0.1.
        box: reference box: ``points`` is the tight box of the annotated points, ``given`` the box of the dataset or
            detector, ``image`` the whole photo.

    Raises:
        ConfigError: size, scale or shift is out of range, or a list does not have two numbers, for x and y.
    """

    size: Pixels
    scale: float | Sequence[float]
    square: bool
    shift: Sequence[float]
    box: BoxSource

    needs_photo: ClassVar[bool] = False
    """Whether the maps depend on the size of the photo."""

    def __post_init__(self) -> None:
        if self.size <= 0:
            raise ConfigError("size", f"={self.size} must be greater than 0")
        if not all(0 < scale <= MAX_FACTOR for scale in np.ravel(self.scale)):
            raise ConfigError("scale", f"={self.scale} must be greater than 0 and at most {MAX_FACTOR}")
        if np.shape(self.shift) != (2,):
            raise ConfigError("shift", f"={self.shift} must be two numbers, x and y")
        if np.shape(self.scale) not in ((), (2,)):
            raise ConfigError("scale", f"={self.scale} must be one number or two, x and y")
        if not all(abs(shift) <= MAX_FACTOR for shift in self.shift):
            raise ConfigError("shift", f"={self.shift} must be at most {MAX_FACTOR} in absolute value")

    def reference_box(self, face: Face, image: Array) -> Array:
        """Return the reference box of a face.

        Args:
            face: the face.
            image: ``(4,)`` box of the whole photo.

        Returns:
            ``(4,)`` in pixels of the photo; NaN if the face has no such box.
        """
        if self.box == "points":
            return bounding_box(face.points)
        return face.box if self.box == "given" else image

    def matrix(self, box: Array, photo: Array | None = None) -> Array:
        """Compute the map of landmarks from pixels of the photo to pixels of the crop.

        Args:
            box: ``(4,)`` reference box in pixels of the photo.
            photo: ``(4,)`` box of the whole photo, used if :attr:`needs_photo`; None for a photo without borders.

        Returns:
            ``(3, 3)`` float64.

        Raises:
            ValueError: the box has no area or is not finite.
        """
        top_left, bottom_right = _corners(box)
        sides = bottom_right - top_left
        centre = (top_left + bottom_right) / 2 + np.asarray(self.shift) * sides
        sides = sides * np.asarray(self.scale)
        if self.square:
            sides = np.full(2, sides.max())
        return box_to_image(np.concatenate([centre - sides / 2, centre + sides / 2]), self.size, self.size)

    def image_matrix(self, box: Array, photo: Array | None = None) -> Array:
        """Compute the map of the image from pixels of the photo to pixels of the crop; here that of the landmarks.

        Args:
            box: see :meth:`matrix`.
            photo: see :meth:`matrix`.

        Returns:
            ``(3, 3)`` float64.

        Raises:
            ValueError: the box has no area or is not finite.
        """
        return self.matrix(box, photo)

    def cut_out(self, file: PhotoFile, box: Array, photo: Array | None = None) -> Array:
        """Cut the crop from a photo.

        Args:
            file: the photo.
            box: see :meth:`matrix`.
            photo: see :meth:`matrix`.

        Returns:
            ``(size, size, 3)`` uint8 RGB.

        Raises:
            ValueError: the box has no area or is not finite.
            ImageError: see :meth:`PhotoFile.cut_out`.
        """
        return file.cut_out(self.image_matrix(box, photo), self.size)


def _corners(box: Array) -> Array:
    """Return the corners of a box, ``(2, 2)`` float64.

    Raises:
        ValueError: the box has no area or is not finite.
    """
    corners = np.asarray(box, np.float64).reshape(2, 2)
    sides = corners[1] - corners[0]
    if not (np.isfinite(sides).all() and (sides > 0).all()):
        raise ValueError(f"the box {np.round(box, 1).tolist()} has no area; a crop needs x0 < x1 and y0 < y1")
    return corners


class Rectangle(NamedTuple):
    """Part of a photo that a public code cuts out, both corners as x0 y0 x1 y1."""

    labels: Array  # (4,) float64: the labels are divided by its sides
    pixels: Array  # (4,) int64: first column and row, and the column and row behind the last


class OfficialCrop(Crop):
    """Base class of crops that equal those of a public code, to run its published weights.

    The public codes cut whole pixels and resize them by ``cv2.resize``, without averaging in large photos. They
    divide a label by the sides of the crop and do not add the half pixel between the edge of the first pixel and
    its centre. The image is therefore at least half a photo pixel right of and below the labels. A network that was
    trained on such crops has learned this displacement. The two maps of this class reproduce it.

    The same codes also store the crop as an image file. A JPEG changes its pixels; this step is not reproduced.
    """

    def rectangle(self, box: Array, photo: Array | None) -> Rectangle:
        """Return the part of the photo that the public code cuts out.

        Args:
            box: see :meth:`matrix`.
            photo: see :meth:`matrix`.

        Raises:
            ValueError: the box has no area or is not finite.
            CropError: not one whole pixel of the photo is left.
        """
        raise NotImplementedError

    def matrix(self, box: Array, photo: Array | None = None) -> Array:
        """Compute the map of landmarks; see :meth:`Crop.matrix`."""
        return box_to_image(self.rectangle(box, photo).labels, self.size, self.size)

    def image_matrix(self, box: Array, photo: Array | None = None) -> Array:
        """Compute the map of the image; see :meth:`Crop.image_matrix`."""
        edges = from_cells(self.rectangle(box, photo).pixels.reshape(2, 2).astype(np.float64), 1)
        return box_to_image(edges.ravel(), self.size, self.size)

    def cut_out(self, file: PhotoFile, box: Array, photo: Array | None = None) -> Array:
        """Cut the crop from a photo; see :meth:`Crop.cut_out`."""
        part = file.rectangle(*self.rectangle(box, photo).pixels.tolist())
        return np.asarray(cv2.resize(part, (self.size, self.size), interpolation=cv2.INTER_LINEAR))


class OfficialPIPNetCrop(OfficialCrop):
    """Crop as jhb86253817/PIPNet prepares it.

    With ``box="points"`` the rule of 300W: the box of the truncated landmarks, enlarged by whole pixels. With another
    box the rule of WFLW, COFW and AFLW: only the pixels are truncated, so that image and labels differ by half a pixel
    to one and a half. Both rules stop at the border of the photo, one pixel before its right and lower edge.

    Raises:
        ConfigError: ``square`` is true.
    """

    needs_photo = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.square:
            raise ConfigError("square", "=true: the official crop of PIPNet is stretched")

    def rectangle(self, box: Array, photo: Array | None) -> Rectangle:
        """Return the part of the photo; see :meth:`OfficialCrop.rectangle`."""
        corners, more, shift = _corners(box), np.asarray(self.scale) - 1, np.asarray(self.shift)
        # Whole numbers of the last pixel's centre, as the codes have them.
        last = np.full(2, np.inf) if photo is None else from_cells(np.asarray(photo, np.float64)[2:], 1)
        if self.box == "points":
            corners = np.trunc(corners)
            sides = corners[1] - corners[0]
            first = corners[0] - np.trunc(more / 2 * sides) + np.trunc(shift * sides)
            first, sides = np.maximum(first, 0), np.trunc(sides * np.asarray(self.scale))
            sides = np.minimum(sides, last - first)
            corners = np.stack([first, first + sides])
        else:
            sides = corners[1] - corners[0]
            low, high = corners[0] - sides * more / 2, corners[1] + sides * more / 2
            corners = np.stack([np.maximum(low + shift * sides, 0), np.minimum(high + shift * sides, last)])
        return _whole(corners, np.trunc(corners))


class OfficialPFLDCrop(OfficialCrop):
    """Crop as polarisZhao/PFLD-pytorch and Hsintao/pfld_106_face_landmarks prepare it.

    Corners, centre and side of the square are truncated to whole pixels; outside the photo it is black.

    Raises:
        ConfigError: ``square`` is false.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.square:
            raise ConfigError("square", "=false: the official crop of PFLD is square")

    def rectangle(self, box: Array, photo: Array | None) -> Rectangle:
        """Return the part of the photo; see :meth:`OfficialCrop.rectangle`."""
        first, last = np.trunc(_corners(box))
        sides = last - first + 1
        centre = np.trunc(first + sides / 2 + np.asarray(self.shift) * sides)
        side = np.trunc((sides * np.asarray(self.scale)).max())
        corner = centre - side // 2
        corners = np.stack([corner, corner + side])
        return _whole(corners, corners)


def _whole(labels: Array, pixels: Array) -> Rectangle:
    """Return a rectangle of whole pixels.

    Raises:
        CropError: it has not one pixel.
    """
    if not (pixels[1] > pixels[0]).all():
        raise CropError("the box leaves not one whole pixel of the photo")
    return Rectangle(labels.ravel(), pixels.ravel().astype(np.int64))


JitterScale = Annotated[float, Interval(gt=0, le=MAX_FACTOR)]


@dataclass(frozen=True)
class BoxJitter:
    """Random change of the boxes of an evaluation, a measure of how much a method depends on its box.

    A draw is a function of the seed and the row of the face. All methods therefore get the same boxes.

    Args:
        scale: smallest and largest factor on both sides of the box about its centre; uniform.
        shift: largest displacement of the centre in x and in y, as a fraction of the unscaled sides; uniform.
        seed: seed of the draws.

    Raises:
        ConfigError: scale is not two numbers in increasing order.
    """

    scale: Sequence[JitterScale]
    shift: Annotated[float, Interval(ge=0, le=MAX_FACTOR)]
    seed: Seed

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or self.scale[0] > self.scale[1]:
            raise ConfigError("scale", f"={list(self.scale)} must be two numbers, the smallest and the largest factor")

    def __bool__(self) -> bool:
        """Return whether any box changes."""
        return tuple(self.scale) != (1, 1) or self.shift > 0

    def __str__(self) -> str:
        return f"scale {self.scale[0]} to {self.scale[1]}, shift {self.shift}, seed {self.seed}"

    def moved(self, box: Array, row: int) -> Array:
        """Return the changed box of a face, ``(4,)`` float64; NaN stays NaN.

        Args:
            box: ``(4,)`` in pixels of the photo.
            row: row of the face in its split.
        """
        rng = np.random.default_rng((self.seed, row))
        low, high = self.scale
        factor, shift = rng.uniform(low, high), rng.uniform(-self.shift, self.shift, 2)
        top_left, bottom_right = np.asarray(box, np.float64).reshape(2, 2)
        sides = bottom_right - top_left
        centre = (top_left + bottom_right) / 2 + shift * sides
        return np.concatenate([centre - factor * sides / 2, centre + factor * sides / 2])
