"""What a run leaves on disk, and how it is opened again."""

import csv
import json
import logging
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import open_door, small
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from test_conf import compose_config

from facelab import runs
from facelab.landmarks.face import DataFault
from facelab.metrics.landmarks import read_faces

PATHS = OmegaConf.create({"data": "elsewhere", "cache": "elsewhere", "run": "now", "name": "x", "group": "g"})


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
        *("checkpoints", "samples", "tensorboard", "wandb", ".hydra"),
    }
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert len(list((trained / "wandb").glob("offline-run-*/*.wandb"))) == 1
    assert {path.name for path in trained.parent.iterdir()} == {"run"}, "something was written outside of the run"
    assert [path for path in trained.rglob(".*") if path.name != ".hydra" and not path.is_dir()] == []

    cfg = OmegaConf.load(trained / "config.yaml")
    assert cfg.model.backbone.name == "test_resnet"
    assert cfg.data.root.endswith("/synthetic")
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
    assert load(trained / "metrics.json")["checkpoint"].endswith("checkpoints/last.ckpt")


def test_the_best_is_tested_on_request(tmp_path: Path) -> None:
    """`test_with=best` that tests the last, or the worst."""
    words = ["monitor.mode=max", "test_with=best", "logger=csv", "trainer.max_epochs=3", "optimizer.lr=0.003"]
    open_door("train", *small("pipnet"), *words, "hydra.run.dir=run", folder=tmp_path)
    best, _ = max(epochs_of(tmp_path / "run"), key=lambda row: row[1])
    assert best != 2, "choose another learning rate: the last epoch must not be the one"
    saved = {
        name: torch.load(tmp_path / "run" / "checkpoints" / f"{name}.ckpt", weights_only=True)["epoch"]
        for name in ("best", "last")
    }
    assert saved == {"best": best, "last": 2}
    assert load(tmp_path / "run" / "metrics.json")["checkpoint"].endswith("checkpoints/best.ckpt")
    assert runs.load_run(tmp_path / "run", PATHS).checkpoint.name == "best.ckpt"


@pytest.mark.parametrize(
    "words", [["trainer=check"], ["callbacks=none", "logger=none"], ["logger=none"]], ids=["check", "bare", "quiet"]
)
def test_runs_without_checkpoint_or_logger(words: list[str], tmp_path: Path) -> None:
    """Options that do without something and fail for the lack of it after the training; a W&B run of two batches."""
    open_door("train", *small("pipnet"), "trainer.max_epochs=1", *words, "hydra.run.dir=run", folder=tmp_path)
    assert load(tmp_path / "run" / "status.json")["state"] == "finished"
    saved = (tmp_path / "run" / "checkpoints").exists()
    assert saved == (words == ["logger=none"])
    assert (load(tmp_path / "run" / "metrics.json")["checkpoint"] is not None) == saved
    assert not {path.name for path in (tmp_path / "run").iterdir()} & {"wandb", "tensorboard", "metrics.csv"}


def test_a_part_of_the_test_is_another_protocol(tmp_path: Path, trained: Path) -> None:
    """A number over a few batches that stands in one table with that over all faces."""
    words = ["+trainer.limit_test_batches=1", "trainer.max_epochs=1", "logger=none", "callbacks=none"]
    open_door("train", *small("pipnet"), *words, "hydra.run.dir=run", folder=tmp_path)
    part, whole = (load(run / "metrics.json")["protocol"] for run in (tmp_path / "run", trained))
    assert part["faces"] == 4
    assert part["truth"] != whole["truth"]


def test_numbers_that_are_none(tmp_path: Path) -> None:
    """`NaN` in a JSON file, which no other program reads."""
    runs.write_json(tmp_path / "a.json", {"a": float("nan"), "b": [1.5, float("inf"), (float("-inf"),)], "c": "NaN"})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [1.5, None, [None]], "c": "NaN"}
    runs.write_json(tmp_path / "b.json", {"points": [[1.5, 2.0]]}, indent=None)
    assert (tmp_path / "b.json").read_text() == '{"points": [[1.5, 2.0]]}\n'


def test_empty_buckets_are_null(trained: Path) -> None:
    """The same in the file of a run: no face of 96 pixels is over 128."""
    results = load(trained / "metrics.json")
    assert results["metrics"]["nme_box_size_128_up"] is None
    assert results["counts"]["nme_box_size_128_up"] == 0


# How a run ends


