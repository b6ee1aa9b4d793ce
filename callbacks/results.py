"""Files of a test in the folder of its run: all metrics with their protocol, and the tables of the datamodule."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from facelab.files import write_json
from facelab.metrics.record import as_results
from facelab.profiling.cost import cost
from facelab.run_folder import RunFolder
from lightning_modules.landmark import LandmarkModule


class Results(Callback):
    """Writer of ``metrics.json`` and of the tables of the datamodule at the end of a test; all are written atomically.

    Rank 0 writes the files, because with a spawning strategy the main process has no table. A test of a part
    of the faces, as with ``trainer=check`` or ``limit_test_batches``, is written in the same way: its protocol
    identifies the faces.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: str) -> None:
        self.folder = RunFolder(Path(folder))

    @rank_zero_only
    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Write ``metrics.json`` after the files of all other callbacks, as it marks the run as finished."""
        if stage == "test":
            content = results(module, trainer.datamodule)  # type: ignore[attr-defined]
            write_json(self.folder.metrics, {"name": self.folder.path.name, **content})

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the tables: the faces of a landmark method, the detections, photos and curves of a detector."""
        trainer.datamodule.write_table(module.table, self.folder)  # type: ignore[attr-defined]


def results(module: Any, datamodule: Any) -> dict[str, Any]:
    """Return the content of ``metrics.json``.

    Args:
        module: module after its test.
        datamodule: datamodule of the tested faces.

    Returns:
        protocol, metrics (a record by name), cost (of one face; empty for a detector, where it depends on the photo),
        unreadable (faces or photos of each split that this process could not read), and remarks of the method if it
        has any.
    """
    protocol = {**datamodule.protocol(module.table), **module.protocol()}
    return {
        **as_results(protocol, module.metrics(module.table)),
        "cost": cost(module, datamodule.crop.size, pose=False) if isinstance(module, LandmarkModule) else {},
        "unreadable": datamodule.unreadable(),
        **({"remarks": list(module.remarks)} if module.remarks else {}),
    }
