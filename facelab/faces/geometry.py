"""Coordinates, once and for all.

x points right and y down, in **pixels, and the centre of the top-left pixel is (0, 0)**: an image of width W covers
-0.5 .. W - 0.5. Points are ``(..., N, 2)``, boxes ``x0 y0 x1 y1`` in the same coordinates, a missing value is NaN.
No other file adds or subtracts a half, flips, or divides a coordinate by a stride.

The functions take numpy arrays and torch tensors alike where nothing else is said.
"""

import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]
ArrayOrTensor = TypeVar("ArrayOrTensor", Array, "Tensor")


def transform_points(matrix: ArrayOrTensor, points: ArrayOrTensor) -> ArrayOrTensor:
    """Move points by an affine map.

    Args:
        matrix: ``(..., 3, 3)``, last row 0 0 1.
        points: ``(..., N, 2)`` in the pixels that ``matrix`` maps from.

    Returns:
        ``(..., N, 2)`` in the pixels that ``matrix`` maps to; NaN stays NaN.
    """
    # Not a matrix product: a GPU may round its factors to TF32 or bfloat16, which costs pixels in a large photo.
    linear, offset = matrix[..., None, :2, :2], matrix[..., None, :2, 2]
    return (linear * points[..., None, :]).sum(-1) + offset


def to_cells(points: ArrayOrTensor, stride: float) -> ArrayOrTensor:
    """Pixels to cells of a grid with this stride, counted from the **edge** of the first cell.

    Cell c covers [c, c + 1): its index is the floor, the fraction is the place inside it. With ``stride`` the side of
    the image the result is the point as a fraction of the image.
    """
    return (points + 0.5) / stride


def from_cells(cells: ArrayOrTensor, stride: Any) -> ArrayOrTensor:
    """The inverse of :func:`to_cells`; with numpy, ``stride`` may be two numbers ``(2,)``, for x and y."""
    return cells * stride - 0.5


def bounding_box(points: Array) -> Array:
    """The smallest box around the annotated points.

    Args:
        points: ``(..., N, 2)``, numpy.

    Returns:
        ``(..., 4)`` x0 y0 x1 y1; NaN where a face has no annotated point.
    """
    return np.concatenate([np.fmin.reduce(points, axis=-2), np.fmax.reduce(points, axis=-2)], axis=-1)


def image_box(width: int, height: int) -> Array:
    """The box that covers a whole image, from the outer edge of its first pixel to that of its last."""
    return np.array([-0.5, -0.5, width - 0.5, height - 0.5], np.float32)


def box_to_image(box: Array, width: int, height: int) -> Array:
    """The map that fills an image of ``width`` x ``height`` pixels with a box, edge on edge.

    Args:
        box: ``(4,)``, wider and higher than 0.
        width: of the image in pixels.
        height: of the image in pixels.

    Returns:
        ``(3, 3)`` float64, so that its inverse loses nothing.
    """
    x0, y0, x1, y1 = np.asarray(box, np.float64).tolist()  # numpy's own numbers are slow one by one
    sx, sy = width / (x1 - x0), height / (y1 - y0)
    return np.array([[sx, 0, -sx * x0 - 0.5], [0, sy, -sy * y0 - 0.5], [0, 0, 1]])


def flip_image(width: int) -> Array:
    """The map that flips an image of this width left to right, ``(3, 3)`` float64."""
    return np.array([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]])


def affine_about_centre(
    size: int, degrees: float = 0.0, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)
) -> Array:
    """The map that turns and scales a square image about its centre, then shifts it.

    Args:
        size: side of the image in pixels.
        degrees: positive turns clockwise as seen on the screen.
        scale: over 1 enlarges.
        shift: x and y in pixels.

    Returns:
        ``(3, 3)`` float64.
    """
    centre = (size - 1) / 2
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    x, y = centre - (c - s) * centre + shift[0], centre - (s + c) * centre + shift[1]
    return np.array([[c, -s, x], [s, c, y], [0, 0, 1]])


def reduce_image(factor: float) -> Array:
    """The map from an image to itself at 1 / ``factor`` of its size, ``(3, 3)`` float64; ``1 / factor`` is its inverse.

    The top-left corner stays where it is: the first pixel of the smaller image covers ``factor`` x ``factor`` pixels.
    """
    offset = 0.5 / factor - 0.5
    return np.array([[1 / factor, 0, offset], [0, 1 / factor, offset], [0, 0, 1]])
