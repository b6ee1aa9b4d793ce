"""Crop of a photo around a face, which is the input of a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Interval

from facelab.bounds import Pixels, Seed
from facelab.errors import ConfigError
from facelab.faces import boxes
from facelab.faces.face import Face
from facelab.faces.geometry import Array, bounding_box, box_to_image
from facelab.faces.image import PhotoFile

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
        top_left, bottom_right = box_corners(box)
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


@dataclass(frozen=True)
class ShapeCrop(Crop):
    """Crop around the mean shape of faces, which is put into the reference box; the crop of DAN (arXiv 1706.01789).

    The mean shape keeps its proportions: its scale is the mean of the ratios of the widths and of the heights, and the
    centre of its box is that of the reference box. ``scale`` and ``shift`` then refer to the box of the mean shape.

    Args:
        aspect: width of the mean shape divided by its height.

    Raises:
        ConfigError: ``square`` is false, or see :class:`Crop`.
    """

    aspect: Annotated[float, Interval(ge=0.1, le=10)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.square:
            raise ConfigError("square", "=false: the crop around a shape is square")

    def matrix(self, box: Array, photo: Array | None = None) -> Array:
        """Compute the map of landmarks; see :meth:`Crop.matrix`."""
        top_left, bottom_right = box_corners(box)
        width, height = bottom_right - top_left
        half = np.array([self.aspect, 1.0]) * (width / self.aspect + height) / 4
        centre = (top_left + bottom_right) / 2
        return super().matrix(np.concatenate([centre - half, centre + half]), photo)


def box_corners(box: Array) -> Array:
    """Return the corners of a box, ``(2, 2)`` float64.

    Raises:
        ValueError: the box has no area or is not finite.
    """
    corners = np.asarray(box, np.float64).reshape(2, 2)
    sides = corners[1] - corners[0]
    if not (np.isfinite(sides).all() and (sides > 0).all()):
        raise ValueError(f"the box {np.round(box, 1).tolist()} has no area; a crop needs x0 < x1 and y0 < y1")
    return corners


JitterScale = Annotated[float, Interval(gt=0, le=MAX_FACTOR)]
"""Factor on the sides of a box."""


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

    def change(self, box: Array, row: int) -> Array:
        """Return the changed box of a face, ``(4,)`` float64; NaN stays NaN.

        Args:
            box: ``(4,)`` in pixels of the photo.
            row: row of the face in its split.
        """
        low, high = self.scale
        return boxes.jitter(box, (low, high), self.shift, np.random.default_rng((self.seed, row)))
