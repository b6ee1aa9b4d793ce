"""Detection metrics as pure functions of the table of detections and annotated faces.

At an overlap t the detections of a photo get faces in falling order of their scores: each gets the face that it
overlaps most, by at least t, among those that are left (COCO, Lin et al., ECCV 2014). A detection without a face is
false, unless it overlaps an ignored face by t: then it does not count at all. The AP is that of COCO, without its limit
of 100 detections per photo, and equal scores are one threshold: it depends neither on the order of the photos nor on
that of the detections.

A part of the faces, such as those of one size, has its own AP: the other faces are ignored. All false detections count,
except in the parts by size, where those outside of the range do not. The AP of a part is therefore lower than that of
all faces, and can only be compared with the same part of another detector.
"""

import functools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facelab.faces.boxes import area
from facelab.faces.geometry import Array
from facelab.metrics import wider
from facelab.metrics.detection_pairs import Pairs, assign, overlapping
from facelab.metrics.detection_table import DetectionTable
from facelab.metrics.face_table import SMALLEST_NORMALISER, nanmean
from facelab.metrics.landmarks import YAW_BUCKETS, YAW_EDGES, buckets, interval
from facelab.metrics.ranking import (
    Area,
    Ranking,
    area_under_curve,
    average_precision,
    evenly,
    last,
    recall_at,
    recall_of_all,
)
from facelab.metrics.record import Better, Metric, Unit

IOU = 0.5
"""Overlap of a detection with its face, where a metric does not name another."""
IOUS = np.arange(50, 100, 5) / 100
"""Overlaps whose APs ``ap`` averages (COCO)."""
FALSE_PER_PHOTO = {"01": 0.1, "1": 1.0}
"""False detections per photo by the ending of the metric of the recall."""
PROPOSALS = (30, 100, 300)
"""Numbers of detections of a photo, those of the highest scores, with which the recall of proposals is measured."""
SIZE_BUCKETS = ("0_16", "16_32", "32_64", "64_128", "128_up")
"""Names of the buckets of face size, in pixels; the median face of WIDER FACE has 18."""
SIZE_EDGES = (16.0, 32.0, 64.0, 128.0)
"""Edges of the size buckets: sqrt(w h) of the annotated box in pixels of the photo; an edge belongs to the bucket above
it."""
FAILURE = 0.10
"""Largest error of five points that is not a failure, a fraction of sqrt(w h) of the annotated box (RetinaFace, Deng et
al., CVPR 2020)."""


class Definition(NamedTuple):
    """Definition of a metric on the photos of a table, with the fields of its record."""

    exact: float  # the value; NaN if it is undefined
    resampled: Callable[[Array], Array] | None  # from weights of the photos (P, R) to values (R,); None for a count
    photos: int  # number of photos P that could be read
    faces: int  # number of faces in the value
    left_out: int = 0
    unit: Unit = "fraction"
    better: Better = "higher"
    whole: str = ""
    breakdown: str = ""
    part: str = ""

    def value(self) -> float:
        """Return the value; NaN if the metric is about no face."""
        return self.exact

    def record(self, resamples: int, seed: int) -> Metric:
        """Compute the record with its 95 % bootstrap interval over photos, whose faces are not independent.

        A count has no interval: it describes these photos, not others like them.

        Args:
            resamples: number of resamples with replacement; 1,000 is usual.
            seed: of the resampling; the resamples are the same for all metrics of a table.
        """
        low = high = math.nan
        if self.resampled and self.photos:
            values = self.resampled(photo_weights(self.photos, resamples, seed))
            if (values := values[~np.isnan(values)]).size:  # a resample may lack the few faces of a part
                low, high = interval(values)
        return Metric(
            *(self.exact, low, high, self.faces, self.left_out),
            *(self.unit, self.better, self.whole, self.breakdown, self.part),
        )


@functools.lru_cache(maxsize=1)
def photo_weights(photos: int, resamples: int, seed: int) -> Array:
    """Draw how often each photo is in each resample, ``(P, R)``."""
    drawn = np.random.default_rng(seed).multinomial(photos, np.full(photos, 1 / photos), resamples)
    return drawn.T.astype(np.float32)


def rank(table: DetectionTable, pairs: Pairs, least: float, faces: Array, false: Array) -> Ranking:
    """Rank the detections that count.

    Args:
        table: the photos.
        pairs: pairs of :func:`overlapping` with a smallest overlap of at most ``least``.
        least: overlap of a detection with its face.
        faces: ``(F,)`` bool, the faces to find; the others are ignored.
        false: ``(D,)`` bool, the detections that count if they find no face.
    """
    near = Pairs(*(column[pairs.iou >= least] for column in pairs))
    own = faces[near.face]
    hit = assign(Pairs(*(column[own] for column in near)), len(table.scores), len(table.face_id)) >= 0
    counts = hit | false
    counts[near.detection[~own]] &= hit[near.detection[~own]]
    order = np.flatnonzero(counts)[np.argsort(-table.scores[counts], kind="stable")]
    found = np.bincount(table.true_photo[faces], minlength=len(table.photo_id))
    return Ranking(table.scores[order], hit[order], table.photo[order], found)


