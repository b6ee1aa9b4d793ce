"""Tests of the doors with command lines as users type them."""

import csv
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import SMALL_FACES, small
from conftest import PLAIN, ROOT, metrics_of, open_door
from omegaconf import OmegaConf

from facelab.annotations.synthetic import Synthetic
from facelab.errors import ConfigError
from facelab.faces.layouts import IBUG68, LAPA106, Layout
from facelab.metrics.face_table import read_faces
from facelab.run_folder import read_status
from lightning_modules.landmark import LandmarkModule
from train import check_values

SWEEP_LINE = "model=pipnet data=lapa106 -m backbone=mbv2,resnet18"
SHORT = (
    *("backbone.pretrained=false", "crop.size=64", "trainer.max_epochs=1"),
    *("datamodule.batch_size=4", "datamodule.num_workers=0"),
)
QUIET = ("logger=none", "trainer.max_epochs=1", "hydra.run.dir=run")


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def rendered(cache: Path, layout: Layout) -> Synthetic:
    """Render 8 faces for training, 4 for validation and 4 for the test, 96 pixels wide."""
    return Synthetic("faces", str(cache), layout, 1, 8, 4, 4, 96, 75.0, 90.0, 0.3, 25.0, 30.0, 0.3)


@pytest.fixture(scope="module")
def lapa(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Write rendered faces in the folders of LaPa."""
    root, data = tmp_path_factory.mktemp("lapa"), rendered(cache, LAPA106)
    for split in ("train", "val", "test"):
        for kind in ("images", "landmarks"):
            (root / split / kind).mkdir(parents=True)
        for photo in data.photos(split):
            (root / split / "images" / photo.path.name).symlink_to(photo.path)
            lines = "".join(f"{x:.3f} {y:.3f}\n" for x, y in photo.faces[0].points)
            (root / split / "landmarks" / f"{photo.path.stem}.txt").write_text(f"{LAPA106.num_points}\n{lines}")
    return root


def check_two_runs(multirun: Path, *backbones: str) -> None:
    """Assert that the sweep has two finished runs with these backbones."""
    for number, backbone in enumerate(backbones):
        run = multirun / str(number)
        assert load(run / "status.json")["state"] == "finished"
        assert f"name: {backbone}\n" in (run / "config.yaml").read_text()
        results = load(run / "metrics.json")
        assert results["protocol"]["dataset"] == "lapa106"
        assert 0 < metrics_of(run)["nme_box"].value < 1
        assert (run / "checkpoints" / "last.ckpt").exists()


def test_train_accepts_overrides_on_both_sides_of_m(lapa: Path, tmp_path: Path) -> None:
    """Would catch overrides on both sides of `-m`, which Hydra 1.3 refuses, or runs that share a folder."""
    line = "model=pipnet data=lapa106 backbone=timm -m backbone.name=test_resnet,test_efficientnet coder.stride=32"
    open_door("train", *line.split(), f"data.root={lapa}", *SHORT, *PLAIN, folder=tmp_path)
    (multirun,) = (tmp_path / "logs" / "train" / "multiruns").iterdir()
    check_two_runs(multirun, "test_resnet", "test_efficientnet")


@pytest.mark.slow
def test_train_runs_the_sweep_line_in_a_shell(lapa: Path, tmp_path: Path) -> None:
    """Would catch the same in a separate process with all loggers."""
    line = [sys.executable, str(ROOT / "train.py"), *SWEEP_LINE.split(), f"data.root={lapa}", *SHORT]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "FACELAB_"))}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (multirun,) = (tmp_path / "logs" / "train" / "multiruns").iterdir()
    check_two_runs(multirun, "mobilenetv2_100", "resnet18")
    groups = [len(list((multirun / str(number) / "wandb").glob("offline-run-*"))) for number in (0, 1)]
    assert groups == [1, 1], "the W&B runs of two jobs are mixed up"
    assert (multirun / "0" / "metrics.json").read_text() != (multirun / "1" / "metrics.json").read_text()


@pytest.mark.slow
def test_train_on_two_processes_writes_one_run(tmp_path: Path) -> None:
    """Would catch a face counted twice or never, a second folder, or files and tables written by each process."""
    overrides = [*small("pipnet"), "data.test=7", "trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true"]
    overrides += ["trainer.sync_batchnorm=false", "trainer.max_epochs=1", "logger=csv"]
    environment = os.environ | {"FACELAB_CACHE": os.environ["FACELAB_TEST_CACHE"]}
    environment.pop("FACELAB_STAMP", None)
    line = [sys.executable, str(ROOT / "train.py"), *overrides]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    assert metrics_of(run)["faces"].value == 7
    assert read_faces(run / "faces.csv")["face_id"].tolist() == list(range(7))
    assert done.stdout.count("results in ") == 1
    assert "sync_dist" not in done.stderr


# evaluate.py


def test_evaluate_reproduces_the_results_of_the_run(trained: Path, tmp_path: Path) -> None:
    """Would catch a run that is opened with other weights, crops, statistics or splits than those of its test."""
    open_door("evaluate", f"ckpt={trained}", "batch_size=3", "hydra.run.dir=again", folder=tmp_path)
    first, again = metrics_of(trained), metrics_of(tmp_path / "again")
    assert again.keys() == first.keys()
    for name, metric in first.items():
        assert again[name][:3] == pytest.approx(metric[:3], abs=1e-6, nan_ok=True), name
        assert again[name][3:] == metric[3:], name
    assert load(tmp_path / "again" / "metrics.json")["protocol"] == load(trained / "metrics.json")["protocol"]
    one, two = (read_faces(run / "faces.csv") for run in (trained, tmp_path / "again"))
    assert one["photo"].tolist() == two["photo"].tolist()
    np.testing.assert_allclose(two["error_px"], one["error_px"], atol=1e-4)
    files = {path.name for path in (tmp_path / "again").iterdir()}
    assert files >= {"config.yaml", "environment.json", "status.json", "metrics.json", "faces.csv", "samples"}
    assert files >= {"tensorboard", "wandb"} and "metrics.csv" not in files, "it logs elsewhere than the run"
    assert {path.name for path in (tmp_path / "again" / "samples").iterdir()} == {"test.png", "worst.png"}


def test_train_tests_the_averaged_weights(tmp_path: Path) -> None:
    """Would catch a test of the last step's weights, although their average was validated and saved."""
    overrides = ["callbacks=ema", "logger=none", "trainer.max_epochs=2", "optimizer.lr=0.01", "hydra.run.dir=run"]
    open_door("train", *small("pipnet"), *overrides, folder=tmp_path)
    open_door("evaluate", "ckpt=run", "hydra.run.dir=again", folder=tmp_path)
    first, again = (metrics_of(tmp_path / run) for run in ("run", "again"))
    for name, metric in first.items():
        assert again[name].value == pytest.approx(metric.value, abs=1e-6, nan_ok=True), name


def test_evaluate_applies_split_box_and_flip_test(trained: Path, tmp_path: Path) -> None:
    """Would catch `split=`, `box=` or `flip_test=` that is silently ignored."""
    overrides = ["split=val", "box=given", "flip_test=true", "logger=csv"]
    open_door("evaluate", f"ckpt={trained}/checkpoints/best.ckpt", *overrides, folder=tmp_path)
    (run,) = (tmp_path / "logs" / "evaluate" / "runs").iterdir()
    assert run.name == "now_run-own-val", "the name of the measured run is missing"
    first, results = load(trained / "metrics.json")["protocol"], load(run / "metrics.json")
    changed = {name: value for name, value in results["protocol"].items() if value != first[name]}
    assert changed.pop("truth")
    assert changed == {"split": "val", "box": "given", "flip_test": True, "faces": 6}
    assert load(run / "status.json")["tested"].endswith("best.ckpt")
    kept, config = OmegaConf.load(trained / "config.yaml"), OmegaConf.load(run / "config.yaml")
    assert (config.crop.box, config.model.flip_test, config.datamodule.test_split) == ("given", True, "val")
    assert config.evaluate.ckpt == f"{trained}/checkpoints/best.ckpt"
    assert (config.evaluate.split, config.evaluate.trainer.devices) == ("val", 1)
    assert (config.backbone, config.seed, config.trainer) == (kept.backbone, kept.seed, kept.trainer)
    with (run / "metrics.csv").open() as file:
        assert "test/nme_box" in next(csv.reader(file))


def test_evaluate_measures_another_dataset(trained: Path, tmp_path: Path, cache: Path) -> None:
    """Would catch a dataset that is ignored, or that is measured with the tags of the first one."""
    data = rendered(cache, IBUG68)
    folder = tmp_path / "faces"
    for photo in data.photos("test"):
        (folder / photo.path.name).parent.mkdir(parents=True, exist_ok=True)
        (folder / photo.path.name).symlink_to(photo.path)
        lines = "".join(f"{x:.3f} {y:.3f}\n" for x, y in photo.faces[0].points)
        (folder / f"{photo.path.stem}.txt").write_text(lines)
    overrides = ["data=folder", f"data.root={folder}", "data.name=mine", "split=all"]
    layout = "data.layout.path=facelab.faces.layouts.IBUG68"
    open_door("evaluate", f"ckpt={trained}", *overrides, layout, "hydra.run.dir=run", folder=tmp_path)
    results = load(tmp_path / "run" / "metrics.json")
    assert (results["protocol"]["dataset"], results["protocol"]["pose"]) == ("mine", "estimated")
    assert metrics_of(tmp_path / "run")["faces"].value == 4
    assert not any(metric.breakdown == "tag" for metric in metrics_of(tmp_path / "run").values())
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").data.root == str(folder)


# Help


LIGHT_DOOR = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    code = stop.code
else:
    code = 0
heavy = {"torch", "lightning", "timm", "albumentations", "wandb", "cv2"} & sys.modules.keys()
sys.exit(f"imported {heavy}" if heavy else code)
"""


CFG = "model=pipnet --cfg job trainer.max_epochs=7"


@pytest.mark.parametrize(
    ("door", "words"),
    [
        *(("train", "--help"), ("evaluate", CFG)),  # the imports of each door, and each of Hydra's flags
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("train", CFG), ("evaluate", "--help"))),
    ],
)
def test_doors_show_help_without_heavy_imports(door: str, words: str, tmp_path: Path) -> None:
    """Would catch six seconds of imports before a list of options."""
    arguments = (
        words.replace("model=pipnet", "ckpt=run").replace("max_epochs", "devices") if door == "evaluate" else words
    )
    line = [sys.executable, "-c", LIGHT_DOOR, str(ROOT / f"{door}.py"), *arguments.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # precedes an installed copy of the project
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("trainer: check, cpu, ddp, ddp_cpu, gpu" if "help" in words else ": 7\n") in done.stdout
    assert list(tmp_path.iterdir()) == []


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=lapa106", "data.root=/gone"], "/gone is not an existing folder"),
        (["data=folder"], "data.root: is not set"),
        (["backbone=mbv9"], "Could not find 'backbone/mbv9'"),
        (["backbon=mbv2"], "Could not override 'backbon'"),
        (["crop.siez=64"], "Could not override 'crop.siez'"),
        (["+typo=1"], "typo: nothing reads this key"),
        (["optimizer.lr=fast"], "optimizer.lr: 'fast' given"),
        (
            ["data.name=300"],
            """data.name: 300 given, str of length >= 1 expected; as text it is written in quotes: "300" in YAML, in""",
        ),
        (
            ["data.name=2024_01"],
            """data.name: 202401 given, str of length >= 1 expected; as text it is written in quotes: "2024_01" in""",
        ),
        (["optimizer.lr=${nowhere}"], "optimizer.lr: Interpolation key 'nowhere' not found"),
        (["crop.size=100"], "crop.size=100 must be a multiple"),
        (["test_ckpt=first"], "test_ckpt: 'first' given, Literal['last', 'best'] expected"),
        (["seed=-1"], "seed: -1 given, int >= 0 and < 4294967296 expected"),
        (["trainer.log_every_n_steps=0"], "trainer.log_every_n_steps: 0 given, int >= 1 | None expected"),
        (["+trainer.accumulate_grad_batches=-1"], "trainer.accumulate_grad_batches: -1 given, int >= 1 expected"),
        (["optimizer.lr=-1"], "optimizer.lr: -1 given, float > 0 expected"),
        (["+optimizer.eps=-1"], "optimizer: Invalid epsilon value: -1"),
        (["augment.pixels.0.p=2"], "augment.pixels[0].p: 2 given, float >= 0 and <= 1 expected"),
        (["backbone.name=vit_tiny_patch16_224"], "backbone.name=vit_tiny_patch16_224: its feature maps have the"),
        (["backbone.weights=/dev/null"], "backbone.weights=/dev/null: there is no such file"),
        (["trainer.check_val_every_n_epoch=2"], "trainer.check_val_every_n_epoch=1 validates after every epoch"),
        (["experiment=pfld_input_size", "crop.size=64"], "start it with -m, or choose one job: backbone.width=..."),
        pytest.param(
            ["trainer=gpu"],
            "trainer: ",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_train_reports_mistakes_in_one_sentence(
    words: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Would catch a traceback in the place of a message, or a mistake that is found only after the training."""
    line = [*small("pipnet"), *QUIET, *words]
    if words[0].startswith("experiment="):
        line = [*SMALL_FACES, *QUIET, *words]
    if words[0] in ("data=lapa106", "data=folder"):
        line = [word for word in line if not word.startswith("data.") or word in words]
    with pytest.raises(SystemExit) as stop:
        open_door("train", *line, folder=tmp_path)
    out = capfd.readouterr()
    text = f"{stop.value.code} {out.out} {out.err}"
    assert stop.value.code
    assert message in text
    assert "Traceback" not in text
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("trainer", "refused"),
    [
        ({"check_val_every_n_epoch": 20, "max_epochs": 19}, True),
        ({"check_val_every_n_epoch": 20, "max_epochs": 20}, False),
        ({"check_val_every_n_epoch": 20, "max_epochs": 5, "max_steps": -1, "fast_dev_run": False}, True),
        ({"check_val_every_n_epoch": 20, "max_epochs": 5, "limit_val_batches": 0.5}, True),
        ({"check_val_every_n_epoch": 20, "max_epochs": 5, "limit_val_batches": 0}, False),
        ({"check_val_every_n_epoch": 20, "max_epochs": 5, "fast_dev_run": 2}, False),
        ({"check_val_every_n_epoch": 20, "max_epochs": 5, "max_steps": 100}, False),
        ({"check_val_every_n_epoch": 20, "max_epochs": -1}, False),
        ({"check_val_every_n_epoch": 20, "max_epochs": None}, False),
        ({"check_val_every_n_epoch": None, "max_epochs": 5, "val_check_interval": 10}, False),
        ({"max_epochs": 5}, False),
    ],
    ids=str,
)
def test_check_values_refuses_a_training_without_validation(trainer: dict[str, Any], refused: bool) -> None:
    """Would catch a short recipe that keeps no best checkpoint and fails after hours, or a sound one refused."""
    rates = {"warmup_epochs": 0}
    cfg = OmegaConf.create({"test": True, "test_ckpt": "last", "trainer": trainer, "model": {}, "rates": rates})
    with pytest.raises(ConfigError, match="nothing would be validated") if refused else nullcontext():
        check_values(cfg)


