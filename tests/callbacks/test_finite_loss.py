"""Tests of the callback that reacts to a NaN or infinite loss."""

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import small
from conftest import PLAIN, ROOT, open_door

from callbacks.finite_loss import MAX_SKIPPED
from facelab.faces.batch import LandmarkBatch
from facelab.run_folder import RunFolder
from facelab.runs.checkpoint import read_checkpoint
from lightning_modules.landmark import LandmarkModule

OVERRIDES = (*PLAIN, "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "hydra.run.dir=run")
Spoil = Callable[..., None]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spoil]:
    """Return a function that multiplies the loss of given steps, counted from 0 in one process."""

    def at(*steps: int, by: float = math.nan) -> None:
        original, calls = LandmarkModule.total, count()

        def total(self: LandmarkModule, *given: Any) -> torch.Tensor:
            return original(self, *given) * (by if next(calls) in steps else 1.0)

        monkeypatch.setattr(LandmarkModule, "total", total)

    yield at


def status(folder: Path) -> Any:
    return json.loads(RunFolder(folder / "run").status.read_text())


@pytest.mark.parametrize(
    ("method", "by"),
    [
        *(("pipnet", math.nan), ("pfld", math.inf)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("pipnet", math.inf), ("pfld", math.nan))),
    ],
)
def test_finite_loss_stops(method: str, by: float, tmp_path: Path, spoil: Spoil) -> None:
    """Would catch a failed training that runs to its end, keeps a best checkpoint and has the state finished."""
    spoil(5, by=by)
    with pytest.raises(SystemExit) as stop:
        open_door("train", *small(method), *OVERRIDES, folder=tmp_path)
    file = RunFolder(tmp_path / "run").bad_batch(0)
    for part in (str(by), "step 5 (epoch 1, batch 1, learning rate", ".jpg", str(file), "optimizer.lr", "on_nan=skip"):
        assert part in str(stop.value)
    assert status(tmp_path)["state"] == "failed"
    assert not RunFolder(tmp_path / "run").metrics.exists()


def test_finite_loss_saves_the_batch(tmp_path: Path, spoil: Spoil) -> None:
    """Would catch a batch that cannot be replayed: without its weights, or with the weights after the step."""
    spoil(4)  # the first step after a checkpoint
    with pytest.raises(SystemExit):
        open_door("train", *small("pipnet"), *OVERRIDES, folder=tmp_path)
    run = RunFolder(tmp_path / "run")
    saved, last = torch.load(run.bad_batch(0)), read_checkpoint(run.checkpoint("last"))
    assert saved["step"] == last.step == 4
    batch = LandmarkBatch(**saved["batch"])
    assert batch.image.shape == (4, 3, 64, 64)
    learned = [name for name in last.weights if not name.endswith(("running_mean", "running_var", "tracked"))]
    assert all(torch.equal(saved["weights"][name], last.weights[name]) for name in learned)


def test_finite_loss_skips_a_step(tmp_path: Path, spoil: Spoil) -> None:
    """Would catch a bad step that leaves NaN weights, and a count in a row that good steps do not reset."""
    spoil(1, 3, 4)
    open_door("train", *small("pipnet"), *OVERRIDES, "on_nan=skip", folder=tmp_path)
    weights = read_checkpoint(RunFolder(tmp_path / "run").checkpoint("last")).weights
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert status(tmp_path)["state"] == "finished"


def test_finite_loss_skips_the_whole_accumulated_step(tmp_path: Path, spoil: Spoil) -> None:
    """Would catch gradients of a bad batch that are added to the step of the next one."""
    spoil(0)
    overrides = (*OVERRIDES, "on_nan=skip", "+trainer.accumulate_grad_batches=2")
    open_door("train", *small("pipnet"), *overrides, folder=tmp_path)
    weights = read_checkpoint(RunFolder(tmp_path / "run").checkpoint("last")).weights
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_finite_loss_stops_after_too_many_skips(tmp_path: Path, spoil: Spoil) -> None:
    """Would catch a training that skips every step and has the state finished."""
    spoil(*range(1, 99))
    with pytest.raises(SystemExit, match=f"{MAX_SKIPPED} steps in a row"):
        open_door("train", *small("pipnet"), *OVERRIDES, "on_nan=skip", "trainer.max_epochs=4", folder=tmp_path)
    assert status(tmp_path)["state"] == "failed"


def test_finite_loss_with_continue_warns_once(tmp_path: Path, spoil: Spoil, capfd: pytest.CaptureFixture[str]) -> None:
    """Would catch one warning per step, or a stop although on_nan=continue is set."""
    spoil(5, 6, 7)
    open_door("train", *small("pipnet"), *OVERRIDES, "on_nan=continue", folder=tmp_path)
    assert capfd.readouterr().out.count("continues with on_nan=continue") == 1
    assert status(tmp_path)["state"] == "finished"


RANK_1 = f"""
import itertools, os, sys
sys.path.insert(0, {str(ROOT)!r})
from lightning_modules.landmark import LandmarkModule

original, calls = LandmarkModule.total, itertools.count()

def total(self, *given):
    bad = os.environ.get("LOCAL_RANK") == "1" and next(calls) == 1
    return original(self, *given) * (float("nan") if bad else 1)

LandmarkModule.total = total
door = {str(ROOT / "train.py")!r}
exec(compile(open(door).read(), door, "exec"))
"""
"""Training program; the second loss of rank 1 is NaN."""


@pytest.mark.slow
@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_finite_loss_acts_on_all_ranks(on_nan: str, tmp_path: Path) -> None:
    """Would catch one rank that stops or skips alone: the others hang, or have other weights."""
    (tmp_path / "door.py").write_text(RANK_1)
    overrides = (*small("pipnet"), *OVERRIDES, "trainer=ddp_cpu", "datamodule.batch_size=2", f"on_nan={on_nan}")
    environment = os.environ | {"FACELAB_CACHE": os.environ["FACELAB_TEST_CACHE"]}
    command = [sys.executable, "door.py", *overrides]
    process = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    run = RunFolder(tmp_path / "run")
    printed = process.stdout + process.stderr
    assert "starts again at step 0" not in printed, "rank 1 treated the folder created by rank 0 as an older run"
    if on_nan == "stop":
        assert (process.returncode, status(tmp_path)["state"]) == (1, "failed"), printed
        assert "the loss of rank 1 is nan at step 1" in printed
        assert run.bad_batch(1).is_file()
    else:
        assert (process.returncode, status(tmp_path)["state"]) == (0, "finished"), printed
        weights = read_checkpoint(run.checkpoint("last")).weights
        assert all(torch.isfinite(value).all() for value in weights.values())


def test_finite_loss_is_reported_on_a_full_disk(tmp_path: Path, spoil: Spoil, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an error that names the full disk instead of the NaN loss."""
    spoil(5)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("callbacks.finite_loss.write_tensors", full)
    with pytest.raises(SystemExit, match=r"the loss is nan .* could not be saved: .*No space left"):
        open_door("train", *small("pipnet"), *OVERRIDES, folder=tmp_path)
