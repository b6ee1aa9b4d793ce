"""Numbers that can be meant, as annotations of constructors; ``facelab.runs.check`` refuses a value outside them."""

from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Gt, Interval, MinLen

Text: TypeAlias = Annotated[str, MinLen(1)]
Name: TypeAlias = Text | int | float
"""Of a file or folder; it may look like a number."""
Count: TypeAlias = Annotated[int, Ge(1)]
Whole: TypeAlias = Annotated[int, Ge(0)]
Amount: TypeAlias = Annotated[float, Ge(0)]
Positive: TypeAlias = Annotated[float, Gt(0)]
Share: TypeAlias = Annotated[float, Interval(ge=0, le=1)]
"""A probability or a part of a whole."""
Angle: TypeAlias = Annotated[float, Interval(ge=0, le=180)]
"""Degrees to both sides."""
Channels: TypeAlias = Annotated[int, Interval(ge=1, le=2**14)]
"""Of a layer. The largest networks have some thousands, and the weights between two layers of more fill the memory."""
Pixels: TypeAlias = Annotated[int, Interval(ge=1, le=2**12)]
"""Side of an image that is made for each face."""
Processes: TypeAlias = Annotated[int, Interval(ge=0, le=2**10)]
"""More than the cores of any machine would only fill its memory."""
Seed: TypeAlias = Annotated[int, Interval(ge=0, lt=2**32)]
"""What numpy's generators take."""
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
