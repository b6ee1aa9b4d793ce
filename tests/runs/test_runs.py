"""Tests of the files of a run, of building its parts and of opening its checkpoint."""

import csv
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import compose_config, small
from conftest import metrics_of, open_door
from omegaconf import DictConfig, OmegaConf

from evaluate import build_data
from facelab.coders.pipnet import PIPCoder
from facelab.errors import CheckpointError, ConfigError, FacelabError
from facelab.files import write_json
from facelab.metrics.face_table import read_faces
from facelab.runs.build import build
from facelab.runs.checkpoint import load_run
from facelab.runs.processes import STAMP

PATHS = OmegaConf.create(
    {"data": "elsewhere", "cache": "elsewhere", "run": "now", "name": "x", "group": "g", "id": "i", "tags": []}
)


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def epochs_of(run: Path) -> list[tuple[int, float]]:
    """Read the epoch and the NME_box of every validation from metrics.csv."""
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/nme_box")]
    return [(int(row["epoch"]), float(row["val/nme_box"])) for row in rows]


# Files of a run


def test_train_writes_all_files_of_a_run(trained: Path) -> None:
    """Would catch a file that is missing, in another folder, or left under a temporary name."""
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        *("config.yaml", "environment.json", "status.json", "metrics.csv", "metrics.json", "faces.csv"),
        *("checkpoints", "samples", "tensorboard", "wandb", "overrides.yaml"),
    }
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert len(list((trained / "wandb").glob("offline-run-*/*.wandb"))) == 1
    assert {path.name for path in trained.parent.iterdir()} == {"run"}, "a file was written outside the run"
    assert [path for path in trained.rglob(".*") if path.name != ".lock"] == []

    cfg = OmegaConf.load(trained / "config.yaml")
    assert cfg.model.backbone.name == "test_resnet"
    assert cfg.data.cache.endswith("/synthetic")
    assert "${" not in (trained / "config.yaml").read_text()
    status = load(trained / "status.json")
    assert (status["state"], status["pid"]) == ("finished", os.getpid())
    assert status["started"] <= status["ended"]
    environment = load(trained / "environment.json")
    assert environment["packages"].keys() >= {"torch", "lightning", "timm"}
    assert len(environment["git_commit"] or "0" * 40) == 40


def test_metrics_json_agrees_with_the_face_table(trained: Path) -> None:
    """Would catch metrics of other faces than the table, or without their protocol."""
    results, faces = load(trained / "metrics.json"), read_faces(trained / "faces.csv")
    metrics = metrics_of(trained)
    for name in ("nme_ioc", "nme_box", "nme_ioc_crop"):
        assert metrics[name].value == pytest.approx(float(np.nanmean(faces[name])), abs=1e-12)
    assert metrics["faces"].value == results["protocol"]["faces"] == len(faces["face_id"]) == 8
    assert faces["photo"].tolist() == [f"{i:05d}.jpg" for i in range(8)]
    assert metrics["nme_box"].low < metrics["nme_box"].value < metrics["nme_box"].high
    assert results["protocol"]["dataset"] == "synthetic68"
    assert results["protocol"]["pose"] == "labelled"
    assert [epoch for epoch, _ in epochs_of(trained)] == [0, 1, 2]


def test_last_checkpoint_is_of_the_last_epoch(trained: Path) -> None:
    """Would catch `save_last` of Lightning, which saves beside a monitor only if the value improved."""
    last = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    best = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (2, 12)
    assert best["epoch"] == min(epochs_of(trained), key=lambda row: row[1])[0]
    assert load(trained / "status.json")["tested"].endswith("checkpoints/last.ckpt")


def test_train_tests_the_best_checkpoint_on_request(tmp_path: Path) -> None:
    """Would catch `test_ckpt=best` that tests the last checkpoint."""
    # The number of faces never improves, so that the best epoch is the first one.
    overrides = ["monitor.name=val/faces", "test_ckpt=best", "logger=csv", "trainer.max_epochs=3"]
    open_door("train", *small("pipnet"), *overrides, "hydra.run.dir=run", folder=tmp_path)
    saved = {
        name: torch.load(tmp_path / "run" / "checkpoints" / f"{name}.ckpt", weights_only=True)["epoch"]
        for name in ("best", "last")
    }
    assert saved == {"best": 0, "last": 2}
    assert load(tmp_path / "run" / "status.json")["tested"].endswith("checkpoints/best.ckpt")
    assert load_run(tmp_path / "run", PATHS).checkpoint.name == "best.ckpt"


