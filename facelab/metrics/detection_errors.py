"""Metric that collects the detections and the annotated faces of photos over batches and processes."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from facelab.faces import geometry
from facelab.faces.batch import DetectionBatch, Detections
from facelab.faces.geometry import Array
from facelab.metrics.detection_table import DetectionTable, detection_table

Rows = Literal["photos", "detections", "faces"]
"""What the rows of a column are."""
POINTS = 5
"""Points of a detection, those of the layout FIVE5."""


class DetectionErrors(Metric):
    """Collector of the detections of a split, which :meth:`table` measures once.

    Photos, detections and faces have columns of their own length; a photo contains the numbers of its detections and
    faces, which stand in the order of the photos. :meth:`update` only copies, and :meth:`table` maps to pixels of the
    photo in float64 on the CPU.

    Args:
        tags: names of the T tags of the dataset, Annotations.tags.
    """

    full_state_update = False
    # Columns of the P photos
    photo_id: list[Tensor]  # (P,) int64
    size: list[Tensor]  # (P, 2) int64, 0 for a photo that could not be read
    cut: list[Tensor]  # (P,) bool
    detections: list[Tensor]  # (P,) int64 number of its detections
    faces: list[Tensor]  # (P,) int64 number of its faces
    to_photo: list[Tensor]  # (P, 3, 3) float32
    # Columns of the D detections
    boxes: list[Tensor]  # (D, 4) float32, pixels of the image
    scores: list[Tensor]  # (D,) float32
    points: list[Tensor]  # (D, 5, 2) float32
    # Columns of the F faces
    face_id: list[Tensor]  # (F,) int64
    true_boxes: list[Tensor]  # (F, 4) float32
    true_points: list[Tensor]  # (F, 5, 2) float32, NaN where not annotated
    pose: list[Tensor]  # (F, 3) float32
    tags: list[Tensor]  # (F, T) bool
    ignore: list[Tensor]  # (F,) bool

    def __init__(self, tags: tuple[str, ...]) -> None:
        super().__init__()
        self.tag_names = tags
        self.columns: dict[str, tuple[Rows, tuple[int, ...], torch.dtype]] = {
            "photo_id": ("photos", (), torch.int64),
            "size": ("photos", (2,), torch.int64),
            "cut": ("photos", (), torch.bool),
            "detections": ("photos", (), torch.int64),
            "faces": ("photos", (), torch.int64),
            "to_photo": ("photos", (3, 3), torch.float32),
            "boxes": ("detections", (4,), torch.float32),
            "scores": ("detections", (), torch.float32),
            "points": ("detections", (POINTS, 2), torch.float32),
            "face_id": ("faces", (), torch.int64),
            "true_boxes": ("faces", (4,), torch.float32),
            "true_points": ("faces", (POINTS, 2), torch.float32),
            "pose": ("faces", (3,), torch.float32),
            "tags": ("faces", (len(tags),), torch.bool),
            "ignore": ("faces", (), torch.bool),
        }
        for name in self.columns:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Remove all photos.

        Each column starts with an empty tensor of its shape and type, so that a process without a photo, a detection or
        a face can gather with the others.
        """
        super().reset()
        for name, (_, shape, dtype) in self.columns.items():
            getattr(self, name).append(torch.empty(0, *shape, dtype=dtype, device=self.device))

    def update(self, detections: Detections, batch: DetectionBatch) -> None:
        """Add the photos of one batch.

        Args:
            detections: detections in pixels of ``batch.image``, of any float type.
            batch: the truth; its images are neither flipped nor rotated.

        Raises:
            ValueError: a column has a wrong shape.
        """
        photos = len(batch.photo_id)
        found, true = (torch.argsort(photo, stable=True) for photo in (detections.photo, batch.photo))
        rows = {
            **{name: getattr(batch, name) for name in ("photo_id", "size", "to_photo")},
            "cut": detections.cut,
            "detections": torch.bincount(detections.photo, minlength=photos),
            "faces": torch.bincount(batch.photo, minlength=photos),
            **{name: getattr(detections, name)[found] for name in ("boxes", "scores", "points")},
            **{name: getattr(batch, name)[true] for name in ("face_id", "pose", "tags", "ignore")},
            "true_boxes": batch.boxes[true],
            "true_points": torch.where(batch.valid[..., None], batch.points, torch.nan)[true],
        }
        lengths = {"photos": photos, "detections": len(detections.photo), "faces": len(batch.photo)}
        for name, (kind, shape, _) in self.columns.items():
            if rows[name].shape != (lengths[kind], *shape):
                raise ValueError(f"{name} has the shape {tuple(rows[name].shape)}, expected {(lengths[kind], *shape)}")
        for name, (_, _, dtype) in self.columns.items():
            getattr(self, name).append(rows[name].detach().to(self.device, dtype, copy=True))

    def compute(self) -> dict[str, Array]:
        """Gather the columns of the photos of all processes.

        A distributed sampler repeats photos so that every process has the same number; only the first of each
        ``photo_id`` is kept, with its detections and faces. The result has the columns ``photo`` and ``true_photo``,
        the ``photo_id`` of each detection and face, in place of their numbers.
        """
        columns = {name: dim_zero_cat(getattr(self, name)).cpu().numpy() for name in self.columns}
        first = np.zeros(len(columns["photo_id"]), np.bool_)
        first[np.unique(columns["photo_id"], return_index=True)[1]] = True
        photo, true_photo = (np.repeat(columns["photo_id"], columns[kind]) for kind in ("detections", "faces"))
        kept = {
            "photos": first,
            "detections": np.repeat(first, columns.pop("detections")),
            "faces": np.repeat(first, columns.pop("faces")),
        }
        columns = {name: column[kept[self.columns[name][0]]] for name, column in columns.items()}
        return columns | {"photo": photo[kept["detections"]], "true_photo": true_photo[kept["faces"]]}

    def table(self) -> DetectionTable:
        """Compute the table of the photos of all processes, in pixels of the photos.

        Raises:
            ValueError: see :func:`detection_table`.
        """
        columns = self.compute()
        skipped, to_photo = (columns.pop("size") == 0).any(axis=1), columns.pop("to_photo")
        order = np.argsort(columns["photo_id"])
        for photo, names in (("photo", ("boxes", "points")), ("true_photo", ("true_boxes", "true_points"))):
            at = order[np.searchsorted(columns["photo_id"], columns[photo], sorter=order)]
            columns |= {name: _moved(to_photo[at], columns[name]) for name in names}
        return detection_table(self.tag_names, skipped=skipped, **columns)


def _moved(matrices: Array, rows: Array) -> Array:
    """Map the points of each row, or the two corners of a box, by the matrix of the row."""
    points = rows.astype(np.float64).reshape(len(rows), int(np.prod(rows.shape[1:])) // 2, 2)
    with np.errstate(invalid="ignore"):  # an infinite prediction becomes NaN
        return geometry.transform_points(matrices.astype(np.float64), points).reshape(rows.shape)
