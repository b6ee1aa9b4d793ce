"""Tests of init=: a training that starts from the weights of another run."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import SMALL_FACES, compose_config, small
from conftest import PLAIN, open_door
from omegaconf import OmegaConf

from facelab.errors import CheckpointError, ConfigError, RunError
from facelab.renames import FORMAT
from facelab.runs.build import build
from facelab.runs.checkpoint import read_checkpoint
from facelab.runs.initial import build_initialised

LAST_LAYER = ("head.", "coder.")
"""Beginnings of the names of PIPNet's tensors that depend on the layout."""


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("FACELAB_STAMP", "now")
    monkeypatch.setenv("FACELAB_CACHE", str(cache))


def built(run: Path, *words: str, caplog: pytest.LogCaptureFixture) -> tuple[Any, dict[str, Any], str]:
    """Build the small PIPNet from a run; return it with the run's weights and the log."""
    caplog.set_level(logging.INFO)
    module = build_initialised(compose_config([*small("pipnet"), f"init={run}", *words]))
    return module, read_checkpoint(run / "checkpoints" / "last.ckpt").weights, caplog.text


def test_init_loads_all_weights_of_the_same_model(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch weights that stay random, which only a worse result would show."""
    module, weights, text = built(trained, caplog=caplog)
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not name.startswith("loss."):
            assert torch.equal(value, weights[name]), name
    assert "tensors of" in text and "not in it" not in text and "not used" not in text


def test_init_with_another_layout_keeps_all_but_the_last_layer(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch a refusal of 106 points from 68, or a backbone that starts anew."""
    module, weights, text = built(trained, "data=synthetic106", *SMALL_FACES[1:], caplog=caplog)
    state = module.state_dict()
    for name, value in state.items():
        if name.startswith("backbone.") and value.is_floating_point():
            assert torch.equal(value, weights[name]), name
    assert "not in it or of another shape: head." in text and "not used of it: " in text
    other = [name for name in state if state[name].shape != weights[name].shape]
    assert other and all(name.startswith(LAST_LAYER) for name in other)


def test_init_gives_new_parts_their_own_initial_weights(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch a backbone that fits nothing and starts from random weights although others were asked for."""
    missing = trained / "nowhere.pth"
    words = ("backbone.name=test_efficientnet", f"backbone.weights={missing}")
    with pytest.raises(ConfigError, match=r"nowhere\.pth"):  # it is read
        built(trained, *words, caplog=caplog)
    built(trained, f"backbone.weights={missing}", caplog=caplog)  # not read, because the run replaces all of it


def test_init_refuses_what_fits_nothing(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch a silent start from random weights, or a traceback."""
    with pytest.raises(CheckpointError, match="no weights of this checkpoint fit the model"):
        build_initialised(compose_config([*small("hrnet"), f"init={trained}"]))
    with pytest.raises(RunError, match="neither a run folder nor a checkpoint file"):
        build_initialised(compose_config([*small("pipnet"), f"init={tmp_path / 'nothing'}"]))
    (tmp_path / "a.ckpt").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match=r"init=.*a\.ckpt: .* is not a checkpoint of train.py"):
        build_initialised(compose_config([*small("pipnet"), f"init={tmp_path / 'a.ckpt'}"]))


@pytest.mark.parametrize("place", ["start.ckpt", "../start.ckpt", "absolute"])
def test_train_starts_from_init_and_resumes_without_it(place: str, trained: Path, tmp_path: Path) -> None:
    """Would catch an option that train.py does not use, and a resumed run that needs, reloads or refuses the path."""
    copy = tmp_path / "start.ckpt" if place != "../start.ckpt" else tmp_path.parent / "start.ckpt"
    copy.write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes())
    init = f"init={copy if place == 'absolute' else place}"
    words = (*small("pipnet"), *PLAIN, "optimizer.lr=1e-9", init)  # nothing is learned
    open_door("train", *words, "trainer.max_epochs=1", "scheduler=none", "hydra.run.dir=run", folder=tmp_path)
    before, after = (read_checkpoint(file).weights for file in (copy, tmp_path / "run" / "checkpoints" / "last.ckpt"))
    weights = [name for name in before if name.endswith("conv1.weight")]
    assert weights and all(torch.allclose(before[name], after[name], atol=1e-6) for name in weights)
    copy.unlink()
    with pytest.raises(SystemExit, match="A resumed run keeps its saved network"):
        open_door("train", "resume=run", "init=other.ckpt", "trainer.max_epochs=2", folder=tmp_path)
    open_door("train", "resume=run", "trainer.max_epochs=2", folder=tmp_path)
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").step == 8


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (2, 1)])
def test_init_takes_the_common_stages_of_dan(
    before: int, after: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch the number of trained stages of the other run, which the new model may not have."""
    first, second = (f"model.stage_shares={[1 / count] * count}" for count in (before, after))
    cfg = compose_config([*small("dan"), first])
    module = build(cfg, "model")
    content = {"format": FORMAT, "hyper_parameters": OmegaConf.to_container(cfg), "global_step": 0}
    torch.save({**content, "state_dict": module.state_dict()}, tmp_path / "a.ckpt")
    caplog.set_level(logging.INFO)
    built = build_initialised(compose_config([*small("dan"), second, f"init={tmp_path / 'a.ckpt'}"]))
    assert built.num_active == after
    for name, value in built.stages[: min(before, after)].named_parameters():
        assert torch.equal(value, module.stages.get_parameter(name))
    assert ("not used of it: stages." in caplog.text) == (before > after)
    assert ("not in it or of another shape: stages.2." in caplog.text) == (before < after)


def test_train_names_the_options_for_ckpt(tmp_path: Path) -> None:
    """Would catch Hydra's advice to add an option that nothing reads."""
    with pytest.raises(SystemExit, match=r"ckpt=a.ckpt: train.py has no such option; init=RUN"):
        open_door("train", "ckpt=a.ckpt", folder=tmp_path)


def test_backbone_weights_names_init_for_a_checkpoint(trained: Path) -> None:
    """Would catch the message that the file belongs to another network."""
    file = trained / "checkpoints" / "last.ckpt"
    cfg = compose_config([*small("pipnet"), f"backbone.weights={file}"])
    with pytest.raises(ConfigError, match=r"a checkpoint of a whole model; train.py init=FILE starts from it"):
        build(cfg, "model")
