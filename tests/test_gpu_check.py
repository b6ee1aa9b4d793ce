"""Test of the speed check for a machine with a GPU, on the CPU with a few steps. It asserts no time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from composing import DETECTORS, TRAINED, small
from conftest import ROOT

TIMES = {"run_ms", "trainer_ms", "trainer_without_on_nan_ms", "step_ms", "run_share", "trainer_share", "on_nan_cost"}


@pytest.mark.slow
@pytest.mark.parametrize("model", TRAINED)
def test_gpu_check_measures_every_method(model: str, tmp_path: Path) -> None:
    """Would catch a script that fails with one method, because a GPU is available for minutes only."""
    overrides = [*small(model), "datamodule.num_workers=1", "trainer=cpu"]
    line = ["scripts/gpu_check.sh", "--output", str(tmp_path / "speed.json"), "--rounds", "1", "--steps", "2"]
    line += ["--workers", "1,2", "--seconds", "0", "--compile", "false", *overrides]
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHON": sys.executable,
        "FACELAB_CACHE": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run(line, cwd=ROOT, env=environment, check=True, capture_output=True)
    report = json.loads((tmp_path / "speed.json").read_text())
    assert report["complete"]
    (measured,) = report["methods"].values()
    assert set(measured["loader_images_per_s"]) == {"1", "2"}
    assert set(measured["eager"]["training"]) == TIMES
    assert all(measured["eager"]["training"][key] > 0 for key in TIMES - {"on_nan_cost"})
    assert model in DETECTORS or measured["eager"]["latency_p50_ms"] > 0
