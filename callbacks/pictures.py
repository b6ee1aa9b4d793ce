"""Pictures of a run: the same faces after each epoch, and the worst faces or photos of the test."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import cv2
import numpy as np
import torch
from annotated_types import Interval
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torchmetrics.utilities.distributed import gather_all_tensors

from callbacks.wandb_logger import ERROR_HEADING, log_to_wandb, number, percent
from datamodules.detection import DetectionDataModule, PhotoDataset
from datamodules.landmark import FaceDataset, LandmarkDataModule
from facelab.bounds import Pixels
from facelab.errors import printable
from facelab.faces.batch import DetectionBatch, LandmarkBatch
from facelab.faces.drawing import grid, photo_tile, tile
from facelab.faces.geometry import Array
from facelab.faces.layouts import Layout
from facelab.files import replacing
from facelab.metrics.detection import count_photos
from facelab.metrics.detection_files import SHOWN
from facelab.metrics.detection_table import DetectionTable
from facelab.metrics.face_table import FaceTable, nme_per_face
from facelab.run_folder import TEST_PICTURE, WORST_PICTURE
from lightning_modules.detector import DetectorModule
from lightning_modules.landmark import LandmarkModule

if TYPE_CHECKING:  # importing it takes a second
    import wandb


@rank_zero_only
def save_picture(trainer: Trainer, picture: Array, path: Path, name: str) -> None:
    """Write an RGB picture as PNG and log it to W&B and TensorBoard."""
    _, content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    with replacing(path) as temporary:
        temporary.write_bytes(content.tobytes())  # cv2.imwrite gives no reason for a failure
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, trainer.global_step, dataformats="HWC")


def picture_of(batch: LandmarkBatch, row: int) -> tuple[Array, Array]:
    """Return the image ``(H, W, 3)`` and the true points ``(N, 2)`` of a row as numpy arrays."""
    return batch.image[row].permute(1, 2, 0).cpu().numpy(), batch.points[row].cpu().numpy()


Tiles: TypeAlias = Annotated[int, Interval(ge=1, le=100)]
"""Number of rows or columns of faces in a picture, limited because all its faces are in memory until it is drawn."""


class FaceGrid(Callback):
    """Picture of the first validation faces with true (green) and predicted (red) points after each epoch.

    A detector has no faces cut out, and no such picture.

    Args:
        folder: folder of ``epoch_000.png``, ..., and of ``test.png`` with the first faces of the test.
        columns: faces in a row.
        rows: rows of faces.
        tile: side of a face in pixels.
    """

    def __init__(self, folder: str, columns: Tiles, rows: Tiles, tile: Pixels) -> None:
        self.folder, self.columns, self.size, self.tile = Path(folder), columns, columns * rows, tile
        self.tiles: list[Array] = []

    def _draw_tiles(self, layout: Layout, outputs: Any, batch: LandmarkBatch | DetectionBatch) -> None:
        """Draw the faces of a batch, until there are enough."""
        if not isinstance(batch, LandmarkBatch):
            return
        for row in range(min(len(batch.image), self.size - len(self.tiles))):
            image, truth = picture_of(batch, row)
            prediction = outputs.points[row].float().cpu().numpy()
            self.tiles.append(tile(image, layout, side=self.tile, truth=truth, prediction=prediction, caption=""))

    def _save(self, trainer: Trainer, file: str, name: str) -> None:
        """Save the drawn tiles as one picture and clear them."""
        if self.tiles:
            save_picture(trainer, grid(self.tiles, self.columns), self.folder / file, name)
        self.tiles = []

    def on_validation_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: LandmarkBatch, *_: int
    ) -> None:
        """Draw the first faces."""
        self._draw_tiles(module.layout, outputs, batch)  # type: ignore[arg-type]

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save the picture of the epoch."""
        self._save(trainer, f"epoch_{trainer.current_epoch:03d}.png", "val/face_grid")

    def on_test_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: LandmarkBatch, *_: int
    ) -> None:
        """Draw the first faces."""
        self._draw_tiles(module.layout, outputs, batch)  # type: ignore[arg-type]

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save the picture of the test."""
        self._save(trainer, TEST_PICTURE, "test/face_grid")


class WorstFaces(Callback):
    """Picture of the test faces with the largest NME_box, worst first, and a W&B table of them with pose and tags.

    A detector has :class:`WorstPhotos` instead.

    Args:
        folder: folder of ``worst.png``.
        columns: faces in a row.
        rows: rows of faces.
        tile: side of a face in pixels.
    """

    def __init__(self, folder: str, columns: Tiles, rows: Tiles, tile: Pixels) -> None:
        self.folder, self.columns, self.size, self.tile = Path(folder), columns, columns * rows, tile
        self.points: dict[int, Array] = {}

    def on_test_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: LandmarkBatch, *_: int
    ) -> None:
        """Store the predicted points. The images would need too much memory."""
        if not isinstance(batch, LandmarkBatch):
            return
        self.points |= dict(zip(batch.face_id.tolist(), outputs.points.float().cpu().numpy(), strict=True))

    def on_test_end(  # type: ignore[override]
        self, trainer: Trainer, module: LandmarkModule | DetectorModule
    ) -> None:
        """Crop the worst faces again and draw them."""
        if not isinstance(module.table, FaceTable):
            return
        error = nme_per_face(module.table, "box")
        measured = np.flatnonzero(~np.isnan(error))
        order = measured[np.argsort(-error[measured], kind="stable")][: self.size]
        worst = module.table.select(order)
        points = self._predicted(trainer, module, worst)
        self.points = {}
        if not len(order) or not trainer.is_global_zero:
            return
        data: LandmarkDataModule = trainer.datamodule  # type: ignore[attr-defined]
        tiles = self._tiles(data.faces["test"], worst, points)
        save_picture(trainer, grid(tiles, self.columns), self.folder / WORST_PICTURE, "test/worst_faces")
        photos = [printable(data.faces["test"].paths[row].name) for row in worst.face_id]
        log_to_wandb(trainer, lambda: {"test/worst_faces_table": _table(tiles, photos, worst)})

    def _predicted(self, trainer: Trainer, module: LandmarkModule, worst: FaceTable) -> Array:
        """Return the predicted points of these faces from all ranks, ``(F, N, 2)`` in pixels of their crops."""
        local = np.full((*worst.error.shape, 2), np.nan, np.float32)
        for points, row in zip(local, worst.face_id.tolist(), strict=True):
            points[:] = self.points.get(row, np.nan)
        if trainer.world_size == 1:
            return local
        # Lightning's own gather would print torch's deprecation warning on every rank.
        parts = gather_all_tensors(torch.from_numpy(local).to(module.device))
        return np.fmax.reduce([part.cpu().numpy() for part in parts])

    def _tiles(self, faces: FaceDataset, worst: FaceTable, points: Array) -> list[Array]:
        """Draw the faces with true and predicted points, the error in percent and the photo's name."""
        tiles = []
        for row, error, prediction in zip(worst.face_id.tolist(), nme_per_face(worst, "box"), points, strict=True):
            sample = faces[(0, row)]
            image, truth = sample.image.permute(1, 2, 0).numpy(), sample.points.numpy()
            caption = f"{100 * error:.1f} % {printable(faces.paths[row].stem)}"
            tiles.append(tile(image, faces.layout, side=self.tile, truth=truth, prediction=prediction, caption=caption))
        return tiles


