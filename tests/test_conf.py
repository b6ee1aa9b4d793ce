"""Tests of all options in conf/: each composes and passes the check, and mistakes are reported."""

import ast
import inspect
import re
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from composing import CONF, DETECTION_SETS, DETECTORS, MODELS, SAMPLE, compose_config, faults, groups_of, options, taker
from conftest import ROOT
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from evaluate import EVALUATE_KEYS
from facelab.runs.check import check_config
from facelab.runs.importing import check_import
from facelab.runs.targets import PROJECT

ALWAYS = ("trainer", "logger", "callbacks")
"""Groups of the runs of every method."""
NO_PARTS = ("experiment", "hydra", "model", "official", "paths", *ALWAYS)
"""Groups whose options are not parts of one method."""
PARTS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
SOURCES = sorted(path for folder in (*sorted(PROJECT), ".") for path in (ROOT / folder).glob("*.py")) + sorted(
    (ROOT / "facelab").glob("*/*.py")
)


def _choices() -> Iterator[tuple[str, str]]:
    """Yield every option in conf/, except the datasets, which are tested with every model."""
    for group in PARTS:
        if group not in ("hydra", "official", "paths", "data"):
            yield from ((group, option) for option in options(group))


@pytest.mark.parametrize(("group", "option"), list(_choices()))
def test_check_config_accepts_every_option(group: str, option: str) -> None:
    """Would catch an option with a key that its class does not have, a wrong type, or no model that fits."""
    if group in ("model", "experiment", *ALWAYS):
        assert faults([f"{group}={option}"]) == []
    else:
        taker(group, option)


FIRST = "folder"
"""Dataset of the fast tests of every method; the first method alone is tested with the others too."""


@pytest.mark.parametrize(
    ("model", "data"),
    [
        pytest.param(model, data, marks=() if model == MODELS[0] or data == FIRST else pytest.mark.slow)
        for model in MODELS
        for data in options("data")
    ],
)
def test_check_config_accepts_every_model_on_every_dataset(model: str, data: str) -> None:
    """Would catch a method that fits only its default dataset, or a dataset without a key that methods need."""
    assert faults([f"model={model}", f"data={data}", *SAMPLE.get(("data", data), [])]) == []


@pytest.mark.parametrize("model", DETECTORS)
@pytest.mark.parametrize("data", DETECTION_SETS)
def test_check_config_accepts_every_detector_on_every_set_of_boxes(model: str, data: str) -> None:
    """Would catch a detector that fits only its default dataset, or a set of boxes without a key that it needs."""
    assert faults([f"model={model}", f"data={data}"]) == []


REFUSED_OF_DETECTORS = {
    "datamodule.batch_size": 0,
    "datamodule.max_unreadable": 2,
    "datamodule.ignore": "invalid",
    "detection.scale": "small",
    "detection.threshold": -0.1,
    "detection.candidates": 0,
    "detection.nms_iou": 1.5,
    "detection.most": 1.5,
    "coder.sizes": "[[0,1]]",
    "coder.variances": "[0,0.2]",
    "backbone.width": 0.1,
    "head.width": 6,
    "detection.min_face": 1,
    "detection.factor": 1.0,
    "detection.thresholds": "[0.6,0.7]",
    "detection.nms_iom": 2,
    "detection.cells": 0,
    "detection.resize": "cubic",
    "model.pnet.width": 0,
    "model.rnet.landmarks": 1,
    "model.onet.dropout": 2,
}
"""A senseless value by key of the parts of detectors; none has all of them."""


@pytest.mark.parametrize("model", DETECTORS)
def test_check_config_refuses_senseless_values_of_a_detector(model: str) -> None:
    """Would catch a value that is accepted silently and changes or ruins a measurement."""
    cfg = compose_config([f"model={model}"])
    keys = [key for key in REFUSED_OF_DETECTORS if OmegaConf.select(cfg, key) is not None]
    assert len(keys) > 8
    found = faults([f"model={model}", *(f"{key}={REFUSED_OF_DETECTORS[key]}" for key in keys)])
    assert [key for key in keys if not any(fault.place.startswith(key) for fault in found)] == []


