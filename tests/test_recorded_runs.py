"""Runs and checkpoints of earlier formats open, resume and compare.

``recorded/`` was written by the code of its time (commit 46f5ac7; ``format3/`` by 9a13909) and must never be written
again by a later version: a file that today's code made protects nothing. ``outputs.npz`` holds what its networks
predicted for :func:`crops`; ``uninterrupted/`` is the same training as ``unfinished/``, to its end.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import open_door
from recorded_runs import PATHS, RECORDED, crops

from facelab.comparison.group import compare
from facelab.comparison.read import read_runs
from facelab.metrics.face_table import read_faces
from facelab.renames import FORMAT
from facelab.run_folder import read_status
from facelab.runs.checkpoint import load_run

CHECKPOINTS = {"pipnet": "finished", "pfld": "unfinished"}


def load(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture
def folder(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of the recorded folders, in a working folder as the one they were recorded in."""
    for name in ("finished", "unfinished", "sweep", "format3"):
        shutil.copytree(RECORDED / name, tmp_path / name)
    (tmp_path / "data").symlink_to(cache)
    monkeypatch.setenv("FACELAB_TEST_CACHE", "data")  # the default, relative to the working folder
    monkeypatch.delenv("FACE_DATA", raising=False)  # as it was then
    return tmp_path


@pytest.mark.parametrize("method", CHECKPOINTS)
def test_recorded_checkpoint_opens_and_predicts_the_same(method: str) -> None:
    """A class that moved, an argument or a weight that was renamed, a default that changed: old checkpoints closed."""
    expected = np.load(RECORDED / "outputs.npz")
    with torch.inference_mode():
        prediction = load_run(RECORDED / CHECKPOINTS[method], PATHS).module.predict(crops())._asdict()
    found = {f"{method}_{name}": value for name, value in prediction.items() if value is not None}
    assert found.keys() == {name for name in expected if name.startswith(f"{method}_")}
    for name, value in found.items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-4, atol=1e-3, err_msg=name)


def test_recorded_finished_run_shows_its_results(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished run that counts as changed because the classes in its config.yaml have other names today."""
    kept = {name: (folder / "finished" / name).read_bytes() for name in ("metrics.json", "faces.csv", "metrics.csv")}
    open_door("train", "resume=finished", folder=folder)
    said = capsys.readouterr().out
    assert "results in" in said and "changed: " not in said
    last = Path("checkpoints/last.ckpt")
    assert (folder / "finished" / last).read_bytes() == (RECORDED / "finished" / last).read_bytes(), "trained again"
    assert {name: (folder / "finished" / name).read_bytes() for name in kept} == kept


@pytest.mark.parametrize(("place", "step"), [(".", 9), ("format3", 10)])
def test_recorded_unfinished_run_resumes_to_the_same_end(
    place: str, step: int, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Optimizer, schedule, statistics, random state or progress of an old checkpoint lost; its overrides refused."""
    open_door("train", f"resume={place}/unfinished", folder=folder)
    said = capfd.readouterr().out
    assert "changed: " not in said
    assert re.search(rf"resuming from .*last\.ckpt, step {step}\b", said), "begun anew"
    run, reference = folder / place / "unfinished", RECORDED / place / "uninterrupted"
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert (saved["format"], saved["global_step"]) == (FORMAT, 18)
    assert read_status(run).state == "finished"
    assert load(run / "metrics.json")["protocol"] == load(reference / "metrics.json")["protocol"]
    found, expected = (read_faces(each / "faces.csv") for each in (run, reference))
    # Another number of threads gave 0.1 %, a lost optimizer 2.5 %.
    np.testing.assert_allclose(found["nme_box"], expected["nme_box"], rtol=5e-3)
    heads = [(each / "metrics.csv").read_text().splitlines() for each in (run, reference)]
    assert heads[0][0] == heads[1][0] and len(heads[0]) == len(heads[1])


def test_recorded_sweep_resumes_and_compares(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cells trained twice or never; runs of before and after the move that count as different recipes."""
    open_door("train", "-m", "resume=sweep", folder=folder)
    assert [read_status(folder / "sweep" / number).state for number in "012"] == ["finished"] * 3
    assert "resumed" not in load(folder / "sweep" / "0" / "environment.json")
    (table,) = compare(read_runs([folder / "sweep"]), None)
    (row,) = table.rows
    assert len(row.runs) == 3, "seeds of one recipe stand in several rows"
    assert table.settings == ["seed"]
    capsys.readouterr()
    open_door("compare", folder / "sweep", folder / "finished", "--html", "page.html", folder=folder)
    assert "(3 seeds)" in capsys.readouterr().out
    assert (folder / "page.html").stat().st_size > 10_000


def test_recorded_run_is_measured_again(folder: Path) -> None:
    """An old run that only its own version could evaluate, or with other numbers."""
    open_door("evaluate", "ckpt=finished", "hydra.run.dir=again", folder=folder)
    found, expected = (load(folder / run / "metrics.json") for run in ("again", "finished"))
    assert found["protocol"] == expected["protocol"]
    assert found["metrics"]["nme_box"] == pytest.approx(expected["metrics"]["nme_box"], rel=1e-3)
