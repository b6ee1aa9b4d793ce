"""What a test leaves in the folder of its run: every number, what it was measured on, and one row per face."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_only

from datamodules.landmark import FaceDataset, LandmarkDataModule
from facelab.errors import printable
from facelab.faces.image import Orientation, has_mark
from facelab.faces.layouts import Layout
from facelab.files import write_json
from facelab.metrics import landmarks
from facelab.metrics.face_table import FaceTable, write_faces
from facelab.metrics.landmarks import bootstrap, nme, stratified_bootstrap
from facelab.profiling.cost import cost
from facelab.run_folder import RunFolder
from lightning_modules.landmark import LandmarkModule

EVALUATOR_VERSION = 1
"""Raised whenever the same predictions would get another number, so that old and new numbers are not compared."""
RESAMPLES = 1000


class Results(Callback):
    """Writes ``metrics.json`` and ``faces.csv`` at the end of a test, complete or not at all.

    With a strategy that starts processes of its own the table of a test exists in these alone; the first one writes.
    A part of the test faces, as ``trainer=check`` and ``limit_test_batches`` measure, is written like all of them: its
    protocol says which faces they were.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str) -> None:
        self.folder = RunFolder(Path(folder))

    @rank_zero_only
    def teardown(  # type: ignore[override]
        self, trainer: Trainer, module: LandmarkModule, stage: str
    ) -> None:
        """Write the numbers after all that other callbacks write: with them, the run is finished."""
        if stage == "test":
            found = results(module, trainer.datamodule)  # type: ignore[attr-defined]
            write_json(self.folder.metrics, {"name": self.folder.path.name, **found})

    @rank_zero_only
    def on_test_end(  # type: ignore[override]
        self, trainer: Trainer, module: LandmarkModule
    ) -> None:
        """Write the table of faces."""
        datamodule: LandmarkDataModule = trainer.datamodule  # type: ignore[attr-defined]
        names = [printable(path.name) for path in datamodule.faces["test"].paths]
        write_faces(module.table, self.folder.faces, names, datamodule.data.tags)


def results(module: LandmarkModule, datamodule: LandmarkDataModule) -> dict[str, Any]:
    """The content of ``metrics.json``.

    Args:
        module: that was tested.
        datamodule: with the faces it was tested on.

    Returns:
        protocol, metrics (fractions), counts (faces behind each mean error), left_out (faces that a metric is about but
        cannot measure), intervals (95 % bootstrap over faces), cost (of one face) and unreadable (faces of each split
        whose photo this process could not read).
    """
    table, layout, tags = module.table, module.layout, datamodule.data.tags
    return {
        "protocol": protocol(module, datamodule),
        "metrics": landmarks.summary(table, layout, tags),
        "counts": landmarks.counts(table, layout, tags),
        "left_out": landmarks.left_out(table, layout, tags),
        "intervals": intervals(table, layout, tags),
        "cost": cost(module, datamodule.crop.size, pose=False),
        "unreadable": {role: faces.unreadable for role, faces in datamodule.faces.items()},
    }


def protocol(module: LandmarkModule, datamodule: LandmarkDataModule) -> dict[str, Any]:
    """What must be equal for two numbers to be comparable."""
    faces, rows, crop = datamodule.faces["test"], module.table.face_id.tolist(), datamodule.crop
    return {
        "dataset": datamodule.data.name,
        "split": datamodule.test_split,
        "layout": module.layout.name,
        "faces": len(rows),
        "truth": fingerprint(faces, rows),
        "box": crop.box,
        "box_scale": crop.scale,
        "flip_test": module.flip_test,
        "pose": faces.pose_source,
        **({"orientation": "shown"} if any(map(is_turned, faces.paths, faces.orientations)) else {}),
        "evaluator": EVALUATOR_VERSION,
    }


def is_turned(path: Path, orientation: Orientation) -> bool:
    """Tell whether a photo is measured other than it is stored."""
    return orientation == "shown" and has_mark(path)


def fingerprint(faces: FaceDataset, rows: Sequence[int]) -> str:
    """Hash of the photos' names and the true points of the faces that were measured, the same on every machine."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(faces.paths[row].name.encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(faces.faces[row].points, np.float32).tobytes())
    return digest.hexdigest()[:16]


def intervals(table: FaceTable, layout: Layout, tags: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals over faces of all numbers of :func:`landmarks.summary` that are no counts."""
    draw = partial(bootstrap, resamples=RESAMPLES, seed=0)
    by_name = landmarks.errors(table, layout, tags)
    found = {name: draw(e, nme) for name, e in by_name.items()}
    found |= {name: draw(by_name["nme_ioc"], rate) for name, rate in landmarks.RATES.items()}
    if by_yaw := landmarks.breakdowns(table, layout, tags).get("nme_box_yaw"):
        found["nme_box_yaw_mean"] = stratified_bootstrap(list(by_yaw.values()), nme, RESAMPLES, seed=0)
    return found