def all_pairs(table: DetectionTable) -> Pairs:
    """Find the pairs of detections and faces that overlap by at least :data:`IOU`."""
    return overlapping(table, IOU, table.boxes, table.true_boxes)


def found_faces(table: DetectionTable, pairs: Pairs) -> NDArray[np.int64]:
    """Return the face that each detection finds at :data:`IOU`, ``(D,)`` rows of the faces; -1 for none."""
    own = ~table.ignore[pairs.face]
    return assign(Pairs(*(column[own] for column in pairs)), len(table.scores), len(table.face_id))


def places(table: DetectionTable) -> NDArray[np.int64]:
    """Return the place of each detection among those of its photo by falling score, ``(D,)`` from 0."""
    order = np.lexsort((-table.scores, table.photo))
    photo = table.photo[order]
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - np.searchsorted(photo, photo)
    return place


class PhotoCounts(NamedTuple):
    """Numbers of a photo at a threshold of the score, ``(P,)`` each."""

    faces: NDArray[np.int64]  # faces to find
    found: NDArray[np.int64]
    missed: NDArray[np.int64]
    false: NDArray[np.int64]  # detections without a face, also without an ignored one


def count_photos(table: DetectionTable, least_score: float) -> PhotoCounts:
    """Count found and missed faces and false detections of each photo.

    Args:
        table: the photos.
        least_score: score below which a detection is left out.
    """
    pairs, shown = all_pairs(table), table.scores >= least_score
    found = (found_faces(table, pairs) >= 0) & shown
    ignored = np.zeros(len(table.scores), np.bool_)
    ignored[pairs.detection[table.ignore[pairs.face]]] = True
    faces, hits, false = (
        np.bincount(photo, minlength=len(table.photo_id))
        for photo in (table.true_photo[~table.ignore], table.photo[found], table.photo[shown & ~found & ~ignored])
    )
    return PhotoCounts(faces, hits, faces - hits, false)


def definitions(table: DetectionTable, *, wider_rounded: bool = False) -> dict[str, Definition]:
    """Define all metrics of a table by name. This is the only place to add one.

    The names depend on the tags, and whether any yaw is known; they do not depend on which faces a part has.

    Args:
        table: the photos.
        wider_rounded: whether the AP of WIDER FACE rounds as its Matlab code, see :func:`wider.best_faces`.
    """
    whole, table = table, table.readable()
    pairs, every = all_pairs(table), np.ones(len(table.scores), np.bool_)
    counted = ~table.ignore
    ranked = [rank(table, pairs, least, counted, every) for least in IOUS]
    base = partial(Definition, photos=len(table.photo_id), faces=int(counted.sum()), left_out=int(whole.ignore.sum()))
    metrics = {
        "ap50": _ranked(base, ranked[:1], average_precision),
        "ap": _ranked(base, ranked, average_precision),
        "recall": _ranked(base, ranked[:1], recall_of_all, last),
    }
    for name, false in FALSE_PER_PHOTO.items():
        metrics[f"recall_fppi_{name}"] = _ranked(base, ranked[:1], partial(recall_at, false_per_photo=false))
    for most in PROPOSALS:
        kept = places(table) < most
        first = [rank(table, Pairs(*(column[kept[pairs.detection]] for column in pairs)), IOU, counted, kept)]
        metrics[f"recall_first_{most}"] = _ranked(base, first, recall_of_all, last)
    for breakdown, part, faces, false_detections in _parts(table):
        one = [rank(table, pairs, IOU, counted & faces, false_detections)]
        number = int((counted & faces).sum())
        of_part = partial(base, faces=number, left_out=int(faces.sum()) - number, breakdown=breakdown, part=part)
        for name, statistic, ends in (("ap50", average_precision, evenly), ("recall", recall_of_all, last)):
            metrics[f"{name}_{breakdown}_{part}"] = _ranked(partial(of_part, whole=name), one, statistic, ends)
    if set(wider.LISTS) <= set(table.tag_names):
        best = wider.best_faces(table, rounded=wider_rounded)
        for name in wider.LISTS:
            listed = table.tags[:, table.tag_names.index(name)]
            metrics[f"wider_{name}"] = _wider(base, table, best, listed)
    metrics |= _points(base, table, found_faces(table, pairs))
    count = partial(base, resampled=None, left_out=0, unit="count", better="none")
    return metrics | {
        "faces": count(float(counted.sum())),
        "photos": count(float(len(table.photo_id))),
        "photos_skipped": count(float(whole.skipped.sum())),
        "photos_cut": count(float(table.cut.sum())),
    }


def _parts(table: DetectionTable) -> Iterator[tuple[str, str, Array, Array]]:
    """Yield breakdown, part, faces ``(F,)`` and the detections ``(D,)`` that may be false, of all parts."""
    every = np.ones(len(table.scores), np.bool_)
    sizes, detected = (
        buckets(np.sqrt(area(boxes)), SIZE_BUCKETS, SIZE_EDGES, right=False)
        for boxes in (table.true_boxes, table.boxes)
    )
    yield from (("size", part, sizes[part], detected[part]) for part in SIZE_BUCKETS)
    for tag, faces in zip(table.tag_names, table.tags.T, strict=True):
        yield "tag", tag, faces, every
    if np.isfinite(table.pose[:, 0]).any():
        yaws = buckets(np.abs(table.pose[:, 0]), YAW_BUCKETS, YAW_EDGES, right=True)
        yield from (("yaw", part, faces, every) for part, faces in yaws.items())


