"""Datamodule of the detectors: one whole photo per sample, with all its faces."""

import difflib
import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules.loading import build_loader
from datamodules.reading import Readings
from facelab.bounds import Count, Processes, Seed, Share
from facelab.errors import ConfigError, DatasetError, printable
from facelab.faces.batch import DetectionBatch
from facelab.faces.face import Annotations, Photo, Split
from facelab.faces.geometry import Array
from facelab.faces.image import read_image
from facelab.faces.layouts import FIVE5
from facelab.metrics.detection_curves import curves, write_curves
from facelab.metrics.detection_files import write_detection_table, write_detections, write_photos
from facelab.metrics.detection_table import DetectionTable
from facelab.run_folder import RunFolder

log = logging.getLogger(__name__)


class MissingPhotoError(DatasetError):
    """Error of a split without a photo."""


class PhotoDataset(Dataset[DetectionBatch]):
    """Whole photos of one split with their faces, without augmentation.

    Args:
        data: reader of the dataset.
        split: split of the photos.
        ignore: tags of the faces that are neither faces to find nor background.
        max_unreadable: largest share of photos that cannot be read. One may always fail unless it is 0.

    Raises:
        MissingPhotoError: the split has no photo.
        DatasetError: the reader raises it.
    """

    def __init__(self, data: Annotations, split: Split, ignore: Sequence[str], max_unreadable: float) -> None:
        self.photos: list[Photo] = data.photos(split)
        if not self.photos:
            raise MissingPhotoError(
                f"{data.name}: the split {split!r} has no photo; check data.root, or choose another split"
            )
        self.tag_names, self.ignore = data.tags, tuple(ignore)
        self.first_face = np.cumsum([0, *(len(photo.faces) for photo in self.photos)])
        paths = [photo.path for photo in self.photos]
        self.readings = Readings(f"{data.name} {split}", "photo", paths, max_unreadable)

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: tuple[int, int]) -> DetectionBatch:
        """Load the photo of (epoch, row) as a batch of one. One that cannot be read has no pixel."""
        _, row = key
        photo = self.photos[row]
        image = self.readings.attempt(row, lambda: read_image(photo.path, orientation=photo.orientation))
        return with_image(self.faces(row), np.zeros((0, 0, 3), np.uint8) if image is None else image)

    def faces(self, row: int) -> DetectionBatch:
        """Return the faces of a photo in pixels of the photo, as a batch of one without a pixel."""
        columns = true_columns([self.photos[row]], self.tag_names, self.ignore)
        truth = {name: torch.from_numpy(column) for name, column in columns.items()}
        return DetectionBatch(
            image=torch.zeros(1, 3, 0, 0, dtype=torch.uint8),
            size=torch.zeros(1, 2, dtype=torch.int64),
            to_photo=torch.eye(3)[None],
            photo_id=torch.tensor([row]),
            boxes=truth["true_boxes"],
            points=truth["true_points"],
            valid=truth["true_points"].isfinite().all(dim=-1),
            pose=truth["pose"],
            tags=truth["tags"],
            ignore=truth["ignore"],
            face_id=truth["face_id"] + int(self.first_face[row]),
            photo=truth["true_photo"],
        )


def with_image(photo: DetectionBatch, image: Array) -> DetectionBatch:
    """Add an image ``(H, W, 3)`` uint8 RGB to the faces of a batch of one."""
    height, width = image.shape[:2]
    return photo._replace(image=torch.from_numpy(image).permute(2, 0, 1)[None], size=torch.tensor([[height, width]]))