@pytest.mark.parametrize(
    "words", [["trainer=check"], ["callbacks=none", "logger=none"], ["logger=none"]], ids=["check", "bare", "quiet"]
)
def test_train_runs_without_checkpoint_or_logger(words: list[str], tmp_path: Path) -> None:
    """Would catch an option that fails after the training for a missing part, or a check that starts a W&B run."""
    open_door("train", *small("pipnet"), "trainer.max_epochs=1", *words, "hydra.run.dir=run", folder=tmp_path)
    assert load(tmp_path / "run" / "status.json")["state"] == "finished"
    saved = (tmp_path / "run" / "checkpoints").exists()
    assert saved == (words == ["logger=none"])
    assert (load(tmp_path / "run" / "status.json")["tested"] is not None) == saved
    assert not {path.name for path in (tmp_path / "run").iterdir()} & {"wandb", "tensorboard", "metrics.csv"}
    if words == ["trainer=check"]:
        with pytest.raises(SystemExit, match=r"run is a check of a few batches \(trainer=check\)"):
            open_door("evaluate", "ckpt=run", folder=tmp_path)


def test_train_takes_keys_of_the_trainer_without_plus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a key that no YAML file has and that Hydra refuses, or one that does not reach Lightning."""
    clipped = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda _, norm: clipped.append(norm))
    words = ["trainer.gradient_clip_val=0.5", "trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=4"]
    words += ["trainer.max_epochs=1", "test=false", "callbacks=none", "logger=none", "hydra.run.dir=run"]
    open_door("train", *small("pipnet"), *words, folder=tmp_path)
    assert clipped == [0.5, 0.5]


def test_protocol_of_a_partial_test_differs(tmp_path: Path, trained: Path) -> None:
    """Would catch metrics of a few batches in one table with those of all faces."""
    overrides = ["+trainer.limit_test_batches=1", "trainer.max_epochs=1", "logger=none", "callbacks=none"]
    open_door("train", *small("pipnet"), *overrides, "hydra.run.dir=run", folder=tmp_path)
    part, whole = (load(run / "metrics.json")["protocol"] for run in (tmp_path / "run", trained))
    assert part["faces"] == 4
    assert part["truth"] != whole["truth"]


def test_write_json_replaces_non_finite_numbers_by_null(tmp_path: Path) -> None:
    """Would catch `NaN` in a JSON file, which other programs cannot read."""
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [1.5, float("inf"), (float("-inf"),)], "c": "NaN"})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [1.5, None, [None]], "c": "NaN"}
    write_json(tmp_path / "b.json", {"points": [[1.5, 2.0]]}, indent=None)
    assert (tmp_path / "b.json").read_text() == '{"points": [[1.5, 2.0]]}\n'


def test_metrics_json_has_null_for_empty_buckets(trained: Path) -> None:
    """Would catch `NaN` in the results of a run: no face of 96 pixels is larger than 128."""
    results = load(trained / "metrics.json")
    record = results["metrics"]["nme_box_size_128_up"]
    assert (record["value"], record["low"], record["faces"]) == (None, None, 0)


# Failures


def test_train_records_why_it_failed(tmp_path: Path) -> None:
    """Would catch an error deep in a training step that does not reach status.json."""
    with pytest.raises(SystemExit, match="must be a multiple of"):
        open_door("train", *small("pipnet"), "crop.size=100", "logger=none", "hydra.run.dir=run", folder=tmp_path)
    status = load(tmp_path / "run" / "status.json")
    assert status["state"] == "failed"
    assert status["reason"].startswith("crop.size=100")
    assert "Traceback" in (tmp_path / "run" / "train.log").read_text()


# Building


@pytest.mark.parametrize(
    ("words", "node", "message"),
    [
        (["backbone=timm", "backbone.name=nope"], "model", "backbone.name=nope: timm"),
        (["coder.stride=7"], "model", "coder.stride=7"),
        (["data.train=-3"], "datamodule", "data.train=-3 must be"),
        (["augment.scale_limit=2"], "datamodule", "augment.scale_limit must be"),
        (["trainer.precision=5"], "trainer", "trainer: Precision 5 is invalid"),
    ],
)
def test_build_names_the_key_of_a_refused_value(
    words: list[str], node: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a traceback through Hydra, or a message that names a reference in the place of its value."""
    monkeypatch.setenv(STAMP, "now")
    with pytest.raises(ConfigError) as stop:
        build(compose_config([*small("pipnet"), *words]), node)
    assert str(stop.value).startswith(message)