@pytest.mark.parametrize(
    ("error", "raised", "reason"),
    [
        (DataFault("a.txt:3: no number"), SystemExit, "a.txt:3: no number"),
        (SystemExit("nothing there"), SystemExit, "nothing there"),
        (ValueError("crop.size=100 must be even"), SystemExit, "crop.size=100 must be even"),
        (ValueError("too few values to unpack"), ValueError, "ValueError: too few values to unpack"),
        (RuntimeError("out of memory"), RuntimeError, "RuntimeError: out of memory"),
        (KeyboardInterrupt(), KeyboardInterrupt, "interrupted"),
    ],
)
def test_why_a_run_failed(error: BaseException, raised: type[BaseException], reason: str, tmp_path: Path) -> None:
    """A run that died and says `running`; a message lost in a traceback, or a traceback lost behind a message."""
    HydraConfig.instance().cfg = None
    file = logging.FileHandler(tmp_path / "train.log")
    logging.getLogger().addHandler(file)
    try:
        with pytest.raises(raised), runs.recorded(tmp_path):
            raise error
    finally:
        logging.getLogger().removeHandler(file)
        file.close()
    status = load(tmp_path / "status.json")
    assert (status["state"], status["reason"]) == ("failed", reason)
    assert "ended" in status
    assert "Traceback" in (text := (tmp_path / "train.log").read_text())
    assert f"{type(error).__name__}" in text


@pytest.mark.parametrize("state", ["running", "finished"])
@pytest.mark.parametrize("stamp", ["now", "before"])
@pytest.mark.parametrize("pid", [os.getpid(), -1])
def test_two_runs_of_one_second(
    state: str, stamp: str, pid: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs that mix their results in one folder; a folder given by its name that can be used only once."""
    monkeypatch.setenv(runs.STAMP, "now")
    HydraConfig.instance().cfg = None
    other = {"state": state, "stamp": stamp, "host": os.uname().nodename, "pid": pid}
    runs.write_json(tmp_path / "status.json", other)
    if (state, stamp, pid) == ("running", "now", -1):
        with pytest.raises(SystemExit, match="started in the same second"), runs.recorded(tmp_path):
            pytest.fail("the run began")
        assert load(tmp_path / "status.json") == other, "the state of the other run is lost"
    else:
        with runs.recorded(tmp_path):
            assert load(tmp_path / "status.json")["pid"] == os.getpid()
        assert load(tmp_path / "status.json")["state"] == "finished"


def test_lightning_ends_an_interrupted_training_by_an_exit(tmp_path: Path) -> None:
    """Ctrl-C that reads `SystemExit: 1` the next day."""
    with pytest.raises(SystemExit), runs.recorded(tmp_path):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SystemExit(1)  # noqa: B904  as Lightning does
    assert load(tmp_path / "status.json")["reason"] == "interrupted"


def test_a_failing_training_says_why(tmp_path: Path) -> None:
    """The same through a door, with the error deep in a training step."""
    with pytest.raises(SystemExit, match="must be a multiple of"):
        open_door("train", *small("pipnet"), "crop.size=100", "logger=none", "hydra.run.dir=run", folder=tmp_path)
    status = load(tmp_path / "run" / "status.json")
    assert status["state"] == "failed"
    assert status["reason"].startswith("crop.size=100")
    assert "Traceback" in (tmp_path / "run" / "train.log").read_text()


def test_one_failed_job_does_not_end_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing dataset in the first of many jobs, found the next morning."""
    words = [*small("pipnet"), "trainer.max_epochs=1", "logger=none", "callbacks=none", "-m", "data.train=-1,0,16"]
    with pytest.raises(SystemExit) as stop:
        open_door("train", *words, folder=tmp_path)
    assert stop.value.code == 1
    out = capsys.readouterr()
    assert "data: train=-1" in out.out + out.err
    assert "Traceback" not in out.out + out.err
    states = {path.parent.name: load(path)["state"] for path in tmp_path.rglob("status.json")}
    assert states == {"0": "failed", "1": "failed", "2": "finished"}


def test_a_refused_configuration_leaves_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A job of a sweep of which nothing says why it has no numbers."""
    with pytest.raises(SystemExit):
        open_door("train", *small("pipnet"), "logger=none", "-m", "optimizer.lr=fast,slow", folder=tmp_path)
    reasons = {path.parent.name: load(path)["reason"] for path in tmp_path.rglob("status.json")}
    assert reasons.keys() == {"0", "1"}
    for reason, value in zip((reasons["0"], reasons["1"]), ("fast", "slow"), strict=True):
        assert reason.startswith("The configuration has faults:")
        assert f"optimizer.lr: '{value}'" in reason
    assert "Traceback" not in capsys.readouterr().err


# Building


@pytest.mark.parametrize(
    ("words", "node", "message"),
    [
        (["backbone=timm", "backbone.name=nope"], "model", "backbone.name=nope: timm"),
        (["coder.stride=7"], "model", "model: coder.stride=7"),
        (["data.train=-3"], "datamodule", "data: train=-3"),
        (["augment.scale_limit=2"], "datamodule", "augment.scale_limit must be"),
        (["trainer.precision=5"], "trainer", "trainer: Precision 5 is invalid"),
    ],
)
def test_values_that_a_part_refuses(words: list[str], node: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback through Hydra, or a message that names the place of a reference and not of the value."""
    monkeypatch.setenv(runs.STAMP, "now")
    with pytest.raises(SystemExit) as stop:
        runs.build(compose_config([*small("pipnet"), *words])[node])
    assert str(stop.value.code).startswith(message)


def test_errors_in_the_code_keep_their_traceback() -> None:
    """A mistake of ours that is told as a mistake of the user's."""
    broken = OmegaConf.create({"_target_": "torch.nn.Linear", "in_features": "three", "out_features": 2})
    with pytest.raises(Exception, match="TypeError"):
        runs.build(broken)


# Opening a run again


def test_the_checkpoint_carries_its_configuration(trained: Path) -> None:
    """A checkpoint that opens only beside its folder, only with pickle, or only on the machine it was made on."""
    config = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert type(config) is dict
    assert config["model"]["backbone"] == "${backbone}"
    assert config["paths"]["data"].startswith("${oc.env:")
    assert config["data"]["root"] == "${paths.cache}/synthetic"
    assert str(trained) not in json.dumps(config)


def test_a_copied_checkpoint_opens_alone(trained: Path, tmp_path: Path) -> None:
    """The configuration read from the folder, or paths of the machine it was trained on."""
    copy = tmp_path / "copied.ckpt"
    copy.write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes())
    run = runs.load_run(copy, PATHS)
    assert run.cfg.paths == PATHS
    assert run.cfg.data.root == "elsewhere/synthetic"
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
    cfg = runs.load_run(path, PATHS).cfg
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
    with pytest.raises(SystemExit, match=r"model\._target_: `os\.system` is not allowed"):
        target = {"_target_": "os.system", "command": command}
        runs.load_run(changed(trained / "checkpoints" / "last.ckpt", tmp_path / "a.ckpt", model=target), PATHS)
    with pytest.raises(SystemExit, match=r"no checkpoint of train\.py"):
        torch.save({"state_dict": Hostile(command)}, tmp_path / "b.ckpt")
        runs.load_run(tmp_path / "b.ckpt", PATHS)
    with pytest.raises(SystemExit, match=r"no checkpoint of train\.py"):
        (tmp_path / "c.ckpt").write_bytes(pickle.dumps(Hostile(command)))
        runs.load_run(tmp_path / "c.ckpt", PATHS)
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
    refused.append((tmp_path / "text.ckpt", "no checkpoint of train.py"))
    (tmp_path / "cut.ckpt").write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes()[:10_000])
    refused.append((tmp_path / "cut.ckpt", "no checkpoint of train.py"))
    other = {"coder": {"num_neighbours": 5}}
    refused.append((changed(trained / "checkpoints" / "last.ckpt", tmp_path / "a.ckpt", **other), "do not fit"))
    typo = {"coder": {"strid": 5}}
    refused.append((changed(trained / "checkpoints" / "last.ckpt", tmp_path / "b.ckpt", **typo), r"coder\.strid: "))
    for path, message in refused:
        with pytest.raises(SystemExit, match=message):
            runs.load_run(path, PATHS)


