"""Displacement of the image content by a transform of albumentations."""

import copy
import random
import warnings
from functools import cache

import albumentations
import cv2
import numpy as np

from facelab.faces.geometry import Array

PERIOD = 48
"""Period in pixels of the probe, the pattern that a transform is applied to. The pattern has a centre of symmetry every
half period, so a displacement over a quarter of a period is detected, but its measured length is wrong."""
PERIODS = 4
"""Number of periods on each side of the probe: 192 pixels, the size of a usual crop."""
SHORTEST_WAVE = 5
"""Shortest wavelength in the probe in pixels."""
DRAWS = 8
"""Number of draws of a transform; several, because many transforms do little in some draws. Each draw transforms two
images, or four if a displacement must be confirmed."""
MIN_CORRELATION = 0.6
"""Smallest correlation of a window with its half turn; below it too little of the probe is left to measure."""
CONFIRM_ABOVE = 0.25
"""Displacement in pixels above which a second pattern must confirm it: a partly covered face can look displaced."""
TOLERANCE = 0.75
"""Largest difference in pixels of the displacements of two patterns; or half of the longer one, if that is more."""


def displacement(transform: albumentations.BasicTransform) -> float:
    """Measure how far a transform moves an image in pixels: the maximum over nine windows and :data:`DRAWS` draws.

    The probe is a pattern with a two-fold rotational symmetry about the centre of each of nine windows. A change of
    colours or contrast and a symmetric blur keep the symmetry. In a window that is displaced by d, the rotated window
    matches best at a distance of 2 d. Each draw is applied to a pattern and its negative; their difference does not
    contain what the transform adds to both, such as fog, rain or noise.

    Displacements of the image-only transforms of albumentations 2.0.8 with default arguments: ZoomBlur 9.1, Downscale
    2.7 (nearest neighbours), MotionBlur 1.5, Emboss 1.4, GlassBlur 1.0, Superpixels 0.2, ChromaticAberration, RandomFog
    and ShotNoise 0.15, all others under 0.1.

    Args:
        transform: image-only transform; it and its generators are not changed.

    Raises:
        Exception: any exception of the transform on the probe.
    """
    drawn = copy.deepcopy(transform)
    drawn.p = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return max(_largest_displacement(drawn, seed) for seed in range(DRAWS))


def _largest_displacement(drawn: albumentations.BasicTransform, seed: int) -> float:
    """Measure the largest displacement of the nine windows in one draw, in pixels."""
    moves = _displacements(_response(drawn, seed, 0))
    if np.abs(moves).max() > CONFIRM_ABOVE:
        others = _displacements(_response(drawn, seed, 1))
        lengths = np.abs([moves, others])
        agree = np.abs(moves - others) <= np.maximum(lengths.max(axis=0) / 2, TOLERANCE)
        moves = np.where(agree, lengths.min(axis=0), 0)
    return float(np.abs(moves).max())


@cache
def _probe(number: int) -> tuple[Array, Array]:
    """Draw a random pattern and its negative, ``(H, W, 3)`` uint8 in the colours of skin."""
    rng, centres, most = np.random.default_rng(number), np.arange(PERIOD) + 0.5, PERIOD // SHORTEST_WAVE
    pattern = np.zeros((PERIOD, PERIOD))
    for across in range(most + 1):
        for down in range(-most, most + 1):
            if 0 < (waves := np.hypot(across, down)) <= PERIOD / SHORTEST_WAVE:
                turns = (across * centres[None] + down * centres[:, None]) / PERIOD
                pattern += rng.standard_normal() / waves * np.cos(2 * np.pi * turns)  # even about 0 and PERIOD / 2
    pattern = np.tile(pattern / np.abs(pattern).max(), (PERIODS, PERIODS))[..., None]
    colours, contrasts = np.array([150.0, 115.0, 95.0]), np.array([90.0, 85.0, 75.0])
    bright, dark = ((colours + sign * pattern * contrasts).round().astype(np.uint8) for sign in (1, -1))
    return bright, dark


def _response(drawn: albumentations.BasicTransform, seed: int, number: int) -> Array:
    """Transform a pattern and its negative with the same draw and subtract them, ``(H, W)`` float32."""
    grey = []
    for image in _probe(number):
        drawn.set_random_state(np.random.default_rng(seed), random.Random(seed))
        changed = np.asarray(drawn(image=image.copy())["image"], dtype=np.float32)
        if changed.shape != image.shape:
            raise ValueError(f"it converts an image {image.shape} to {changed.shape}")
        red, green, blue = np.moveaxis(changed, 2, 0)
        grey.append((red + green + blue) / 3)  # mean() over three values takes ten times as long
    return np.asarray(grey[0] - grey[1])


def _displacements(response: Array) -> Array:
    """Measure the displacements of the centres of the nine windows, ``(9,)`` complex x + i y in pixels."""
    starts = range(0, (PERIODS - 1) * PERIOD, PERIOD)
    return np.array([_displacement(response[y : y + 2 * PERIOD, x : x + 2 * PERIOD]) for y in starts for x in starts])


def _displacement(window: Array) -> complex:
    """Measure the displacement of the centre of a window in pixels; 0 if it cannot be measured."""
    margin = PERIOD // 2
    turned = np.ascontiguousarray(window[margin:-margin, margin:-margin][::-1, ::-1])
    if float(np.std(turned)) < 0.5:  # less than one grey level is left
        return 0
    scores = cv2.matchTemplate(window, turned, cv2.TM_CCOEFF_NORMED)
    _, best, _, (x, y) = cv2.minMaxLoc(scores)
    if best < MIN_CORRELATION:
        return 0
    return complex(_peak(scores[y], x) - margin, _peak(scores[:, x], y) - margin) / 2


def _peak(scores: Array, at: int) -> float:
    """Interpolate the position of a maximum by the parabola through the largest value and its neighbours."""
    if not 0 < at < len(scores) - 1:
        return float(at)
    left, top, right = (float(score) for score in scores[at - 1 : at + 2])
    bend = left - 2 * top + right
    return at + (0.5 * (left - right) / bend if bend < 0 else 0.0)