def _stack(arrays: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """Stack arrays of a shape, of which there may be none, to ``(F, *shape)`` float32."""
    return np.stack(arrays).astype(np.float32) if arrays else np.empty((0, *shape), np.float32)


def true_columns(photos: Sequence[Photo], tag_names: tuple[str, ...], ignore: Sequence[str]) -> dict[str, Array]:
    """Return the columns of the faces of :func:`detection_table`, with the rows of the photos as their ``photo_id``.

    Args:
        photos: photos of a split.
        tag_names: names of the T tags of the dataset.
        ignore: tags of the ignored faces.
    """
    faces = [face for photo in photos for face in photo.faces]
    tags = [[tag in face.tags for tag in tag_names] for face in faces]
    return {
        "face_id": np.arange(len(faces)),
        "true_boxes": _stack([face.box for face in faces], (4,)),
        "true_points": _stack([face.points for face in faces], (FIVE5.num_points, 2)),
        "pose": _stack([face.pose for face in faces], (3,)),
        "tags": np.array(tags, np.bool_).reshape(len(faces), len(tag_names)),
        "ignore": np.array([not face.tags.isdisjoint(ignore) for face in faces], np.bool_),
        "true_photo": np.repeat(np.arange(len(photos)), [len(photo.faces) for photo in photos]),
    }


def fingerprint(photos: Sequence[Photo]) -> str:
    """Hash the names, the true boxes and the true points of photos; the hash is the same on every machine."""
    digest = hashlib.sha256()
    for photo in photos:
        digest.update(photo.path.name.encode("utf-8", "surrogateescape"))
        for face in photo.faces:
            digest.update(np.concatenate([face.box, face.points.ravel()]).astype(np.float32).tobytes())
    return digest.hexdigest()[:16]


def ignored_tags(data: Annotations, ignore: Sequence[str]) -> tuple[str, ...]:
    """Return the tags of a dataset of boxes whose faces are neither faces to find nor background.

    Args:
        data: reader of the dataset.
        ignore: such tags of several datasets.

    Raises:
        ConfigError: the dataset has not the five points of a detector, or a tag is spelled almost as one of the
            dataset.
    """
    if data.layout.name != FIVE5.name:
        raise ConfigError(
            "data",
            f"={data.name} has the {data.layout.num_points} landmarks of {data.layout.name}; a detector needs a "
            f"dataset of boxes with the points of {FIVE5.name}",
            mounted=True,
        )
    for tag in {*ignore} - {*data.tags}:
        if nearest := difflib.get_close_matches(tag, data.tags, n=1):
            raise ConfigError("ignore", f"=[{tag}]: no face of {data.name} has this tag; did you mean {nearest[0]}?")
    return tuple(tag for tag in data.tags if tag in ignore)


def protocol_of(
    data: Annotations, split: Split, ignore: Sequence[str], photos: Sequence[Photo], table: DetectionTable
) -> dict[str, Any]:
    """Return the settings of the data that must be equal for two tests to be comparable.

    Args:
        data: reader of the dataset.
        split: tested split.
        ignore: tags of the ignored faces.
        photos: photos of the split.
        table: photos that were tested, by their rows in ``photos``.
    """
    return {
        "dataset": data.name,
        "split": split,
        "photos": len(table.photo_id),
        "faces": len(table.face_id),
        "truth": fingerprint([photos[row] for row in table.photo_id.tolist()]),
        "ignore": list(ignore),
    }


def photo_names(photos: Sequence[Photo]) -> list[str]:
    """Return names of photos for tables: that of the file, with its folder where another photo has the same."""
    times = Counter(photo.path.name for photo in photos)
    return [printable("/".join(path.parts[-1 - (times[path.name] > 1) :])) for path in (photo.path for photo in photos)]


def write_tables(table: DetectionTable, photos: Sequence[Photo], folder: RunFolder) -> None:
    """Write the table of a test of a split's photos to the folder of its run."""
    names = photo_names(photos)
    write_detection_table(table, folder.detections, names)
    write_detections(table, folder.detections_csv, names)
    write_photos(table, folder.photos, names)
    write_curves(curves(table), folder.detection_curves)


def collate(samples: Sequence[DetectionBatch]) -> DetectionBatch:
    """Join photos to a batch. Smaller photos are padded at the right and below with zeros, which no network sees.

    Images keep the memory format channels last, with which convolutions are faster on a CPU.
    """
    height, width = (max(1, *(sample.image.shape[side] for sample in samples)) for side in (-2, -1))
    image = torch.zeros(len(samples), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    for row, sample in zip(image, samples, strict=True):
        row[:, : sample.image.shape[-2], : sample.image.shape[-1]] = sample.image[0]
    joined = DetectionBatch(
        *(torch.cat(parts) for parts in zip(*(s._replace(image=s.size) for s in samples), strict=True))
    )
    photo = torch.cat([sample.photo + row for row, sample in enumerate(samples)])
    return joined._replace(image=image, photo=photo)


class DetectionDataModule(LightningDataModule):
    """Validation and test photos of one dataset.

    Args:
        data: reader of the dataset.
        batch_size: photos of a batch of one process.
        num_workers: number of processes that prepare batches. It does not change results.
        seed: seed of the training, if the method has one.
        test_split: split of the test photos: ``test``, or the one of ``evaluate.py split=...``.
        max_unreadable: largest share of photos of a split that cannot be read; a larger one stops the run. One photo
            may always fail unless it is 0.
        ignore: tags of the faces that are neither faces to find nor background. A dataset may lack some of them.

    Raises:
        ConfigError: see :func:`ignored_tags`.
    """

    batch_type: ClassVar[type] = DetectionBatch

    def __init__(
        self,
        data: Annotations,
        batch_size: Count,
        num_workers: Processes,
        seed: Seed,
        test_split: Split,
        max_unreadable: Share,
        ignore: Sequence[str],
    ) -> None:
        super().__init__()
        self.data, self.batch_size, self.num_workers, self.seed = data, batch_size, num_workers, seed
        self.test_split, self.max_unreadable = test_split, max_unreadable
        self.ignore = ignored_tags(data, ignore)
        self.photos: dict[str, PhotoDataset] = {}

    def setup(self, stage: str) -> None:
        """Read the annotations that the stage needs; no photo is opened.

        Raises:
            DatasetError: the reader raises it, or the split has no photo.
        """
        role, split = ("test", self.test_split) if stage == "test" else ("val", "val")
        if role in self.photos:
            return
        try:
            photos = self.photos[role] = PhotoDataset(self.data, split, self.ignore, self.max_unreadable)
        except MissingPhotoError:
            if stage != "fit":
                raise
            log.warning("%s: the split val has no photo; the run trains without validation", self.data.name)
            return
        log.info("%s %s: %d photos, %d faces", self.data.name, split, len(photos), photos.first_face[-1])

    def val_dataloader(self) -> DataLoader[DetectionBatch] | list[Any]:
        """Return the loader of every validation photo once; empty if the validation split has no photo."""
        return self._loader("val") if "val" in self.photos else []

    def test_dataloader(self) -> DataLoader[DetectionBatch]:
        """Return the loader of every test photo once."""
        return self._loader("test")

    def protocol(self, table: DetectionTable) -> dict[str, Any]:
        """Return the settings of a test that must be equal for two results to be comparable."""
        return protocol_of(self.data, self.test_split, self.ignore, self.photos["test"].photos, table)

    def write_table(self, table: DetectionTable, folder: RunFolder) -> None:
        """Write the table of a test to the folder of its run."""
        write_tables(table, self.photos["test"].photos, folder)

    def unreadable(self) -> dict[str, int]:
        """Return the number of photos of each split that this process could not read."""
        return {role: photos.readings.unreadable for role, photos in self.photos.items()}

    def has_validation(self) -> bool:
        """Return whether the training has validation photos; known after :meth:`setup`."""
        return "val" in self.photos

    def names(self, batch: DetectionBatch) -> list[str]:
        """Return the names of the photos of a training batch."""
        return [self.photos["train"].photos[row].path.name for row in batch.photo_id.tolist()]

    def _loader(self, role: str) -> DataLoader[DetectionBatch]:
        """Build the loader of the photos of this process."""
        options = {"batch_size": self.batch_size, "num_workers": self.num_workers, "seed": self.seed}
        return build_loader(self.photos[role], collate, self.trainer, **options, shuffle=False)
