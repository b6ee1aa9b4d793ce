"""What a test measured, as charts in W&B."""

from typing import TYPE_CHECKING

import numpy as np
from lightning import Callback, Trainer

from callbacks.wandb_logger import ERROR, percent, show
from facelab.faces.geometry import Array
from facelab.faces.layouts import Layout
from facelab.metrics.face_table import FaceTable, Normaliser, nme_per_face
from facelab.metrics.landmarks import THRESHOLDS, breakdowns, ced, nme
from lightning_modules.landmark import LandmarkModule

if TYPE_CHECKING:  # importing it takes a second
    from wandb.plot.custom_chart import CustomChart

NORMALISERS: tuple[Normaliser, ...] = ("ioc", "box")
"""What the curves divide errors by."""
ERRORS = np.linspace(0, max(THRESHOLDS.values()), 101)
"""Where the curves are drawn: the same for all runs, up to the largest error that a rate or an area counts."""


class Charts(Callback):
    """Shows a test in W&B: cumulative errors, and errors by pose, tag, region and size with the faces behind them.

    Each chart brings the table it is drawn from, under its own name and ``_table``. The numbers are logged by the
    module: the bar ``0_30`` of ``test/nme_box_yaw`` is ``test/nme_box_yaw_0_30``, in percent. Without the logger of
    W&B this does nothing.
    """

    def on_test_end(  # type: ignore[override]
        self, trainer: Trainer, module: LandmarkModule
    ) -> None:
        """Show it."""
        tags = trainer.datamodule.data.tags  # type: ignore[attr-defined]
        show(trainer, lambda: charts(module.table, module.layout, tags))


def charts(table: FaceTable, layout: Layout, tags: tuple[str, ...]) -> dict[str, "CustomChart"]:
    """Name to chart; one that would have no bar or no curve is left out.

    Args:
        table: the faces of the test.
        layout: their layout.
        tags: Annotations.tags, the columns of ``table.tags``.
    """
    by_kind = {f"test/{kind}": parts for kind, parts in breakdowns(table, layout, tags).items()}
    by_normaliser = {name: ced(nme_per_face(table, name), ERRORS) for name in NORMALISERS}
    known: dict[str, Array] = {name: curve for name, curve in by_normaliser.items() if not np.isnan(curve).any()}
    return {name: _bars(name, parts) for name, parts in by_kind.items() if parts} | (
        {"test/ced": _curves(known)} if known else {}
    )


def _bars(name: str, parts: dict[str, Array]) -> "CustomChart":
    """The mean error of each part; one without a face has no bar."""
    import wandb

    rows = [[part, percent(float(nme(e))), int((~np.isnan(e)).sum())] for part, e in parts.items()]
    table = wandb.Table(["part", ERROR, "faces"], rows)
    return wandb.plot.bar(table, "part", ERROR, title=f"{name}, {ERROR}")


def _curves(shares: dict[str, Array]) -> "CustomChart":
    """The percentage of the faces whose error is at most x, for each normaliser."""
    import wandb

    x, y = (100 * ERRORS).tolist(), [(100 * curve).tolist() for curve in shares.values()]
    return wandb.plot.line_series(x, y, list(shares), title="faces by error, both in percent", xname=ERROR)
