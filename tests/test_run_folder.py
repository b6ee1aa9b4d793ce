"""Tests of the settings that may change a result, and of the state in the files of a run."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from lightning.pytorch import callbacks as lightning_callbacks

from facelab.run_folder import BEST_CALLBACK, PASSIVE_CALLBACKS, now, read_status, result_settings
from facelab.runs.resume import _changes
from facelab.runs.targets import buildable

EMA = "lightning.pytorch.callbacks.EMAWeightAveraging"
SWA = "callbacks.weight_averaging.StochasticWeightAveraging"
RUN = {"paths": {"run": "/home/a/run"}, "logger": {"wandb": {"name": "a"}}, "seed": 1}


def with_callbacks(*, test_ckpt: str = "last", **callbacks: Any) -> dict[str, Any]:
    return RUN | {"test_ckpt": test_ckpt, "callbacks": callbacks}


def project_callbacks() -> set[str]:
    """Return the classes that conf/callbacks names."""
    files = [yaml.safe_load(file.read_text()) for file in sorted((ROOT / "conf" / "callbacks").glob("*.yaml"))]
    return {node["_target_"] for file in files for node in file.values() if isinstance(node, dict)}


@pytest.mark.parametrize("name", sorted(project_callbacks() - {EMA, SWA, BEST_CALLBACK}))
def test_result_settings_omit_passive_callbacks(name: str) -> None:
    """Would catch seeds in different rows because a picture, a chart or the checkpoint interval differs."""
    assert "callbacks" not in result_settings(with_callbacks(it={"_target_": name, "minutes": 1}))


def test_passive_callbacks_can_be_built() -> None:
    """Would catch a passive callback that was moved or renamed and now separates the seeds of a run."""
    assert {
        f"{kind.__module__}.{kind.__qualname__}".rpartition(".")[2] for kind in map(buildable, PASSIVE_CALLBACKS)
    } == {name.rpartition(".")[2] for name in PASSIVE_CALLBACKS}


@pytest.mark.parametrize(
    "name",
    [
        *(
            f"lightning.pytorch.callbacks.{name}"
            for name in ("EarlyStopping", "GradientAccumulationScheduler", "Timer")
        ),
        *(f"lightning.pytorch.callbacks.{name}" for name in ("StochasticWeightAveraging", "LambdaCallback")),
        *(EMA, SWA, "callbacks.mine.Mine", None),
    ],
)
def test_result_settings_keep_other_callbacks(name: str | None) -> None:
    """Would catch a callback that averages, stops or accumulates, or an unknown one, treated as passive."""
    assert name is None or name.startswith("callbacks.") or hasattr(lightning_callbacks, name.rpartition(".")[2])
    kept = result_settings(with_callbacks(it={"_target_": name, "decay": 0.9, "folder": "/home/a/run/mine"}, off=None))
    assert kept["callbacks"] == {"it": {"_target_": name, "decay": 0.9}}
    assert kept.keys() == {"seed", "test_ckpt", "callbacks"}


def test_result_settings_keep_the_checkpoint_if_the_best_is_tested() -> None:
    """Would catch two choices of the best checkpoint averaged as seeds, or seeds that an untested one separates."""
    checkpoint = {"_target_": BEST_CALLBACK, "dirpath": "/home/a/run/checkpoints", "monitor": "val/loss"}
    assert "callbacks" not in result_settings(with_callbacks(checkpoint=checkpoint))
    kept = {"checkpoint": {"_target_": BEST_CALLBACK, "monitor": "val/loss"}}
    assert result_settings(with_callbacks(test_ckpt="best", checkpoint=checkpoint))["callbacks"] == kept
    evaluated = with_callbacks(checkpoint=checkpoint) | {"evaluate": {"ckpt": "a/checkpoints/best.ckpt"}}
    assert result_settings(evaluated)["callbacks"] == kept


@pytest.mark.parametrize("odd", [None, [], "x", {"it": "x"}, {"it": {"_target_": ["a"]}}])
def test_result_settings_keep_malformed_callbacks(odd: Any) -> None:
    """Would catch a hand-written configuration that ends the comparison."""
    assert result_settings(RUN | {"callbacks": odd})["callbacks"] == odd


def test_changes_lists_changed_result_settings() -> None:
    """Would catch a resume with another average of the weights that is not reported."""
    before = with_callbacks(ema={"_target_": EMA, "decay": 0.99}, grid={"_target_": "callbacks.pictures.FaceGrid"})
    after = with_callbacks(ema={"_target_": EMA, "decay": 0.9}) | {"paths": {"run": "/mnt/b"}, "logger": {}}
    assert _changes(before, after) == ["callbacks.ema.decay: 0.99 -> 0.9"]
    changes = _changes(with_callbacks(), with_callbacks(ema={"_target_": EMA}))
    assert changes == [f"callbacks.ema._target_: None -> {EMA}"]


@pytest.mark.parametrize(
    ("content", "state"),
    [
        ({"state": "running", "pid": 10**30}, "lost"),
        ({"state": "running", "pid": os.getpid(), "heartbeat": "0001-01-01T00:00:00"}, "lost"),
        ({"state": "running", "pid": os.getpid(), "heartbeat": "now"}, "running"),
        ({"state": ["finished"]}, "['finished']"),
    ],
)
def test_read_status_accepts_impossible_values(tmp_path: Path, content: dict[str, Any], state: str) -> None:
    """Would catch a pid or a time that no machine has and that raises in read_status."""
    status = {key: now() if value == "now" else value for key, value in content.items()}
    (tmp_path / "status.json").write_text(json.dumps({"host": socket.gethostname()} | status))
    assert read_status(tmp_path).state == state
