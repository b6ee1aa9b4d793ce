"""Tests of the names of the best checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import compose_config
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from facelab.internals.lightning import forget_best
from facelab.runs.build import build

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Scored(LightningModule):
    """Module of one weight that counts the epochs and logs given scores."""

    def __init__(self, scores: Sequence[float]) -> None:
        super().__init__()
        self.scores = scores
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return -self.weight.sum()

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("val/nme_box", self.scores[self.current_epoch])

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 3:  # as DAN does between two stages
            forget_best(self.trainer)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def train(folder: Path, scores: Sequence[float], *words: str) -> dict[str, int]:
    """Train an epoch of one step for each score, and return the epochs of the best checkpoints by file name."""
    cfg = compose_config([f"paths.run={folder}", *words])
    data: Any = DataLoader(torch.ones(1, 1))
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [build(cfg, "callbacks.checkpoint"), build(cfg, "callbacks.resume")]
    trainer = Trainer(max_epochs=len(scores), accelerator="cpu", callbacks=callbacks, num_sanity_val_steps=0, **options)
    trainer.fit(Scored(scores), data, data)
    files = {path.name: torch.load(path, weights_only=True) for path in (folder / "checkpoints").iterdir()}
    state = next(value for key, value in files.pop("last.ckpt")["callbacks"].items() if "ModelCheckpoint" in key)
    epochs = {name: int(content["state_dict"]["weight"]) for name, content in files.items()}
    assert {Path(path).name: round(float(score), 3) for path, score in state["best_k_models"].items()} == {
        name: scores[epoch - 1] for name, epoch in epochs.items()
    }, "the state of last.ckpt names other files"
    assert Path(state["best_model_path"]).name == "best.ckpt"
    return epochs


@pytest.mark.parametrize(
    ("scores", "count", "kept"),
    [
        ([0.5, 0.3, 0.4], 1, {2}),
        ([0.5, 0.3, 0.4], 3, {1, 2, 3}),
        ([0.5, 0.3, 0.4], -1, {1, 2, 3}),
        ([0.1, 0.2, 0.1, 0.5, 0.3, 0.4, 0.6, 0.2], 3, {5, 6, 8}),  # the first three are those of an earlier stage
        ([0.1, 0.2, 0.1, 0.5, 0.6], 3, {4, 5}),
    ],
)
def test_best_ckpt_is_always_the_best(
    scores: list[float], count: int, kept: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch one file for all checkpoints, which is the last, or a best.ckpt that is the oldest of several."""
    monkeypatch.setenv("FACELAB_STAMP", "now")
    epochs = train(tmp_path, scores, f"callbacks.checkpoint.save_top_k={count}")
    assert set(epochs.values()) == kept
    assert epochs["best.ckpt"] == min(kept, key=lambda epoch: scores[epoch - 1])
    assert epochs.keys() == {"best.ckpt", *(f"best-v{number}.ckpt" for number in range(1, 10))} & epochs.keys()
