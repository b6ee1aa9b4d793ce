"""Types with bounds, for annotations of constructors; ``facelab.runs.check`` refuses values outside of them."""

from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Gt, Interval, MinLen

Text: TypeAlias = Annotated[str, MinLen(1)]
"""Text that is not empty."""
Name: TypeAlias = Text | int | float
"""Name of a file or folder; it may look like a number."""
Count: TypeAlias = Annotated[int, Ge(1)]
"""Whole number, 1 or more."""
Whole: TypeAlias = Annotated[int, Ge(0)]
"""Whole number, 0 or more."""
Amount: TypeAlias = Annotated[float, Ge(0)]
"""Number, 0 or more."""
Positive: TypeAlias = Annotated[float, Gt(0)]
"""Number above 0."""
Share: TypeAlias = Annotated[float, Interval(ge=0, le=1)]
"""Probability, or fraction of a whole."""
Angle: TypeAlias = Annotated[float, Interval(ge=0, le=180)]
"""Largest angle in degrees, in both directions."""
Channels: TypeAlias = Annotated[int, Interval(ge=1, le=2**14)]
"""Channels of a layer. The largest networks have some thousands; weights between two larger layers fill the memory."""
Pixels: TypeAlias = Annotated[int, Interval(ge=1, le=2**12)]
"""Side in pixels of an image that is created for each face."""
Processes: TypeAlias = Annotated[int, Interval(ge=0, le=2**10)]
"""Number of processes. More than the cores of any machine would only fill its memory."""
Seed: TypeAlias = Annotated[int, Interval(ge=0, lt=2**32)]
"""Seed in the range of numpy's generators."""
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
"""Device of the network; ``auto`` is cuda where torch finds a CUDA device."""