@pytest.mark.parametrize(
    "words", [[], *([f"data={option}", *SAMPLE.get(("data", option), [])] for option in options("data"))], ids=" ".join
)
def test_check_config_accepts_evaluate(words: list[str]) -> None:
    """Would catch a key of conf/evaluate.yaml that the door does not read, or one that the file does not have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACELAB_STAMP", "now")
        cfg = compose_config(["ckpt=run", *words], "evaluate")
        assert check_config(cfg, EVALUATE_KEYS) == []
        assert cfg.paths.name == f"run-{words[0].partition('=')[2] if words else 'own'}-test"


@pytest.mark.parametrize("callbacks", ["default", "ema", "swa"])
def test_early_stopping_goes_with_the_callbacks(callbacks: str) -> None:
    """Would catch an option that replaces the other callbacks, or a metric that is not the monitor."""
    words = [f"callbacks={callbacks}", "callbacks/early_stopping=patience", "callbacks.early_stopping.patience=3"]
    assert faults(words) == []
    chosen = compose_config([*words, "monitor.name=val/auc08_ioc", "monitor.mode=max"]).callbacks
    stopping = chosen.early_stopping
    assert (stopping.monitor, stopping.mode, stopping.patience) == ("val/auc08_ioc", "max", 3)
    assert chosen.checkpoint.filename == "best"


@pytest.mark.parametrize("model", options("official"))
def test_check_import_accepts_every_official_file(model: str) -> None:
    """Would catch a value of conf/official/ that the parts of its method do not accept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACELAB_STAMP", "now")
        check_import(compose_config([f"model={model}", "weights=file.pth"], "import_weights"))


