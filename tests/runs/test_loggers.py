"""Tests of the loggers of an evaluation."""

from pathlib import Path
from typing import Any

import pytest
from composing import compose_config
from omegaconf import OmegaConf

from evaluate import EVALUATE_KEYS
from facelab.runs.build import check
from facelab.runs.loggers import follow_loggers

WANDB = {"project": "mine", "group": "sweep", "tags": ["a"], "offline": False, "save_dir": "/srv", "id": "run"}


def followed(folder: Path, logger: Any, *words: str) -> dict[str, Any]:
    """Return the loggers of an evaluation of a run with these loggers, by name."""
    folder.mkdir()
    OmegaConf.save({"logger": logger}, folder / "config.yaml")
    cfg = compose_config([f"ckpt={folder}", *words], "evaluate")
    follow_loggers(cfg, folder / "checkpoints" / "last.ckpt")
    check(cfg, EVALUATE_KEYS)
    loggers: Any = OmegaConf.to_container(cfg.logger, resolve=True)
    return {name: node for name, node in loggers.items() if node}


@pytest.fixture(autouse=True)
def stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACELAB_STAMP", "now")


def test_evaluation_logs_beside_the_run(tmp_path: Path) -> None:
    """Would catch another project or group, the id of the training, its folder, or a server that is contacted."""
    (logger,) = followed(tmp_path / "run", {"csv": {}, "wandb": WANDB}).values()
    assert (logger["project"], logger["group"], logger["tags"]) == ("mine", "sweep", ["a"])
    assert (logger["job_type"], logger["offline"], logger["save_dir"]) == ("evaluate", True, "run")
    assert logger["id"] != "run" and logger["name"] == "run-own-test"


@pytest.mark.parametrize(
    ("logger", "words", "names"),
    [
        ({"csv": {}, "tensorboard": {}, "wandb": None}, [], {"tensorboard"}),
        ({"csv": {}}, [], set()),
        ({}, ["logger=csv"], {"csv"}),
        ({"csv": {}}, ["logger=wandb"], {"wandb"}),
        ({"wandb": WANDB}, ["logger=none"], set()),
        (None, [], set()),
        ([1], [], set()),
    ],
)
def test_evaluation_uses_the_loggers_of_the_run_unless_typed(
    logger: Any, words: list[str], names: set[str], tmp_path: Path
) -> None:
    """Would catch a logger that neither the run has nor the user typed, or a typed one that is dropped."""
    assert followed(tmp_path / "run", logger, *words).keys() == names


def test_typed_names_win(tmp_path: Path) -> None:
    """Would catch a typed project that the run's replaces, or `offline=false` that is ignored."""
    words = ["logger.wandb.project=other", "logger.wandb.offline=false"]
    logger = followed(tmp_path / "run", {"wandb": WANDB}, *words)["wandb"]
    assert (logger["project"], logger["group"], logger["offline"]) == ("other", "sweep", False)


def test_names_of_a_received_folder_are_only_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an environment variable in a project name, or a node instead of a name."""
    monkeypatch.setenv("SECRET", "secret")
    plain = followed(tmp_path / "plain", {"wandb": {"project": "facelab"}})["wandb"]
    logger = followed(tmp_path / "run", {"wandb": WANDB | {"project": "a\\${oc.env:SECRET}"}})["wandb"]
    assert logger["project"] == "facelab"
    for number, name in enumerate(({"_target_": "torch.nn.Linear"}, [1, 2], 3)):
        logger = followed(tmp_path / str(number), {"wandb": WANDB | {"group": name}})["wandb"]
        assert logger["group"] == plain["group"], "a name that is no text stops or changes the evaluation"


def test_a_copied_checkpoint_has_no_loggers(tmp_path: Path) -> None:
    """Would catch the configuration of another run that lies beside a copied file."""
    cfg = compose_config(["ckpt=a.ckpt"], "evaluate")
    follow_loggers(cfg, tmp_path / "a.ckpt")
    assert not any(cfg.logger.values())
