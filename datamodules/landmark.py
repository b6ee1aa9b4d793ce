"""Datamodule of the landmark methods: one face per sample, cut out of its photo by one interpolation."""

import hashlib
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, default_collate

from datamodules.augmentation import UNCHANGED, Augmentation
from datamodules.loading import build_loader
from datamodules.reading import MissingBoxError, Readings
from facelab.bounds import Count, Processes
from facelab.errors import ConfigError, DatasetError, printable
from facelab.faces.batch import LandmarkBatch
from facelab.faces.crop import BoxJitter, Crop
from facelab.faces.face import Annotations, Face, Split
from facelab.faces.geometry import Array, transform_points
from facelab.faces.image import CropError, Orientation, PhotoFile, is_rotated_by_tag
from facelab.faces.layouts import Layout
from facelab.faces.pose import estimate_pose, flipped, turned
from facelab.metrics.face_table import FaceTable, write_faces
from facelab.run_folder import RunFolder

log = logging.getLogger(__name__)

PoseSource = Literal["labelled", "estimated", "labelled and estimated", "none"]
"""Origin of the poses of a split."""


class MissingFaceError(DatasetError):
    """Error of a split without a face."""


class FaceDataset(Dataset[LandmarkBatch]):
    """Dataset of the faces of one split, cut out and, in training, augmented.

    Args:
        data: reader of the dataset.
        split: split of the faces.
        crop: part of the photo to cut out.
        augment: augmentation; None for evaluation.
        seed: seed of the augmentation.
        max_unreadable: largest share of faces that cannot be read or cut out. One face may always fail unless it is 0.
        box_jitter: change of the reference boxes; None for none.

    Raises:
        MissingFaceError: the split has no face.
        DatasetError: the reader raises it, or no face has the box that the crop needs.
    """

    def __init__(
        self,
        data: Annotations,
        split: Split,
        crop: Crop,
        augment: Augmentation | None,
        seed: int,
        max_unreadable: float,
        box_jitter: BoxJitter | None = None,
    ) -> None:
        self.layout: Layout = data.layout
        self.box_jitter = box_jitter
        self.crop, self.augment, self.seed = crop, augment, seed
        rows = [(photo, face) for photo in data.photos(split) for face in photo.faces]
        self.paths: list[Path] = [photo.path for photo, _ in rows]
        self.orientations: list[Orientation] = [photo.orientation for photo, _ in rows]
        self.faces: list[Face] = [face for _, face in rows]
        if not rows:
            raise MissingFaceError(
                f"{data.name}: the split {split!r} has no face; check data.root, or choose another split"
            )
        if crop.box == "given" and all(np.isnan(face.box).any() for face in self.faces):
            raise DatasetError(f"{data.name}: no face of the split {split!r} has a box; use crop.box=points")
        tags = [[tag in face.tags for tag in data.tags] for face in self.faces]
        self.tags = torch.tensor(tags, dtype=torch.bool)  # (F, T)
        self.pose, self.pose_source = self._poses()
        self.readings = Readings(f"{data.name} {split}", "face", self.paths, max_unreadable)

    def _poses(self) -> tuple[Array, PoseSource]:
        """Return the labelled poses ``(F, 3)`` in degrees, estimated from the points where there is no label."""
        pose = np.stack([face.pose for face in self.faces]).astype(np.float32)
        missing = np.isnan(pose).any(axis=1)
        if not missing.any():
            return pose, "labelled"
        pose[missing] = estimate_pose(np.stack([face.points for face in self.faces])[missing], self.layout)
        if np.isnan(pose).all():
            return pose, "none"
        return pose, "estimated" if missing.all() else "labelled and estimated"

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, key: tuple[int, int]) -> LandmarkBatch:
        """Load the sample of (epoch, row). A face that cannot be read becomes a black image without a valid point."""
        epoch, row = key
        read = partial(self._sample, row, epoch)
        return self.readings.attempt(row, read) or self._blank(row)

    def to_crop(self, row: int) -> Array:
        """Compute the matrix ``(3, 3)`` float64 from the photo of a face to its crop before augmentation.

        Raises:
            MissingBoxError: the face has no box that the crop needs.
            ImageError: the crop is built around the whole photo, and the header of the photo cannot be read.
        """
        return self._to_crop(row, *self._boxes(row))

    def _to_crop(self, row: int, box: Array, photo: Array | None) -> Array:
        """Compute the matrix of :meth:`to_crop` from the boxes of the face."""
        try:
            return self.crop.matrix(box, photo)
        except ValueError as error:
            raise MissingBoxError(f"{self.paths[row]}: {error} (crop.box={self.crop.box})") from error
        except CropError as error:
            raise CropError(f"{self.paths[row]}: {error}") from error

    def _boxes(self, row: int) -> tuple[Array, Array | None]:
        """Return the reference box of a face and, if the crop depends on it, the box of its photo."""
        photo = None
        if self.crop.box == "image" or self.crop.needs_photo:
            photo = PhotoFile(self.paths[row], self.orientations[row]).box()
        box = self.crop.reference_box(self.faces[row], np.zeros(4) if photo is None else photo)
        return (self.box_jitter.change(box, row) if self.box_jitter else box), photo

    def _sample(self, row: int, epoch: int) -> LandmarkBatch:
        """Read, cut out and augment a face."""
        rng = np.random.default_rng((self.seed, epoch, row))
        face, size = self.faces[row], self.crop.size
        boxes = self._boxes(row)
        to_crop, truth = self._to_crop(row, *boxes), face.points.astype(np.float64)
        warp = self.augment.draw(rng, size, transform_points(to_crop, truth)) if self.augment else UNCHANGED
        matrix = warp.matrix @ to_crop
        file = PhotoFile(self.paths[row], self.orientations[row])
        if self.augment:
            cut = file.cut_out(warp.matrix @ self.crop.image_matrix(*boxes), size)
            image = self.augment.pixels.change(rng, cut)
        else:
            image = self.crop.cut_out(file, *boxes)
        points, visible = transform_points(matrix, truth).astype(np.float32), face.visible
        pose = self.pose[row]
        if warp.flipped:
            points, visible = self.layout.flipped(points), visible[np.asarray(self.layout.flip)]
            pose = flipped(pose)
        if warp.degrees:
            pose = turned(pose, warp.degrees)
        return self._row(row, image, points, visible, pose, np.linalg.inv(matrix))

    def _blank(self, row: int) -> LandmarkBatch:
        """Return a black sample without a valid point."""
        n, size = self.layout.num_points, self.crop.size
        image = np.zeros((size, size, 3), np.uint8)
        points, visible = np.full((n, 2), np.nan, np.float32), np.zeros(n, bool)
        return self._row(row, image, points, visible, self.pose[row], np.eye(3))

    def _row(
        self, row: int, image: Array, points: Array, visible: Array, pose: Array, to_photo: Array
    ) -> LandmarkBatch:
        """Convert the arrays of a sample to tensors."""
        return LandmarkBatch(
            image=torch.from_numpy(image).permute(2, 0, 1),
            points=torch.from_numpy(points),
            valid=torch.from_numpy(np.isfinite(points).all(axis=1)),
            visible=torch.from_numpy(visible),
            tags=self.tags[row],
            pose=torch.from_numpy(pose.astype(np.float32)),
            to_photo=torch.from_numpy(to_photo.astype(np.float32)),
            face_id=torch.tensor(row),
        )


