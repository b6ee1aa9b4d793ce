"""Charts of a test's results in W&B."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from lightning import Callback, Trainer

from callbacks.wandb_logger import ERROR_HEADING, log_to_wandb, number
from facelab.faces.geometry import Array
from facelab.metrics import detection, landmarks
from facelab.metrics.detection_curves import Curve, curves
from facelab.metrics.detection_table import DetectionTable
from facelab.metrics.face_table import FaceTable, Normaliser, nme_per_face
from facelab.metrics.record import SCALES, Unit
from lightning_modules.detector import DetectorModule
from lightning_modules.landmark import LandmarkModule

if TYPE_CHECKING:  # importing them takes a second
    import wandb
    from wandb.plot.custom_chart import CustomChart

Definition: TypeAlias = landmarks.Definition | detection.Definition
"""Definition of a metric of a landmark method or a detector."""
NORMALISERS: tuple[Normaliser, ...] = ("ioc", "box")
"""Normalisers of the errors, one curve each."""
ERRORS = np.linspace(0, max(landmarks.THRESHOLDS.values()), 101)
"""Errors at which the curves are evaluated, as fractions.

They are the same for all runs and end at the largest threshold of a failure rate or AUC.
"""


class Charts(Callback):
    """Charts of a test in W&B: the parts of each breakdown, a table of all metrics, cumulative errors of landmarks.

    A detector has two curves in place of these errors: precision by recall, and recall by false detections per photo.

    W&B stores the table of a chart under the chart's name followed by ``_table``. The module logs the same numbers:
    the bar ``0_30`` of ``test/nme_box_yaw`` is ``test/nme_box_yaw_0_30``, in percent. Without a W&B logger the
    callback does nothing.
    """

    def on_test_end(  # type: ignore[override]
        self, trainer: Trainer, module: LandmarkModule | DetectorModule
    ) -> None:
        """Log the charts of the test."""
        metrics: Mapping[str, Definition] = module.metrics(module.table)  # type: ignore[arg-type]
        log_to_wandb(trainer, lambda: {**charts(module.table, metrics), "test/metrics_table": _table(metrics)})


def charts(table: FaceTable | DetectionTable, metrics: Mapping[str, Definition]) -> dict[str, "CustomChart"]:
    """Build the charts of a test. A chart without any bar or curve is left out.

    Args:
        table: errors of the tested faces, or the detections.
        metrics: its metrics by name.

    Returns:
        The charts by name.
    """
    breakdowns: dict[tuple[str, str, Unit], dict[str, Definition]] = {}
    for metric in metrics.values():
        if metric.breakdown:
            parts = breakdowns.setdefault((metric.whole, metric.breakdown, metric.unit), {})
            parts[metric.part] = metric
    defined: dict[str, Array] = {}
    if isinstance(table, FaceTable):
        curve_by_name = {name: landmarks.ced(nme_per_face(table, name), ERRORS) for name in NORMALISERS}
        defined = {name: curve for name, curve in curve_by_name.items() if not np.isnan(curve).any()}
    drawn = {
        f"test/{whole}_{breakdown}": _bars(f"{whole}_{breakdown}", whole, unit, parts)
        for (whole, breakdown, unit), parts in breakdowns.items()
    }
    if defined:
        drawn["test/ced"] = _curves(defined)
    if isinstance(table, DetectionTable) and (found := curves(table)):
        drawn |= _detections({name: curve.thinned() for name, curve in found.items()})
    return drawn


def _bars(name: str, whole: str, unit: Unit, parts: Mapping[str, Definition]) -> "CustomChart":
    """Draw the value of each part as a bar. A part without a face has no bar."""
    import wandb

    heading = ", ".join(filter(None, (whole, SCALES[unit].sign)))
    rows = [[part, _scaled(metric), metric.faces] for part, metric in parts.items()]
    table = wandb.Table(["part", heading, "faces"], rows)
    return wandb.plot.bar(table, "part", heading, title=f"test/{name}")


def _table(metrics: Mapping[str, Definition]) -> "wandb.Table":
    """Build the W&B table of all metrics, with their units and the direction of better values."""
    import wandb

    rows: list[list[Any]] = [
        [name, _scaled(metric), SCALES[metric.unit].sign, metric.better, metric.faces]
        for name, metric in metrics.items()
    ]
    return wandb.Table(["metric", "value", "unit", "better", "faces"], rows)


def _scaled(metric: Definition) -> float | None:
    """Return the value as tables show it, without rounding."""
    return number(SCALES[metric.unit].factor * metric.value())


def _curves(shares: dict[str, Array]) -> "CustomChart":
    """Plot the percentage of the faces whose error is at most x, with one curve per normaliser."""
    import wandb

    x, y = (100 * ERRORS).tolist(), [(100 * share).tolist() for share in shares.values()]
    return wandb.plot.line_series(x, y, list(shares), title="cumulative share of faces in percent", xname=ERROR_HEADING)


def _detections(found: Mapping[str, Curve]) -> dict[str, "CustomChart"]:
    """Plot the curves of a detector, one line for each AP.

    W&B draws linear axes only; therefore x is the logarithm of the false detections per photo.
    """
    import wandb

    precision, recall = zip(*((curve.precision_line(), curve.recall_line()) for curve in found.values()), strict=True)
    return {
        "test/precision_recall": wandb.plot.line_series(
            [(100 * x).tolist() for x, _ in precision],
            [(100 * y).tolist() for _, y in precision],
            list(found),
            title="best precision in percent at this recall or a higher one",
            xname="recall in percent",
        ),
        "test/recall_fppi": wandb.plot.line_series(
            [np.log10(x).tolist() for x, _ in recall],
            [(100 * y).tolist() for _, y in recall],
            list(found),
            title="recall in percent",
            xname="log10 of false detections per photo",
        ),
    }