def _ranked(
    base: Callable[..., Definition],
    ranked: list[Ranking],
    statistic: Area,
    ends: Callable[[Ranking], NDArray[np.int64]] = evenly,
) -> Definition:
    """Define the mean of a number of several rankings, with the thresholds that its resamples need."""
    exact = np.mean([statistic(each.counts(each.thresholds())) for each in ranked])

    def resampled(weights: Array) -> Array:
        """Compute the number of each resample, at fewer thresholds."""
        return np.mean([statistic(each.counts(ends(each), weights)) for each in ranked], axis=0)

    return base(float(exact), resampled)


def _wider(base: Callable[..., Definition], table: DetectionTable, best: Array, listed: Array) -> Definition:
    """Define the AP of a list of WIDER FACE."""
    ranked = wider.ranking(table, best, listed)
    ends = wider.ends(ranked)
    exact = area_under_curve(ranked.counts(ends))[0]
    return base(
        float(exact),
        lambda weights: area_under_curve(ranked.counts(ends, weights)),
        faces=int(listed.sum()),
        left_out=int((~listed).sum()),
    )


def _points(base: Callable[..., Definition], table: DetectionTable, found: Array) -> dict[str, Definition]:
    """Define the errors of the five points on the found faces, and the share of the annotated faces that is found."""
    detection = np.full(len(table.face_id), -1)
    detection[found[found >= 0]] = np.flatnonzero(found >= 0)
    annotated = table.valid.any(axis=1) & ~table.ignore
    e = np.where(annotated & (detection >= 0), _point_errors(table, detection), np.nan)[annotated]
    rows = table.true_photo[annotated]
    mean = partial(_mean, base, rows)
    metrics = {
        "nme5_box": mean(e),
        "fr10_5": mean(np.where(np.isnan(e), np.nan, e > FAILURE)),
        "nme5_recall": mean((detection[annotated] >= 0).astype(np.float64), better="higher"),
    }
    yaw = np.abs(table.pose[annotated, 0])
    if np.isfinite(yaw).any():
        for part, faces in buckets(yaw, YAW_BUCKETS, YAW_EDGES, right=True).items():
            metrics[f"nme5_box_yaw_{part}"] = _mean(base, rows[faces], e[faces])._replace(
                whole="nme5_box", breakdown="yaw", part=part
            )
    return metrics


def _point_errors(table: DetectionTable, detection: Array) -> Array:
    """Compute the mean distance of the annotated points of each face, divided by sqrt(w h) of the annotated box.

    A face of which a detector with points predicts no finite position of an annotated point has an infinite error.

    Args:
        table: the photos.
        detection: ``(F,)`` the detection that found the face; for -1 the result has no meaning.

    Returns:
        ``(F,)``; NaN for a detector without points, and for a box below :data:`SMALLEST_NORMALISER`.
    """
    if not np.isfinite(table.points).any():
        return np.full(len(table.face_id), np.nan)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        distance = np.linalg.norm(table.points[detection] - table.true_points, axis=-1)
    error = nanmean(np.where(table.valid, np.where(np.isfinite(distance), distance, np.inf), np.nan))
    length = np.sqrt(area(table.true_boxes))
    return error / np.where(length >= SMALLEST_NORMALISER, length, np.nan)


def _mean(base: Callable[..., Definition], rows: Array, e: Array, better: Better = "lower") -> Definition:
    """Define the mean of a number ``(G,)`` of faces in photos ``(G,)``."""
    used, infinite = ~np.isnan(e), np.isinf(e)
    definition = base(float(nanmean(e)), None, faces=int(used.sum()), left_out=int((~used).sum()), better=better)
    sums, infinities, numbers = (
        np.bincount(rows[used], weight[used], minlength=definition.photos)
        for weight in (np.where(infinite, 0, e), infinite, np.ones(len(e)))
    )

    def resampled(weights: Array) -> Array:
        """Compute the mean of each resample."""
        with np.errstate(invalid="ignore"):  # 0 / 0
            return np.where(infinities @ weights > 0, np.inf, sums @ weights / (numbers @ weights))

    return definition._replace(resampled=resampled)


def example(tags: tuple[str, ...]) -> DetectionTable:
    """Return a table of one photo with one face of known pose, for which all metrics of a dataset are defined.

    >>> list(definitions(example(())))[:3]
    ['ap50', 'ap', 'recall']
    """
    one, none = np.zeros(1, np.int64), np.zeros(1, np.bool_)
    box, points = np.array([[0.0, 0, 32, 32]]), np.zeros((1, 5, 2))
    return DetectionTable(
        *(tags, one, none, none, box, np.ones(1), points, one),
        *(one, box, points, np.zeros((1, 3)), np.zeros((1, len(tags)), np.bool_), none, one),
    )
