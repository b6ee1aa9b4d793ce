"""Charts of a test's results in W&B."""

from typing import TYPE_CHECKING

import numpy as np
from lightning import Callback, Trainer

from callbacks.wandb_logger import ERROR_HEADING, log_to_wandb, percent
from facelab.faces.geometry import Array
from facelab.faces.layouts import Layout
from facelab.metrics.face_table import FaceTable, Normaliser, nme_per_face
from facelab.metrics.landmarks import THRESHOLDS, breakdowns, ced, nme
from lightning_modules.landmark import LandmarkModule

if TYPE_CHECKING:  # importing it takes a second
    from wandb.plot.custom_chart import CustomChart

NORMALISERS: tuple[Normaliser, ...] = ("ioc", "box")
"""Normalisers of the errors, one curve each."""
ERRORS = np.linspace(0, max(THRESHOLDS.values()), 101)
"""Errors at which the curves are evaluated, as fractions.

They are the same for all runs and end at the largest threshold of a failure rate or AUC.
"""


class Charts(Callback):
    """Charts of a test in W&B: cumulative errors, and errors by pose, tag, region and size with the number of faces.

    W&B stores the table of a chart under the chart's name followed by ``_table``. The module logs the same numbers:
    the bar ``0_30`` of ``test/nme_box_yaw`` is ``test/nme_box_yaw_0_30``, in percent. Without a W&B logger the
    callback does nothing.
    """

    def on_test_end(  # type: ignore[override]
        self, trainer: Trainer, module: LandmarkModule
    ) -> None:
        """Log the charts of the test."""
        tags = trainer.datamodule.data.tags  # type: ignore[attr-defined]
        log_to_wandb(trainer, lambda: charts(module.table, module.layout, tags))


def charts(table: FaceTable, layout: Layout, tags: tuple[str, ...]) -> dict[str, "CustomChart"]:
    """Build the charts of a test. A chart without any bar or curve is left out.

    Args:
        table: errors of the tested faces.
        layout: layout of their landmarks.
        tags: Annotations.tags, the columns of ``table.tags``.

    Returns:
        The charts by name.
    """
    breakdown_by_name = {f"test/{kind}": parts for kind, parts in breakdowns(table, layout, tags).items()}
    curve_by_name = {name: ced(nme_per_face(table, name), ERRORS) for name in NORMALISERS}
    defined: dict[str, Array] = {name: curve for name, curve in curve_by_name.items() if not np.isnan(curve).any()}
    return {name: _bars(name, parts) for name, parts in breakdown_by_name.items() if parts} | (
        {"test/ced": _curves(defined)} if defined else {}
    )


def _bars(name: str, parts: dict[str, Array]) -> "CustomChart":
    """Draw the mean error of each part as a bar. A part without a face has no bar."""
    import wandb

    rows = [[part, percent(float(nme(e))), int((~np.isnan(e)).sum())] for part, e in parts.items()]
    table = wandb.Table(["part", ERROR_HEADING, "faces"], rows)
    return wandb.plot.bar(table, "part", ERROR_HEADING, title=f"{name}, {ERROR_HEADING}")


def _curves(curves: dict[str, Array]) -> "CustomChart":
    """Plot the percentage of the faces whose error is at most x, with one curve per normaliser."""
    import wandb

    x, y = (100 * ERRORS).tolist(), [(100 * curve).tolist() for curve in curves.values()]
    return wandb.plot.line_series(x, y, list(curves), title="cumulative share of faces in percent", xname=ERROR_HEADING)
