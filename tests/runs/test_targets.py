"""Tests of own packages: their classes are built where the user names them in ``trust``, and nowhere else."""

import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from composing import SMALL_BATCHES, SMALL_FACES, compose_config
from conftest import PLAIN, ROOT, metrics_of, open_door
from omegaconf import OmegaConf

import facelab
from facelab.errors import ConfigError, FacelabError
from facelab.files import read_json
from facelab.runs.build import check
from facelab.runs.check import TRAIN_KEYS
from facelab.runs.checkpoint import read_checkpoint
from facelab.runs.overrides import trusted
from facelab.runs.processes import RESUMED_WORDS
from facelab.runs.targets import Refused, buildable, trusting

OWN = ROOT / "tests" / "own"
TRUST = "trust=[ownmethod,pace]"
PACE = "+callbacks.pace={_target_: pace.MinimumEpochTime, seconds: 0.001}"
METHOD = ("model=ownmethod", *SMALL_FACES, *SMALL_BATCHES, *PLAIN, PACE)
"""Overrides of a small training whose method, loss and callback are not of this project."""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the packages of tests/own importable, and return a folder for others."""
    monkeypatch.syspath_prepend(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train an own method with an own loss and an own callback for an epoch; return its folder."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(OWN / "conf", folder / "own_conf")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(OWN)
        open_door("train", "--config-dir", "own_conf", *METHOD, TRUST, "hydra.run.dir=run", folder=folder)
    return folder / "run"


def refusal_of(path: str) -> str:
    with pytest.raises(Refused) as refused:
        buildable(path)
    return str(refused.value)


def test_own_method_is_evaluated_and_predicts(own: Path, packages: Path) -> None:
    """Would catch a door that does not pass on whom the user trusts, or numbers other than those of the training."""
    open_door("evaluate", f"ckpt={own}", "trust=[ownmethod]", "hydra.run.dir=evaluated", folder=packages)
    assert metrics_of(packages / "evaluated")["nme_box"] == metrics_of(own)["nme_box"]
    assert OmegaConf.load(packages / "evaluated" / "config.yaml").trust == ["ownmethod"]
    words = ["trust=[ownmethod]", "device=cpu", "threads=1", "seconds=0", "repeats=1", "batch=1"]
    open_door("benchmark", f"ckpt={own}", *words, "hydra.run.dir=benchmark", folder=packages)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    cv2.imwrite(str(packages / "photo.png"), image[..., ::-1])
    words = ["images=photo.png", f"landmarker={own}", "trust=[ownmethod]", "device=cpu", "hydra.run.dir=predicted"]
    open_door("predict", *words, folder=packages)
    (written,) = read_json(packages / "predicted" / "landmarks.json")["images"]["photo.png"]["faces"]
    (face,) = facelab.load(own, device="cpu", trust=["ownmethod"]).predict(image)
    np.testing.assert_allclose(face.points, written["points"], atol=0.006)  # written with two decimals


@pytest.mark.parametrize("door", ["evaluate", "predict", "benchmark", "load"])
def test_foreign_checkpoint_with_own_classes_is_refused(door: str, own: Path, packages: Path) -> None:
    """Would catch a checkpoint whose own `trust` counts, or a message that does not show what to type."""
    cv2.imwrite(str(packages / "photo.png"), np.zeros((8, 8, 3), np.uint8))
    copy = shutil.copy(own / "checkpoints" / "last.ckpt", packages / "foreign.ckpt")
    assert read_checkpoint(Path(copy)).config["trust"] == ["ownmethod", "pace"]
    words = {"predict": ["images=photo.png", f"landmarker={copy}"]}.get(door, [f"ckpt={copy}"])
    with pytest.raises((SystemExit, FacelabError), match=r"`ownmethod\.OwnMethod` is not.*trust=\[ownmethod\]"):
        if door == "load":
            facelab.load(copy, device="cpu")
        else:
            open_door(door, *words, "hydra.run.dir=run", folder=packages)


def test_resume_trusts_only_what_is_typed_again(own: Path, packages: Path) -> None:
    """Would catch a received folder that runs a package of this machine, or an own run that cannot be continued."""
    shutil.copytree(own, packages / "run")
    words = ["resume=run", "trainer.max_epochs=2"]
    with pytest.raises(SystemExit, match=r"overrides\.yaml: .* type 'trust=\[ownmethod,pace\]' too"):
        open_door("train", *words, folder=packages)
    assert read_json(packages / "run" / "status.json")["state"] == "finished"
    open_door("train", *words, TRUST, folder=packages)
    assert read_checkpoint(packages / "run" / "checkpoints" / "last.ckpt").step == 8


def test_trusted_ignores_a_resumed_recipe() -> None:
    """Would catch a received folder whose recipe, not its overrides, trusts a package."""
    cfg = compose_config(["model=pfld", "trust=[pace]"])
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(RESUMED_WORDS, raising=False)
        assert trusted(cfg) == ["pace"]
        patch.setenv(RESUMED_WORDS, '["trainer.max_epochs=2"]')
        assert trusted(cfg) == []
        patch.setenv(RESUMED_WORDS, '["trust=[pace]"]')
        assert trusted(cfg) == ["pace"]


@pytest.mark.parametrize(
    "trust", ["mypackage", None, 3, ["my.package"], [3], ["os"], ["subprocess"], ["torch"], ["-x"]]
)
def test_trusting_refuses_what_is_no_own_package(trust: object) -> None:
    """Would catch a library whose every class a checkpoint may then build, or a text that is read letter by letter."""
    with pytest.raises(ConfigError, match=r"^trust"), trusting(trust):
        pytest.fail("it was accepted")


def test_trusting_ends_with_its_block(packages: Path) -> None:
    """Would catch one run that trusts on behalf of the next in the same process."""
    with trusting(["pace"]):
        assert buildable("pace.MinimumEpochTime").__name__ == "MinimumEpochTime"
        assert "trust=[ownmethod,pace]" in refusal_of("ownmethod.OwnMethod"), "it would replace what is trusted"
    assert "trust=[pace]" in refusal_of("pace.MinimumEpochTime")
    assert "trust=" not in refusal_of("os.system")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.Loss", "`nowhere` cannot be imported: install it, or name its folder in PYTHONPATH"),
        ("pace.MinimumEpochTim", "`pace` has no `MinimumEpochTim`; did you mean `MinimumEpochTime`?"),
        ("pace.time.sleep", "`pace.time.sleep` is not allowed: it refers to the module `time`"),
        ("pace.Any", "not allowed"),
        ("broken.Loss", "`broken` cannot be imported: ZeroDivisionError: division by zero ({0}/broken.py, line 2)"),
        ("misspelt.Loss", "`misspelt` cannot be imported: SyntaxError: invalid syntax (misspelt.py, line 1)"),
        ("needy.Loss", "`needy` cannot be imported: No module named 'absent'"),
    ],
)
def test_buildable_refuses_faults_of_a_trusted_package(path: str, message: str, packages: Path) -> None:
    """Would catch a traceback, or any function of any module that an own package imports."""
    for name, text in {"broken": "\n1 / 0", "misspelt": "a b", "needy": "import absent"}.items():
        (packages / f"{name}.py").write_text(text)
    with trusting(["nowhere", "pace", "broken", "misspelt", "needy"]):
        assert message.format(packages) in refusal_of(path)


def test_check_finds_faults_of_own_classes(packages: Path) -> None:
    """Would catch an own class whose arguments are not compared with its signature and its bounds."""
    cfg = compose_config(["model=pfld", "+callbacks.pace={_target_: pace.MinimumEpochTime, seconds: -1, second: 1}"])
    with trusting(["pace"]), pytest.raises(FacelabError) as refused:
        check(cfg, TRAIN_KEYS)
    assert "callbacks.pace.seconds: -1 given, float > 0" in str(refused.value)
    assert "callbacks.pace.second: `MinimumEpochTime` has no argument `second`" in str(refused.value)


def test_pace_of_the_tests_holds_within_a_resumed_epoch(packages: Path) -> None:
    """Would catch a test of Slurm that fails if the signal comes within an epoch, or whose training is too short."""
    from pace import MinimumEpochTime

    pace, started = MinimumEpochTime(0.05), time.monotonic()
    pace.on_train_start()  # Lightning does not call on_train_epoch_start
    pace.on_train_epoch_end()
    pace.on_train_epoch_start()
    pace.on_train_epoch_end()
    assert time.monotonic() - started >= 0.1
