"""Tests of the table of results on the screen."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from facelab.errors import RunError
from facelab.runs.report import report

FINISHED = ROOT / "tests" / "recorded" / "finished"


def folder_with(tmp_path: Path, changes: dict[str, Any]) -> Path:
    """Copy the recorded results into a folder and replace some parts."""
    shutil.copy(FINISHED / "metrics.json", tmp_path)
    content = json.loads((tmp_path / "metrics.json").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps(content | changes))
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": [1]},
        {"metrics": {"nme_box": "0.1", "faces_skipped": 0}},
        {"metrics": {"nme_box": 10**400, "faces_skipped": 0}},
        {"metrics": {}},
        {"counts": {}},
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


def test_report_shows_names_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a name in brackets that is read as a colour, or control characters that the terminal obeys."""
    protocol = json.loads((FINISHED / "metrics.json").read_text())["protocol"]
    report(folder_with(tmp_path, {"protocol": protocol | {"dataset": "[red]mine[/red]\x1b]0;x\x07"}}))
    assert "[red]mine[/red]\\x1b]0;x\\x07" in capsys.readouterr().out
