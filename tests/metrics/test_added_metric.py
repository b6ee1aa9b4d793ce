"""Test that a metric is added by one definition."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import metrics_of, open_door

from facelab.metrics import landmarks
from facelab.metrics.face_table import FaceTable
from facelab.metrics.landmarks import Definition


def test_added_metric_appears_everywhere(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a place that needs a second edit, or guesses unit, direction or part from the name of a metric."""
    definitions = landmarks.definitions

    def with_another(table: FaceTable) -> dict[str, Definition]:
        """Add metrics whose names begin like errors in percent, and their part in another breakdown."""
        size = {"unit": "pixels", "better": "higher"}
        part = {"whole": "nme_size", "breakdown": "colour", "part": "red"}
        return definitions(table) | {
            "nme_size": Definition(table.box, **size),  # type: ignore[arg-type]
            "mae_red": Definition(table.box, **size, **part),  # type: ignore[arg-type]
        }

    monkeypatch.setattr(landmarks, "definitions", with_another)
    overrides = ["logger=many", "callbacks.face_grid=null", "callbacks.worst_faces=null", "hydra.run.dir=runs/a"]
    open_door("evaluate", f"ckpt={trained}", *overrides, folder=tmp_path)
    run = tmp_path / "runs" / "a"
    record = metrics_of(run)["nme_size"]
    assert 32 < record.low < record.value < record.high < 64 and record[3:7] == (8, 0, "pixels", "higher")
    value, interval = f"{record.value:.2f}", f"{record.low:.2f} .. {record.high:.2f}"

    assert re.search(rf"│ nme_size +│ +{value} │ px +│ +{interval} │ +8 │", capsys.readouterr().out)
    with (run / "metrics.csv").open() as file:
        (logged,) = (row for row in csv.DictReader(file) if row["test/nme_size"])
    assert float(logged["test/nme_size"]) == pytest.approx(record.value)
    (table,) = (run / "wandb").glob("offline-run-*/files/media/table/test/metrics_table_*.json")
    (row,) = (row for row in json.loads(table.read_text())["data"] if row[0] == "nme_size")
    assert row == ["nme_size", pytest.approx(record.value), "px", "higher", 8]

    worse = tmp_path / "runs" / "b"
    shutil.copytree(run, worse)
    content = json.loads((worse / "metrics.json").read_text())
    content["metrics"]["nme_size"] |= {"value": 21.0, "low": 20.0, "high": 22.0}
    (worse / "metrics.json").write_text(json.dumps(content))
    files = ["--csv", "a.csv", "--markdown", "a.md", "--html", "a.html"]
    open_door("compare", "runs/a", "runs/b", "--metrics", "nme_size", "nme_box", *files, folder=tmp_path)
    printed = capsys.readouterr().out
    assert re.search(rf"^ a +{value} ", printed, re.MULTILINE) and re.search(r"^ b +21\.00 ", printed, re.MULTILINE)
    assert "nme_size: pixels, not percent." in printed
    with (tmp_path / "a.csv").open() as file:
        best, other = csv.DictReader(file)
    assert (float(best["nme_size"]), other["nme_size"]) == (pytest.approx(record.value), "21.0")
    assert (best["nme_size_unit"], best["nme_size_faces"], other["nme_size_low"]) == ("pixels", "8", "20.0")
    markdown = (tmp_path / "a.md").read_text()
    assert f"**{value}** ({interval.replace(' ', '')})" in markdown and "| 21.00 (20.00..22.00) |" in markdown
    page = (tmp_path / "a.html").read_text()
    assert f"<b>{value}</b>" in page and "<span>21.00</span>" in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])  # type: ignore[index]
    (group,) = (group for group in data["sections"][0]["groups"] if group["axis"] == "nme_size, px")
    assert group["title"] == "colour" and group["items"] == [["red", "8", "mae_red"]]
    drawn, *_, text = data["sections"][0]["rows"][0]["metrics"]["mae_red"]
    assert drawn == pytest.approx(record.value, rel=1e-3)
    assert text == f"{value} px ({interval.replace(' ', '')})"
