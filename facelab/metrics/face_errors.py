"""Metric that collects the errors of every face over batches and processes."""

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from facelab.faces.batch import LandmarkBatch
from facelab.faces.geometry import Array
from facelab.faces.layouts import Layout
from facelab.metrics.face_table import FaceTable, face_table


class FaceErrors(Metric):
    """Collector of the predictions of a split, which :meth:`table` measures once.

    The states contain points instead of errors: :meth:`update` only copies, and :meth:`table` multiplies coordinates by
    matrices in float64 on the CPU. A GPU would round the float32 product to TF32 or bfloat16 where the user allows
    these for the network, an error of pixels in a large photo.

    Args:
        layout: the layout of the points.
        tags: names of the T tags of the dataset, Annotations.tags.
    """

    full_state_update = False
    face_id: list[Tensor]  # (B,) int64
    predicted: list[Tensor]  # (B, N, 2) float32, pixels of the crop, as ``points``
    points: list[Tensor]  # (B, N, 2) float32
    valid: list[Tensor]  # (B, N) bool
    to_photo: list[Tensor]  # (B, 3, 3) float32
    pose: list[Tensor]  # (B, 3) float32
    predicted_pose: list[Tensor]  # (B, 3) float32
    tags: list[Tensor]  # (B, T) bool

    def __init__(self, layout: Layout, tags: tuple[str, ...]) -> None:
        super().__init__()
        self.layout, self.tag_names = layout, tags
        self.columns: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "face_id": ((), torch.int64),
            "predicted": ((layout.num_points, 2), torch.float32),
            "points": ((layout.num_points, 2), torch.float32),
            "valid": ((layout.num_points,), torch.bool),
            "to_photo": ((3, 3), torch.float32),
            "pose": ((3,), torch.float32),
            "predicted_pose": ((3,), torch.float32),
            "tags": ((len(tags),), torch.bool),
        }
        for name in self.columns:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Remove all faces.

        Each column starts with an empty tensor of its shape and type, not with an empty list. A process without a face
        can then gather with the others, and an empty split has an empty table.
        """
        super().reset()
        for name, (shape, dtype) in self.columns.items():
            getattr(self, name).append(torch.empty(0, *shape, dtype=dtype, device=self.device))

    def update(self, predicted: Tensor, batch: LandmarkBatch, pose: Tensor | None = None) -> None:
        """Add the faces of one batch.

        Args:
            predicted: ``(B, N, 2)`` in pixels of ``batch.image``, of any float type.
            batch: the truth. Its crops are neither flipped nor rotated, so the pose is the same in crop and photo.
            pose: ``(B, 3)`` predicted yaw, pitch, roll in degrees; None if the method predicts none.

        Raises:
            ValueError: a shape does not match the layout, the number of tags or the batch.
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

    def compute(self) -> dict[str, Array]:
        """Gather the columns of the faces of all processes, sorted by ``face_id``.

        A distributed sampler repeats faces so that every process has the same number; only the first row of each
        ``face_id`` is kept. The result therefore does not depend on how batches and processes divide the split.
        """
        columns = {name: dim_zero_cat(getattr(self, name)).cpu().numpy() for name in self.columns}
        first = np.unique(columns["face_id"], return_index=True)[1]
        return {name: column[first] for name, column in columns.items()}

    def table(self) -> FaceTable:
        """Compute the table of the faces of all processes.

        :meth:`compute` cannot return it: torchmetrics copies the result of that method, and cannot copy a layout.

        Raises:
            ValueError: see :func:`face_table`.
        """
        return face_table(self.layout, tag_names=self.tag_names, **self.compute())
