"""Figures of a training and of an evaluation of its checkpoint."""

import csv
import json
from math import isnan
from pathlib import Path

import pytest
from composing import MODELS, small
from conftest import PLAIN, open_door


@pytest.mark.parametrize("model", MODELS)
def test_last_validation_equals_an_evaluation(model: str, tmp_path: Path) -> None:
    """Weights, statistics or options that a checkpoint does not carry: the figures of a run then cannot be repeated."""
    words = [*small(model), *PLAIN, "trainer.max_epochs=1", "test=false", "hydra.run.dir=run"]
    open_door("train", *words, folder=tmp_path)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        last = [row for row in csv.DictReader(file) if row.get("val/nme_box")][-1]
    numbers = {key.removeprefix("val/"): float(last[key]) for key in last if key.startswith("val/") and last[key]}
    evaluate = ["ckpt=run/checkpoints/last.ckpt", "split=val", "logger=none", "num_workers=0", "hydra.run.dir=again"]
    open_door("evaluate", *evaluate, folder=tmp_path)
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())["metrics"]
    assert len(numbers) > 5
    for name, value in numbers.items():
        if not isnan(value):  # of no face; metrics.json has null
            assert again[name] == pytest.approx(value, abs=1e-6), name
