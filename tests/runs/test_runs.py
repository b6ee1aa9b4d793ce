"""What a run leaves on disk, and how it is opened again."""

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
from conftest import open_door
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
    """Epoch and NME_box of every validation, from metrics.csv."""
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/nme_box")]
    return [(int(row["epoch"]), float(row["val/nme_box"])) for row in rows]


# What a run leaves


def test_the_folder_of_a_run(trained: Path) -> None:
    """A result that is not written, lies elsewhere, or is left under a temporary name."""
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        *("config.yaml", "environment.json", "status.json", "metrics.csv", "metrics.json", "faces.csv"),
        *("checkpoints", "samples", "tensorboard", "wandb", "overrides.yaml"),
    }
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert len(list((trained / "wandb").glob("offline-run-*/*.wandb"))) == 1
    assert {path.name for path in trained.parent.iterdir()} == {"run"}, "something was written outside of the run"
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


def test_results(trained: Path) -> None:
    """Numbers of the test that belong to other faces than the table, or without what they were measured on."""
    results, faces = load(trained / "metrics.json"), read_faces(trained / "faces.csv")
    assert results["metrics"]["nme_box"] == pytest.approx(float(np.nanmean(faces["nme_box"])), abs=1e-12)
    assert results["metrics"]["faces"] == results["protocol"]["faces"] == len(faces["face_id"]) == 8
    assert faces["photo"].tolist() == [f"{i:05d}.jpg" for i in range(8)]
    low, high = results["intervals"]["nme_box"]
    assert low < results["metrics"]["nme_box"] < high
    assert results["protocol"]["dataset"] == "synthetic68"
    assert results["protocol"]["pose"] == "labelled"
    assert [epoch for epoch, _ in epochs_of(trained)] == [0, 1, 2]


def test_the_last_checkpoint_is_of_the_last_epoch(trained: Path) -> None:
    """Lightning's `save_last` beside a monitored value saves only when the value was the best yet."""
    last = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    best = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (2, 12)
    assert best["epoch"] == min(epochs_of(trained), key=lambda row: row[1])[0]
    assert load(trained / "status.json")["tested"].endswith("checkpoints/last.ckpt")


def test_the_best_is_tested_on_request(tmp_path: Path) -> None:
    """`test_ckpt=best` that tests the last, or the worst."""
    words = ["monitor.mode=max", "test_ckpt=best", "logger=csv", "trainer.max_epochs=3", "optimizer.lr=0.003"]
    open_door("train", *small("pipnet"), *words, "hydra.run.dir=run", folder=tmp_path)
    best, _ = max(epochs_of(tmp_path / "run"), key=lambda row: row[1])
    assert best != 2, "choose another learning rate: the last epoch must not be the one"
    saved = {
        name: torch.load(tmp_path / "run" / "checkpoints" / f"{name}.ckpt", weights_only=True)["epoch"]
        for name in ("best", "last")
    }
    assert saved == {"best": best, "last": 2}
    assert load(tmp_path / "run" / "status.json")["tested"].endswith("checkpoints/best.ckpt")
    assert load_run(tmp_path / "run", PATHS).checkpoint.name == "best.ckpt"


@pytest.mark.parametrize(
    "words", [["trainer=check"], ["callbacks=none", "logger=none"], ["logger=none"]], ids=["check", "bare", "quiet"]
)
def test_runs_without_checkpoint_or_logger(words: list[str], tmp_path: Path) -> None:
    """Options that do without something and fail for the lack of it after the training; a W&B run of two batches."""
    open_door("train", *small("pipnet"), "trainer.max_epochs=1", *words, "hydra.run.dir=run", folder=tmp_path)
    assert load(tmp_path / "run" / "status.json")["state"] == "finished"
    saved = (tmp_path / "run" / "checkpoints").exists()
    assert saved == (words == ["logger=none"])
    assert (load(tmp_path / "run" / "status.json")["tested"] is not None) == saved
    assert not {path.name for path in (tmp_path / "run").iterdir()} & {"wandb", "tensorboard", "metrics.csv"}
    if words == ["trainer=check"]:
        with pytest.raises(SystemExit, match=r"run is a check of a few batches \(trainer=check\)"):
            open_door("evaluate", "ckpt=run", folder=tmp_path)


