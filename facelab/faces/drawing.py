"""Drawing of landmarks and boxes on images, and arrangement of images in a grid."""

from collections.abc import Sequence
from itertools import chain, pairwise

import cv2
import numpy as np

from facelab.faces.geometry import Array, box_to_image, image_box, transform_points
from facelab.faces.layouts import Layout

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""
TRUTH: Colour = (60, 220, 90)
"""RGB of annotated points: green."""
PREDICTION: Colour = (255, 70, 60)
"""RGB of predicted points: red."""
SMALLEST_WITH_POINTS = 24
"""Shorter side in pixels of the smallest face in a tile whose points are drawn; they would cover a smaller one."""
FONT = cv2.FONT_HERSHEY_SIMPLEX
"""Font of captions and scores."""
SMALLEST_FONT = 0.32
"""Scale of the smallest :data:`FONT` that can be read: digits of 7 pixels."""
WHITE: Colour = (255, 255, 255)
"""RGB of text."""
SUBPIXEL_BITS = 4
"""Fractional bits of OpenCV's fixed-point drawing coordinates: steps of 1/16 pixel."""


def draw_landmarks(image: Array, points: Array, layout: Layout, colour: Colour, *, lines: bool) -> Array:
    """Draw the points of a face, and optionally the outlines of its parts.

    Args:
        image: ``(H, W, 3)`` uint8 RGB, not changed.
        points: ``(N, 2)`` pixels of ``image``; NaN points are not drawn.
        layout: layout of ``points``; its regions are the outlines.
        colour: RGB.
        lines: whether to draw the outlines.

    Returns:
        ``(H, W, 3)`` uint8, a copy of ``image``.
    """
    image = np.ascontiguousarray(image).copy()
    radius = max(1.0, max(image.shape[:2]) / 200)
    drawn, fixed = _fixed_point(points)
    thickness = max(1, round(radius / 2))
    if lines:
        for polyline in chain.from_iterable(layout.regions.values()):
            for a, b in pairwise(polyline):
                if drawn[a] and drawn[b]:
                    ends = fixed[a].tolist(), fixed[b].tolist()
                    cv2.line(image, *ends, colour, thickness, cv2.LINE_AA, SUBPIXEL_BITS)
    _draw_dots(image, points, radius, colour)
    return image


def _fixed_point(points: Array) -> tuple[Array, Array]:
    """Return which of points ``(N, 2)`` can be drawn, ``(N,)``, and all in OpenCV's fixed-point coordinates."""
    drawn: Array = np.all(np.abs(points) < 2**20, axis=1)  # False for NaN and for numbers too large for OpenCV
    return drawn, np.round(np.where(drawn[:, None], points, 0) * 2**SUBPIXEL_BITS).astype(int)


def _draw_dots(image: Array, points: Array, radius: float, colour: Colour) -> None:
    """Draw points ``(N, 2)`` into an image as dots of a radius in pixels; NaN is not drawn."""
    drawn, fixed = _fixed_point(points)
    for point in fixed[drawn]:
        cv2.circle(image, point.tolist(), int(radius * 2**SUBPIXEL_BITS), colour, -1, cv2.LINE_AA, SUBPIXEL_BITS)


def tile(
    image: Array, layout: Layout, *, side: int, truth: Array | None, prediction: Array | None, caption: str
) -> Array:
    """Draw one tile of a grid: the resized image, annotated points green, predicted ones red, a caption at the bottom.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        layout: layout of the points.
        side: side of the tile in pixels.
        truth: ``(N, 2)`` annotated points in pixels of ``image``, or None.
        prediction: ``(N, 2)`` predicted points in pixels of ``image``, or None.
        caption: lines of text; empty for none.

    Returns:
        ``(side, side, 3)`` uint8.
    """
    canvas, to_tile = _canvas(image, side)
    for points, colour in ((truth, TRUTH), (prediction, PREDICTION)):
        if points is not None:
            canvas = draw_landmarks(
                canvas, transform_points(to_tile, points.astype(np.float64)), layout, colour, lines=False
            )
    return _with_caption(canvas, caption)


def photo_tile(
    image: Array, *, side: int, truth: Array, boxes: Array, scores: Array, points: Array, caption: str
) -> Array:
    """Draw one tile of a grid: a resized photo, annotated boxes green, detections with scores and points red.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        side: side of the tile in pixels.
        truth: ``(F, 4)`` annotated boxes in pixels of ``image``.
        boxes: ``(D, 4)`` detections in pixels of ``image``.
        scores: ``(D,)`` their scores.
        points: ``(D, 5, 2)`` their points; NaN from a detector without points.
        caption: lines of text; empty for none.

    Returns:
        ``(side, side, 3)`` uint8.
    """
    canvas, to_tile = _canvas(image, side)
    true_boxes, found = (transform_points(to_tile, each.reshape(-1, 2, 2)).reshape(-1, 4) for each in (truth, boxes))
    _draw_boxes(canvas, true_boxes, TRUTH)
    draw_detections(canvas, found, scores, transform_points(to_tile, points))
    return _with_caption(canvas, caption)


