"""Tests of whole trainings of a detector: resume, and several processes."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import small
from conftest import PLAIN, metrics_of, open_door

from lightning_modules.retinaface import RetinaFace

OVERRIDES = [*small("retinaface"), *PLAIN, "+trainer.enable_progress_bar=false", "trainer.max_epochs=2"]
FACE_FILES = ("metrics.csv", "detections.csv", "photos.csv", "detection_curves.csv")
"""Files of a run that depend on nothing but its weights and its data."""


class Crash(BaseException):
    """Exception that simulates a crash of the machine."""


def crash_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the n-th training step (from 1) crash."""
    original, calls = RetinaFace.training_step, itertools.count(1)

    def training_step(self: RetinaFace, batch: Any, batch_index: int) -> Any:
        if next(calls) == number:
            raise Crash
        return original(self, batch, batch_index)

    monkeypatch.setattr(RetinaFace, "training_step", training_step)


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


def finish(*words: str, folder: Path) -> Path:
    open_door("train", *words, folder=folder)
    run = folder / "run"
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    return run


@pytest.mark.slow
def test_resume_of_a_detector_gives_the_uninterrupted_results(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch squares that are drawn anew, a lost batch, or a momentum that the checkpoint does not contain."""
    words = [*OVERRIDES, "callbacks.resume.minutes=0", "hydra.run.dir=run"]
    whole = finish(*words, folder=tmp_path_factory.mktemp("whole"))
    for number in (2, 3):  # in the first and in the second epoch of three steps
        with monkeypatch.context() as patch:
            crash_at(number, patch)
            with pytest.raises(Crash):
                open_door("train", *(words if number == 2 else ["resume=run"]), folder=tmp_path)
    run = finish("resume=run", folder=tmp_path)
    assert [name for name in FACE_FILES if (run / name).read_text() != (whole / name).read_text()] == []
    expected = weights(whole)
    assert [name for name, value in weights(run).items() if not torch.equal(value, expected[name])] == []


@pytest.mark.slow
def test_detector_trains_on_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch weights that are not finite, photos measured twice or never, or a rank without a face that waits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = [*OVERRIDES, "trainer=ddp_cpu", "datamodule.batch_size=1", "data.train=8", "hydra.run.dir=run"]
    run = finish(*words, folder=tmp_path)
    assert metrics_of(run)["photos"].value == 5
    assert all(value.isfinite().all() for value in weights(run).values())
