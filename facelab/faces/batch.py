"""Batches that a datamodule passes to a module, and what a detector returns."""

from typing import NamedTuple

from torch import Tensor


class LandmarkBatch(NamedTuple):
    """Crops of B faces with their annotations. Points are in pixels of ``image``.

    The same type without the first axis is one sample.
    """

    image: Tensor  # (B, 3, H, W) uint8, RGB
    points: Tensor  # (B, N, 2) float32, NaN where not annotated
    valid: Tensor  # (B, N) bool: annotated. All False for a face that could not be read
    visible: Tensor  # (B, N) bool: annotated and not hidden
    tags: Tensor  # (B, T) bool, in the order of Annotations.tags
    pose: Tensor  # (B, 3) float32 yaw, pitch, roll in degrees, relative to the axes of ``image``
    to_photo: Tensor  # (B, 3, 3) float32: maps pixels of ``image`` to pixels of the photo
    face_id: Tensor  # (B,) int64: row of the face in its split


class DetectionBatch(NamedTuple):
    """B photos with their F annotated faces, in any number per photo. Boxes and points are in pixels of ``image``."""

    image: Tensor  # (B, 3, H, W) uint8, RGB; photos that are smaller are padded on the right and below
    size: Tensor  # (B, 2) int64 height and width of the photo in ``image``; 0 for a photo that could not be read
    to_photo: Tensor  # (B, 3, 3) float32: maps pixels of ``image`` to pixels of the photo; it may scale, not rotate
    photo_id: Tensor  # (B,) int64: row of the photo in its split
    boxes: Tensor  # (F, 4) float32
    points: Tensor  # (F, 5, 2) float32, NaN where not annotated
    valid: Tensor  # (F, 5) bool: annotated
    pose: Tensor  # (F, 3) float32 labelled yaw, pitch, roll in degrees; NaN where not labelled
    tags: Tensor  # (F, T) bool, in the order of Annotations.tags
    ignore: Tensor  # (F,) bool: neither a face to find nor background
    face_id: Tensor  # (F,) int64: row of the face in its split
    photo: Tensor  # (F,) int64: row of its photo in this batch


class Detections(NamedTuple):
    """D detections in B photos, sorted by photo and falling score. Boxes and points are in pixels of ``image``."""

    boxes: Tensor  # (D, 4) float32
    scores: Tensor  # (D,) float32, 0 to 1
    points: Tensor  # (D, 5, 2) float32; NaN from a detector without points
    photo: Tensor  # (D,) int64: row of its photo in the batch
    cut: Tensor  # (B,) bool: a limit of the number of detections removed some of this photo
