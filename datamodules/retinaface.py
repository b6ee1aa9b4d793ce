"""Training data of RetinaFace: a random square of a photo, enlarged or reduced to one size."""

import logging
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import albumentations
import numpy as np
import torch
from annotated_types import MinLen
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.augmentation import PixelChanges
from datamodules.detection import DetectionDataModule, PhotoDataset, collate, with_image
from datamodules.loading import build_loader
from facelab.bounds import Amount, Count, Pixels, Positive, Processes, Seed, Share
from facelab.errors import DatasetError
from facelab.faces import boxes
from facelab.faces.batch import DetectionBatch
from facelab.faces.face import Annotations, Split
from facelab.faces.geometry import Array, box_to_image, flip_image, image_box, transform_points
from facelab.faces.image import Colour, Interpolation, PhotoFile
from facelab.faces.layouts import FIVE5
from facelab.faces.pose import flipped

log = logging.getLogger(__name__)


PER_FACE = ("boxes", "points", "valid", "pose", "tags", "ignore", "face_id", "photo")
"""Fields of a batch with a row for each face; the others have a row for each photo."""


class Square(NamedTuple):
    """Square of a photo that becomes a training image."""

    matrix: Array  # (3, 3) float64, pixels of the photo to pixels of the image
    flipped: bool


class RandomSquare:
    """Random square of a photo with at least one whole face, flipped at random, with changed pixels.

    As in the reference code (biubug6/Pytorch_Retinaface): the side is the shorter side of the photo times a random
    factor, the position is random, and the first of many tries that contains a whole face is taken. If none does, the
    whole photo is, padded at the right or below to a square. A face remains if its centre is in the square; its box is
    cut at the edge.

    Departures: the square is cut out, resized and flipped in one interpolation, and the pixels are changed afterwards.
    A landmark outside of the square is not annotated any more, where that code moves it to the edge. A factor above 1
    adds a border, as in the code of SCRFD (Guo et al., arXiv 2105.04714).

    Args:
        size: side of the training image in pixels.
        factors: factors on the shorter side of the photo; one is drawn for each try.
        tries: largest number of squares drawn for a photo.
        flip_probability: probability of a horizontal flip.
        smallest: side in pixels of the training image below which a face is ignored: it is neither a face to learn nor
            background.
        interpolations: one is drawn for each photo.
        border: red, green and blue outside of the photo.
        pixels: transforms of albumentations, see :class:`datamodules.augmentation.PixelChanges`.
    """

    def __init__(
        self,
        size: Pixels,
        factors: Annotated[Sequence[Positive], MinLen(1)],
        tries: Count,
        flip_probability: Share,
        smallest: Amount,
        interpolations: Annotated[Sequence[Interpolation], MinLen(1)],
        border: Colour,
        pixels: Sequence[albumentations.BasicTransform | albumentations.BaseCompose],
    ) -> None:
        self.size, self.factors, self.tries, self.smallest = size, np.asarray(factors, np.float64), tries, smallest
        self.flip_probability, self.interpolations, self.border = flip_probability, list(interpolations), border
        self.pixels = PixelChanges(pixels)

    def draw(self, rng: np.random.Generator, photo: Array, faces: Array) -> Square:
        """Draw the square of a photo.

        Args:
            rng: random generator.
            photo: ``(4,)`` box of the whole photo.
            faces: ``(F, 4)`` boxes of the faces, of which the square contains at least one if it can.
        """
        low, sides = photo[:2], photo[2:] - photo[:2]
        side = np.round(sides.min() * rng.choice(self.factors, self.tries)).clip(min=1)[:, None]  # (T, 1)
        room = sides - side  # (T, 2) negative where the square is larger than the photo
        corner = low + np.round(rng.random((self.tries, 2)) * room)
        squares = np.concatenate([corner, corner + side], axis=1)  # (T, 4)
        starts, ends = squares[:, None, :2], squares[:, None, 2:]
        whole = np.all((faces[:, :2] >= starts) & (faces[:, 2:] <= ends), axis=2)  # (T, F)
        taken = np.flatnonzero(np.any(whole, axis=1))
        square = squares[taken[0]] if len(taken) else np.concatenate([low, low + sides.max()])
        matrix = box_to_image(square, self.size, self.size)
        flipped = bool(rng.random() < self.flip_probability)
        return Square(flip_image(self.size) @ matrix if flipped else matrix, flipped)

    def cut_out(self, rng: np.random.Generator, file: PhotoFile, square: Square) -> Array:
        """Cut the square out of its photo and change its pixels; ``(S, S, 3)`` uint8 RGB."""
        interpolation = self.interpolations[int(rng.integers(len(self.interpolations)))]
        image = file.cut_out(square.matrix, self.size, interpolation=interpolation, border=self.border)
        return self.pixels.change(rng, image)

    def place(self, photo: DetectionBatch, square: Square) -> DetectionBatch:
        """Return the faces of a photo whose centre is in the square, in pixels of the training image."""
        matrix = torch.from_numpy(square.matrix)
        corners = transform_points(matrix, photo.boxes.double().unflatten(-1, (2, 2)))
        placed = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)  # (F, 4)
        points = transform_points(matrix, photo.points.double())
        if square.flipped:
            points = FIVE5.flipped(points)
        low, high = torch.from_numpy(image_box(self.size, self.size)).double().split(2)
        centre = (placed[:, :2] + placed[:, 2:]) / 2
        inside = ((centre > low) & (centre < high)).all(dim=1)
        shown = ((points >= low) & (points <= high)).all(dim=-1)  # (F, 5)
        cut = boxes.clip(placed, self.size, self.size)
        return photo._replace(
            to_photo=matrix.inverse().float()[None],
            boxes=cut[inside].float(),
            points=torch.where(shown[..., None], points, torch.nan)[inside].float(),
            valid=shown[inside],
            pose=(torch.from_numpy(flipped(photo.pose.numpy())) if square.flipped else photo.pose)[inside],
            tags=photo.tags[inside],
            ignore=(photo.ignore | ((cut[:, 2:] - cut[:, :2]).amin(dim=1) < self.smallest))[inside],
            face_id=photo.face_id[inside],
            photo=photo.photo[inside],
        )


