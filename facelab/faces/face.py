"""What a dataset says: photos, the faces on them, and what a reader of a dataset offers."""

from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from facelab.faces.geometry import Array
from facelab.faces.image import Orientation
from facelab.faces.layouts import Layout

Split = Literal["train", "val", "test", "all"]


class Face(NamedTuple):
    """One annotated face, in pixels of its photo (see :mod:`facelab.faces.geometry`)."""

    box: Array  # (4,) x0 y0 x1 y1 as the dataset gives it; NaN if it gives none
    points: Array  # (N, 2), NaN where not annotated
    visible: NDArray[np.bool_]  # (N,) False where hidden or not annotated
    pose: Array  # (3,) yaw, pitch, roll in degrees, labelled; NaN if the dataset has no label
    tags: frozenset[str]  # the dataset's subsets this face belongs to, of Annotations.tags


class Photo(NamedTuple):
    """One image file and its faces."""

    path: Path
    faces: tuple[Face, ...]
    orientation: Orientation  # which pixels the coordinates mean: as the photo is shown, or as it is stored


class Annotations(Protocol):
    """What the reader of a dataset offers. There is no base class."""

    name: str
    layout: Layout
    tags: tuple[str, ...]

    def photos(self, split: Split) -> list[Photo]:
        """The photos of a split in a fixed order.

        Raises:
            DatasetError: naming file, line and expectation.
        """
        ...
