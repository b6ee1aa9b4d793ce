"""Coordinate convention, and the maps between coordinates.

x points right and y down, in **pixels, and the centre of the top-left pixel is (0, 0)**: an image of width W covers
-0.5 .. W - 0.5. Points are ``(..., N, 2)``, boxes ``x0 y0 x1 y1`` in the same coordinates. A missing value is NaN. Maps
are affine matrices ``(3, 3)`` with the last row 0 0 1. No other file adds or subtracts a half, flips, or divides a
coordinate by a stride.

:func:`transform_points`, :func:`to_cells`, :func:`from_cells`, :func:`to_grid` and :func:`from_grid` accept numpy
arrays and torch tensors; the other functions use numpy arrays only.
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
    """Apply an affine map to points.

    Args:
        matrix: ``(..., 3, 3)``, last row 0 0 1.
        points: ``(..., N, 2)`` in the source pixels of ``matrix``.

    Returns:
        ``(..., N, 2)`` in the target pixels of ``matrix``; NaN stays NaN.

    Example:
        >>> transform_points(flip_image(10), np.array([[0.0, 3.0], [np.nan, np.nan]]))
        array([[ 9.,  3.],
               [nan, nan]])
    """
    # No matrix product: a GPU may round its factors to TF32 or bfloat16, an error of whole pixels in a large photo.
    linear, offset = matrix[..., None, :2, :2], matrix[..., None, :2, 2]
    return (linear * points[..., None, :]).sum(-1) + offset


def to_cells(points: ArrayOrTensor, stride: float) -> ArrayOrTensor:
    """Convert pixels to cells of a grid with this stride, counted from the **edge** of the first cell.

    Cell c covers [c, c + 1): the floor of the result is the index of the cell, the fraction is the position inside it.
    If ``stride`` is the side of the image, the result is a fraction of the image.

    Example:
        >>> to_cells(np.array([[-0.5, 3.5], [7.5, 31.5]]), 32)
        array([[0.   , 0.125],
               [0.25 , 1.   ]])
    """
    return (points + 0.5) / stride


def from_cells(cells: ArrayOrTensor, stride: Any) -> ArrayOrTensor:
    """Convert cells of a grid to pixels, the inverse of :func:`to_cells`.

    Args:
        cells: ``(..., 2)`` counted from the edge of the first cell.
        stride: pixels per cell; with numpy also two numbers ``(2,)``, for x and y.

    Example:
        >>> from_cells(np.array([[0.0, 0.125], [0.25, 1.0]]), 32)
        array([[-0.5,  3.5],
               [ 7.5, 31.5]])
    """
    return cells * stride - 0.5


def to_grid(points: ArrayOrTensor, stride: float) -> ArrayOrTensor:
    """Convert pixels to positions on a grid with this stride, counted from the **centre** of the first cell.

    A whole number is the centre of a cell, as in an image of the grid: the result is 0.5 less than :func:`to_cells`.

    Example:
        >>> to_grid(np.array([[-0.5, 1.5], [7.5, 29.5]]), 4)
        array([[-0.5,  0. ],
               [ 1.5,  7. ]])
    """
    return to_cells(points, stride) - 0.5


def from_grid(places: ArrayOrTensor, stride: float) -> ArrayOrTensor:
    """Convert positions on a grid to pixels, the inverse of :func:`to_grid`.

    Args:
        places: ``(..., 2)`` counted from the centre of the first cell.
        stride: pixels per cell.

    Example:
        >>> from_grid(np.array([[-0.5, 0.0], [1.5, 7.0]]), 4)
        array([[-0.5,  1.5],
               [ 7.5, 29.5]])
    """
    return from_cells(places + 0.5, stride)


def bounding_box(points: Array) -> Array:
    """Compute the smallest box around the annotated points.

    Args:
        points: ``(..., N, 2)``, NaN where not annotated.

    Returns:
        ``(..., 4)`` x0 y0 x1 y1; NaN for a face without an annotated point.

    Example:
        >>> bounding_box(np.array([[1.0, 5.0], [3.0, 2.0], [np.nan, np.nan]]))
        array([1., 2., 3., 5.])
    """
    return np.concatenate([np.fmin.reduce(points, axis=-2), np.fmax.reduce(points, axis=-2)], axis=-1)


def image_box(width: int, height: int) -> Array:
    """Return the box of a whole image, from the outer edge of its first pixel to the outer edge of its last.

    Example:
        >>> image_box(4, 2).tolist()
        [-0.5, -0.5, 3.5, 1.5]
    """
    return np.array([-0.5, -0.5, width - 0.5, height - 0.5], np.float32)


def box_to_image(box: Array, width: int, height: int) -> Array:
    """Return the map of a box to an image of ``width`` x ``height`` pixels, edge on edge.

    Args:
        box: ``(4,)`` with positive width and height.
        width: width of the image in pixels.
        height: height of the image in pixels.

    Returns:
        ``(3, 3)``, float64 to keep its inverse precise.

    Example:
        >>> to_crop = box_to_image(np.array([9.5, 19.5, 29.5, 59.5]), 10, 10)
        >>> transform_points(to_crop, np.array([[9.5, 19.5], [29.5, 59.5]]))
        array([[-0.5, -0.5],
               [ 9.5,  9.5]])
    """
    x0, y0, x1, y1 = np.asarray(box, np.float64).tolist()  # Python floats: arithmetic on numpy scalars is slower
    sx, sy = width / (x1 - x0), height / (y1 - y0)
    return np.array([[sx, 0, -sx * x0 - 0.5], [0, sy, -sy * y0 - 0.5], [0, 0, 1]])


def flip_image(width: int) -> Array:
    """Return the map that flips an image of this width left to right, ``(3, 3)`` float64.

    Example:
        >>> transform_points(flip_image(10), np.array([[0.0, 4.0], [9.0, 4.0]]))
        array([[9., 4.],
               [0., 4.]])
    """
    return np.array([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]])


def affine_about_centre(
    size: int, degrees: float = 0.0, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)
) -> Array:
    """Return the map that rotates and scales a square image about its centre, then shifts it.

    Args:
        size: side of the image in pixels.
        degrees: angle, positive clockwise as displayed.
        scale: factor, above 1 enlarges.
        shift: x and y in pixels.

    Returns:
        ``(3, 3)`` float64.

    Example:
        >>> rotate = affine_about_centre(11, degrees=90)
        >>> transform_points(rotate, np.array([[10.0, 5.0]])).round(6)  # from the right edge to the bottom edge
        array([[ 5., 10.]])
    """
    centre = (size - 1) / 2
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    x, y = centre - (c - s) * centre + shift[0], centre - (s + c) * centre + shift[1]
    return np.array([[c, -s, x], [s, c, y], [0, 0, 1]])


def reduce_image(factor: float) -> Array:
    """Return the map from an image to the same image at 1 / ``factor`` of its size, ``(3, 3)`` float64.

    The top-left corner is fixed: the first pixel of the smaller image covers ``factor`` x ``factor`` pixels. The
    inverse is ``reduce_image(1 / factor)``.

    Example:
        >>> transform_points(reduce_image(4), np.array([[-0.5, -0.5], [1.5, 1.5]]))
        array([[-0.5, -0.5],
               [ 0. ,  0. ]])
    """
    offset = 0.5 / factor - 0.5
    return np.array([[1 / factor, 0, offset], [0, 1 / factor, offset], [0, 0, 1]])
