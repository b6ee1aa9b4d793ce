"""Batch that a datamodule passes to a landmark module. The same type without the first axis is one sample."""

from typing import NamedTuple

from torch import Tensor


class LandmarkBatch(NamedTuple):
    """Crops of B faces with their annotations. Points are in pixels of ``image``."""

    image: Tensor  # (B, 3, H, W) uint8, RGB
    points: Tensor  # (B, N, 2) float32, NaN where not annotated
    valid: Tensor  # (B, N) bool: annotated. All False for a face that could not be read
    visible: Tensor  # (B, N) bool: annotated and not hidden
    tags: Tensor  # (B, T) bool, in the order of Annotations.tags
    pose: Tensor  # (B, 3) float32 yaw, pitch, roll in degrees, relative to the axes of ``image``
    to_photo: Tensor  # (B, 3, 3) float32: maps pixels of ``image`` to pixels of the photo
    face_id: Tensor  # (B,) int64: row of the face in its split
