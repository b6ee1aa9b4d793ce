"""What travels from a datamodule to a module. The same type without the first axis is one sample."""

from typing import NamedTuple

from torch import Tensor


class LandmarkBatch(NamedTuple):
    """Faces as a network sees them, one per row. Points are in pixels of ``image`` where nothing else is said."""

    image: Tensor  # (B, 3, H, W) uint8, RGB
    points: Tensor  # (B, N, 2) float32, NaN where not annotated
    valid: Tensor  # (B, N) bool: annotated. All False marks a face that could not be read
    visible: Tensor  # (B, N) bool
    tags: Tensor  # (B, T) bool, in the order of Annotations.tags
    pose: Tensor  # (B, 3) float32 yaw pitch roll in degrees of the face as it stands in ``image``
    to_photo: Tensor  # (B, 3, 3) float32: pixels of ``image`` to pixels of the photo
    face_id: Tensor  # (B,) int64, row of the split
