"""Files of a test in the folder of its run: all metrics with their protocol, and one row per face."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_only

from datamodules.landmark import FaceDataset, LandmarkDataModule
from facelab.errors import printable
from facelab.faces.image import Orientation, is_rotated_by_tag
from facelab.files import write_json
from facelab.metrics.face_table import write_faces
from facelab.metrics.record import as_json
from facelab.profiling.cost import cost
from facelab.run_folder import RunFolder
from lightning_modules.landmark import LandmarkModule

EVALUATOR_VERSION = 1
"""Version in the protocol; increase it when a change alters a metric of the same predictions.

Old and new metrics are then not compared.
"""
RESAMPLES = 1000
"""Resamples of the bootstrap of each 95 % interval."""


class Results(Callback):
    """Writer of ``metrics.json`` and ``faces.csv`` at the end of a test; both files are written atomically.

    Rank 0 writes the files, because with a spawning strategy the main process has no table. A test of a part
    of the faces, as with ``trainer=check`` or ``limit_test_batches``, is written in the same way: its protocol
    identifies the faces.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: str) -> None:
        self.folder = RunFolder(Path(folder))

    @rank_zero_only
    def teardown(  # type: ignore[override]
        self, trainer: Trainer, module: LandmarkModule, stage: str
    ) -> None:
        """Write ``metrics.json`` after the files of all other callbacks, as it marks the run as finished."""
        if stage == "test":
            content = results(module, trainer.datamodule)  # type: ignore[attr-defined]
            write_json(self.folder.metrics, {"name": self.folder.path.name, **content})

    @rank_zero_only
    def on_test_end(  # type: ignore[override]
        self, trainer: Trainer, module: LandmarkModule
    ) -> None:
        """Write ``faces.csv``."""
        datamodule: LandmarkDataModule = trainer.datamodule  # type: ignore[attr-defined]
        names = [printable(path.name) for path in datamodule.faces["test"].paths]
        write_faces(module.table, self.folder.faces, names)


def results(module: LandmarkModule, datamodule: LandmarkDataModule) -> dict[str, Any]:
    """Return the content of ``metrics.json``.

    Args:
        module: module after its test.
        datamodule: datamodule of the tested faces.

    Returns:
        protocol, metrics (a record by name), cost (of one face) and unreadable (faces of each split whose photo this
        process could not read), and remarks of the method if it has any.
    """
    definitions = module.metrics(module.table)
    return {
        "protocol": protocol(module, datamodule),
        "metrics": {name: as_json(each.record(RESAMPLES, seed=0)) for name, each in definitions.items()},
        "cost": cost(module, datamodule.crop.size, pose=False),
        "unreadable": {role: faces.readings.unreadable for role, faces in datamodule.faces.items()},
        **({"remarks": list(module.remarks)} if module.remarks else {}),
    }


def protocol(module: LandmarkModule, datamodule: LandmarkDataModule) -> dict[str, Any]:
    """Return the settings of the test that must be equal for two results to be comparable."""
    faces, rows, crop = datamodule.faces["test"], module.table.face_id.tolist(), datamodule.crop
    return {
        "dataset": datamodule.data.name,
        "split": datamodule.test_split,
        "layout": module.layout.name,
        "faces": len(rows),
        "truth": fingerprint(faces, rows),
        "box": crop.box,
        **({"box_jitter": str(faces.box_jitter)} if faces.box_jitter else {}),
        "flip_test": module.flip_test,
        "pose": faces.pose_source,
        **({"orientation": "shown"} if any(map(is_turned, faces.paths, faces.orientations)) else {}),
        "evaluator": EVALUATOR_VERSION,
    }


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
