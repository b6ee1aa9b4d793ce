"""Conversion of points between layouts."""

import numpy as np

from facelab.faces.geometry import Array
from facelab.faces.layouts import CONVERSIONS, Layout


def convert(points: Array, source: Layout, target: Layout) -> Array:
    """Convert points to another layout; see :data:`facelab.faces.layouts.CONVERSIONS`.

    Args:
        points: ``(..., N, 2)`` in the order of ``source``, NaN where not annotated.
        source: layout of ``points``.
        target: layout of the result. If it equals ``source``, ``points`` is returned unchanged.

    Returns:
        ``(..., M, 2)`` in the same pixels and of the same dtype. A target point is NaN if ``source`` has no equivalent,
        or if a source point that it depends on is not annotated.

    Raises:
        ValueError: no conversion exists, or the shape of ``points`` does not match ``source``.
    """
    if points.shape[-2:] != (source.num_points, 2):
        raise ValueError(
            f"points have shape {points.shape}, but layout {source.name!r} needs (..., {source.num_points}, 2)"
        )
    if source.name == target.name:
        return points
    if (source.name, target.name) not in CONVERSIONS:
        targets = ", ".join(sorted(t for s, t in CONVERSIONS if s == source.name)) or "none"
        raise ValueError(
            f"no conversion from layout {source.name!r} to {target.name!r}; {source.name!r} converts to: {targets}"
        )
    weights = CONVERSIONS[source.name, target.name]  # (M, N)
    needed = weights != 0
    missing = np.asarray(np.isnan(points).any(axis=-1))  # (..., N)
    undefined = np.asarray((missing[..., None, :] & needed).any(axis=-1) | ~needed.any(axis=-1))  # (..., M)
    converted = weights @ np.where(missing[..., None], 0.0, points)  # (..., M, 2)
    return np.where(undefined[..., None], np.nan, converted).astype(np.result_type(points, np.float32))