def test_train_config_names_runs() -> None:
    """Would catch runs of one sweep with equal names, or a name that needs a group of another method."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACELAB_STAMP", "now")
        cfg = compose_config(["model=pipnet", "backbone=mbv2", "data=lapa106", "data.name=mine", "seed=3"])
        assert cfg.paths.name == "pipnet-mbv2-mine-s3"
        overrides = ["model=pipnet", "backbone=timm", "data=lapa106", "seed=3"]
        assert compose_config([*overrides, "backbone.name=hf-hub:a/b"]).paths.name == "pipnet-hf-hub:a-b-lapa106-s3"
        assert (
            compose_config(overrides).paths.name == "pipnet-timm-lapa106-s3"
        )  # the check then reports the missing name


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("logs/train/runs/2026-11-20_07-17-00_pipnet-mbv2-lapa106-s1", "pipnet-mbv2-lapa106-s1"),
        ("logs/train/runs/2026-11-20_07-17-00_pipnet-mbv2-lapa106-s1/checkpoints/best.ckpt", "pipnet-mbv2-lapa106-s1"),
        ("logs/train/multiruns/2026-11-20_07-17-00/3/", "2026-11-20_07-17-00-3"),
        ('"~/mine"', "mine"),
        ("copied.ckpt", "copied"),
        ("???", "none"),
    ],
)
def test_evaluate_config_names_runs(checkpoint: str, name: str) -> None:
    """Would catch evaluations of two runs with equal names, or a traceback for a missing checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACELAB_STAMP", "now")
        cfg = compose_config([f"ckpt={checkpoint}", "split=val"], "evaluate")
        assert cfg.paths.name == f"{name}-own-val"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["predictions=results/mtcnn"], "mtcnn"),
        (["predictions=results/2026-11-20_07-17-00_yunet.bbox.json"], "yunet.bbox"),
        (["predictions=logs/2026-11-20_07-17-00_retinaface-s1/detections.npz"], "retinaface-s1"),
        (["predictions=logs/2026-11-20_07-17-00_retinaface-s1/submission/"], "retinaface-s1"),
        (["predictions=a.json", "name=biubug6"], "biubug6"),
        ([], "none"),
    ],
)
def test_evaluate_config_names_predictions(words: list[str], name: str) -> None:
    """Would catch predictions of two programs that are all called `detections` in a table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACELAB_STAMP", "now")
        cfg = compose_config([*words, "split=val"], "evaluate")
        assert cfg.paths.name == f"{name}-own-val"


# Parts of a method


@pytest.fixture
def other_conf(tmp_path: Path) -> Path:
    """Copy conf/ with an added model without a head, so that a test may write mistakes into it."""
    folder = Path(shutil.copytree(CONF, tmp_path / "conf"))
    without_head = "".join(line for line in (folder / "model" / "pipnet.yaml").open() if "head" not in line)
    (folder / "model" / "bare.yaml").write_text(without_head)
    return folder


@pytest.mark.parametrize("model", [*MODELS, *DETECTORS])
def test_compose_refuses_parts_of_other_models(model: str) -> None:
    """Would catch `head=...` for a method without a head that is silently accepted and has no effect."""
    foreign = {group for group in PARTS if group not in NO_PARTS}
    for group in foreign - groups_of(model):
        with pytest.raises(ConfigCompositionException, match=group):
            compose_config([f"model={model}", f"{group}={options(group)[0]}"])


def test_compose_refuses_a_part_that_the_model_does_not_have(other_conf: Path) -> None:
    """Would catch the same for a model that certainly has no head."""
    compose_config(["model=bare"], folder=other_conf)
    with pytest.raises(ConfigCompositionException, match="Could not override 'head'"):
        compose_config(["model=bare", "head=pipnet"], folder=other_conf)


def test_compose_prefers_the_command_line_to_the_experiment_to_the_model(other_conf: Path) -> None:
    """Would catch a recipe whose values are lost or cannot be overridden."""
    (other_conf / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [{override /backbone: mbv2}]\ntrainer: {max_epochs: 7}\ncrop: {scale: 1.3}\n"
    )
    cfg = compose_config(["experiment=mine", "crop.scale=1.4", "trainer=gpu"], folder=other_conf)
    assert (cfg.backbone.name, cfg.trainer.max_epochs, cfg.crop.scale) == ("mobilenetv2_100", 7, 1.4)


# Mistakes


def test_check_config_names_the_key_of_a_typo_in_a_file(other_conf: Path) -> None:
    """Would catch a wrong key in a file that is dropped, or that ends in a traceback after minutes."""
    for file, right, wrong in (
        ("augment/pipnet.yaml", "sigma_limit", "sigma_limt"),
        ("coder/pipnet.yaml", "num_neighbours", "num_neighbors"),
    ):
        path = other_conf / file
        path.write_text(path.read_text().replace(right, wrong))
    found_faults = faults([], folder=other_conf)
    assert any(
        line.startswith("augment.pixels[1].sigma_limt: ") and "`sigma_limit`?" in line for line in found_faults
    ), found_faults
    assert any(line.startswith("coder.num_neighbors: ") and "`num_neighbours`?" in line for line in found_faults), (
        found_faults
    )


@pytest.mark.parametrize(
    ("word", "place", "hint"),
    [
        ("+typo=1", "typo", "nothing reads this key"),
        ("+crop.siez=64", "crop.siez", "`size`"),
        ("+trainer.max_epoch=1", "trainer.max_epoch", "`max_epochs`"),
        ("+callbacks.face_grid.colums=3", "callbacks.face_grid.colums", "`columns`"),
        ("+monitor.nmae=x", "monitor.nmae", "`name`"),
        ("optimizer.lr=fast", "optimizer.lr", "'fast'"),
        ("model.flip_test=3", "model.flip_test", "bool"),
        (
            "data.layout.path=facelab.faces.layouts.LAPA16",
            "data.layout.path",
            "`facelab.faces.layouts.LAPA106`",
        ),
    ],
)
def test_check_config_names_the_key_of_a_typo_in_an_override(word: str, place: str, hint: str) -> None:
    """Would catch `+typo=1` that is silently accepted, or a wrong value that fails only when it is used."""
    (fault,) = faults([word])
    assert fault.startswith(f"{place}: ")
    assert hint in fault


@pytest.mark.parametrize("word", ["crop.siez=64", "typo=1", "backbone=mbv4", "model=pipnte"])
def test_compose_refuses_unknown_keys_and_options(word: str) -> None:
    """Would catch a key or an option that does not exist and is accepted."""
    with pytest.raises(Exception, match=re.escape(word.partition("=")[2 if "model" in word or "back" in word else 0])):
        compose_config([word])


# Places of values


def test_conf_reads_the_environment_in_paths_only() -> None:
    """Would catch a checkpoint that opens only on the machine of its training."""
    places = {
        path.relative_to(CONF).parts[0]
        for path in CONF.rglob("*.yaml")
        if re.search(r"\$\{(oc\.env|hydra)\b", path.read_text())
    }
    assert places <= {"paths", "hydra"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_contains_no_landmark_count_and_no_device(path: Path) -> None:
    """Would catch a second definition of a layout, or a part that moves itself to a device without Lightning."""
    tree = ast.parse(path.read_text())
    if path.name != "layouts.py":
        numbers = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in COUNTS]
        assert numbers == []
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    assert [node.lineno for node in calls if node.func.attr == "cuda"] == []  # type: ignore[attr-defined]


COUNTS = (68, 98, 106)


def targets() -> list[str]:
    """Return every class of the project that a file in conf/ names."""
    pattern = re.compile(rf"_target_: ((?:{'|'.join(sorted(PROJECT))})\.[\w.]+)")
    return sorted({name for path in CONF.rglob("*.yaml") for name in pattern.findall(path.read_text())})


@pytest.mark.parametrize("target", targets())
def test_targets_have_no_default_arguments(target: str) -> None:
    """Would catch a default in Python: the saved configuration misses it, and an old run reopens differently."""
    module, _, name = target.rpartition(".")
    for parameter in inspect.signature(getattr(import_module(module), name)).parameters.values():
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        assert parameter.default is parameter.empty, f"{target} has a default for {parameter.name}"


def test_compose_accepts_splits_as_error_messages_write_them() -> None:
    """Would catch advice that is refused: a key that the empty mapping in the file does not have."""
    overrides = [*SAMPLE[("data", "folder")], "data.splits={afw: train, ibug: test}"]
    cfg = compose_config(["data=folder", *overrides])
    assert dict(cfg.data.splits) == {"afw": "train", "ibug": "test"}
    assert faults(["data=folder", *overrides]) == []