@pytest.mark.parametrize(
    ("rates", "message"),
    [(None, "rates=null: its keys"), ({"warmup_epochs": 6}, "warmup_epochs=6 is more than trainer.max_epochs=5")],
)
def test_check_values_refuses_rates_without_effect(rates: dict[str, int] | None, message: str) -> None:
    """Would catch a traceback, or a training that never reaches its learning rate."""
    cfg = OmegaConf.create({"trainer": {"max_epochs": 5}, "model": {}, "rates": rates})
    with pytest.raises(ConfigError, match=message):
        check_values(cfg)


@pytest.mark.slow
def test_train_accepts_one_cell_of_a_grid_experiment(tmp_path: Path) -> None:
    """Would catch a cell refused as an experiment without `-m`: typed in full, in a sweep, or resumed."""
    overrides = ["experiment=pfld_input_size", *SMALL_FACES, *PLAIN, "trainer.max_epochs=1", "datamodule.batch_size=8"]
    overrides += ["trainer.check_val_every_n_epoch=1", "datamodule.num_workers=0"]
    cell = ["crop.size=64", "backbone.width=0.25"]
    open_door("train", *overrides, *cell, "hydra.run.dir=typed", folder=tmp_path)
    open_door("train", *overrides, "-m", cell[0], "backbone.width=0.25,0.3", "hydra.sweep.dir=sweep", folder=tmp_path)
    folders = [tmp_path / "typed", tmp_path / "sweep" / "0", tmp_path / "sweep" / "1"]
    for folder in folders:
        assert read_status(folder).state == "finished"
        shutil.rmtree(folder / "checkpoints")  # the state of a run that ended before its first checkpoint
        for name in ("status.json", "metrics.json", "metrics.csv"):
            (folder / name).unlink()
    for folder in folders[:2]:
        open_door("train", f"resume={folder}", folder=tmp_path)
    open_door("train", "-m", "resume=sweep", folder=tmp_path)
    assert [read_status(folder).state for folder in folders] == ["finished"] * 3