class SquareDataset(PhotoDataset):
    """Random squares of the photos of one split.

    Args:
        data: see :class:`PhotoDataset`.
        split: see :class:`PhotoDataset`.
        ignore: see :class:`PhotoDataset`.
        max_unreadable: see :class:`PhotoDataset`.
        augment: draws and cuts out the squares.
        seed: seed of the draws.
    """

    def __init__(
        self,
        data: Annotations,
        split: Split,
        ignore: Sequence[str],
        max_unreadable: float,
        augment: RandomSquare,
        seed: int,
    ) -> None:
        super().__init__(data, split, ignore, max_unreadable)
        self.augment, self.seed = augment, seed

    def __getitem__(self, key: tuple[int, int]) -> DetectionBatch:
        """Load the sample of (epoch, row). A photo that cannot be read becomes a black image without a face."""
        epoch, row = key
        return self.readings.attempt(row, lambda: self._square(row, epoch)) or self._blank(row)

    def _square(self, row: int, epoch: int) -> DetectionBatch:
        """Draw a square of a photo and cut it out."""
        rng = np.random.default_rng((self.seed, epoch, row))
        photo = self.photos[row]
        file, faces = PhotoFile(photo.path, photo.orientation), self.faces(row)
        learned = faces.boxes[is_learned(faces)].numpy().astype(np.float64)
        square = self.augment.draw(rng, file.box().astype(np.float64), learned)
        return with_image(self.augment.place(faces, square), self.augment.cut_out(rng, file, square))

    def _blank(self, row: int) -> DetectionBatch:
        """Return a black image without a face."""
        size, faces = self.augment.size, self.faces(row)
        none = {name: getattr(faces, name)[:0] for name in PER_FACE}
        return with_image(faces._replace(**none), np.zeros((size, size, 3), np.uint8))


def is_learned(faces: DetectionBatch) -> Tensor:
    """Return which faces have a box that can be learned, ``(F,)``: it covers an area and is not ignored."""
    return ~faces.ignore & (boxes.area(faces.boxes) > 0)


class RetinaFaceDataModule(DetectionDataModule):
    """Training squares, and whole photos for validation and test.

    Args:
        data: see :class:`DetectionDataModule`.
        augment: draws and cuts out the training squares.
        batch_size: training squares of a batch of one process.
        eval_batch_size: photos of a batch in validation and test. It does not change results.
        num_workers: see :class:`DetectionDataModule`.
        seed: seed of the order and the draws.
        test_split: see :class:`DetectionDataModule`.
        max_unreadable: see :class:`DetectionDataModule`.
        ignore: see :class:`DetectionDataModule`.

    Raises:
        ConfigError: as in :class:`DetectionDataModule`.
    """

    def __init__(
        self,
        data: Annotations,
        augment: RandomSquare,
        batch_size: Count,
        eval_batch_size: Count,
        num_workers: Processes,
        seed: Seed,
        test_split: Split,
        max_unreadable: Share,
        ignore: Sequence[str],
    ) -> None:
        super().__init__(data, eval_batch_size, num_workers, seed, test_split, max_unreadable, ignore)
        self.augment, self.train_batch_size = augment, batch_size

    def setup(self, stage: str) -> None:
        """Read the annotations that the stage needs; no photo is opened.

        Raises:
            DatasetError: the reader raises it, or no training face has a box that can be learned.
        """
        super().setup(stage)
        if stage != "fit" or "train" in self.photos:
            return
        train = SquareDataset(self.data, "train", self.ignore, self.max_unreadable, self.augment, self.seed)
        counts = [(int(is_learned(each).sum()), int(each.ignore.sum())) for each in map(train.faces, range(len(train)))]
        learned, ignored = np.sum(counts, axis=0).tolist()
        if not learned:
            raise DatasetError(f"{self.data.name}: no face of the split 'train' has a box that can be learned")
        log.info("%s train: %d photos, %d faces", self.data.name, len(train), learned)
        if ignored:
            log.info("%d more faces have an ignored tag", ignored)
        if without := int(train.first_face[-1]) - learned - ignored:
            log.info("%d more rows have no box with an area, and are left out", without)
        if empty := sum(number == 0 for number, _ in counts):
            log.info("%d of these photos have no face; they contribute nothing to the loss", empty)
        self.photos["train"] = train

    def train_dataloader(self) -> DataLoader[DetectionBatch]:
        """Return the shuffled loader."""
        options = {"batch_size": self.train_batch_size, "num_workers": self.num_workers, "seed": self.seed}
        return build_loader(self.photos["train"], collate, self.trainer, **options, shuffle=True)
