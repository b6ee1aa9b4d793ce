"""The doors on photographs. FACE_DATA names the folder of the datasets."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import open_door, small

from facelab.metrics.landmarks import read_faces

DATA = Path(os.environ.get("FACE_DATA", "no folder"))
SHORT = ("trainer.max_epochs=1", "logger=none", "hydra.run.dir=run")
FEW = tuple(f"+trainer.limit_{part}_batches=2" for part in ("train", "val", "test"))


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (DATA / name).is_dir(), reason=f"FACE_DATA has no {name}")


def load(run: Path) -> Any:
    return json.loads((run / "metrics.json").read_text())


def trained_on(layout: str, folder: Path) -> Path:
    """A network of this markup that has seen a few rendered faces."""
    open_door("train", *small("pipnet"), f"data=synthetic{layout}", *SHORT, folder=folder)
    return folder / "run"


@needs("ytf68")
def test_training_on_ytf(tmp_path: Path) -> None:
    """A reader, a crop or a mean shape that works on rendered faces alone."""
    words = [word for word in small("pipnet") if not word.startswith("data.") and not word.startswith("data=")]
    open_door("train", *words, "data=ytf68", *SHORT, *FEW, folder=tmp_path)
    results = load(tmp_path / "run")
    assert results["metrics"]["faces"] == results["protocol"]["faces"] == 8
    assert results["metrics"]["faces_skipped"] == 0
    assert results["protocol"]["pose"] == "estimated"
    assert 0.05 < results["metrics"]["nme_box"] < 1


@needs("frl106")
def test_evaluation_on_portraits(tmp_path: Path) -> None:
    """Photos much larger than the crop, which are decoded reduced, and 106 points of another source."""
    run = trained_on("106", tmp_path)
    words = ["data=lapa106", f"data.root={DATA / 'frl106'}", "data.name=frl106", "hydra.run.dir=test"]
    open_door("evaluate", f"ckpt={run}", *words, folder=tmp_path)
    results = load(tmp_path / "test")
    assert (results["protocol"]["dataset"], results["protocol"]["faces"]) == ("frl106", 20)
    assert results["metrics"]["nme_box_yaw_0_30"] == results["metrics"]["nme_box"]
    assert 0.05 < results["metrics"]["nme_box"] < 1


@needs("WFLW")
@pytest.mark.parametrize("box", ["given", "points"])
def test_evaluation_on_wflw(box: str, tmp_path: Path) -> None:
    """Several faces in one photo, rectangles of a detector, and the six attributes as subsets."""
    run = trained_on("98", tmp_path)
    open_door("evaluate", f"ckpt={run}", "data=wflw98", f"box={box}", "hydra.run.dir=test", folder=tmp_path)
    results, faces = load(tmp_path / "test"), read_faces(tmp_path / "test" / "faces.csv")
    assert results["protocol"]["box"] == box
    assert len(faces["face_id"]) == 102
    assert len(set(faces["photo"])) == 88
    assert np.isfinite(faces["error_px"]).all()
    tags = [name for name in results["metrics"] if name.startswith("nme_ioc_tag_")]
    assert len(tags) == 6
    assert all(results["counts"][name] > 0 for name in tags)
