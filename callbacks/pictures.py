"""Pictures of a run: the same faces after every epoch, and the worst faces of the test."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from facelab.atomic import replacing
from facelab.landmarks.batch import LandmarkBatch
from facelab.landmarks.drawing import cell, grid
from facelab.landmarks.geometry import Array
from facelab.landmarks.layouts import Layout
from facelab.metrics.faces import FaceTable
from facelab.metrics.landmarks import nme_per_face


@rank_zero_only
def save_picture(trainer: Trainer, picture: Array, path: Path, name: str) -> None:
    """Write an RGB picture as PNG and show it in the loggers that take pictures."""
    with replacing(path) as temporary:
        if not cv2.imwrite(str(temporary), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
            raise OSError(f"{path} could not be written")
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, trainer.global_step, dataformats="HWC")


def picture_of(batch: LandmarkBatch, row: int) -> tuple[Array, Array]:
    """Image ``(H, W, 3)`` and true points ``(N, 2)`` of a row, as numpy."""
    return batch.image[row].permute(1, 2, 0).cpu().numpy(), batch.points[row].cpu().numpy()


class FaceGrid(Callback):
    """The first faces of the validation set with true (green) and predicted (red) points, after every epoch.

    Args:
        folder: of ``epoch_000.png``, ...; and ``test.png`` for the first faces of the test.
        columns: faces in a row.
        rows: rows of faces.
        cell: side of a face in pixels.
    """

    def __init__(self, folder: str, columns: int, rows: int, cell: int) -> None:
        self.folder, self.columns, self.size, self.cell = Path(folder), columns, columns * rows, cell
        self.cells: list[Array] = []

    def _take(self, layout: Layout, outputs: Any, batch: LandmarkBatch) -> None:
        for row in range(min(len(batch.image), self.size - len(self.cells))):
            image, truth = picture_of(batch, row)
            prediction = outputs.points[row].float().cpu().numpy()
            self.cells.append(cell(image, layout, side=self.cell, truth=truth, prediction=prediction, caption=""))

    def _save(self, trainer: Trainer, file: str, name: str) -> None:
        if self.cells:
            save_picture(trainer, grid(self.cells, self.columns), self.folder / file, name)
        self.cells = []

    def on_validation_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: LandmarkBatch, *_: int
    ) -> None:
        """Keep the first faces."""
        self._take(module.layout, outputs, batch)  # type: ignore[arg-type]

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save them."""
        self._save(trainer, f"epoch_{trainer.current_epoch:03d}.png", "val/faces")

    def on_test_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: LandmarkBatch, *_: int
    ) -> None:
        """Keep the first faces."""
        self._take(module.layout, outputs, batch)  # type: ignore[arg-type]

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save them."""
        self._save(trainer, "test.png", "test/faces")


class WorstFaces(Callback):
    """The test faces with the largest NME_box, worst first, with their error in percent.

    Where several processes test, these are the worst of the first one's faces.

    Args:
        folder: of ``worst.png``.
        columns: faces in a row.
        rows: rows of faces.
        cell: side of a face in pixels.
    """

    def __init__(self, folder: str, columns: int, rows: int, cell: int) -> None:
        self.folder, self.columns, self.size, self.cell = Path(folder), columns, columns * rows, cell
        self.points: dict[int, Array] = {}

    def on_test_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: LandmarkBatch, *_: int
    ) -> None:
        """Keep what was predicted: points alone, since the images would not fit."""
        self.points |= dict(zip(batch.face_id.tolist(), outputs.points.float().cpu().numpy(), strict=True))

    def on_test_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Cut the worst faces out again and draw them."""
        table: FaceTable = module.table  # type: ignore[assignment]
        layout: Layout = module.layout  # type: ignore[assignment]
        error = nme_per_face(table, "box")
        faces = trainer.datamodule.faces["test"]  # type: ignore[attr-defined]
        known = ~np.isnan(error) & np.isin(table.face_id, list(self.points))  # others were predicted elsewhere
        order = np.flatnonzero(known)[np.argsort(-error[known], kind="stable")]
        cells = []
        for index in order[: self.size]:
            row = int(table.face_id[index])
            sample: LandmarkBatch = faces[(0, row)]
            image, truth = sample.image.permute(1, 2, 0).numpy(), sample.points.numpy()
            caption = f"{100 * error[index]:.1f} % {faces.paths[row].stem}"
            cells.append(cell(image, layout, side=self.cell, truth=truth, prediction=self.points[row], caption=caption))
        self.points = {}
        if cells:
            save_picture(trainer, grid(cells, self.columns), self.folder / "worst.png", "test/worst_faces")
