"""The table of a test on the screen."""

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
    """A folder with the results of the recorded run, some parts replaced."""
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
def test_odd_results_are_told(changes: dict[str, Any], tmp_path: Path) -> None:
    """A traceback where a finished run from somebody else is resumed."""
    with pytest.raises(RunError, match=r"metrics\.json contains no results of a test"):
        report(folder_with(tmp_path, changes))


def test_names_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name in brackets that is taken for a colour, or bytes that a terminal obeys."""
    protocol = json.loads((FINISHED / "metrics.json").read_text())["protocol"]
    report(folder_with(tmp_path, {"protocol": protocol | {"dataset": "[red]mine[/red]\x1b]0;x\x07"}}))
    assert "[red]mine[/red]\\x1b]0;x\\x07" in capsys.readouterr().out
