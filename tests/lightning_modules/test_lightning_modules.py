"""Every method of conf/model, small and on few rendered faces, through the same duties."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import groups_of, options, small
from lightning import Callback, LightningModule, Trainer
from omegaconf import OmegaConf
from test_conf import compose_config
from torch import Tensor

from facelab.faces.batch import LandmarkBatch
from facelab.faces.geometry import bounding_box
from facelab.runs.build import build
from facelab.runs.checkpoint import load_run
from lightning_modules.schedule import FractionalMultiStepLR

BY_HEART: dict[str, tuple[int, tuple[str, ...]]] = {
    "pipnet": (120, ()),
    "hrnet": (240, ("backbone.width=16", "loss=adaptive_wing", "optimizer.lr=0.002")),
    "pfld": (240, ("loss.points.penalty._target_=torch.nn.L1Loss",)),  # squares of small errors say little
}
"""Method -> steps that it takes to learn one batch by heart, and what to type."""
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


@pytest.fixture(params=options("model"))
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, cache: Path) -> str:
    monkeypatch.setenv("FACELAB_STAMP", "now")
    monkeypatch.setenv("FACELAB_CACHE", str(cache))
    torch.manual_seed(0)
    return request.param


def built(model: str, *words: str) -> tuple[Any, Any]:
    """The module and the datamodule of a small configuration."""
    cfg = compose_config([*small(model), *words])
    return build(cfg, "model"), build(cfg, "datamodule")


def ready(model: str, *words: str) -> tuple[Any, LandmarkBatch]:
    """A module that knows its training set, in evaluation mode, and a batch of that set."""
    module, datamodule = built(model, *words)
    datamodule.setup("fit")
    module.fit_statistics(datamodule)
    return module.eval(), next(iter(datamodule.train_dataloader()))


def trainer(folder: Path, **options: Any) -> Trainer:
    """A quiet trainer of two epochs."""
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"max_epochs": 2, "accelerator": "cpu", "enable_checkpointing": False, "use_distributed_sampler": False}
    return Trainer(default_root_dir=folder, num_sanity_val_steps=0, **(quiet | settings | options))


def error_of(points: Tensor, batch: LandmarkBatch) -> float:
    """NME_box of points in the crop."""
    box = bounding_box(batch.points.numpy())
    side = np.sqrt((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]))
    return float(((points - batch.points).norm(dim=-1).mean(1).numpy() / side).mean())


def test_fit_validate_test_predict(model: str, tmp_path: Path) -> None:
    """A method that lacks one of the steps, logs other names, or predicts in pixels of the crop."""
    module, datamodule = built(model)
    runner = trainer(tmp_path)
    runner.fit(module, datamodule)
    assert {"train/loss", "val/nme_box", "val/nme_ioc", "val/faces"} <= runner.callback_metrics.keys()
    assert runner.progress_bar_metrics.keys() == {"train/loss", "val/nme_box"}, "hours without a number on the screen"
    assert len(module.table.face_id) == 6
    (validated,) = runner.validate(module, datamodule, verbose=False)
    assert validated["val/faces"] == 6
    (tested,) = runner.test(module, datamodule, verbose=False)
    assert tested["test/faces"] == 8
    assert np.isfinite(module.table.error).all()

    predicted = runner.predict(module, datamodule.test_dataloader())
    assert predicted is not None
    points = np.concatenate([batch.points.numpy() for batch in predicted])  # type: ignore[union-attr]
    truth = np.stack([face.points for face in datamodule.faces["test"].faces])
    np.testing.assert_allclose(np.linalg.norm(points - truth, axis=-1), module.table.error, atol=0.01)


def test_overfits_one_batch(model: str) -> None:
    """A target, a loss or a decoding that do not belong together: the network then learns something else."""
    recipe = {"augment": "augment=none", "scheduler": "scheduler=cosine", "optimizer": "optimizer.lr=0.003"}
    words = [word for group, word in recipe.items() if group in groups_of(model)]
    count, own = BY_HEART[model]
    module, batch = ready(model, "data.train=4", f"trainer.max_epochs={count}", *words, *own)
    steps = module.configure_optimizers()
    module.train()
    for step in range(count):
        if step == count // 3:
            module.eval()  # batch statistics of so few pixels are not those of evaluation
        steps["optimizer"].zero_grad()
        module.training_step(batch, 0).backward()
        steps["optimizer"].step()
        steps["lr_scheduler"].step()
    with torch.no_grad():
        error = error_of(module.predict_points(batch.image).points, batch)
        back, _ = module.coder.decode(module.coder.encode(batch.points, batch.valid, batch.image.shape[-1]))
    assert error < max(0.005, 1.2 * error_of(back, batch))


def test_every_parameter_learns(model: str) -> None:
    """A layer that nothing uses, which breaks training on several devices, or one that is cut off from the loss."""
    module, batch = ready(model)
    module.train().training_step(batch, 0).backward()
    assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def blank(batch: LandmarkBatch, rows: list[int]) -> LandmarkBatch:
    """The batch with these faces as they are when their photo cannot be read."""
    image, points, valid = batch.image.clone(), batch.points.clone(), batch.valid.clone()
    image[rows], points[rows], valid[rows] = 0, torch.nan, False
    return batch._replace(image=image, points=points, valid=valid)


@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3]], ids=["one", "all"])
def test_faces_that_cannot_be_read_do_no_harm(model: str, rows: list[int]) -> None:
    """One broken file makes the loss NaN, and with it all weights."""
    module, batch = ready(model)
    loss = module.training_step(blank(batch, rows), 0)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_flip_test(model: str) -> None:
    """Left and right mixed up in the flip test, or half a pixel lost at the flip: it then makes results worse."""
    module, batch = ready(model)

    def flipped(points: Tensor) -> Tensor:
        x, y = points[:, list(module.layout.flip)].unbind(-1)
        return torch.stack([batch.image.shape[-1] - 1 - x, y], -1)

    with torch.no_grad():
        plain, swapped = (module.predict_points(image) for image in (batch.image, batch.image.flip(-1)))
        module.flip_test = True
        both, both_swapped = (module.predict_points(image) for image in (batch.image, batch.image.flip(-1)))
    assert (plain.points - flipped(swapped.points)).abs().max() > 1, "the network is its own flip"
    average = (plain.points + flipped(swapped.points)) / 2
    torch.testing.assert_close(both.points, average, atol=1e-3, rtol=0)
    torch.testing.assert_close(both_swapped.points, flipped(both.points), atol=1e-3, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(module.predict(batch.image).points, both.points, atol=1e-3, rtol=0)
    torch.testing.assert_close(both_swapped.confidence, both.confidence[:, list(module.layout.flip)], atol=1e-5, rtol=0)


def test_a_checkpoint_reloads_equal(model: str, tmp_path: Path) -> None:
    """Weights or statistics of the training set that are not saved: the run then cannot be opened as it was."""
    cfg = compose_config(small(model))
    module, datamodule = build(cfg, "model"), build(cfg, "datamodule")
    module.save_hyperparameters(OmegaConf.to_container(cfg, resolve=False), logger=False)
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(module, datamodule)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    again = load_run(tmp_path / "a.ckpt", cfg.paths).module
    batch = next(iter(datamodule.val_dataloader()))
    with torch.no_grad():
        one, other = (each.eval().predict_points(batch.image) for each in (module, again))
    assert torch.equal(one.points, other.points)
    assert torch.equal(one.confidence, other.confidence)
    assert not any(each.training for each in again.modules())


class Average(Callback):
    """The exponential moving average of the weights, by hand; saves a checkpoint at the end of an epoch."""

    def __init__(self, decay: float, path: Path) -> None:
        self.decay, self.path = decay, path
        self.weights: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        for name, weight in module.named_parameters():
            old = self.weights.get(name, weight.detach().clone())
            self.weights[name] = self.decay * old + (1 - self.decay) * weight.detach()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)


def test_averaged_weights(model: str, tmp_path: Path) -> None:
    """An average over whole-number tables, or one that is computed and not saved."""
    cfg = compose_config([*small(model), "callbacks=ema", "optimizer.lr=0.01"])
    module, datamodule = build(cfg, "model"), build(cfg, "datamodule")
    average = Average(cfg.callbacks.ema.decay, tmp_path / "a.ckpt")
    runner = trainer(tmp_path, max_epochs=1, callbacks=[average, build(cfg.callbacks, "ema")])
    runner.fit(module, datamodule)
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    saved, current = content["state_dict"], content["current_model_state"]
    for name, weight in average.weights.items():
        torch.testing.assert_close(saved[name], weight)
    assert any((saved[name] - current[name]).abs().max() > 0.001 for name in average.weights)
    fresh, _ = ready(model)
    tables = {name: value for name, value in fresh.state_dict().items() if not value.is_floating_point()}
    for name, value in tables.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(saved[name], value), name
            assert torch.equal(module.state_dict()[name], value), name


def test_half_precision(model: str, tmp_path: Path) -> None:
    """Coordinates in bfloat16, which knows eight bits; a table that cannot take them."""
    module, datamodule = built(model)
    runner = trainer(tmp_path, precision="bf16-mixed", limit_train_batches=2, max_epochs=1)
    runner.fit(module, datamodule)
    assert runner.callback_metrics["train/loss"].isfinite()
    assert np.isfinite(module.table.error).all()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert module.eval().predict_points(next(iter(datamodule.val_dataloader())).image).points.dtype == torch.float32


@pytest.mark.parametrize(("epochs", "full"), [(1, 1), (2, 1), (10, 5), (60, 30)])
def test_drops_keep_their_shape(epochs: int, full: int) -> None:
    """A shortened run that learns at a tenth of the rate from its first step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = FractionalMultiStepLR(optimizer, at=[0.5, 0.8333], factor=0.1, max_epochs=epochs)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert len(list(itertools.takewhile(lambda rate: rate == 1.0, rates))) == full
    assert rates == sorted(rates, reverse=True)
