"""Boxes: overlap, and the maps from boxes to boxes.

Boxes are ``(..., 4)`` x0 y0 x1 y1 in the coordinates of :mod:`facelab.faces.geometry`: the edges of the covered area,
so the width is x1 - x0, without an added pixel. A box with x1 <= x0 or y1 <= y0 covers nothing. An evaluation that
takes x1 and y1 for the last covered pixel adds 1 to both before it calls :func:`iou`.

:func:`area`, :func:`iou`, :func:`iom`, :func:`clip` and :func:`square` accept numpy arrays and torch tensors. They use
methods that both have (``clip`` with arrays as bounds is the elementwise maximum or minimum), so the metrics on the CPU
and the matching of anchors on the device compute the same overlap with the same code. :func:`jitter` draws from a
generator of numpy, as every augmentation does.
"""

import numpy as np

from facelab.faces.geometry import Array, ArrayOrTensor, from_cells, image_box, to_cells

SMALLEST_UNION = 1e-12
"""Smallest area in pixels squared that an overlap is divided by: two boxes without area have the overlap 0."""


def area(boxes: ArrayOrTensor) -> ArrayOrTensor:
    """Compute the area of boxes.

    Args:
        boxes: ``(..., 4)``.

    Returns:
        ``(...)`` in pixels squared; 0 for a box that covers nothing.

    Example:
        >>> area(np.array([[0.0, 0, 4, 3], [5, 5, 3, 9]]))
        array([12.,  0.])
    """
    sides = (boxes[..., 2:] - boxes[..., :2]).clip(min=0)
    return sides[..., 0] * sides[..., 1]


def iou(a: ArrayOrTensor, b: ArrayOrTensor) -> ArrayOrTensor:
    """Compute the intersection over the union of all pairs of boxes.

    Args:
        a: ``(..., A, 4)``.
        b: ``(..., B, 4)``.

    Returns:
        ``(..., A, B)``, 0 to 1.

    Example:
        >>> iou(np.array([[0.0, 0, 4, 4]]), np.array([[0.0, 0, 4, 2], [2, 2, 6, 6], [4, 0, 8, 4]])).round(3)
        array([[0.5  , 0.143, 0.   ]])
    """
    both = _intersection(a, b)
    return both / (area(a)[..., :, None] + area(b)[..., None, :] - both).clip(min=SMALLEST_UNION)


def iom(a: ArrayOrTensor, b: ArrayOrTensor) -> ArrayOrTensor:
    """Compute the intersection over the smaller area of all pairs of boxes, the last suppression of MTCNN.

    Args:
        a: ``(..., A, 4)``.
        b: ``(..., B, 4)``.

    Returns:
        ``(..., A, B)``, 0 to 1; 1 for a box inside another.

    Example:
        >>> iom(np.array([[0.0, 0, 4, 4]]), np.array([[1.0, 1, 2, 2], [2, 2, 6, 6]]))
        array([[1.  , 0.25]])
    """
    return _intersection(a, b) / area(a)[..., :, None].clip(max=area(b)[..., None, :]).clip(min=SMALLEST_UNION)


def _intersection(a: ArrayOrTensor, b: ArrayOrTensor) -> ArrayOrTensor:
    """Return the common area ``(..., A, B)`` of all pairs of boxes."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    sides = (a[..., 2:].clip(max=b[..., 2:]) - a[..., :2].clip(min=b[..., :2])).clip(min=0)
    return sides[..., 0] * sides[..., 1]


def clip(boxes: ArrayOrTensor, width: int, height: int) -> ArrayOrTensor:
    """Cut boxes off at the outer edges of an image.

    Args:
        boxes: ``(..., 4)``.
        width: width of the image in pixels.
        height: height of the image in pixels.

    Returns:
        ``(..., 4)``; a box outside of the image covers nothing.

    Example:
        >>> clip(np.array([[-3.0, 2, 5, 20], [12, 2, 15, 4]]), width=10, height=8)
        array([[-0.5,  2. ,  5. ,  7.5],
               [ 9.5,  2. ,  9.5,  4. ]])
    """
    x0, y0, x1, y1 = image_box(width, height).tolist()
    clipped = boxes[..., [0, 1, 2, 3]]  # a copy
    clipped[..., 0::2] = clipped[..., 0::2].clip(x0, x1)
    clipped[..., 1::2] = clipped[..., 1::2].clip(y0, y1)
    return clipped


def square(boxes: ArrayOrTensor) -> ArrayOrTensor:
    """Extend the shorter side of boxes to both sides, to the length of the longer one.

    Args:
        boxes: ``(..., 4)``.

    Returns:
        ``(..., 4)`` with the same centres.

    Example:
        >>> square(np.array([[0.0, 0, 4, 10]]))
        array([[-3.,  0.,  7., 10.]])
    """
    sides = boxes[..., 2:] - boxes[..., :2]
    margin = (sides[..., :1].clip(min=sides[..., 1:]) - sides) / 2
    grown = boxes * 1.0  # a copy; no list of indices, which would be copied to the device of a tensor
    grown[..., :2] -= margin
    grown[..., 2:] += margin
    return grown


def jitter(boxes: Array, scale: tuple[float, float], shift: float, rng: np.random.Generator) -> Array:
    """Change the size and the position of boxes at random.

    Args:
        boxes: ``(..., 4)``; NaN stays NaN.
        scale: smallest and largest factor on both sides of a box about its centre; uniform.
        shift: largest displacement of the centre in x and in y, as a fraction of the unscaled sides; uniform.
        rng: random generator.

    Returns:
        ``(..., 4)`` float64.

    Example:
        >>> jitter(np.array([0.0, 0, 4, 2]), scale=(2, 2), shift=0, rng=np.random.default_rng(0))
        array([-2., -1.,  6.,  3.])
    """
    boxes = np.asarray(boxes, np.float64)
    factors = rng.uniform(*scale, boxes.shape[:-1])[..., None]
    shifts = rng.uniform(-shift, shift, (*boxes.shape[:-1], 2))
    low, high = boxes[..., :2], boxes[..., 2:]
    centres, half = (low + high) / 2 + shifts * (high - low), factors * (high - low) / 2
    return np.concatenate([centres - half, centres + half], axis=-1)


def from_corner_and_size(rows: Array) -> Array:
    """Convert rows ``x y width height`` of a file, where x and y count from the edge of the first pixel.

    So count the codes that multiply the numbers of WIDER FACE by the scale of an image: a box that begins with the
    pixel in column 3 has x = 3, and its left edge is at 2.5 here.

    Args:
        rows: ``(..., 4)`` in pixels.

    Returns:
        ``(..., 4)`` boxes.

    Example:
        >>> from_corner_and_size(np.array([3.0, 0, 10, 20]))
        array([ 2.5, -0.5, 12.5, 19.5])
    """
    return from_cells(np.concatenate([rows[..., :2], rows[..., :2] + rows[..., 2:]], axis=-1), 1)


def to_corner_and_size(boxes: Array) -> Array:
    """Convert boxes to rows ``x y width height``, the inverse of :func:`from_corner_and_size`.

    Example:
        >>> to_corner_and_size(np.array([2.5, -0.5, 12.5, 19.5]))
        array([ 3.,  0., 10., 20.])
    """
    return np.concatenate([to_cells(boxes[..., :2], 1), boxes[..., 2:] - boxes[..., :2]], axis=-1)
