"""Landmark metrics as pure functions of the table of errors per face.

The error per face ``e`` is the mean distance over the annotated points divided by a normaliser, a fraction. It is NaN
without an annotated point, or if the normaliser is NaN or below one pixel; every function here leaves such faces out.
It is infinite if an annotated point has no finite prediction: the face then fails at every threshold, adds 0 to an AUC
and makes the mean infinite.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facelab.faces.geometry import Array
from facelab.faces.layouts import Layout
from facelab.metrics.face_table import ANGLES, FaceTable, errors_per_face, nanmean, nme_per_face
from facelab.metrics.record import Better, Metric, Unit

Statistic = Callable[[Array], Array]
"""Function from numbers of faces ``(..., F)`` to ``(...)``, e.g. :func:`nme` or ``partial(auc, threshold=0.1)``."""

THRESHOLDS = {"08": 0.08, "10": 0.10}
"""Thresholds of the normalised error by name: 0.08 is usual on 300W, 0.10 on WFLW and COFW."""
PERCENTS = (50, 90, 95)
"""Percentiles of ``nme_box``."""
YAW_BUCKETS = ("0_30", "30_60", "60_90")
"""Names of the buckets of absolute yaw, in degrees."""
YAW_EDGES = (30.0, 60.0)
"""Edges of the yaw buckets in degrees; an edge belongs to the bucket below it. The last bucket has no upper end (3DDFA,
Zhu et al., TPAMI 2017, and its code)."""
SIZE_BUCKETS = ("0_32", "32_64", "64_128", "128_up")
"""Names of the buckets of face size, in pixels."""
SIZE_EDGES = (32.0, 64.0, 128.0)
"""Edges of the size buckets: sqrt(w h) of the tight box in pixels of the photo; an edge belongs to the bucket above."""
BLOCK = 1 << 20
"""Largest number of values that a bootstrap draws at once, to limit memory: 2**20, 8 MiB of int64 indices."""


def nme(e: Array) -> Array:
    """Compute the mean error of the faces.

    Args:
        e: ``(..., F)``.

    Returns:
        ``(...)``; infinite if the error of a face is, NaN if no face has an error.

    >>> float(nme(np.array([0.25, 0.75, np.nan])))
    0.5
    """
    return nanmean(e)


def failure_rate(e: Array, threshold: float) -> Array:
    """Compute the share of faces with an error over the threshold, as in the evaluation code of WFLW.

    Args:
        e: ``(..., F)``.
        threshold: largest error that does not count as a failure.

    Returns:
        ``(...)``; NaN if no face has an error.

    >>> float(failure_rate(np.array([0.05, 0.1, 0.2, np.inf]), threshold=0.1))
    0.5
    """
    return nanmean(np.where(np.isnan(e), np.nan, e > threshold))


def auc(e: Array, threshold: float) -> Array:
    """Compute the area under the cumulative error distribution from 0 to ``threshold``, divided by ``threshold``.

    This is the exact integral of the step function, ``mean(max(0, t - e)) / t``. The reference codes of DAN and PIPNet
    apply Simpson's rule on a grid of 1e-4; the difference is less than 2e-5.

    Args:
        e: ``(..., F)``.
        threshold: upper end of the integral.

    Returns:
        ``(...)``, 1 for perfect predictions; NaN if no face has an error.

    >>> float(auc(np.array([0.0, 0.25, 1.0]), threshold=0.5))
    0.5
    """
    return nanmean(np.maximum(0, 1 - e / threshold))


def percentile(e: Array, percent: int) -> Array:
    """Compute the smallest error that at least ``percent`` % of the faces do not exceed; it is never interpolated.

    The result is the error of a face (``inverted_cdf`` of NumPy), so that an infinite error is only the last of the
    sorted ones.

    Args:
        e: ``(..., F)``.
        percent: 1 to 100.

    Returns:
        ``(...)``; NaN if no face has an error.

    >>> float(percentile(np.array([0.1, np.inf, 0.3, np.nan, 0.2]), percent=50))
    0.2
    """
    if not e.shape[-1]:
        return np.full(e.shape[:-1], np.nan)
    rank = -(-percent * (~np.isnan(e)).sum(axis=-1) // 100)  # rounded up, from 1; 0 without an error
    ordered = np.sort(e, axis=-1)  # NaN last
    return np.take_along_axis(ordered, np.maximum(rank - 1, 0)[..., None], axis=-1)[..., 0]


def total(e: Array) -> Array:
    """Compute the sum over the faces.

    Args:
        e: ``(..., F)``.

    Returns:
        ``(...)``; 0 if there is no face.
    """
    return np.nansum(e, axis=-1)


def ced(e: Array, x: Array) -> Array:
    """Compute the cumulative error distribution: the share of faces with an error of at most x.

    Args:
        e: ``(F,)``.
        x: ``(X,)``.

    Returns:
        ``(X,)``; NaN if no face has an error.

    >>> ced(np.array([0.1, 0.2, 0.4, np.nan, 0.3]), np.array([0.0, 0.2, 1.0]))
    array([0. , 0.5, 1. ])
    """
    ordered = np.sort(e[~np.isnan(e)])
    if not len(ordered):
        return np.full(np.shape(x), np.nan)
    return np.searchsorted(ordered, x, side="right") / len(ordered)


def yaw_buckets(table: FaceTable) -> dict[str, Array]:
    """Return the faces ``(F,)`` bool of each bucket of absolute yaw by name; a face of unknown yaw is in none."""
    return buckets(np.abs(table.pose[:, 0]), YAW_BUCKETS, YAW_EDGES, right=True)


def size_buckets(table: FaceTable) -> dict[str, Array]:
    """Return the faces ``(F,)`` bool of each bucket of face size by name; a face without a point is in none."""
    return buckets(table.box, SIZE_BUCKETS, SIZE_EDGES, right=False)


class Definition(NamedTuple):
    """Definition of a metric on the faces of a table, with the fields of its record that no face changes."""

    e: Array  # (G,) number of each face that the metric is about; NaN for a face that it leaves out
    statistic: Statistic = nme
    unit: Unit = "fraction"
    better: Better = "lower"
    whole: str = ""
    breakdown: str = ""
    part: str = ""
    strata: tuple[Array, ...] = ()  # (G,) bool each: groups of faces whose values are averaged; empty for one group

    @property
    def faces(self) -> int:
        """Return the number of faces in the value."""
        return int((~np.isnan(self.e)).sum())

    def groups(self) -> list[Array]:
        """Return the numbers of each group, without those that are left out."""
        groups = [self.e[faces] for faces in self.strata] or [self.e]
        return [e[~np.isnan(e)] for e in groups]

    def value(self) -> float:
        """Compute the value; NaN if a group has no face."""
        return float(np.mean([self.statistic(e) for e in self.groups()]))

    def record(self, resamples: int, seed: int) -> Metric:
        """Compute the record with its bootstrap interval, which takes far longer than the value.

        A count has no interval: it describes these faces, not others like them.

        Args:
            resamples: number of resamples with replacement; 1,000 is usual.
            seed: of the resampling.
        """
        low = high = math.nan
        if self.strata:
            low, high = stratified_bootstrap(self.groups(), self.statistic, resamples, seed)
        elif self.unit != "count":
            low, high = bootstrap(self.e, self.statistic, resamples, seed)
        return Metric(
            *(self.value(), low, high, self.faces, len(self.e) - self.faces),
            *(self.unit, self.better, self.whole, self.breakdown, self.part),
        )


def means_over_faces(errors: Mapping[str, Array]) -> dict[str, Definition]:
    """Define the metrics of all faces that are means of a number of each face, see :func:`paired_bootstrap`.

    Args:
        errors: normalised errors ``(..., F)`` by the names of :data:`facelab.metrics.face_table.ERRORS`, with nme_ioc.
    """
    metrics = {name: Definition(e) for name, e in errors.items()}
    for name, threshold in THRESHOLDS.items():
        metrics[f"fr{name}_ioc"] = Definition(errors["nme_ioc"], partial(failure_rate, threshold=threshold))
        metrics[f"auc{name}_ioc"] = Definition(errors["nme_ioc"], partial(auc, threshold=threshold), better="higher")
    return metrics


def definitions(table: FaceTable) -> dict[str, Definition]:
    """Define all metrics of a table by name. This and :func:`means_over_faces` are the only places to add one.

    The names depend on the layout, the tags, and whether any yaw is known and any pose predicted; they do not depend
    on which faces a bucket has.
    """
    errors = errors_per_face(table)
    if not all(table.layout.pupils):
        del errors["nme_ipd"]
    ioc, box = errors["nme_ioc"], errors["nme_box"]
    annotated = np.where(table.valid.any(axis=1), 1.0, 0.0)
    metrics = means_over_faces(errors)
    metrics |= {f"nme_box_p{percent}": Definition(box, partial(percentile, percent=percent)) for percent in PERCENTS}
    if np.isfinite(table.pose_error).any():
        angles = zip(ANGLES, table.pose_error.T, strict=True)
        metrics |= {f"mae_{angle}": Definition(e, unit="degrees") for angle, e in angles}
        metrics["mae_angle"] = Definition(table.pose_error.mean(axis=1), unit="degrees")
    if np.isfinite(table.pose[:, 0]).any():
        buckets = yaw_buckets(table)
        metrics |= _parts("nme_box", "yaw", {name: box[faces] for name, faces in buckets.items()})
        # The unweighted mean of 3DDFA's evaluation; it leaves out the faces of unknown yaw.
        in_bucket = np.logical_or.reduce(list(buckets.values()))
        metrics["nme_box_yaw_mean"] = Definition(np.where(in_bucket, box, np.nan), strata=tuple(buckets.values()))
    tags = zip(table.tag_names, table.tags.T, strict=True)
    metrics |= _parts("nme_ioc", "tag", {tag: ioc[faces] for tag, faces in tags})
    regions = {name: sorted({i for line in lines for i in line}) for name, lines in table.layout.regions.items()}
    metrics |= _parts("nme_ioc", "region", {name: nme_per_face(table, "ioc", at) for name, at in regions.items()})
    metrics |= _parts("nme_box", "size", {name: box[faces] for name, faces in size_buckets(table).items()})
    return metrics | {
        "faces": Definition(annotated, total, "count", "none"),
        "faces_skipped": Definition(1 - annotated, total, "count", "none"),
    }


def _parts(whole: str, breakdown: str, parts: dict[str, Array]) -> dict[str, Definition]:
    """Define the mean errors of the parts of a metric from the errors ``(G,)`` of each part."""
    return {
        f"{whole}_{breakdown}_{part}": Definition(e, whole=whole, breakdown=breakdown, part=part)
        for part, e in parts.items()
    }


def example(layout: Layout, tags: tuple[str, ...], *, predicts_pose: bool = True) -> FaceTable:
    """Return a table of one face with known pose, for which all metrics of a dataset are defined.

    Args:
        layout: layout of the points.
        tags: names of the tags.
        predicts_pose: whether the method predicts the pose; otherwise its errors have no metrics.

    >>> from facelab.faces.layouts import WFLW98
    >>> list(definitions(example(WFLW98, tags=())))[:4]
    ['nme_ioc', 'nme_ipd', 'nme_box', 'nme_diag']
    """
    one, points = np.ones(1), (1, layout.num_points)
    return FaceTable(
        layout=layout,
        tag_names=tags,
        face_id=np.zeros(1, np.int64),
        error=np.zeros(points),
        valid=np.ones(points, np.bool_),
        **dict.fromkeys(("ioc", "ipd", "box", "diag", "error_crop", "ioc_crop"), one),
        pose=np.zeros((1, 3)),
        tags=np.zeros((1, len(tags)), np.bool_),
        pose_error=np.zeros((1, 3)) if predicts_pose else np.full((1, 3), np.nan),
    )


def bootstrap(e: Array, statistic: Statistic, resamples: int, seed: int) -> tuple[float, float]:
    """Estimate the 95 % percentile interval of a metric by resampling faces (Efron and Tibshirani 1993, chapter 13).

    Args:
        e: ``(F,)`` errors per face.
        statistic: the metric.
        resamples: number of resamples with replacement; 1,000 is usual.
        seed: of the resampling.

    Returns:
        Lower and upper end; NaN if no face has an error.

    >>> bootstrap(np.array([0.5, 0.5, np.nan]), nme, resamples=100, seed=0)
    (0.5, 0.5)
    """
    return interval(_resample(e[~np.isnan(e)], statistic, resamples, seed))


def stratified_bootstrap(
    groups: Sequence[Array], statistic: Statistic, resamples: int, seed: int
) -> tuple[float, float]:
    """Estimate the 95 % percentile interval of the unweighted mean of a metric over independently resampled groups.

    Args:
        groups: ``(G,)`` errors per face of each group.
        statistic: the metric of a group.
        resamples: number of resamples of each group with replacement.
        seed: of the resampling.

    Returns:
        Lower and upper end; NaN if a group has no error.
    """
    # Each group has its own seed: with one seed for all, groups of equal size would draw the same rows.
    drawn = [_resample(e[~np.isnan(e)], statistic, resamples, (seed, i)) for i, e in enumerate(groups)]
    return interval(np.mean(drawn, axis=0))


class Difference(NamedTuple):
    """Difference of a metric, a - b, on the same faces."""

    value: float
    low: float
    """Lower end of the 95 % percentile interval."""
    high: float
    """Upper end of the 95 % percentile interval."""
    probability: float
    """Two-sided bootstrap p value: twice the smaller share of resampled differences on one side of zero (zero counts
    for both sides). Never below 2 / (resamples + 1)."""
    faces: int
    """Number of faces with an error in both."""
    smaller: float
    """Share of these faces on which a has the smaller error."""


def paired_bootstrap(a: Array, b: Array, statistic: Statistic, resamples: int, seed: int) -> list[Difference]:
    """Compare runs with another run on their common faces: each resample draws the same faces for both.

    Runs with the same common faces share the resamples, so that hundreds of runs take one matrix product.

    Args:
        a: ``(K, F)`` errors per face of K runs.
        b: ``(F,)`` errors of the other run on the same faces in the same order, see :func:`common_faces`.
        statistic: the metric to compare, a mean of a number of each face: :func:`nme`, :func:`failure_rate` or
            :func:`auc`, but no percentile.
        resamples: number of resamples with replacement.
        seed: of the resampling.

    Returns:
        K differences; NaN without a common face. If the difference is infinite, its interval is NaN.

    Raises:
        ValueError: the numbers of faces differ.

    >>> paired_bootstrap(np.array([[0.5, 0.75]]), np.array([0.25, 0.5]), nme, resamples=99, seed=0)
    [Difference(value=0.25, low=0.25, high=0.25, probability=0.02, faces=2, smaller=0.0)]
    """
    if a.shape[1:] != b.shape:
        raise ValueError(f"the runs have {a.shape[-1]} and {len(b)} faces; select their common rows with common_faces")
    common = ~(np.isnan(a) | np.isnan(b))
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        numbers = statistic(a[..., None]) - statistic(b[:, None])  # (K, F) difference of each face
    same_faces: dict[bytes, list[int]] = {}
    for run, faces in enumerate(common):
        same_faces.setdefault(faces.tobytes(), []).append(run)
    differences: dict[int, Difference] = {}
    for runs in same_faces.values():
        faces = common[runs[0]]
        drawn = _resampled_means(numbers[runs][:, faces], resamples, seed)
        for run, means in zip(runs, drawn, strict=True):
            differences[run] = _difference(numbers[run, faces], means, (a[run] < b)[faces])
    return [differences[run] for run in range(len(a))]


def _difference(numbers: Array, drawn: Array, smaller: Array) -> Difference:
    """Summarise a difference.

    Args:
        numbers: ``(F,)`` differences of the faces.
        drawn: ``(R,)`` differences of the resamples.
        smaller: ``(F,)`` whether a has the smaller error.
    """
    value = float(numbers.mean()) if len(numbers) else math.nan
    return summarise(value, drawn, len(numbers), float(nanmean(smaller)))


def summarise(value: float, drawn: Array, faces: int, smaller: float) -> Difference:
    """Summarise a difference of two runs.

    Args:
        value: the difference.
        drawn: ``(R,)`` differences of the resamples.
        faces: number of faces in the difference.
        smaller: share of the faces on which the first run has the smaller error; NaN where faces have no error.
    """
    low, high, probability = math.nan, math.nan, math.nan
    if math.isfinite(value):
        low, high = interval(drawn)[0], -interval(-drawn)[0]  # B - A has the same interval with the other sign
        smaller_side = 1 + min((drawn <= 0).sum(), (drawn >= 0).sum())
        probability = min(1.0, float(2 * smaller_side / (len(drawn) + 1)))
    return Difference(value, low, high, probability, faces, smaller)


def common_faces(a: Array, b: Array) -> tuple[Array, Array]:
    """Find the rows of the common faces of two tables, in the order of ``face_id``.

    Args:
        a: ``(F,)`` face_id of one table.
        b: ``(G,)`` face_id of the other table.

    Returns:
        ``(C,)`` rows of a and ``(C,)`` rows of b.

    >>> common_faces(np.array([0, 2, 3]), np.array([2, 3, 4]))
    (array([1, 2]), array([0, 1]))
    """
    _, rows_a, rows_b = np.intersect1d(a, b, assume_unique=True, return_indices=True)
    return rows_a, rows_b


def buckets(values: Array, names: Sequence[str], edges: Sequence[float], *, right: bool) -> dict[str, Array]:
    """Return the members ``(F,)`` bool of each bucket by name; ``right``: an edge belongs to the bucket below it."""
    bucket = np.where(np.isnan(values), -1, np.digitize(values, edges, right=right))
    return {name: bucket == i for i, name in enumerate(names)}


def _resample(e: Array, statistic: Statistic, resamples: int, seed: int | tuple[int, int]) -> Array:
    """Compute the statistic ``(..., R)`` of R resamples of the faces ``(..., F)``."""
    if not e.shape[-1]:
        return np.full((*e.shape[:-1], resamples), np.nan)
    return np.concatenate([statistic(e[..., rows]) for rows in _draws(e.shape[-1], resamples, seed)], axis=-1)


def _resampled_means(numbers: Array, resamples: int, seed: int) -> Array:
    """Compute the means ``(K, R)`` of R resamples of the faces ``(K, F)``."""
    runs, faces = numbers.shape
    if not faces:
        return np.full((runs, resamples), np.nan)
    counts = _counts(faces, resamples, seed)
    block = max(1, 16 * BLOCK // faces)  # small products are slow, as the threads of each wait for one another
    with np.errstate(invalid="ignore"):  # an infinite number that is not drawn
        parts = [numbers @ counts[start : start + block].T.astype(np.float64) for start in range(0, resamples, block)]
    return np.concatenate(parts, axis=-1) / faces


@lru_cache(maxsize=1)  # the metrics of many pairs of runs have the same faces
def _counts(faces: int, resamples: int, seed: int) -> NDArray[np.uint16]:
    """Count how often each of F faces is in each of R resamples, ``(R, F)``."""
    blocks = []
    for rows in _draws(faces, resamples, seed):
        cells = rows + faces * np.arange(len(rows))[:, None]
        blocks.append(np.bincount(cells.ravel(), minlength=rows.size).reshape(rows.shape).astype(np.uint16))
    return np.concatenate(blocks)


def _draws(faces: int, resamples: int, seed: int | tuple[int, int]) -> Iterator[Array]:
    """Yield the rows ``(S, F)`` of S of the R resamples of F faces, in blocks that fit into memory."""
    random = np.random.default_rng(seed)
    block = max(1, BLOCK // faces)
    for start in range(0, resamples, block):
        yield random.integers(faces, size=(min(block, resamples - start), faces))


def interval(drawn: Array) -> tuple[float, float]:
    """Return the ends of the middle 95 %. Each end is one of the values: an infinite one cannot be interpolated."""
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)