def test_a_part_of_the_test_is_another_protocol(tmp_path: Path, trained: Path) -> None:
    """A number over a few batches that stands in one table with that over all faces."""
    words = ["+trainer.limit_test_batches=1", "trainer.max_epochs=1", "logger=none", "callbacks=none"]
    open_door("train", *small("pipnet"), *words, "hydra.run.dir=run", folder=tmp_path)
    part, whole = (load(run / "metrics.json")["protocol"] for run in (tmp_path / "run", trained))
    assert part["faces"] == 4
    assert part["truth"] != whole["truth"]


def test_numbers_that_are_none(tmp_path: Path) -> None:
    """`NaN` in a JSON file, which no other program reads."""
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [1.5, float("inf"), (float("-inf"),)], "c": "NaN"})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [1.5, None, [None]], "c": "NaN"}
    write_json(tmp_path / "b.json", {"points": [[1.5, 2.0]]}, indent=None)
    assert (tmp_path / "b.json").read_text() == '{"points": [[1.5, 2.0]]}\n'


def test_empty_buckets_are_null(trained: Path) -> None:
    """The same in the file of a run: no face of 96 pixels is over 128."""
    results = load(trained / "metrics.json")
    assert results["metrics"]["nme_box_size_128_up"] is None
    assert results["counts"]["nme_box_size_128_up"] == 0


# How a run ends