def test_build_keeps_the_traceback_of_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a bug of this project that is reported as a mistake of the user."""
    part = OmegaConf.create({"a": {"_target_": "facelab.losses.pipnet.PIPLoss", "score_weight": 1}})
    with pytest.raises(TypeError, match="missing"):
        build(part, "a")
    monkeypatch.delattr("facelab.losses.regression.math.log1p")
    with pytest.raises(AttributeError, match="log1p"):
        build(
            OmegaConf.create({"a": {"_target_": "facelab.losses.regression.WingLoss", "width": 1, "curvature": 1}}), "a"
        )


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "torch.nn.Linear", "in_features": "three", "out_features": 2}, "a: "),  # a TypeError
        ({"_target_": "lightning.Trainer", "accelerator": "cpu", "devices": "x"}, "a: `devices` selected with"),
        (
            {"_target_": "albumentations.CoarseDropout", "num_holes_range": [0, 1]},
            "a.num_holes_range: All values in (0, 1) must be >= 1",
        ),
    ],
    ids=["torch", "lightning", "albumentations"],
)
def test_build_names_the_key_of_a_value_that_a_library_refuses(node: dict[str, Any], message: str) -> None:
    """Would catch a traceback for the exception types of libraries, or the several lines of a validator."""
    with pytest.raises(ConfigError) as stop:
        build(OmegaConf.create({"a": node}), "a")
    assert str(stop.value).startswith(message)
    assert "\n" not in str(stop.value)


# Opening a run again


def test_checkpoint_contains_its_configuration(trained: Path) -> None:
    """Would catch a checkpoint that needs its folder, pickle, or the machine of its training."""
    config = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert type(config) is dict
    assert config["model"]["backbone"] == "${backbone}"
    assert config["paths"]["data"].startswith("${oc.env:")
    assert config["data"]["cache"] == "${paths.cache}/synthetic"
    assert str(trained) not in json.dumps(config)


def test_load_run_opens_a_copied_checkpoint(trained: Path, tmp_path: Path) -> None:
    """Would catch a configuration that is read from the folder, or paths of the machine of the training."""
    copy = tmp_path / "copied.ckpt"
    copy.write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes())
    run = load_run(copy, PATHS)
    assert run.cfg.paths == PATHS
    assert run.cfg.data.cache == "elsewhere/synthetic"
    assert not run.module.training


def changed_copy(checkpoint: Path, target: Path, **changes: Any) -> Path:
    """Save a copy of a checkpoint with other values in its configuration."""
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"] = OmegaConf.to_container(OmegaConf.merge(content["hyper_parameters"], changes))
    torch.save(content, target)
    return target


def test_load_run_needs_no_initial_weights(trained: Path, tmp_path: Path) -> None:
    """Would catch a trained run that needs a network or the file of its initial weights to open."""
    start = {"pretrained": True, "weights": "/gone.pth"}
    path = changed_copy(trained / "checkpoints" / "last.ckpt", tmp_path / "a.ckpt", backbone=start)
    cfg = load_run(path, PATHS).cfg
    assert (cfg.backbone.pretrained, cfg.backbone.weights) == (False, None)


class Hostile:
    """Object that runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_load_run_refuses_a_hostile_checkpoint(trained: Path, tmp_path: Path) -> None:
    """Would catch a file from the internet that runs a command when it is opened."""
    command = f"touch {tmp_path / 'owned'}"
    with pytest.raises(FacelabError, match=r"model\._target_: `os\.system` is not allowed"):
        target = {"_target_": "os.system", "command": command}
        load_run(changed_copy(trained / "checkpoints" / "last.ckpt", tmp_path / "a.ckpt", model=target), PATHS)
    with pytest.raises(CheckpointError, match=r"not a checkpoint of train\.py"):
        torch.save({"state_dict": Hostile(command)}, tmp_path / "b.ckpt")
        load_run(tmp_path / "b.ckpt", PATHS)
    with pytest.raises(CheckpointError, match=r"not a checkpoint of train\.py"):
        (tmp_path / "c.ckpt").write_bytes(pickle.dumps(Hostile(command)))
        load_run(tmp_path / "c.ckpt", PATHS)
    assert not (tmp_path / "owned").exists()