def test_train_explains_weights_that_cannot_be_downloaded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a long wait and a traceback, or random weights, on a machine without a network."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("facelab.networks.backbone.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        open_door("train", *small("pipnet"), *QUIET, "backbone.pretrained=true", folder=tmp_path)
    message = str(stop.value.code)
    assert message.startswith("backbone: the pretrained weights of backbone test_resnet cannot be loaded")
    assert "backbone.weights=FILE" in message
    assert "backbone.pretrained=false" in message
    assert "Traceback" not in capfd.readouterr().err
    assert load(tmp_path / "run" / "status.json")["reason"] == message


@pytest.mark.slow
def test_train_explains_wandb_without_an_account(tmp_path: Path) -> None:
    """Would catch a traceback of W&B without a key; a separate process, as Lightning keeps this one offline."""
    overrides = [*small("pipnet"), *QUIET, "logger=wandb", "logger.wandb.offline=false"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(tmp_path), "FACELAB_CACHE": os.environ["FACELAB_TEST_CACHE"]}
    line = [sys.executable, str(ROOT / "train.py"), *overrides]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "logger.wandb.offline=true needs neither" in done.stderr
    assert "Traceback" not in done.stderr
    assert load(tmp_path / "run" / "status.json")["state"] == "failed"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "ckpt: name either a run (ckpt=RUN) or detections (predictions=PATH data=...)"),
        (["ckpt=/gone"], "/gone is neither a run folder nor a checkpoint file"),
        (["ckpt={run}", "data=lapa106", "data.root=/gone"], "has the 106 landmarks of lapa106, but the run predicts"),
        (["ckpt={run}", "data=synthetic98"], "the 68 of ibug68"),
        (["ckpt={run}", "split=dev"], "split"),
        (["ckpt={run}", "box=detected"], "box"),
        (["ckpt={run}", "batch_size=many"], "batch_size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_evaluate_reports_mistakes_in_one_sentence(
    words: list[str], message: str, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Would catch landmarks compared with those of another layout, or a traceback for a wrong path."""
    with pytest.raises(SystemExit) as stop:
        open_door("evaluate", *(word.format(run=trained) for word in words), "hydra.run.dir=run", folder=tmp_path)
    out = capfd.readouterr()
    text = f"{stop.value.code} {out.out} {out.err}"
    assert message in text
    assert "Traceback" not in text
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_evaluate_keeps_old_results_if_it_is_refused(trained: Path, tmp_path: Path) -> None:
    """Would catch results of one evaluation beside the configuration of another one in a reused folder."""
    line = (f"ckpt={trained}", "hydra.run.dir=run")
    open_door("evaluate", *line, folder=tmp_path)
    names = ("config.yaml", "metrics.json", "faces.csv")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in names}
    with pytest.raises(SystemExit):
        open_door("evaluate", *line, "flip_test=true", "trainer.accelerator=tpu", folder=tmp_path)
    assert {name: (tmp_path / "run" / name).read_bytes() for name in names} == before
    assert load(tmp_path / "run" / "status.json")["state"] == "finished"


def test_evaluate_removes_old_results_before_its_test(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch the same if the second evaluation is killed during its test."""
    shutil.copytree(trained, tmp_path / "run")
    shutil.copytree(trained, tmp_path / "trained")
    (tmp_path / "run" / "config.yaml").write_text("task: evaluate\n")
    monkeypatch.setattr(LandmarkModule, "test_step", lambda *_: 1 / 0)
    with pytest.raises(SystemExit):
        open_door("evaluate", "ckpt=trained", "hydra.run.dir=run", "flip_test=true", folder=tmp_path)
    assert not {"metrics.json", "faces.csv"} & {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.slow
def test_train_prints_nothing_to_stderr(tmp_path: Path) -> None:
    """Would catch a warning in every run that hides an important one."""
    environment = os.environ | {"FACELAB_CACHE": os.environ["FACELAB_TEST_CACHE"]}
    line = [sys.executable, str(ROOT / "train.py"), *small("pipnet"), "trainer.max_epochs=1", "hydra.run.dir=run"]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "results in" in done.stdout