def test_a_failing_training_says_why(tmp_path: Path) -> None:
    """The same through a door, with the error deep in a training step."""
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
def test_values_that_a_part_refuses(words: list[str], node: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback through Hydra, or a message that names the place of a reference and not of the value."""
    monkeypatch.setenv(STAMP, "now")
    with pytest.raises(ConfigError) as stop:
        build(compose_config([*small("pipnet"), *words]), node)
    assert str(stop.value).startswith(message)


def test_errors_in_the_code_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of ours that is told as a mistake of the user's."""
    part = OmegaConf.create({"a": {"_target_": "facelab.losses.pipnet.PIPLoss", "score_weight": 1}})
    with pytest.raises(TypeError, match="missing"):
        build(part, "a")
    monkeypatch.delattr("facelab.losses.regression.math.log1p")
    with pytest.raises(AttributeError, match="log1p"):
        build(
            OmegaConf.create({"a": {"_target_": "facelab.losses.regression.WingLoss", "width": 1, "curvature": 1}}), "a"
        )


@pytest.mark.parametrize(
    ("node", "told"),
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
def test_what_a_library_refuses_is_told_with_its_place(node: dict[str, Any], told: str) -> None:
    """A traceback for the errors by which libraries refuse values, or lines of a validator's own."""
    with pytest.raises(ConfigError) as stop:
        build(OmegaConf.create({"a": node}), "a")
    assert str(stop.value).startswith(told)
    assert "\n" not in str(stop.value)


# Opening a run again


def test_the_checkpoint_carries_its_configuration(trained: Path) -> None:
    """A checkpoint that opens only beside its folder, only with pickle, or only on the machine it was made on."""
    config = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert type(config) is dict
    assert config["model"]["backbone"] == "${backbone}"
    assert config["paths"]["data"].startswith("${oc.env:")
    assert config["data"]["cache"] == "${paths.cache}/synthetic"
    assert str(trained) not in json.dumps(config)


def test_a_copied_checkpoint_opens_alone(trained: Path, tmp_path: Path) -> None:
    """The configuration read from the folder, or paths of the machine it was trained on."""
    copy = tmp_path / "copied.ckpt"
    copy.write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes())
    run = load_run(copy, PATHS)
    assert run.cfg.paths == PATHS
    assert run.cfg.data.cache == "elsewhere/synthetic"
    assert not run.module.training


def changed(checkpoint: Path, to: Path, **changes: Any) -> Path:
    """A copy of a checkpoint with other values in its configuration."""
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"] = OmegaConf.to_container(OmegaConf.merge(content["hyper_parameters"], changes))
    torch.save(content, to)
    return to


def test_initial_weights_are_not_asked_for_again(trained: Path, tmp_path: Path) -> None:
    """A trained run that cannot be opened without a network, or without the file it was started from."""
    start = {"pretrained": True, "weights": "/gone.pth"}
    path = changed(trained / "checkpoints" / "last.ckpt", tmp_path / "a.ckpt", backbone=start)
    cfg = load_run(path, PATHS).cfg
    assert (cfg.backbone.pretrained, cfg.backbone.weights) == (False, None)


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_a_hostile_checkpoint_is_refused(trained: Path, tmp_path: Path) -> None:
    """A file from the internet that runs a command when it is opened."""
    command = f"touch {tmp_path / 'owned'}"
    with pytest.raises(FacelabError, match=r"model\._target_: `os\.system` is not allowed"):
        target = {"_target_": "os.system", "command": command}
        load_run(changed(trained / "checkpoints" / "last.ckpt", tmp_path / "a.ckpt", model=target), PATHS)
    with pytest.raises(CheckpointError, match=r"not a checkpoint of train\.py"):
        torch.save({"state_dict": Hostile(command)}, tmp_path / "b.ckpt")
        load_run(tmp_path / "b.ckpt", PATHS)
    with pytest.raises(CheckpointError, match=r"not a checkpoint of train\.py"):
        (tmp_path / "c.ckpt").write_bytes(pickle.dumps(Hostile(command)))
        load_run(tmp_path / "c.ckpt", PATHS)
    assert not (tmp_path / "owned").exists()


def test_what_is_no_run(trained: Path, tmp_path: Path) -> None:
    """A traceback for a wrong path, a file of other weights, a run without checkpoint, or a changed method."""
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
    refused.append((changed(trained / "checkpoints" / "last.ckpt", tmp_path / "a.ckpt", **other), "do not fit"))
    typo = {"coder": {"strid": 5}}
    refused.append((changed(trained / "checkpoints" / "last.ckpt", tmp_path / "b.ckpt", **typo), r"coder\.strid: "))
    for path, message in refused:
        with pytest.raises(FacelabError, match=message):
            load_run(path, PATHS)


def test_the_layout_is_compared_by_name(trained: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """A layout that went through a file is another object; another dataset of the same layout was then refused."""
    monkeypatch.setenv(STAMP, "now")
    monkeypatch.setenv("FACELAB_CACHE", str(cache))
    cfg = compose_config(["ckpt=x", "data=synthetic68"], "evaluate")
    run = load_run(trained, cfg.paths)
    run.module.layout = pickle.loads(pickle.dumps(run.module.layout))
    assert isinstance(cfg, DictConfig)
    assert build_data(run, cfg).data.name == "synthetic68"


# Places


@pytest.mark.parametrize(
    ("words", "node", "message"),
    [
        (["coder.num_neighbours=99"], "model", "coder.num_neighbours=99 must be below"),
        (["head.trunk=nothing"], "model", "head.trunk=nothing: must be"),
        (["crop.scale=0"], "datamodule", "crop.scale"),
        (["crop.shift=[1]"], "datamodule", "crop"),
        (["seed=-1"], "datamodule", "seed=-1: choose"),
        (["augment.flip_probability=3"], "datamodule", "augment.flip_probability=3 must be"),
        (["backbone.weights=nowhere.pth"], "model", "backbone.weights=nowhere.pth: there is no such file"),
    ],
)
def test_part_is_named_by_where_it_is_chosen(words: list[str], node: str, message: str) -> None:
    """A message by an argument of a class, which nobody typed, or by the place that only refers to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STAMP, "now")
        with pytest.raises(ConfigError) as stop:
            build(compose_config([*small("pipnet"), *words]), node)
    assert str(stop.value).startswith(message)


def test_build_makes_plain_containers() -> None:
    """Lists and mappings of OmegaConf handed on, keys that become text, nodes in lists or mappings left unbuilt."""
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
    found = build(cfg, "all").keywords
    assert [type(found["a"]), type(found["b"]), type(found["b"]["x"])] == [list, dict, list]
    assert found["a"][0].in_features == found["b"][1].in_features == 3 and found["a"][1] is None
    assert OmegaConf.is_interpolation(cfg["all"]["a"][0], "in_features"), "the configuration was changed"


@pytest.mark.parametrize("key", ["callbacks.checkpoint.monitor", "monitor.name"])
@pytest.mark.parametrize("name", ["val/nme_bx", "nme_box"])
def test_a_monitor_that_no_validation_gives_is_refused(key: str, name: str, tmp_path: Path) -> None:
    """A misspelt name that ends the run after its first epoch."""
    message = rf"{key}={name}: no validation logs this metric; did you mean `val/nme_box`\?"
    with pytest.raises(SystemExit, match=message):
        open_door("train", *small("pipnet"), f"{key}={name}", "hydra.run.dir=run", folder=tmp_path)
    assert not (tmp_path / "run" / "overrides.yaml").exists()


def test_report_tells_not_predicted_from_no_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A network that predicts NaN, whose numbers look like those of a subset without faces."""
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