def test_load_run_refuses_other_files(trained: Path, tmp_path: Path) -> None:
    """Would catch a traceback for a wrong path, other weights, a run without a checkpoint, or a changed method."""
    refused: list[tuple[Path, str]] = [(tmp_path / "gone", "neither a run folder nor")]
    (tmp_path / "empty").mkdir()
    refused.append((tmp_path / "empty", r"no checkpoints/last\.ckpt"))
    for name, content in (("foreign", {"state_dict": {"a": torch.zeros(1)}}), ("list", [1]), ("bare", torch.zeros(1))):
        torch.save(content, tmp_path / f"{name}.pth")
        refused.append((tmp_path / f"{name}.pth", "not written by train.py"))
    (tmp_path / "text.ckpt").write_text("no weights")
    refused.append((tmp_path / "text.ckpt", "not a checkpoint of train.py"))
    (tmp_path / "cut.ckpt").write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes()[:10_000])
    refused.append((tmp_path / "cut.ckpt", "not a checkpoint of train.py"))
    other = {"coder": {"num_neighbours": 5}}
    refused.append((changed_copy(trained / "checkpoints" / "last.ckpt", tmp_path / "a.ckpt", **other), "do not fit"))
    typo = {"coder": {"strid": 5}}
    refused.append(
        (changed_copy(trained / "checkpoints" / "last.ckpt", tmp_path / "b.ckpt", **typo), r"coder\.strid: ")
    )
    for path, message in refused:
        with pytest.raises(FacelabError, match=message):
            load_run(path, PATHS)


def test_build_data_compares_layouts_by_name(trained: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Would catch a dataset that is refused because an unpickled layout is another object."""
    monkeypatch.setenv(STAMP, "now")
    monkeypatch.setenv("FACELAB_CACHE", str(cache))
    cfg = compose_config(["ckpt=x", "data=synthetic68"], "evaluate")
    run = load_run(trained, cfg.paths)
    run.module.layout = pickle.loads(pickle.dumps(run.module.layout))
    assert isinstance(cfg, DictConfig)
    assert build_data(run, cfg).data.name == "synthetic68"


# Keys in messages


@pytest.mark.parametrize(
    ("words", "node", "message"),
    [
        (["coder.num_neighbours=99"], "model", "coder.num_neighbours=99 must be below"),
        (["head.trunk=nothing"], "model", "head.trunk=nothing: must be"),
        (["crop.scale=0"], "datamodule", "crop.scale"),
        (["crop.shift=[1]"], "datamodule", "crop"),
        (["seed=-1"], "datamodule", "seed=-1 must be a whole number"),
        (["augment.flip_probability=3"], "datamodule", "augment.flip_probability=3 must be"),
        (["backbone.weights=nowhere.pth"], "model", "backbone.weights=nowhere.pth: there is no such file"),
    ],
)
def test_build_names_the_key_that_the_user_typed(words: list[str], node: str, message: str) -> None:
    """Would catch a message with a constructor argument that nobody typed, or with the key of a reference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STAMP, "now")
        with pytest.raises(ConfigError) as stop:
            build(compose_config([*small("pipnet"), *words]), node)
    assert str(stop.value).startswith(message)


