"""Tests of the average of the weights of the last epochs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import compose_config, small
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from facelab.runs.build import build

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Weights(Checkpoint):
    """Recorder of the weights at the end of each epoch, and of those that were validated and saved."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.current, self.validated, self.saved = list[dict[str, Tensor]](), list[dict[str, Tensor]](), {}

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.current.append({name: value.clone() for name, value in module.state_dict().items()})

    def on_validation_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if len(self.validated) == trainer.current_epoch:
            self.validated.append({name: value.clone() for name, value in module.state_dict().items()})

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)
        self.saved = torch.load(self.path, weights_only=True)["state_dict"]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Callable[..., LightningModule]:
    """Return a function that trains a small network for some of four epochs, and averages the last two."""
    monkeypatch.setenv("FACELAB_STAMP", "now")
    monkeypatch.setenv("FACELAB_CACHE", str(cache))

    def run(epochs: int, *callbacks: Checkpoint) -> LightningModule:
        torch.manual_seed(0)
        words = ["callbacks=swa", "callbacks.swa.start=0.5", "trainer.max_epochs=4", "optimizer.lr=0.01"]
        cfg = compose_config([*small("pipnet"), *words])
        module, datamodule = build(cfg, "model"), build(cfg, "datamodule")
        options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        options |= {"num_sanity_val_steps": 0, "use_distributed_sampler": False, "accumulate_grad_batches": 3}
        options |= {"enable_checkpointing": bool(callbacks)}
        trainer = Trainer(
            max_epochs=epochs, accelerator="cpu", callbacks=[build(cfg, "callbacks.swa"), *callbacks], **options
        )
        trainer.fit(module, datamodule)
        return module  # type: ignore[no-any-return]

    return run


def test_swa_averages_the_last_epochs(
    tmp_path: Path, train: Callable[..., LightningModule], caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch a validation of the first weights, an average over steps or other epochs, or over whole numbers."""
    weights = Weights(tmp_path / "a.ckpt")
    module = train(4, weights)
    assert "nothing was averaged" not in caplog.text
    for name, last in weights.current[-1].items():
        if last.is_floating_point():
            expected = [weights.current[0][name], weights.current[1][name], weights.current[2][name]]
            expected.append((weights.current[2][name] + last) / 2)
        else:
            expected = [each[name] for each in weights.current]
        for epoch, value in enumerate(expected):
            torch.testing.assert_close(weights.validated[epoch][name], value, msg=f"{name}, epoch {epoch}")
        torch.testing.assert_close(weights.saved[name], expected[-1])
        torch.testing.assert_close(module.state_dict()[name], expected[-1])


@pytest.mark.parametrize(("epochs", "warns"), [(2, True), (3, False)])
def test_swa_warns_if_nothing_was_averaged(
    epochs: int, warns: bool, train: Callable[..., LightningModule], caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch weights of the last step that pass for an average after a training that ended early."""
    train(epochs)
    assert (f"ended after epoch {epochs}, before the first epoch of the average, 3" in caplog.text) == warns