class WorstPhotos(Callback):
    """Picture of the test photos in which a detector misses or invents most faces, worst first.

    Annotated boxes are green, without the ignored ones, and detections with their scores and points red, from the score
    :data:`SHOWN` on. A landmark method has :class:`WorstFaces` instead.

    Args:
        folder: folder of ``worst.png``.
        columns: photos in a row.
        rows: rows of photos.
        tile: side of a photo in pixels.
    """

    def __init__(self, folder: str, columns: Tiles, rows: Tiles, tile: Pixels) -> None:
        self.folder, self.columns, self.size, self.tile = Path(folder), columns, columns * rows, tile

    def on_test_end(  # type: ignore[override]
        self, trainer: Trainer, module: LandmarkModule | DetectorModule
    ) -> None:
        """Read the worst photos again and draw them."""
        if not isinstance(module.table, DetectionTable) or not trainer.is_global_zero:
            return
        counts = count_photos(module.table, SHOWN)
        wrong = np.where(module.table.skipped, 0, counts.missed + counts.false)
        worst = np.argsort(-wrong, kind="stable")[: min(self.size, np.count_nonzero(wrong))].tolist()
        data: DetectionDataModule = trainer.datamodule  # type: ignore[attr-defined]
        captions = [f"{counts.missed[row]} missed, {counts.false[row]} false" for row in worst]
        tiles = [self._tile(data.photos["test"], module.table, *each) for each in zip(worst, captions, strict=True)]
        if tiles:
            save_picture(trainer, grid(tiles, self.columns), self.folder / WORST_PICTURE, "test/worst_photos")

    def _tile(self, photos: PhotoDataset, table: DetectionTable, row: int, counts: str) -> Array:
        """Draw a photo of the table."""
        sample = photos[(0, int(table.photo_id[row]))]
        found = (table.photo == row) & (table.scores >= SHOWN)
        return photo_tile(
            sample.image[0].permute(1, 2, 0).numpy(),
            side=self.tile,
            truth=table.true_boxes[(table.true_photo == row) & ~table.ignore],
            boxes=table.boxes[found],
            scores=table.scores[found],
            points=table.points[found],
            caption=f"{counts}\n{printable(photos.photos[table.photo_id[row]].path.stem)}",
        )


def _table(tiles: Sequence[Array], photos: Sequence[str], faces: FaceTable) -> "wandb.Table":
    """Build the W&B table of the faces, with angles in degrees."""
    import wandb

    errors = nme_per_face(faces, "box")
    tags_of_face = [np.compress(row, faces.tag_names).tolist() for row in faces.tags]
    rows = [
        [wandb.Image(tiles[i]), photos[i], percent(errors[i]), *map(number, faces.pose[i]), ", ".join(tags_of_face[i])]
        for i in range(len(tiles))
    ]
    return wandb.Table(["face", "photo", ERROR_HEADING, "yaw", "pitch", "roll", "tags"], rows)