# Protocols


def some_faces(folder: str = "a", move: float = 0.0, name: str = "1.jpg") -> Any:
    points = np.arange(20, dtype=np.float64).reshape(2, 5, 2) / 3
    points[1, 4, 1] += move
    return SimpleNamespace(
        paths=[Path(folder, "0.jpg"), Path(folder, name)], faces=[SimpleNamespace(points=each) for each in points]
    )


def test_the_fingerprint_of_the_truth() -> None:
    """Comparable runs of two machines kept apart, or runs compared whose truth is not the same."""
    reference = runs.fingerprint(some_faces(), [0, 1])
    assert reference == "e92712e01eb6d494"
    assert runs.fingerprint(some_faces(folder="/other/machine"), [0, 1]) == reference
    for other in (some_faces(move=0.01), some_faces(name="2.jpg")):
        assert runs.fingerprint(other, [0, 1]) != reference
    assert runs.fingerprint(some_faces(), [0]) != reference


def test_the_layout_is_compared_by_name(trained: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """A layout that went through a file is another object; another dataset of the same markup was then refused."""
    monkeypatch.setenv(runs.STAMP, "now")
    monkeypatch.setenv("FACELAB_CACHE", str(cache))
    cfg = compose_config(["ckpt=x", "data=synthetic68"], "evaluate")
    run = runs.load_run(trained, cfg.paths)
    run.module.layout = pickle.loads(pickle.dumps(run.module.layout))
    assert isinstance(cfg, DictConfig)
    assert runs.evaluation_data(run, cfg).data.name == "synthetic68"
