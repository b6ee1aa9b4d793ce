"""Landmark metrics as pure functions of the table of errors per face.

The error per face ``e`` is the mean distance over the annotated points divided by a normaliser, a fraction. It is NaN
without an annotated point, or if the normaliser is NaN or below one pixel; every function here leaves such faces out.
It is infinite if an annotated point has no finite prediction: the face then fails at every threshold, adds 0 to an AUC
and makes the mean infinite.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from facelab.faces.geometry import Array
from facelab.faces.layouts import Layout
from facelab.metrics.face_table import ANGLES, FaceTable, nanmean, nme_per_face

Statistic = Callable[[Array], Array]
"""Function from errors ``(..., F)`` to numbers ``(...)``, e.g. :func:`nme` or ``partial(auc, threshold=0.1)``."""

THRESHOLDS = {"08": 0.08, "10": 0.10}
"""Thresholds of the normalised error by name: 0.08 is usual on 300W, 0.10 on WFLW and COFW."""
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


RATES: dict[str, Statistic] = {
    "fr08_ioc": partial(failure_rate, threshold=THRESHOLDS["08"]),
    "auc08_ioc": partial(auc, threshold=THRESHOLDS["08"]),
    "fr10_ioc": partial(failure_rate, threshold=THRESHOLDS["10"]),
    "auc10_ioc": partial(auc, threshold=THRESHOLDS["10"]),
}
"""Metrics computed from the ``nme_ioc`` of all faces: name to function."""


def yaw_buckets(table: FaceTable) -> dict[str, Array]:
    """Return the faces ``(F,)`` bool of each bucket of absolute yaw by name; a face of unknown yaw is in none."""
    return _buckets(np.abs(table.pose[:, 0]), YAW_BUCKETS, YAW_EDGES, right=True)


def size_buckets(table: FaceTable) -> dict[str, Array]:
    """Return the faces ``(F,)`` bool of each bucket of face size by name; a face without a point is in none."""
    return _buckets(table.box, SIZE_BUCKETS, SIZE_EDGES, right=False)


def breakdowns(table: FaceTable, layout: Layout, tags: tuple[str, ...]) -> dict[str, dict[str, Array]]:
    """Split the mean errors into parts: by breakdown and part, the errors ``(G,)`` of the part's faces.

    The breakdowns are ``nme_box_yaw`` by pose (only if any yaw is known), ``nme_ioc_tag`` by the dataset's tags,
    ``nme_ioc_region`` by regions of the face and ``nme_box_size`` by size in the photo.

    Args:
        table: the faces.
        layout: layout of the points.
        tags: Annotations.tags, the columns of ``table.tags``.

    Raises:
        ValueError: the number of tags differs from the table's.
    """
    if len(tags) != table.tags.shape[1]:
        raise ValueError(f"the table has {table.tags.shape[1]} tags per face, but got the names {list(tags)}")
    ioc, box = nme_per_face(table, "ioc"), nme_per_face(table, "box")
    parts = {}
    if np.isfinite(table.pose[:, 0]).any():
        parts["nme_box_yaw"] = {name: box[faces] for name, faces in yaw_buckets(table).items()}
    parts["nme_ioc_tag"] = {tag: ioc[faces] for tag, faces in zip(tags, table.tags.T, strict=True)}
    points = {name: sorted({i for line in lines for i in line}) for name, lines in layout.regions.items()}
    parts["nme_ioc_region"] = {name: nme_per_face(table, "ioc", indices) for name, indices in points.items()}
    parts["nme_box_size"] = {name: box[faces] for name, faces in size_buckets(table).items()}
    return parts


def errors(table: FaceTable, layout: Layout, tags: tuple[str, ...]) -> dict[str, Array]:
    """Return the errors ``(G,)`` of the faces of each mean error by name, NaN for faces that it leaves out.

    The names depend only on the layout, the tags, and on whether any yaw is known and any pose predicted; a bucket
    without faces has an empty array. Errors are fractions. Names with ``mae_`` are exceptions: errors of the predicted
    angles in degrees, ``mae_angle`` their mean.

    Args:
        table: the faces.
        layout: layout of the points.
        tags: Annotations.tags, the columns of ``table.tags``.

    Raises:
        ValueError: the number of tags differs from the table's.
    """
    by_name = {"nme_ioc": nme_per_face(table, "ioc")}
    if all(layout.pupils):
        by_name["nme_ipd"] = nme_per_face(table, "ipd")
    by_name |= {"nme_box": nme_per_face(table, "box"), "nme_diag": nme_per_face(table, "diag")}
    if np.isfinite(table.pose_error).any():
        by_name |= {f"mae_{angle}": table.pose_error[:, i] for i, angle in enumerate(ANGLES)}
        by_name["mae_angle"] = table.pose_error.mean(axis=1)
    parts = breakdowns(table, layout, tags).items()
    return by_name | {f"{kind}_{part}": e for kind, by_part in parts for part, e in by_part.items()}


def summary(table: FaceTable, layout: Layout, tags: tuple[str, ...]) -> dict[str, float]:
    """Compute all metrics of a table by their logged names: fractions, except ``mae_*`` in degrees.

    A metric that is undefined for the layout or the data (pupils, pose) is missing; a metric without a face is NaN.
    ``nme_box_yaw_mean`` is the unweighted mean of the three buckets, as in 3DDFA's evaluation, and NaN if one is empty.
    ``faces`` counts the faces with an annotated point, ``faces_skipped`` the others; the sum is the number of rows.

    Args:
        table: the faces.
        layout: layout of the points.
        tags: Annotations.tags, the columns of ``table.tags``.

    Raises:
        ValueError: the number of tags differs from the table's.
    """
    by_name = errors(table, layout, tags)
    numbers = {name: float(nme(e)) for name, e in by_name.items()}
    numbers |= {name: float(rate(by_name["nme_ioc"])) for name, rate in RATES.items()}
    buckets = [numbers[name] for name in numbers if name.startswith("nme_box_yaw_")]
    if buckets:
        numbers["nme_box_yaw_mean"] = float(np.mean(buckets))
    annotated = table.valid.any(axis=1)
    return numbers | {"faces": float(annotated.sum()), "faces_skipped": float((~annotated).sum())}


def names(layout: Layout, tags: tuple[str, ...]) -> list[str]:
    """List the metrics that :func:`summary` computes for this layout if a pose is known and predicted.

    >>> from facelab.faces.layouts import WFLW98
    >>> names(WFLW98, tags=())[:4]
    ['nme_ioc', 'nme_ipd', 'nme_box', 'nme_diag']
    """
    one, points = np.ones(1), layout.num_points
    table = FaceTable(
        face_id=np.zeros(1, np.int64),
        error=np.zeros((1, points)),
        valid=np.ones((1, points), np.bool_),
        ioc=one,
        ipd=one,
        box=one,
        diag=one,
        pose=np.zeros((1, 3)),
        tags=np.zeros((1, len(tags)), np.bool_),
        pose_error=np.zeros((1, 3)),
    )
    return list(summary(table, layout, tags))


def counts(table: FaceTable, layout: Layout, tags: tuple[str, ...]) -> dict[str, int]:
    """Count the faces with a defined error for each mean error of :func:`summary`.

    Failure rates and AUCs have the count of ``nme_ioc``.
    """
    faces = {name: int((~np.isnan(e)).sum()) for name, e in errors(table, layout, tags).items()}
    buckets = [faces[name] for name in faces if name.startswith("nme_box_yaw_")]
    return faces | ({"nme_box_yaw_mean": sum(buckets)} if buckets else {})


def left_out(table: FaceTable, layout: Layout, tags: tuple[str, ...]) -> dict[str, int]:
    """Count the faces that belong to each mean error of :func:`summary` but have no defined error.

    For ``nme_box_yaw_mean`` these are all faces without an error or a bucket, including those of unknown yaw.
    """
    missing = {name: int(np.isnan(e).sum()) for name, e in errors(table, layout, tags).items()}
    measured = counts(table, layout, tags).get("nme_box_yaw_mean")
    return missing | ({} if measured is None else {"nme_box_yaw_mean": len(table.face_id) - measured})


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
    return _interval(_resample(e[~np.isnan(e)], statistic, resamples, seed))


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
    return _interval(np.mean(drawn, axis=0))


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


def paired_bootstrap(a: Array, b: Array, statistic: Statistic, resamples: int, seed: int) -> Difference:
    """Compare two runs on their common faces: each resample draws the same faces for both.

    Args:
        a: ``(F,)`` errors per face.
        b: ``(F,)`` errors of the same faces in the same order, see :func:`common_faces`.
        statistic: the metric to compare.
        resamples: number of resamples with replacement.
        seed: of the resampling.

    Returns:
        The difference; NaN without a common face, or if the metric is infinite for both.

    Raises:
        ValueError: the lengths differ.

    >>> paired_bootstrap(np.array([0.5, 0.75]), np.array([0.25, 0.5]), nme, resamples=99, seed=0)
    Difference(value=0.25, low=0.25, high=0.25, probability=0.02, faces=2)
    """
    if a.shape != b.shape:
        raise ValueError(f"the runs have {len(a)} and {len(b)} faces; select their common rows with common_faces first")
    both = np.stack([a, b])[:, ~(np.isnan(a) | np.isnan(b))]
    drawn = _resample(both, statistic, resamples, seed)
    with np.errstate(invalid="ignore"):
        value, differences = float(np.subtract(*statistic(both))), drawn[0] - drawn[1]
    low, high = _interval(differences)
    smaller_side = 1 + min((differences <= 0).sum(), (differences >= 0).sum())
    probability = np.nan if np.isnan(differences).any() else min(1.0, 2 * smaller_side / (resamples + 1))
    return Difference(value, low, high, float(probability), both.shape[1])


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


def _buckets(values: Array, names: Sequence[str], edges: Sequence[float], *, right: bool) -> dict[str, Array]:
    """Return the members ``(F,)`` bool of each bucket by name; ``right``: an edge belongs to the bucket below it."""
    bucket = np.where(np.isnan(values), -1, np.digitize(values, edges, right=right))
    return {name: bucket == i for i, name in enumerate(names)}


def _resample(e: Array, statistic: Statistic, resamples: int, seed: int | tuple[int, int]) -> Array:
    """Compute the statistic ``(..., R)`` of R resamples of the faces ``(..., F)``, in blocks that fit into memory."""
    faces = e.shape[-1]
    if not faces:
        return np.full((*e.shape[:-1], resamples), np.nan)
    random = np.random.default_rng(seed)
    block = max(1, BLOCK // faces)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate([statistic(e[..., random.integers(faces, size=(size, faces))]) for size in sizes], axis=-1)


def _interval(drawn: Array) -> tuple[float, float]:
    """Return the ends of the middle 95 %. Each end is one of the values: an infinite one cannot be interpolated."""
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)