def test_build_makes_plain_containers() -> None:
    """Would catch OmegaConf containers in arguments, keys that become text, or unbuilt nodes in containers."""
    linear = {"_target_": "torch.nn.Linear", "in_features": "${size}", "out_features": 2}
    cfg = OmegaConf.create(
        {
            "size": 3,
            "all": {
                "_target_": "torch.nn.Sequential",
                "_partial_": True,
                "a": [linear, None],
                "b": {1: linear, "x": [1]},
            },
        }
    )
    arguments = build(cfg, "all").keywords
    assert [type(arguments["a"]), type(arguments["b"]), type(arguments["b"]["x"])] == [list, dict, list]
    assert arguments["a"][0].in_features == arguments["b"][1].in_features == 3 and arguments["a"][1] is None
    assert OmegaConf.is_interpolation(cfg["all"]["a"][0], "in_features"), "the configuration was changed"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["monitor.mode=max"], r"monitor\.mode=max: the best val/nme_box is its minimum; use min"),
        (["monitor.name=val/auc08_ioc"], r"monitor\.mode=min: the best val/auc08_ioc is its maximum; use max"),
        (
            ["+callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/auc08_ioc}"],
            r"callbacks\.stop\.mode=min: the best val/auc08_ioc is its maximum; use max",
        ),
        (["scheduler=plateau", "scheduler.mode=max"], r"scheduler\.mode=max: the best val/nme_box is its minimum"),
        (["callbacks.checkpoint.mode=max"], r"callbacks\.checkpoint\.mode=max: the best val/nme_box is its minimum"),
    ],
)
def test_train_refuses_a_monitor_in_the_wrong_direction(words: list[str], message: str, tmp_path: Path) -> None:
    """Would catch a run that keeps its worst checkpoint as the best one, and a search for the worst value."""
    with pytest.raises(SystemExit, match=message):
        open_door("train", *small("pipnet"), *words, "hydra.run.dir=run", folder=tmp_path)
    assert not (tmp_path / "run" / "overrides.yaml").exists()


@pytest.mark.parametrize(
    ("word", "place"),
    [("scheduler=plateau", "scheduler"), ("callbacks/early_stopping=patience", "callbacks.early_stopping")],
)
def test_train_refuses_options_that_need_a_validation(word: str, place: str, tmp_path: Path) -> None:
    """Would catch a schedule or an early stop that fails after the first epoch with a traceback."""
    with pytest.raises(SystemExit, match=f"{place}: it needs val/nme_box, but the run has no validation"):
        open_door("train", *small("pipnet"), word, "trainer.limit_val_batches=0", "logger=none", folder=tmp_path)


def test_train_refuses_to_monitor_a_pose_that_is_not_predicted(tmp_path: Path) -> None:
    """Would catch a monitor that Lightning misses after the first epoch, with a traceback."""
    with pytest.raises(SystemExit, match=r"monitor.name=val/mae_angle: no validation logs this metric"):
        open_door("train", *small("pipnet"), "monitor.name=val/mae_angle", folder=tmp_path)


@pytest.mark.parametrize("key", ["callbacks.checkpoint.monitor", "monitor.name"])
@pytest.mark.parametrize("name", ["val/nme_bx", "nme_box"])
def test_train_refuses_a_monitor_that_is_not_logged(key: str, name: str, tmp_path: Path) -> None:
    """Would catch a misspelt metric that ends the run after its first epoch."""
    message = rf"{key}={name}: no validation logs this metric; did you mean `val/nme_box`\?"
    with pytest.raises(SystemExit, match=message):
        open_door("train", *small("pipnet"), f"{key}={name}", "hydra.run.dir=run", folder=tmp_path)
    assert not (tmp_path / "run" / "overrides.yaml").exists()


def test_report_shows_inf_for_missing_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Would catch a network that predicts NaN and whose results look like those of a subset without faces."""
    decode = PIPCoder.decode

    def nowhere(self: PIPCoder, maps: Any) -> tuple[torch.Tensor, torch.Tensor]:
        points, confidence = decode(self, maps)
        return points * torch.nan, confidence

    monkeypatch.setattr(PIPCoder, "decode", nowhere)
    open_door("train", *small("pipnet"), "trainer.max_epochs=1", "hydra.run.dir=run", folder=tmp_path)
    rows = {
        cells[1].strip(): cells[2].strip()
        for line in capfd.readouterr().out.splitlines()
        if "│" in line
        for cells in [line.split("│")]
    }
    assert rows["nme_box"] == rows["nme_ioc"] == "inf"
    assert rows["nme_box_size_128_up"] == "-"
    assert rows["fr08_ioc"] == "100.00"
