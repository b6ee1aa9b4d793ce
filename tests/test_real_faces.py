"""Tests of the doors on real photos; the environment variable FACE_DATA names the folder of the datasets."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing import small
from conftest import face_data, metrics_of, open_door

from facelab.metrics.face_table import read_faces

SHORT = ("trainer.max_epochs=1", "logger=none", "hydra.run.dir=run")
FEW = tuple(f"+trainer.limit_{part}_batches=2" for part in ("train", "val", "test"))


def load(run: Path) -> Any:
    return json.loads((run / "metrics.json").read_text())


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that trains a network of a layout on a few rendered faces, once for each layout."""

    @cache
    def train(layout: str) -> Path:
        folder = tmp_path_factory.mktemp("trained")
        open_door("train", *small("pipnet"), f"data=synthetic{layout}", *SHORT, folder=folder)
        return folder / "run"

    return train


def test_train_on_ytf(tmp_path: Path) -> None:
    """Would catch a reader, a crop or a mean shape that works only on rendered faces."""
    root = face_data("ytf68")
    overrides = [word for word in small("pipnet") if not word.startswith("data.") and not word.startswith("data=")]
    open_door("train", *overrides, "data=ytf68", f"data.root={root}", *SHORT, *FEW, folder=tmp_path)
    results = load(tmp_path / "run")
    metrics = metrics_of(tmp_path / "run")
    assert metrics["faces"].value == results["protocol"]["faces"] == 8
    assert metrics["faces_skipped"].value == 0
    assert results["protocol"]["pose"] == "estimated"
    assert 0.05 < metrics["nme_box"].value < 1


def test_evaluate_on_portraits(tmp_path: Path, trained_on: Callable[[str], Path]) -> None:
    """Would catch errors of 106 landmarks in photos much larger than the crop, which are decoded at reduced size."""
    root, run = face_data("frl106"), trained_on("106")
    overrides = ["data=lapa106", f"data.root={root}", "data.name=frl106", "hydra.run.dir=test"]
    open_door("evaluate", f"ckpt={run}", *overrides, folder=tmp_path)
    results = load(tmp_path / "test")
    assert (results["protocol"]["dataset"], results["protocol"]["faces"]) == ("frl106", 20)
    metrics = metrics_of(tmp_path / "test")
    assert metrics["nme_box_yaw_0_30"].value == metrics["nme_box"].value
    assert 0.05 < metrics["nme_box"].value < 1


@pytest.mark.parametrize("box", ["given", pytest.param("points", marks=pytest.mark.slow)])
def test_evaluate_on_wflw(box: str, tmp_path: Path, trained_on: Callable[[str], Path]) -> None:
    """Would catch errors of several faces in one photo, of boxes of a detector, or of the six attributes as subsets."""
    root, run = face_data("WFLW"), trained_on("98")
    overrides = ["data=wflw98", f"data.root={root}", f"box={box}", "hydra.run.dir=test"]
    open_door("evaluate", f"ckpt={run}", *overrides, folder=tmp_path)
    results, faces = load(tmp_path / "test"), read_faces(tmp_path / "test" / "faces.csv")
    assert results["protocol"]["box"] == box
    assert len(faces["face_id"]) == 102
    assert len(set(faces["photo"])) == 88
    assert np.isfinite(faces["error_px"]).all()
    metrics = metrics_of(tmp_path / "test")
    tags = [metric for metric in metrics.values() if metric.breakdown == "tag"]
    assert len(tags) == 6
    assert all(metric.faces > 0 for metric in tags)
