"""Detections in falling order of their score, and the curves and areas that follow from it. Without torch."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facelab.faces.geometry import Array

RECALLS = np.linspace(0, 1, 101)
"""Recalls at which the AP of COCO reads the precision."""
RESAMPLED_THRESHOLDS = 1000
"""Largest number of thresholds of the curves in a bootstrap: steps of a thousandth of the recall."""


class Ranking(NamedTuple):
    """M detections that count, in falling order of score, in P photos.

    Equal scores are one threshold: their order plays no part.
    """

    score: Array  # (M,)
    hit: NDArray[np.bool_]  # (M,) finds a face; otherwise it is false
    photo: NDArray[np.int64]  # (M,) row of its photo
    faces: NDArray[np.int64]  # (P,) number of faces to find in each photo

    def thresholds(self) -> NDArray[np.int64]:
        """Return the number of detections at or above each distinct score, ``(K,)`` ascending."""
        return np.flatnonzero(np.diff(self.score, append=np.nan)) + 1

    def counts(self, ends: Array, weights: Array | None = None) -> "Counts":
        """Count hits and false detections among the first detections, for each of several ends.

        Args:
            ends: ``(K,)`` numbers of detections, ascending.
            weights: ``(P, R)`` float32, how often each photo counts in each of R resamples; None for once, with R = 1.
                A product in float32 takes half of the time, and is exact for whole numbers up to 2**24.
        """
        if weights is None:
            hits = np.append(0, np.cumsum(self.hit))[ends, None]
            return Counts(hits, ends[:, None] - hits, self.faces.sum(keepdims=True), len(self.faces))
        step = np.searchsorted(ends, np.arange(len(self.score)), side="right")
        inside, shape = step < len(ends), (len(ends), len(self.faces))
        cell = (step * shape[1] + self.photo)[inside]
        steps = (
            np.bincount(cell, weight, shape[0] * shape[1]).reshape(shape).astype(np.float32) @ weights
            for weight in (None, self.hit[inside])
        )
        every, hits = (np.cumsum(counts, axis=0, dtype=np.float64) for counts in steps)
        return Counts(hits, every - hits, self.faces @ weights, len(self.faces))


class Counts(NamedTuple):
    """Hits and false detections at or above each of K thresholds, in R resamples of the photos."""

    hits: Array  # (K, R)
    false: Array  # (K, R)
    faces: Array  # (R,) number of faces to find
    photos: int

    def recall(self) -> Array:
        """Return the share of the faces that are found, ``(K, R)``; NaN without a face."""
        with np.errstate(invalid="ignore"):
            return self.hits / self.faces

    def precision(self) -> Array:
        """Return the share of the detections that are hits, ``(K, R)``; 0 without a detection."""
        return self.hits / np.maximum(self.hits + self.false, 1)

    def envelope(self) -> Array:
        """Return the best precision at each recall or a higher one, ``(K, R)``."""
        return np.maximum.accumulate(self.precision()[::-1], axis=0)[::-1]


Area = Callable[[Counts], Array]
"""Function from counts to a number ``(R,)`` for each resample; NaN without a face."""


def average_precision(counts: Counts) -> Array:
    """Compute the AP of COCO: the mean precision at 101 recalls; 0 at a recall that is not reached.

    >>> counts = Counts(np.array([[1], [1], [2]]), np.array([[0], [1], [1]]), np.array([4]), photos=1)
    >>> average_precision(counts).round(4)  # 26 recalls at 1, 25 at 2/3, 50 are not reached
    array([0.4224])
    """
    recall, envelope = counts.recall(), counts.envelope()
    values = np.full(recall.shape[1], np.nan)
    for resample in np.flatnonzero(counts.faces > 0):
        at = np.searchsorted(recall[:, resample], RECALLS)
        values[resample] = envelope[at[at < len(recall)], resample].sum() / len(RECALLS)
    return values


def area_under_curve(counts: Counts) -> Array:
    """Compute the AP of VOC 2010 and WIDER FACE: the area under the envelope of the precision.

    >>> counts = Counts(np.array([[1], [1], [2]]), np.array([[0], [1], [1]]), np.array([4]), photos=1)
    >>> area_under_curve(counts).round(4)
    array([0.4167])
    """
    steps = np.diff(counts.recall(), axis=0, prepend=0)
    return np.where(counts.faces > 0, (steps * counts.envelope()).sum(axis=0), np.nan)


def recall_at(counts: Counts, false_per_photo: float) -> Array:
    """Compute the recall at the lowest threshold with at most so many false detections per photo.

    >>> counts = Counts(np.array([[1], [1], [2]]), np.array([[0], [1], [2]]), np.array([4]), photos=2)
    >>> recall_at(counts, 0.0), recall_at(counts, 1.0)
    (array([0.25]), array([0.5]))
    """
    allowed = (counts.false <= false_per_photo * counts.photos).sum(axis=0)
    hits = np.concatenate([np.zeros((1, len(counts.faces))), counts.hits])
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.take_along_axis(hits, allowed[None], axis=0)[0] / counts.faces


def recall_of_all(counts: Counts) -> Array:
    """Compute the recall of all detections."""
    return recall_at(counts, np.inf)


def last(ranking: Ranking) -> NDArray[np.int64]:
    """Choose the threshold below all detections alone, which is enough for :func:`recall_of_all`."""
    return np.array([len(ranking.score)])


def evenly(ranking: Ranking) -> NDArray[np.int64]:
    """Choose at most :data:`RESAMPLED_THRESHOLDS` of the thresholds, evenly spaced in the number of hits.

    With fewer hits these are all thresholds at which the recall grows.
    """
    ends = ranking.thresholds()
    hits = np.append(0, np.cumsum(ranking.hit))[ends]
    total = hits[-1] if len(hits) else 0
    wanted = np.unique(np.linspace(1, total, min(total, RESAMPLED_THRESHOLDS)).round())
    return ends[np.unique(np.searchsorted(hits, wanted))]
