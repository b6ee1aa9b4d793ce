"""From one layout to another."""

import numpy as np

from facelab.faces.geometry import Array
from facelab.faces.layouts import CONVERSIONS, Layout


def convert(points: Array, source: Layout, target: Layout) -> Array:
    """The points of one layout in the order of another; see :data:`facelab.faces.layouts.CONVERSIONS`.

    Args:
        points: ``(..., N, 2)`` in the order of ``source``, NaN where not annotated.
        source: the layout of ``points``.
        target: the layout wanted. If it is ``source``, the points come back as they are.

    Returns:
        ``(..., M, 2)`` in the same pixels and type, NaN where ``source`` has no such point or one that it needs is not
        annotated.

    Raises:
        ValueError: there is no such conversion, or ``points`` are not those of ``source``.
    """
    if points.shape[-2:] != (source.num_points, 2):
        raise ValueError(
            f"points of shape {points.shape} are not those of layout {source.name!r} (..., {source.num_points}, 2)"
        )
    if source.name == target.name:
        return points
    if (source.name, target.name) not in CONVERSIONS:
        known = ", ".join(sorted(t for s, t in CONVERSIONS if s == source.name)) or "none"
        raise ValueError(
            f"no conversion of layout {source.name!r} to {target.name!r}; {source.name!r} converts to: {known}"
        )
    weights = CONVERSIONS[source.name, target.name]  # (M, N)
    needed = weights != 0
    missing = np.asarray(np.isnan(points).any(axis=-1))  # (..., N)
    lost = np.asarray((missing[..., None, :] & needed).any(axis=-1) | ~needed.any(axis=-1))  # (..., M)
    mixed = weights @ np.where(missing[..., None], 0.0, points)  # (..., M, 2)
    return np.where(lost[..., None], np.nan, mixed).astype(np.result_type(points, np.float32))