def draw_detections(image: Array, boxes: Array, scores: Array, points: Array) -> None:
    """Draw boxes, scores and points of detections into an image, red, in the size of each face.

    Args:
        image: ``(H, W, 3)`` uint8 RGB, contiguous.
        boxes: ``(D, 4)`` in pixels of ``image``.
        scores: ``(D,)``.
        points: ``(D, 5, 2)`` in pixels of ``image``; NaN from a detector without points. Those of a face below
            :data:`SMALLEST_WITH_POINTS` are not drawn.
    """
    _draw_boxes(image, boxes, PREDICTION)
    for box, face in zip(boxes, points, strict=True):
        if (side := (box[2:] - box[:2]).min()) >= SMALLEST_WITH_POINTS:
            _draw_dots(image, face, max(1.0, side / 40), PREDICTION)
    for box, score in zip(boxes, scores, strict=True):
        _draw_score(image, box, score)


def _draw_boxes(image: Array, boxes: Array, colour: Colour) -> None:
    """Draw boxes into an image, thicker in a large image, but thin around a small face."""
    for box in boxes.clip(-(2**15), 2**15):
        thickness = round(min(max(image.shape) / 500, (box[2:] - box[:2]).min() / 30))
        start, end = np.round(box.reshape(2, 2) * 2**SUBPIXEL_BITS).astype(int).tolist()
        cv2.rectangle(image, start, end, colour, max(1, thickness), cv2.LINE_AA, SUBPIXEL_BITS)


def _draw_score(image: Array, box: Array, score: float) -> None:
    """Write a score above its box, or below the upper edge of the box if there is no room above.

    The text is half as wide as the box, but at least in :data:`SMALLEST_FONT`, and lies within the image.
    """
    width = image.shape[1]
    left, top, right, _ = box.clip(-(2**15), 2**15).tolist()
    largest = max(max(image.shape) / 1200, SMALLEST_FONT)
    text, scale = f"{score:.2f}", min(max((right - left) / 150, SMALLEST_FONT), largest)
    thickness = max(1, round(1.5 * scale))
    (wide, high), _ = cv2.getTextSize(text, FONT, scale, thickness)
    wide, high = wide + 2, high + 4  # with a margin
    x, y = min(max(round(left), 0), width - wide), round(top) - high if top >= high else max(round(top), 0)
    cv2.rectangle(image, (x, y), (x + wide, y + high), PREDICTION, -1)
    cv2.putText(image, text, (x + 1, y + high - 2), FONT, scale, WHITE, thickness, cv2.LINE_AA)


def _canvas(image: Array, side: int) -> tuple[Array, Array]:
    """Resize an image into the top-left corner of a black square; return it, and the matrix from the image to it."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[: size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return canvas, box_to_image(image_box(width, height), *size)


def _with_caption(canvas: Array, caption: str) -> Array:
    """Write the lines of a text on a black ground at the bottom of a tile; return the tile.

    A line that is too long is written smaller, and shortened if it could not be read.
    """
    side = bottom = len(canvas)
    for line in reversed(caption.splitlines()):
        scale = side / 480
        (width, height), baseline = cv2.getTextSize(line, FONT, scale, 1)
        if width > side - 8:
            scale = max(scale * (side - 8) / width, min(scale, SMALLEST_FONT))
        shown, kept = line, line
        while (width := cv2.getTextSize(shown, FONT, scale, 1)[0][0]) > side - 8 and kept:
            kept = kept[:-1]
            shown = f"{kept}..."
        cv2.rectangle(canvas, (0, bottom - height - baseline - 4), (width + 8, bottom), (0, 0, 0), -1)
        cv2.putText(canvas, shown, (4, bottom - baseline - 1), FONT, scale, WHITE, 1, cv2.LINE_AA)
        bottom -= height + baseline + 4
    return canvas


def grid(tiles: Sequence[Array], columns: int) -> Array:
    """Arrange tiles ``(S, S, 3)`` row by row in one image; black tiles fill the last row."""
    blank = np.zeros_like(tiles[0])
    filled = [*tiles, *[blank] * (-len(tiles) % columns)]
    return np.vstack([np.hstack(filled[i : i + columns]) for i in range(0, len(filled), columns)])
