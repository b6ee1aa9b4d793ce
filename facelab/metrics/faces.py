"""How far every landmark of every face was off: one table, from which every number is computed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from facelab.landmarks import geometry
from facelab.landmarks.batch import LandmarkBatch
from facelab.landmarks.geometry import Array
from facelab.landmarks.layouts import Layout


class FaceTable(NamedTuple):
    """One row per face, in the order of ``face_id``. Lengths are in pixels of the photo, numbers are float64."""

    face_id: NDArray[np.int64]  # (F,) row of the split
    error: Array  # (F, N) distance of prediction and truth; NaN where not annotated, inf where not predicted
    valid: NDArray[np.bool_]  # (F, N) annotated. All False: the face could not be read
    ioc: Array  # (F,) between the outer eye corners; NaN if one is not annotated
    ipd: Array  # (F,) between the centroids of the pupils' points; NaN if one is not annotated or the markup has none
    box: Array  # (F,) sqrt(w h) of the tight box of the annotated points; NaN if there is none
    diag: Array  # (F,) diagonal of that box
    pose: Array  # (F, 3) yaw, pitch, roll in degrees; NaN where unknown
    tags: NDArray[np.bool_]  # (F, T) in the order of Annotations.tags
    pose_error: Array  # (F, 3) degrees, of yaw, pitch, roll; NaN where not predicted or known, or no point is


def face_table(
    layout: Layout,
    *,
    face_id: Array,
    predicted: Array,
    points: Array,
    valid: Array,
    to_photo: Array,
    pose: Array,
    tags: Array,
    predicted_pose: Array | None = None,
) -> FaceTable:
    """Measure predictions against the truth in pixels of the photo.

    The normalisers are those in use since 300-W (Sagonas et al., Image and Vision Computing 2016), all taken from the
    annotated true points; w and h are max - min, without a pixel added.

    Args:
        layout: the markup of the points.
        face_id: ``(F,)``, ascending and unique.
        predicted: ``(F, N, 2)`` in pixels of the crop. A point that is annotated and predicted as NaN or infinite has
            an infinite error: it fails at every threshold and makes the mean error infinite, so it cannot be missed.
        points: ``(F, N, 2)`` true points in pixels of the crop; ignored where ``valid`` is False.
        valid: ``(F, N)`` bool.
        to_photo: ``(F, 3, 3)`` from the crop's pixels to the photo's.
        pose: ``(F, 3)`` degrees.
        tags: ``(F, T)`` bool.
        predicted_pose: ``(F, 3)`` degrees, NaN where none is predicted; None for nobody.

    Raises:
        ValueError: a point is marked as annotated and has no coordinates.
    """
    points = np.where(valid[..., None], points, np.nan).astype(np.float64)
    if broken := face_id[(valid & ~np.isfinite(points).all(-1)).any(-1)].tolist():
        raise ValueError(
            f"faces {broken[:5]} of the split ({len(broken)} in all) have points that are marked valid but are NaN or "
            "infinite; the dataset's reader must mark them as not annotated"
        )
    to_photo = to_photo.astype(np.float64)
    with np.errstate(invalid="ignore"):  # an infinite prediction becomes NaN here and infinite again below
        truth = geometry.apply(to_photo, points)
        error = np.linalg.norm(geometry.apply(to_photo, predicted.astype(np.float64)) - truth, axis=-1)
    x0, y0, x1, y1 = geometry.tight_box(truth).astype(np.float64).T
    return FaceTable(
        face_id=face_id,
        error=np.where(valid, np.where(np.isfinite(error), error, np.inf), np.nan),
        valid=valid,
        ioc=_distance(truth, layout.eye_corners[:1], layout.eye_corners[1:]),
        ipd=_distance(truth, *layout.pupils),
        box=np.sqrt((x1 - x0) * (y1 - y0)),
        diag=np.hypot(x1 - x0, y1 - y0),
        pose=pose.astype(np.float64),
        tags=tags,
        pose_error=_pose_error(pose, predicted_pose, valid),
    )


def _pose_error(pose: Array, predicted: Array | None, valid: Array) -> Array:
    """Of faces that are measured: one without a point may be a photo that could not be read."""
    if predicted is None:
        return np.full(pose.shape, np.nan)
    return np.where(valid.any(axis=1, keepdims=True), _angle_between(pose, predicted), np.nan)


def _angle_between(a: Array, b: Array) -> Array:
    """Absolute differences of angles in degrees, the short way round: within 180."""
    return np.abs((a.astype(np.float64) - b + 180) % 360 - 180)


def _distance(points: Array, left: Sequence[int], right: Sequence[int]) -> Array:
    """Distance between two centroids of points, ``(F,)``; NaN where a point is missing or there are none."""
    if not left or not right:
        return np.full(len(points), np.nan)
    return np.linalg.norm(points[:, list(left)].mean(axis=1) - points[:, list(right)].mean(axis=1), axis=-1)


class FaceErrors(Metric):
    """Collects predictions over a split and measures them once, in :meth:`compute`.

    The states hold points, not errors: `update` then only copies, and coordinates meet matrices in float64 on the
    CPU. In float32 on a GPU the product would be rounded to TF32 or bfloat16 wherever the user allows these for the
    network, which costs pixels in a large photo.

    Args:
        layout: the markup of the points.
        num_tags: T, the number of tags of the dataset.
    """

    full_state_update = False
    face_id: list[Tensor]  # (B,) int64
    predicted: list[Tensor]  # (B, N, 2) float32, pixels of the crop, as are the points
    points: list[Tensor]  # (B, N, 2) float32
    valid: list[Tensor]  # (B, N) bool
    to_photo: list[Tensor]  # (B, 3, 3) float32
    pose: list[Tensor]  # (B, 3) float32
    predicted_pose: list[Tensor]  # (B, 3) float32
    tags: list[Tensor]  # (B, T) bool

    def __init__(self, layout: Layout, num_tags: int) -> None:
        super().__init__()
        self.layout = layout
        self.columns: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "face_id": ((), torch.int64),
            "predicted": ((layout.num_points, 2), torch.float32),
            "points": ((layout.num_points, 2), torch.float32),
            "valid": ((layout.num_points,), torch.bool),
            "to_photo": ((3, 3), torch.float32),
            "pose": ((3,), torch.float32),
            "predicted_pose": ((3,), torch.float32),
            "tags": ((num_tags,), torch.bool),
        }
        for name in self.columns:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all faces.

        Every column starts with no rows rather than with nothing, so that a process without a face still agrees with
        the others on shape and type when they gather, and an empty split gives an empty table.
        """
        super().reset()
        for name, (shape, dtype) in self.columns.items():
            getattr(self, name).append(torch.empty(0, *shape, dtype=dtype, device=self.device))

    def update(self, predicted: Tensor, batch: LandmarkBatch, pose: Tensor | None = None) -> None:
        """Take the faces of one batch.

        Args:
            predicted: ``(B, N, 2)`` in pixels of ``batch.image``, of any float type.
            batch: the truth. Its crops are neither mirrored nor rotated, so the pose in the crop is that in the photo.
            pose: ``(B, 3)`` predicted yaw, pitch, roll in degrees; None where the method predicts none.

        Raises:
            ValueError: a shape is not that of the layout, the tags or the batch.
        """
        if pose is None:
            pose = torch.full_like(batch.pose, torch.nan)
        rows = {"predicted": predicted, "predicted_pose": pose}
        rows |= {name: getattr(batch, name) for name in self.columns if name not in rows}
        for name, (shape, _) in self.columns.items():
            if rows[name].shape != (len(batch.face_id), *shape):
                raise ValueError(
                    f"{name} has the shape {tuple(rows[name].shape)}, expected {(len(batch.face_id), *shape)} for the "
                    f"layout {self.layout.name} and a batch of {len(batch.face_id)}"
                )
        for name, (_, dtype) in self.columns.items():
            getattr(self, name).append(rows[name].detach().to(self.device, dtype, copy=True))

    def compute(self) -> FaceTable:
        """The table of all faces of all processes.

        A distributed sampler repeats faces to give every process as many: the first of each ``face_id`` stays. Whether
        and how a split was divided among batches and processes therefore changes nothing.

        Raises:
            ValueError: see :func:`face_table`.
        """
        columns = {name: dim_zero_cat(getattr(self, name)).cpu().numpy() for name in self.columns}
        first = np.unique(columns["face_id"], return_index=True)[1]
        return face_table(self.layout, **{name: column[first] for name, column in columns.items()})
