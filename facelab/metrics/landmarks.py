"""Every landmark number as a pure function of the table of errors per face.

An error per face ``e`` is the mean distance over its annotated points divided by a normaliser, as a fraction. It is
NaN where it is not defined (no annotated point, or a normaliser that is unknown or under one pixel) and every
function here leaves such faces out; it is infinite where a point was not predicted, which fails at every threshold,
adds nothing to an AUC and makes the mean infinite.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from facelab.faces.geometry import Array
from facelab.faces.layouts import Layout
from facelab.metrics.face_table import ANGLES, FaceTable, mean_known, nme_per_face

Statistic = Callable[[Array], Array]
"""Errors ``(..., F)`` to a number ``(...)``, for instance :func:`nme` or ``partial(auc, threshold=0.1)``."""

THRESHOLDS = {"08": 0.08, "10": 0.10}
"""Name to normalised error: 0.08 is usual on 300W, 0.10 on WFLW and COFW."""
YAW_BUCKETS = ("0_30", "30_60", "60_90")
YAW_EDGES = (30.0, 60.0)
"""Degrees of absolute yaw; an edge belongs to the bucket below it. The last bucket has no end (3DDFA, Zhu et al.,
TPAMI 2017, and its code)."""
SIZE_BUCKETS = ("0_32", "32_64", "64_128", "128_up")
SIZE_EDGES = (32.0, 64.0, 128.0)
"""sqrt(w h) of the tight box in pixels of the photo; an edge belongs to the bucket above it."""
BLOCK = 1 << 20
"""Most numbers that a bootstrap draws at a time."""


def nme(e: Array) -> Array:
    """Mean error of the faces.

    Args:
        e: ``(..., F)``.

    Returns:
        ``(...)``; infinite if one face is, NaN if there is none.
    """
    return mean_known(e)


def failure_rate(e: Array, threshold: float) -> Array:
    """Share of faces ``(...)`` whose error ``(..., F)`` is over the threshold, as in the evaluation of WFLW."""
    return mean_known(np.where(np.isnan(e), np.nan, e > threshold))


def auc(e: Array, threshold: float) -> Array:
    """Area under the cumulative error distribution from 0 to ``threshold``, divided by ``threshold``.

    This is the exact integral of the step function, ``mean(max(0, t - e)) / t``. The reference codes of DAN and PIPNet
    sum it with Simpson's rule on a grid of 1e-4, which differs by less than 2e-5.

    Args:
        e: ``(..., F)``.
        threshold: the largest error that counts.

    Returns:
        ``(...)``, 1 for perfect predictions.
    """
    return mean_known(np.maximum(0, 1 - e / threshold))


def ced(e: Array, x: Array) -> Array:
    """Cumulative error distribution: the share of faces whose error is at most x.

    Args:
        e: ``(F,)``.
        x: ``(X,)``.

    Returns:
        ``(X,)``; NaN if there is no face.
    """
    known = np.sort(e[~np.isnan(e)])
    if not len(known):
        return np.full(np.shape(x), np.nan)
    return np.searchsorted(known, x, side="right") / len(known)


RATES: dict[str, Statistic] = {
    "fr08_ioc": partial(failure_rate, threshold=THRESHOLDS["08"]),
    "auc08_ioc": partial(auc, threshold=THRESHOLDS["08"]),
    "fr10_ioc": partial(failure_rate, threshold=THRESHOLDS["10"]),
    "auc10_ioc": partial(auc, threshold=THRESHOLDS["10"]),
}
"""Name of a number to the function that computes it from the errors ``nme_ioc`` of all faces."""


def yaw_buckets(table: FaceTable) -> dict[str, Array]:
    """Name of a bucket of absolute yaw to its faces ``(F,)`` bool; a face whose yaw is unknown is in none."""
    return _buckets(np.abs(table.pose[:, 0]), YAW_BUCKETS, YAW_EDGES, right=True)


def size_buckets(table: FaceTable) -> dict[str, Array]:
    """Name of a bucket of face size to its faces ``(F,)`` bool; a face without annotated points is in none."""
    return _buckets(table.box, SIZE_BUCKETS, SIZE_EDGES, right=False)


def breakdowns(table: FaceTable, layout: Layout, tags: tuple[str, ...]) -> dict[str, dict[str, Array]]:
    """What a mean error is broken down by -> part -> errors ``(G,)`` of its faces, see :func:`errors`.

    ``nme_box_yaw`` goes by pose, where any yaw is known, ``nme_ioc_tag`` by the dataset's subsets, ``nme_ioc_region``
    by parts of the face, ``nme_box_size`` by size in the photo.

    Raises:
        ValueError: the table has another number of tags.
    """
    if len(tags) != table.tags.shape[1]:
        raise ValueError(f"the table has {table.tags.shape[1]} tags per face, but these are named: {list(tags)}")
    ioc, box = nme_per_face(table, "ioc"), nme_per_face(table, "box")
    parts = {}
    if np.isfinite(table.pose[:, 0]).any():
        parts["nme_box_yaw"] = {name: box[faces] for name, faces in yaw_buckets(table).items()}
    parts["nme_ioc_tag"] = {tag: ioc[faces] for tag, faces in zip(tags, table.tags.T, strict=True)}
    points = {name: sorted({i for line in lines for i in line}) for name, lines in layout.regions.items()}
    parts["nme_ioc_region"] = {name: nme_per_face(table, "ioc", these) for name, these in points.items()}
    parts["nme_box_size"] = {name: box[faces] for name, faces in size_buckets(table).items()}
    return parts


def errors(table: FaceTable, layout: Layout, tags: tuple[str, ...]) -> dict[str, Array]:
    """Name of a mean error to the errors ``(G,)`` of the faces it is about, NaN for those that it leaves out.

    The names depend on the layout, the tags and on whether any yaw is known and any pose predicted, and on nothing
    else: a bucket without faces has an empty array. Errors are fractions, but degrees where the name starts with
    ``mae_``: those of predicted angles, and for ``mae_angle`` the mean of the three.

    Raises:
        ValueError: the table has another number of tags.
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
    """All numbers of a table by the names under which they are logged: fractions, and degrees as ``mae_*``.

    A number that the layout or the data cannot have (pupils, pose) is not there; one that has no face this time is
    NaN. ``nme_box_yaw_mean`` is the unweighted mean of the three buckets, as in 3DDFA's evaluation, and NaN if one is
    empty. ``faces`` have an annotated point, ``faces_skipped`` have none; together they are the rows of the table.

    Args:
        table: the faces.
        layout: their layout.
        tags: Annotations.tags, the columns of ``table.tags``.

    Raises:
        ValueError: the table has another number of tags.
    """
    by_name = errors(table, layout, tags)
    numbers = {name: float(nme(e)) for name, e in by_name.items()}
    numbers |= {name: float(rate(by_name["nme_ioc"])) for name, rate in RATES.items()}
    buckets = [numbers[name] for name in numbers if name.startswith("nme_box_yaw_")]
    if buckets:
        numbers["nme_box_yaw_mean"] = float(np.mean(buckets))
    readable = table.valid.any(axis=1)
    return numbers | {"faces": float(readable.sum()), "faces_skipped": float((~readable).sum())}


