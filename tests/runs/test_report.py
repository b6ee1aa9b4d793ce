"""Tests of the table of results on the screen."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from facelab.errors import RunError
from facelab.metrics.record import Metric, as_json
from facelab.runs.report import report

FINISHED = ROOT / "tests" / "recorded" / "finished"
"""Run of an earlier version, whose metrics are plain numbers."""
BOX = Metric(0.0457, 0.044, 0.047, 90, 10, "fraction", "lower")
RECORDS = {
    "nme_box": BOX,
    "mae_yaw": BOX._replace(value=4.25, low=4.0, high=4.5, unit="degrees"),
    "nobody": BOX._replace(value=float("nan"), low=float("nan"), high=float("nan"), faces=0),
    "lost": BOX._replace(value=float("inf"), high=float("inf"), unit="pixels"),
    "faces_skipped": BOX._replace(value=3.0, low=float("nan"), high=float("nan"), unit="count", better="none"),
}


def folder_with(tmp_path: Path, changes: dict[str, Any]) -> Path:
    """Copy the recorded results into a folder and replace some parts."""
    shutil.copy(FINISHED / "metrics.json", tmp_path)
    content = json.loads((tmp_path / "metrics.json").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps(content | changes))
    return tmp_path


def with_records(tmp_path: Path, changes: dict[str, Any]) -> Path:
    """Write results of today into a folder, with changes of fields of nme_box."""
    protocol = json.loads((FINISHED / "metrics.json").read_text())["protocol"]
    metrics = {name: as_json(record) for name, record in RECORDS.items()}
    metrics["nme_box"] |= changes
    (tmp_path / "metrics.json").write_text(json.dumps({"protocol": protocol, "metrics": metrics}))
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": [1]},
        {"metrics": {"nme_box": "0.1", "faces_skipped": 0}},
        {"metrics": {"nme_box": 10**400, "faces_skipped": 0}},
        {"metrics": {}},
        {"counts": {"nme_ioc": "many"}},
        {"intervals": {"nme_box": [1]}},
        {"protocol": {}},
        {"protocol": None},
        {"unreadable": [1]},
    ],
    ids=str,
)
def test_report_refuses_malformed_results(changes: dict[str, Any], tmp_path: Path) -> None:
    """Would catch a traceback when a received finished run is resumed."""
    with pytest.raises(RunError, match=r"metrics\.json contains no results of a test"):
        report(folder_with(tmp_path, changes))


@pytest.mark.parametrize("changes", [{"value": "low"}, {"faces": None}, {"unit": "percent"}, {"better": 1}], ids=str)
def test_report_refuses_malformed_records(changes: dict[str, Any], tmp_path: Path) -> None:
    """Would catch a traceback when a received finished run is resumed."""
    with pytest.raises(RunError, match=r"metrics\.json contains no results of a test .*metrics\.nme_box\."):
        report(with_records(tmp_path, changes))


def cells_of(printed: str) -> dict[str, list[str]]:
    """Return the cells of each printed row by its first cell."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    return {name: cells for name, *cells in rows}


def test_report_shows_each_metric_in_its_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch degrees or faces in percent, and infinity that looks like a subset without faces."""
    report(with_records(tmp_path, {}))
    printed = capsys.readouterr().out
    assert cells_of(printed) == {
        "nme_box": ["4.57", "%", "4.40 .. 4.70", "90"],
        "mae_yaw": ["4.25", "°", "4.00 .. 4.50", "90"],
        "nobody": ["-", "%", "", "0"],
        "lost": ["inf", "px", "0.04 .. inf", "90"],
        "faces_skipped": ["3", "", "", "90"],
    }
    assert "3 faces could not be measured" in printed and "inf: a point" in printed


def test_report_shows_an_earlier_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a finished run of an earlier version whose table cannot be shown."""
    report(folder_with(tmp_path, {}))
    rows = cells_of(capsys.readouterr().out)
    assert rows["nme_box"] == ["59.46", "%", "53.65 .. 65.47", "8"]
    assert rows["nme_ioc_tag_head_up"] == ["-", "%", "", "0"]


def test_report_shows_names_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a name in brackets that is read as a colour, or control characters that the terminal obeys."""
    protocol = json.loads((FINISHED / "metrics.json").read_text())["protocol"]
    report(folder_with(tmp_path, {"protocol": protocol | {"dataset": "[red]mine[/red]\x1b]0;x\x07"}}))
    assert "[red]mine[/red]\\x1b]0;x\\x07" in capsys.readouterr().out


def test_report_shows_the_photos_of_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a crash without the box of a landmark method, and a heading without the scale of the search."""
    protocol = {"dataset": "boxes", "split": "val", "photos": 9, "faces": 20, "scale": "vga", "threshold": 0.02}
    skipped = RECORDS["faces_skipped"]
    metrics = {"ap50": as_json(BOX._replace(better="higher")), "photos_skipped": as_json(skipped)}
    content = {"protocol": protocol, "metrics": metrics, "unreadable": {"test": 3, "val": 1}}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    report(tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert "boxes val, 9 photos, 20 faces, scale: vga" in printed
    assert "3 photos could not be measured; they are listed in photos.csv without a result" in printed
    assert "1 photos of val could not be read" in printed


def test_report_prints_the_remarks_of_the_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a stage that is worse than the one before it and of which the table says nothing."""
    content = json.loads((with_records(tmp_path, {}) / "metrics.json").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps(content | {"remarks": ["stage 2 is worse than stage 1"]}))
    report(tmp_path)
    assert "stage 2 is worse than stage 1" in capsys.readouterr().out