def is_turned(path: Path, orientation: Orientation) -> bool:
    """Return whether a photo is rotated by its orientation tag (EXIF) before it is measured."""
    return orientation == "shown" and is_rotated_by_tag(path)


def fingerprint(faces: FaceDataset, rows: Sequence[int]) -> str:
    """Hash the photo names and the true points of the measured faces; the hash is the same on every machine."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(faces.paths[row].name.encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(faces.faces[row].points, np.float32).tobytes())
    return digest.hexdigest()[:16]


def collate(samples: list[LandmarkBatch]) -> LandmarkBatch:
    """Stack samples. Images keep the memory format channels last, with which convolutions are faster on a CPU."""
    image, *rest = default_collate([(sample.image.permute(1, 2, 0), *sample[1:]) for sample in samples])
    return LandmarkBatch(image.permute(0, 3, 1, 2), *rest)


class LandmarkDataModule(LightningDataModule):
    """Train, validation and test faces of one dataset in the crops of one method.

    Args:
        data: reader of the dataset.
        crop: crop of the method.
        augment: augmentation of training crops; None for none.
        batch_size: batch size of one process.
        num_workers: number of processes that prepare batches. It does not change results.
        seed: seed of the order and the augmentation.
        test_split: split of the test faces: ``test``, or the one of ``evaluate.py split=...``.
        max_unreadable: largest share of faces of a split that cannot be read or cut out; a larger one stops the run.
            One face may always fail unless it is 0.

    Raises:
        ConfigError: ``seed`` is not in [0, 2**32), or ``max_unreadable`` not in [0, 1].
    """

    batch_type: ClassVar[type] = LandmarkBatch
    box_jitter: BoxJitter | None = None
    """Change of the boxes of the evaluated split; ``evaluate.py box_jitter=...`` sets it."""

    def __init__(
        self,
        data: Annotations,
        crop: Crop,
        augment: Augmentation | None,
        batch_size: Count,
        num_workers: Processes,
        seed: int,
        test_split: Split,
        max_unreadable: float,
    ) -> None:
        super().__init__()
        if not 0 <= max_unreadable <= 1:
            raise ConfigError("max_unreadable", f"={max_unreadable} must be in [0, 1]")
        if not 0 <= seed < 2**32:
            raise ConfigError("seed", f"={seed} must be a whole number from 0 to {2**32 - 1}")
        self.data, self.crop, self.augment = data, crop, augment
        self.batch_size, self.num_workers, self.seed, self.test_split = batch_size, num_workers, seed, test_split
        self.max_unreadable = max_unreadable
        self.faces: dict[str, FaceDataset] = {}

    def setup(self, stage: str) -> None:
        """Read the annotations that the stage needs. No more than the header of a photo is read.

        Raises:
            DatasetError: the reader raises it; a split has no face, none with the box that the crop needs, or no point.
        """
        needed: dict[str, tuple[Split, Augmentation | None]] = {}
        if stage == "fit":
            needed["train"] = ("train", self.augment)
        if stage in ("fit", "validate"):
            needed["val"] = ("val", None)
        if stage == "test":
            needed["test"] = (self.test_split, None)
        for role, (split, augment) in needed.items():
            if role not in self.faces:
                try:
                    jitter = self.box_jitter if role == "test" else None
                    self.faces[role] = FaceDataset(
                        self.data, split, self.crop, augment, self.seed, self.max_unreadable, jitter
                    )
                except MissingFaceError:
                    if role != "val":
                        raise
                    log.warning("%s: the split val has no face; the run trains without validation", self.data.name)
                    continue
                if not any(np.isfinite(face.points).all(axis=1).any() for face in self.faces[role].faces):
                    raise DatasetError(
                        f"{self.data.name}: no face of the split {split!r} has an annotated point; a method that finds "
                        "landmarks needs points, a detector only boxes"
                    )
                log.info("%s %s: %d faces", self.data.name, split, len(self.faces[role]))

    def train_dataloader(self) -> DataLoader[LandmarkBatch]:
        """Return the shuffled loader."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[LandmarkBatch] | list[Any]:
        """Return the loader of every face once, without augmentation; empty if the validation split has no face."""
        return self._loader("val", shuffle=False) if "val" in self.faces else []

    def test_dataloader(self) -> DataLoader[LandmarkBatch]:
        """Return the loader of every face once, without augmentation."""
        return self._loader("test", shuffle=False)

    def protocol(self, table: FaceTable) -> dict[str, Any]:
        """Return the settings of a test that must be equal for two results to be comparable."""
        faces, rows = self.faces["test"], table.face_id.tolist()
        return {
            "dataset": self.data.name,
            "split": self.test_split,
            "layout": self.data.layout.name,
            "faces": len(rows),
            "truth": fingerprint(faces, rows),
            "box": self.crop.box,
            **({"box_jitter": str(faces.box_jitter)} if faces.box_jitter else {}),
            "pose": faces.pose_source,
            **({"orientation": "shown"} if any(map(is_turned, faces.paths, faces.orientations)) else {}),
        }

    def write_table(self, table: FaceTable, folder: RunFolder) -> None:
        """Write the table of a test to the folder of its run."""
        write_faces(table, folder.faces, [printable(path.name) for path in self.faces["test"].paths])

    def has_validation(self) -> bool:
        """Return whether the training has validation faces; known after :meth:`setup`."""
        return "val" in self.faces

    def names(self, batch: LandmarkBatch) -> list[str]:
        """Return the names of the photos of a training batch."""
        return [self.faces["train"].paths[row].name for row in batch.face_id.tolist()]

    def unreadable(self) -> dict[str, int]:
        """Return the number of faces of each split whose photo this process could not read."""
        return {role: faces.readings.unreadable for role, faces in self.faces.items()}

    def _loader(self, role: str, *, shuffle: bool) -> DataLoader[LandmarkBatch]:
        """Build the loader of the faces of this process."""
        options = {"batch_size": self.batch_size, "num_workers": self.num_workers, "seed": self.seed}
        return build_loader(self.faces[role], collate, self.trainer, **options, shuffle=shuffle)
