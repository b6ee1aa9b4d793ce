"""How far a transform of albumentations moves what an image shows."""

import copy
import random
import warnings
from functools import cache

import albumentations
import cv2
import numpy as np

from facelab.faces.geometry import Array

PERIOD = 48
"""Pixels after which the probe repeats. It has a centre of symmetry at every half of that, so a way of more than a
quarter is seen too, but measured as another."""
PERIODS = 4
"""Of the probe on each side: 192 pixels, an ordinary crop."""
SHORTEST = 5
"""Pixels of the shortest wave in the probe."""
DRAWS = 8
"""Of a transform, since many do little in some draws. Each costs two images, four where something moves."""
ALIKE = 0.6
"""Correlation of a window with its own half turn; below, too little of the probe is left to tell where it went."""
DOUBTED = 0.25
"""Pixels. What covers the face in part can feign a longer way, so another pattern must show it too."""
TOLERANCE = 0.75
"""Pixels between the ways that two patterns show; or half of the longer one, if that is more."""


def displacement(transform: albumentations.BasicTransform) -> float:
    """Measure how far a transform moves an image, in pixels: the farthest of nine places in :data:`DRAWS` draws.

    The probe is a pattern that a half turn about the middle of each of nine windows leaves as it is. A change of
    colours or contrast leaves it so, and any symmetric blur, but in a window that was moved by d the half turn is most
    like what lies 2 d away. Each draw is taken twice, for a pattern and its negative: what a transform paints on both
    alike, such as fog, rain or noise, is not in their difference.

    Measured with default arguments, for all transforms of the image alone in albumentations 2.0.8: ZoomBlur moves by
    9.1, Downscale by 2.7 (nearest neighbours), MotionBlur by 1.5, Emboss by 1.4 and GlassBlur by 1.0. Of the others
    Superpixels have 0.2, ChromaticAberration, RandomFog and ShotNoise 0.15, and all that are left under 0.1.

    Args:
        transform: of the image alone; it stays as it is, with its generators.

    Raises:
        Exception: whatever the transform raises at the probe.
    """
    drawn = copy.deepcopy(transform)
    drawn.p = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return max(_farthest(drawn, seed) for seed in range(DRAWS))


def _farthest(drawn: albumentations.BasicTransform, seed: int) -> float:
    """Measure the longest way that one of the nine windows goes in one draw, in pixels."""
    ways = _ways(_shown(drawn, seed, 0))
    if np.abs(ways).max() > DOUBTED:
        others = _ways(_shown(drawn, seed, 1))
        lengths = np.abs([ways, others])
        agree = np.abs(ways - others) <= np.maximum(lengths.max(axis=0) / 2, TOLERANCE)
        ways = np.where(agree, lengths.min(axis=0), 0)
    return float(np.abs(ways).max())


@cache
def _probe(number: int) -> tuple[Array, Array]:
    """Draw a pattern and its negative, ``(H, W, 3)`` uint8 in the colours of skin."""
    rng, places, most = np.random.default_rng(number), np.arange(PERIOD) + 0.5, PERIOD // SHORTEST
    pattern = np.zeros((PERIOD, PERIOD))
    for across in range(most + 1):
        for down in range(-most, most + 1):
            if 0 < (waves := np.hypot(across, down)) <= PERIOD / SHORTEST:
                turns = (across * places[None] + down * places[:, None]) / PERIOD
                pattern += rng.standard_normal() / waves * np.cos(2 * np.pi * turns)  # even about 0 and PERIOD / 2
    pattern = np.tile(pattern / np.abs(pattern).max(), (PERIODS, PERIODS))[..., None]
    colours, contrasts = np.array([150.0, 115.0, 95.0]), np.array([90.0, 85.0, 75.0])
    bright, dark = ((colours + sign * pattern * contrasts).round().astype(np.uint8) for sign in (1, -1))
    return bright, dark


def _shown(drawn: albumentations.BasicTransform, seed: int, number: int) -> Array:
    """Show what a draw leaves of a pattern, ``(H, W)`` float32."""
    shown = []
    for image in _probe(number):
        drawn.set_random_state(np.random.default_rng(seed), random.Random(seed))
        changed = np.asarray(drawn(image=image.copy())["image"], dtype=np.float32)
        if changed.shape != image.shape:
            raise ValueError(f"it makes {changed.shape} of an image {image.shape}")
        shown.append(changed.mean(axis=2))
    return np.asarray(shown[0] - shown[1])


def _ways(shown: Array) -> Array:
    """Find where the middles of the nine windows went, ``(9,)`` complex x + i y in pixels."""
    starts = range(0, (PERIODS - 1) * PERIOD, PERIOD)
    return np.array([_way(shown[y : y + 2 * PERIOD, x : x + 2 * PERIOD]) for y in starts for x in starts])


def _way(window: Array) -> complex:
    """Find where the middle of a window went, in pixels; 0 where that cannot be told."""
    quarter = PERIOD // 2
    turned = np.ascontiguousarray(window[quarter:-quarter, quarter:-quarter][::-1, ::-1])
    if float(np.std(turned)) < 0.5:  # less than one grey level is left
        return 0
    scores = cv2.matchTemplate(window, turned, cv2.TM_CCOEFF_NORMED)
    _, best, _, (x, y) = cv2.minMaxLoc(scores)
    if best < ALIKE:
        return 0
    return complex(_peak(scores[y], x) - quarter, _peak(scores[:, x], y) - quarter) / 2


def _peak(scores: Array, at: int) -> float:
    """Place the top between whole numbers, by the parabola through a largest value and its neighbours."""
    if not 0 < at < len(scores) - 1:
        return float(at)
    left, top, right = (float(score) for score in scores[at - 1 : at + 2])
    bend = left - 2 * top + right
    return at + (0.5 * (left - right) / bend if bend < 0 else 0.0)
