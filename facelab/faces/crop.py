"""Crop of a photo around a face, which is the input of a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from facelab.bounds import Pixels
from facelab.errors import ConfigError
from facelab.faces.face import Face
from facelab.faces.geometry import Array, bounding_box, box_to_image

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

    def matrix(self, box: Array) -> Array:
        """Compute the map from pixels of the photo to pixels of the crop.

        Args:
            box: ``(4,)`` reference box in pixels of the photo.

        Returns:
            ``(3, 3)`` float64.

        Raises:
            ValueError: the box has no area or is not finite.
        """
        top_left, bottom_right = np.asarray(box, np.float64).reshape(2, 2)
        sides = bottom_right - top_left
        if not (np.isfinite(sides).all() and (sides > 0).all()):
            raise ValueError(f"the box {np.round(box, 1).tolist()} has no area; a crop needs x0 < x1 and y0 < y1")
        centre = (top_left + bottom_right) / 2 + np.asarray(self.shift) * sides
        sides = sides * np.asarray(self.scale)
        if self.square:
            sides = np.full(2, sides.max())
        return box_to_image(np.concatenate([centre - sides / 2, centre + sides / 2]), self.size, self.size)
