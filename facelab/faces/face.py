"""Photos, their annotated faces, and the interface of a dataset reader."""

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

    box: Array  # (4,) x0 y0 x1 y1, box of the dataset; NaN if it has none
    points: Array  # (N, 2), NaN where not annotated
    visible: NDArray[np.bool_]  # (N,) bool: annotated and not hidden
    pose: Array  # (3,) labelled yaw, pitch, roll in degrees; NaN if the dataset has no pose labels
    tags: frozenset[str]  # subsets of the dataset that contain this face, out of Annotations.tags


class Photo(NamedTuple):
    """One image file and its faces."""

    path: Path
    faces: tuple[Face, ...]
    orientation: Orientation  # orientation of the photo in which the coordinates are pixels


class Annotations(Protocol):
    """Interface of a dataset reader. There is no base class.

    Attributes:
        name: name of the dataset, for run names and tables.
        layout: layout of ``Face.points``.
        tags: all subsets that ``Face.tags`` may contain.
    """

    name: str
    layout: Layout
    tags: tuple[str, ...]

    def photos(self, split: Split) -> list[Photo]:
        """Return the photos of a split in a fixed order.

        Raises:
            DatasetError: the dataset cannot be read; the message contains the file, the line and the expected content.
        """
        ...