def names(layout: Layout, tags: tuple[str, ...]) -> list[str]:
    """List the numbers that :func:`summary` can give for faces of this layout, where pose is known and predicted."""
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
    """Number of faces that each mean error of :func:`summary` is taken over; rates and areas share ``nme_ioc``'s."""
    faces = {name: int((~np.isnan(e)).sum()) for name, e in errors(table, layout, tags).items()}
    buckets = [faces[name] for name in faces if name.startswith("nme_box_yaw_")]
    return faces | ({"nme_box_yaw_mean": sum(buckets)} if buckets else {})


def left_out(table: FaceTable, layout: Layout, tags: tuple[str, ...]) -> dict[str, int]:
    """Number of faces that each mean error of :func:`summary` is about but cannot measure.

    For ``nme_box_yaw_mean`` these are all faces in no bucket or without an error, so also those of unknown yaw.
    """
    missing = {name: int(np.isnan(e).sum()) for name, e in errors(table, layout, tags).items()}
    measured = counts(table, layout, tags).get("nme_box_yaw_mean")
    return missing | ({} if measured is None else {"nme_box_yaw_mean": len(table.face_id) - measured})


def bootstrap(e: Array, statistic: Statistic, resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of a number over faces drawn with replacement (Efron and Tibshirani 1993, chapter 13).

    Args:
        e: ``(F,)`` errors per face.
        statistic: the number.
        resamples: how often to draw; 1,000 is usual.
        seed: of the draws.

    Returns:
        Lower and upper end; NaN if no face has an error.
    """
    return _interval(_resampled(e[~np.isnan(e)], statistic, resamples, seed))


def stratified_bootstrap(
    groups: Sequence[Array], statistic: Statistic, resamples: int, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of the unweighted mean of a number over groups of faces, each drawn from by itself.

    Args:
        groups: ``(G,)`` errors per face of each group.
        statistic: the number of a group.
        resamples: how often to draw.
        seed: of the draws.

    Returns:
        Lower and upper end; NaN if a group has no error.
    """
    # one generator for each: from the same one, two groups would be drawn from at the same places
    drawn = [_resampled(e[~np.isnan(e)], statistic, resamples, (seed, i)) for i, e in enumerate(groups)]
    return _interval(np.mean(drawn, axis=0))


class Difference(NamedTuple):
    """How much higher a number is for a than for b on the same faces."""

    value: float
    low: float
    """Ends of the 95 % percentile interval."""
    high: float
    probability: float
    """Of a difference at least as far from zero if there were none: twice the smaller share of resamples that fall
    on either side of zero, zero included. Like a p value; it is never below 2 / (resamples + 1)."""
    faces: int
    """Faces with an error in both."""


def paired_bootstrap(a: Array, b: Array, statistic: Statistic, resamples: int, seed: int) -> Difference:
    """Compare two runs on the faces both have: each resample draws the same faces for both.

    Args:
        a: ``(F,)`` errors per face, of the same faces in the same order as b, see :func:`common_faces`.
        b: ``(F,)``.
        statistic: the number to compare.
        resamples: how often to draw.
        seed: of the draws.

    Returns:
        The difference; NaN if there is no common face, or where both numbers are infinite.

    Raises:
        ValueError: the lengths differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"the runs have {len(a)} and {len(b)} faces; select those they share with common_faces first")
    both = np.stack([a, b])[:, ~(np.isnan(a) | np.isnan(b))]
    drawn = _resampled(both, statistic, resamples, seed)
    with np.errstate(invalid="ignore"):
        value, differences = float(np.subtract(*statistic(both))), drawn[0] - drawn[1]
    low, high = _interval(differences)
    beyond = 1 + min((differences <= 0).sum(), (differences >= 0).sum())
    probability = np.nan if np.isnan(differences).any() else min(1.0, 2 * beyond / (resamples + 1))
    return Difference(value, low, high, float(probability), both.shape[1])


def common_faces(a: Array, b: Array) -> tuple[Array, Array]:
    """Rows of the faces that two tables share, in the order of ``face_id``.

    Args:
        a: ``(F,)`` face_id of one.
        b: ``(G,)`` face_id of the other.

    Returns:
        ``(C,)`` rows of a and ``(C,)`` rows of b.
    """
    _, rows_a, rows_b = np.intersect1d(a, b, assume_unique=True, return_indices=True)
    return rows_a, rows_b


def _buckets(values: Array, names: Sequence[str], edges: Sequence[float], *, right: bool) -> dict[str, Array]:
    bucket = np.where(np.isnan(values), -1, np.digitize(values, edges, right=right))
    return {name: bucket == i for i, name in enumerate(names)}


def _resampled(e: Array, statistic: Statistic, resamples: int, seed: int | tuple[int, int]) -> Array:
    """The statistic ``(..., R)`` of R draws of F faces from ``(..., F)``, in blocks that fit into memory."""
    faces = e.shape[-1]
    if not faces:
        return np.full((*e.shape[:-1], resamples), np.nan)
    random = np.random.default_rng(seed)
    block = max(1, BLOCK // faces)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate([statistic(e[..., random.integers(faces, size=(size, faces))]) for size in sizes], axis=-1)


def _interval(drawn: Array) -> tuple[float, float]:
    """The middle 95 %. An end is one of the draws, since between a number and infinity there is no other."""
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)
