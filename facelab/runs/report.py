"""Table of a test, as train.py and evaluate.py print it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facelab.errors import RunError, visible
from facelab.files import read_json
from facelab.metrics.record import SCALES, Metric, read_metrics
from facelab.run_folder import RunFolder
from facelab.runs.processes import is_first

if TYPE_CHECKING:
    from rich.table import Table


TITLE = {
    "photos": "{} photos",
    "faces": "{} faces",
    "scale": "scale: {}",
    "box": "box: {}",
    "pose": "pose: {}",
    "box_jitter": "box jitter: {}",
}
"""Text in the title of the table for an entry of the protocol; a detector and a landmark method have different ones."""


def report(folder: Path) -> None:
    """Print the table of the test in a run's folder and the paths of its files.

    Raises:
        RunError: the file of the results is broken.
    """
    from rich.console import Console

    files = RunFolder(folder)
    if not is_first():
        return
    console = Console(markup=False)
    if not files.metrics.is_file():
        if files.checkpoints.is_dir():
            console.print(f"no test was requested; the checkpoints are in {files.checkpoints}", soft_wrap=True)
        return
    try:
        results = read_json(files.metrics)
        metrics = read_metrics(results)
        table, notes = _table(results["protocol"], metrics), _notes(results, metrics, files)
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise RunError(f"{files.metrics} contains no results of a test ({type(error).__name__}: {error})") from error
    console.print(table)
    for note in notes:
        console.print(note)
    pictures = ", ".join(path.name for path in (files.test_picture, files.worst_picture) if path.is_file())
    console.print(f"results in {folder}" + (f", pictures in samples/: {pictures}" if pictures else ""), soft_wrap=True)


def _table(protocol: Mapping[str, Any], metrics: Mapping[str, Metric]) -> "Table":
    """Build the table of the metrics of a test."""
    from rich.table import Table

    title = "{dataset} {split}".format(**protocol)
    title += "".join(f", {text.format(protocol[key])}" for key, text in TITLE.items() if protocol.get(key))
    table = Table(title=visible(title), title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("unit")
    for heading in ("95 % interval", "faces"):
        table.add_column(heading, justify="right")
    for name, metric in metrics.items():
        has_interval = not math.isnan(metric.low) and not math.isnan(metric.high)
        interval = f"{metric.text(metric.low)} .. {metric.text(metric.high)}" if has_interval else ""
        value, unit = metric.text(metric.value), SCALES[metric.unit].sign
        table.add_row(visible(name), value, unit, interval, f"{metric.faces:d}")
    return table


def _notes(results: Mapping[str, Any], metrics: Mapping[str, Metric], files: RunFolder) -> list[str]:
    """Return remarks below the table: of the method, skipped and unreadable faces, signs for missing numbers."""
    notes = list(map(visible, results.get("remarks", [])))
    noun, file = ("photos", files.photos) if "photos_skipped" in metrics else ("faces", files.faces)
    if skipped := int(metrics[f"{noun}_skipped"].value):
        notes.append(f"{skipped} {noun} could not be measured; they are listed in {file.name} without a result")
    for role, count in results.get("unreadable", {}).items():
        if count and role != "test":
            notes.append(visible(f"{count} {noun} of {role} could not be read and were left out; the log lists them"))
    if any(math.isinf(metric.value) for metric in metrics.values()):
        notes.append("inf: a point of one of these faces was predicted as NaN or infinite; -: there is no such face")
    return notes
