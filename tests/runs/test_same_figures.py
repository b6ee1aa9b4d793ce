"""Tests that an evaluation repeats the numbers of the training."""

import csv
from pathlib import Path

import pytest
from composing import TRAINED, small
from conftest import PLAIN, metrics_of, open_door


@pytest.mark.parametrize(
    "model",
    # The weights and statistics of every method are compared by test_load_run_restores_the_predictions.
    [pytest.param(model, marks=() if model == "pipnet" else pytest.mark.slow) for model in TRAINED],
)
def test_evaluate_repeats_the_last_validation_of_a_training(model: str, tmp_path: Path) -> None:
    """Would catch weights, statistics or options that the checkpoint does not contain."""
    overrides = [*small(model), *PLAIN, "trainer.max_epochs=1", "test=false", "hydra.run.dir=run"]
    open_door("train", *overrides, folder=tmp_path)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        last = [row for row in csv.DictReader(file) if row.get("val/faces")][-1]
    numbers = {key.removeprefix("val/"): float(last[key]) for key in last if key.startswith("val/") and last[key]}
    evaluate = ["ckpt=run/checkpoints/last.ckpt", "split=val", "logger=none", "num_workers=0", "hydra.run.dir=again"]
    open_door("evaluate", *evaluate, folder=tmp_path)
    again = metrics_of(tmp_path / "again")
    assert len(numbers) > 5
    for name, value in numbers.items():
        assert again[name].value == pytest.approx(value, abs=1e-6, nan_ok=True), name
