"""Test of a search, a sweep that chooses values from earlier results."""

import csv
from pathlib import Path

import pytest
import yaml
from composing import small
from conftest import open_door

from facelab.run_folder import read_status

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is not installed")


def monitored(run: Path) -> float:
    """Read the last validation's NME_box from metrics.csv."""
    with (run / "metrics.csv").open() as file:
        return float([row["val/nme_box"] for row in csv.DictReader(file) if row["val/nme_box"]][-1])


@pytest.mark.slow
def test_search_sweep_finds_the_best_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch the worst value reported as the best, trials in one folder, or a failed trial that ends a search."""
    monkeypatch.setenv("FACELAB_CODE", "")  # stay in this process
    overrides = [*small("pipnet"), "logger=csv", "trainer.max_epochs=1", "coder.num_neighbours=5,200"]
    overrides += ["optimizer.lr=tag(log,interval(1e-5,1e-2))", "-m", "hydra/sweeper=search", "hydra.sweep.dir=search"]
    open_door("train", *overrides, "hydra.sweeper.n_trials=5", "hydra.sweeper.sampler.seed=1", folder=tmp_path)
    trials = [tmp_path / "search" / number for number in "01234"]
    values = [monitored(trial) for trial in trials if read_status(trial).state == "finished"]
    assert len(set(values)) == len(values) > 1
    assert [read_status(trial).state for trial in trials].count("failed") == 5 - len(values) > 0  # 200 of 68 points
    results = yaml.safe_load((tmp_path / "search" / "optimization_results.yaml").read_text())
    assert results["best_value"] == pytest.approx(min(values), rel=1e-6)
    assert results["best_params"]["coder.num_neighbours"] == 5
