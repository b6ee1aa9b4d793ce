"""What part of a photo a network sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from facelab.bounds import Pixels
from facelab.errors import ConfigError
from facelab.faces.face import Face
from facelab.faces.geometry import Array, bounding_box, box_to_image

LARGEST = 100
"""Sides of its box by which a face is at most cut out wider or moved; in pixels of any crop nothing would be left."""
BoxSource = Literal["points", "given", "image"]


@dataclass(frozen=True)
class Crop:
    """A method's input contract: which box, how much around it, and how large the result is.

    Training and prediction build the same object from the ``crop`` node of the configuration.
    What lies outside the photo is black.

    Args:
        size: side of the crop in pixels.
        scale: factor on the box's width and height about its centre, one number or one each; 1.1 adds 5 % a side.
        square: True takes the longer side for both, which keeps the face's proportions (with ``box="image"`` this is
            the letterbox); False stretches the box to the square crop as PIPNet does.
        shift: the box's centre is moved by these fractions of its (unscaled) width and height. A top edge moved down
            by 0.1 of the height, with the other edges moved out by 0.1, is ``scale: [1.2, 1.0]``, ``shift: [0, 0.1]``.
        box: ``points`` the tight box of the annotated points; ``given`` the dataset's or the detector's box;
            ``image`` the whole photo.

    Raises:
        ConfigError: size, scale or shift is out of range, or a list has not one number for x and one for y.
    """

    size: Pixels
    scale: float | Sequence[float]
    square: bool
    shift: Sequence[float]
    box: BoxSource

    def __post_init__(self) -> None:
        if self.size <= 0:
            raise ConfigError("size", f"={self.size} must be over 0")
        if not all(0 < scale <= LARGEST for scale in np.ravel(self.scale)):
            raise ConfigError("scale", f"={self.scale} must be over 0 and up to {LARGEST}")
        if np.shape(self.shift) != (2,):
            raise ConfigError("shift", f"={self.shift} must be two numbers, x and y")
        if np.shape(self.scale) not in ((), (2,)):
            raise ConfigError("scale", f"={self.scale} must be one number or two, x and y")
        if not all(abs(shift) <= LARGEST for shift in self.shift):
            raise ConfigError("shift", f"={self.shift} must be up to {LARGEST}, to both sides")

    def reference_box(self, face: Face, image: Array) -> Array:
        """Return the box of a face that the crop is built around, in pixels of its photo with the box ``image``.

        Returns:
            ``(4,)``; NaN when the face has no such box.
        """
        if self.box == "points":
            return bounding_box(face.points)
        return face.box if self.box == "given" else image

    def matrix(self, box: Array) -> Array:
        """The map from photo to crop pixels for a box in photo pixels, ``(3, 3)`` float64.

        Raises:
            ValueError: the box has no area or is not finite.
        """
        corner, far = np.asarray(box, np.float64).reshape(2, 2)
        sides = far - corner
        if not (np.isfinite(sides).all() and (sides > 0).all()):
            raise ValueError(f"the box {np.round(box, 1).tolist()} has no area; a crop needs x0 < x1 and y0 < y1")
        centre = (corner + far) / 2 + np.asarray(self.shift) * sides
        sides = sides * np.asarray(self.scale)
        if self.square:
            sides = np.full(2, sides.max())
        return box_to_image(np.concatenate([centre - sides / 2, centre + sides / 2]), self.size, self.size)
