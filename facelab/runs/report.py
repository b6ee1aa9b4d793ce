"""Table of a test, as train.py and evaluate.py print it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from facelab.errors import RunError, visible
from facelab.files import read_json
from facelab.run_folder import RunFolder, is_infinite
from facelab.runs.processes import is_first

if TYPE_CHECKING:
    from rich.table import Table


def report(folder: Path) -> None:
    """Print the table of the test in a run's folder, in percent, and the paths of its files.

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
        table, notes = _table(results), _notes(results, files)
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise RunError(f"{files.metrics} contains no results of a test ({type(error).__name__}: {error})") from error
    console.print(table)
    for note in notes:
        console.print(note)
    pictures = ", ".join(path.name for path in (files.test_picture, files.worst_picture) if path.is_file())
    console.print(f"results in {folder}" + (f", pictures in samples/: {pictures}" if pictures else ""), soft_wrap=True)


def _table(results: dict[str, Any]) -> "Table":
    """Build the table of the metrics of a test."""
    from rich.table import Table

    metrics, counts = results["metrics"], results["counts"]
    protocol = results["protocol"]
    title = "{dataset} {split}, {faces} faces, box: {box} x {box_scale}, pose: {pose}".format(**protocol)
    if jitter := protocol.get("box_jitter"):
        title += f", box jitter: {jitter}"
    table = Table(title=visible(title), title_justify="left")
    table.add_column("metric")
    for heading in ("%", "95 % interval", "faces"):
        table.add_column(heading, justify="right")
    for name, value in metrics.items():
        if name in ("faces", "faces_skipped"):
            continue
        unit = 1 if name.startswith("mae_") else 100
        low_high = results["intervals"].get(name)
        has_interval = low_high is not None and None not in low_high
        interval = "{:.2f} .. {:.2f}".format(*(unit * end for end in low_high)) if has_interval else ""
        count = counts.get(name, counts["nme_ioc"])
        missing = "inf" if is_infinite(name, counts) else "-"
        table.add_row(visible(name), missing if value is None else f"{unit * value:.2f}", interval, f"{count:d}")
    return table


def _notes(results: dict[str, Any], files: RunFolder) -> list[str]:
    """Return remarks below the table: of the method, skipped and unreadable faces, signs for missing numbers."""
    metrics, counts, notes = results["metrics"], results["counts"], list(map(visible, results.get("remarks", [])))
    if skipped := int(metrics["faces_skipped"]):
        notes.append(f"{skipped} faces could not be measured; they are listed in {files.faces.name} without an error")
    for role, count in results.get("unreadable", {}).items():
        if count and role != "test":
            notes.append(visible(f"{count} faces of {role} could not be read and were left out; the log lists them"))
    if any(value is None and is_infinite(name, counts) for name, value in metrics.items()):
        notes.append("inf: a point of one of these faces was predicted as NaN or infinite; -: there is no such face")
    return notes
