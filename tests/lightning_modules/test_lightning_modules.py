"""Tests that every method of conf/model must pass, with small parts and few rendered faces."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import CONF, MODELS, compose_config, groups_of, method, parts_of_landmarks, small, small_with, taker
from lightning import Callback, LightningModule, Trainer
from omegaconf import OmegaConf
from torch import Tensor

from facelab.faces.batch import LandmarkBatch
from facelab.faces.geometry import bounding_box
from facelab.profiling.compile import set_format_and_compile
from facelab.runs.build import build
from facelab.runs.checkpoint import load_run
from lightning_modules.schedule import FractionalMultiStepLR, StagedCosineLR, first_epochs

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, cache: Path) -> str:
    monkeypatch.setenv("FACELAB_STAMP", "now")
    monkeypatch.setenv("FACELAB_CACHE", str(cache))
    torch.manual_seed(0)
    return request.param


def build_small(model: str, *words: str) -> tuple[Any, Any]:
    """Build the module and the datamodule of a small configuration."""
    cfg = compose_config([*small(model), *words])
    return build(cfg, "model"), build(cfg, "datamodule")


FAST_STEPS = 200
"""Steps up to which a method overfits a batch in the fast tests; HRNet's take half a minute."""


def fitted_module(model: str, *words: str) -> tuple[Any, LandmarkBatch]:
    """Return a module with the statistics of its training set, in evaluation mode, and a batch of that set."""
    module, datamodule = build_small(model, *words)
    datamodule.setup("fit")
    module.fit_statistics(datamodule)
    return module.eval(), next(iter(datamodule.train_dataloader()))


def trainer(folder: Path, **options: Any) -> Trainer:
    """Return a trainer of two epochs without output."""
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"max_epochs": 2, "accelerator": "cpu", "enable_checkpointing": False, "use_distributed_sampler": False}
    return Trainer(default_root_dir=folder, num_sanity_val_steps=0, **(quiet | settings | options))


def trained_parameters(module: Any, model: str) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that a step of a method trains, by name."""
    untrained = tuple(method(model).untrained)
    return {name: each for name, each in module.named_parameters() if not (untrained and name.startswith(untrained))}


def error_of(points: Tensor, batch: LandmarkBatch) -> float:
    """Return NME_box of points in the crop, as a fraction."""
    box = bounding_box(batch.points.numpy())
    side = np.sqrt((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]))
    return float(((points - batch.points).norm(dim=-1).mean(1).numpy() / side).mean())


def test_method_fits_validates_tests_and_predicts(model: str, tmp_path: Path) -> None:
    """Would catch a method without one of the steps, with other log names, or with predictions in crop pixels."""
    module, datamodule = build_small(model)
    runner = trainer(tmp_path)
    runner.fit(module, datamodule)
    assert {"train/loss", "val/nme_box", "val/nme_ioc", "val/faces"} <= runner.callback_metrics.keys()
    assert runner.progress_bar_metrics.keys() == {"train/loss", "val/nme_box"}, "the progress bar lacks a metric"
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


def with_noise(target: Any) -> Any:
    """Return a target with noise of MISS standard deviations on every number, as from a trained network."""
    if isinstance(target, Tensor):
        if not target.is_floating_point():
            return target
        spread = target[target.isfinite()].std()
        return target + MISS * spread * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    return type(target)(*map(with_noise, target))  # a NamedTuple


MISS = 0.03
"""Error allowed to a network that has overfitted one batch, as a fraction of the standard deviation of the target.

PIPNet and PFLD reach a tenth of the landmark error that follows. For a coder that rounds to cells, rounding is most of
that error."""


@pytest.mark.parametrize(
    "model",
    [pytest.param(model, marks=pytest.mark.slow if method(model).steps > FAST_STEPS else ()) for model in MODELS],
    indirect=True,
)
def test_method_overfits_one_batch(model: str) -> None:
    """Would catch a target, loss and decoding that do not fit each other, so the network learns something else."""
    recipe = {"augment": "augment=none", "scheduler": "scheduler=cosine", "optimizer": "optimizer.lr=0.003"}
    overrides = [word for group, word in recipe.items() if group in groups_of(model)]
    num_steps, extra = method(model).steps, method(model).overfit
    module, batch = fitted_module(model, "data.train=4", f"trainer.max_epochs={num_steps}", *overrides, *extra)
    target = module.coder.encode(batch.points, batch.valid, batch.image.shape[-1])
    expected = error_of(module.coder.decode(with_noise(target))[0], batch)
    steps = module.configure_optimizers()
    module.train()
    for step in range(num_steps):
        if step == num_steps // 3:
            module.eval()  # statistics of so few pixels differ from those used in evaluation
        steps["optimizer"].zero_grad()
        module.training_step(batch, 0).backward()
        steps["optimizer"].step()
        steps["lr_scheduler"].step()
    with torch.no_grad():
        error = error_of(module.predict_points(batch.image).points, batch)
    assert error < 1.2 * expected  # a few points may be rounded to the next cell


def test_method_trains_every_parameter(model: str) -> None:
    """Would catch a layer that nothing uses, which breaks DDP, or one without a gradient from the loss."""
    module, batch = fitted_module(model)
    module.train().training_step(batch, 0).backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert gradients.keys() == trained_parameters(module, model).keys()
    assert all(gradient.isfinite().all() for gradient in gradients.values())


PART_OPTIONS = [
    (group, option)
    for group in sorted(
        {"backbone", "coder", "head", "loss", "pose", "stage"} & {g for model in MODELS for g in groups_of(model)}
    )
    for option in parts_of_landmarks(group)
    if not {"[timm,", "null"} & {*(CONF / group / f"{option}.yaml").read_text().split()}
]
"""Every option of a trained part, except options that leave the part out; one network of timm represents all."""


@pytest.mark.parametrize(("group", "option"), PART_OPTIONS)
def test_part_options_train(group: str, option: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Would catch an option that composes but cannot be built, gives NaN, or gets no gradient."""
    monkeypatch.setenv("FACELAB_STAMP", "now")
    monkeypatch.setenv("FACELAB_CACHE", str(cache))
    torch.manual_seed(0)
    model = taker(group, option)
    cfg = compose_config(small_with(model, group, option))
    if "pretrained" in cfg[group]:
        cfg[group].pretrained = False
    if "modules" in cfg[group]:
        cfg[group].modules = [1, 1, 1]  # as many layers of each kind as are needed for all branches
    module, datamodule = build(cfg, "model"), build(cfg, "datamodule")
    datamodule.setup("fit")
    module.fit_statistics(datamodule)
    module.train().training_step(next(iter(datamodule.train_dataloader())), 0).backward()
    gradients = [parameter.grad for parameter in trained_parameters(module, model).values()]
    assert gradients and all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def with_unreadable_faces(batch: LandmarkBatch, rows: list[int]) -> LandmarkBatch:
    """Return the batch with these faces as if their photos could not be read."""
    image, points, valid = batch.image.clone(), batch.points.clone(), batch.valid.clone()
    image[rows], points[rows], valid[rows] = 0, torch.nan, False
    return batch._replace(image=image, points=points, valid=valid)


@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3]], ids=["one", "all"])
def test_method_ignores_unreadable_faces(model: str, rows: list[int]) -> None:
    """Would catch one broken file that makes the loss NaN, and with it all weights."""
    module, batch = fitted_module(model)
    loss = module.training_step(with_unreadable_faces(batch, rows), 0)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in trained_parameters(module, model).values())


def draw_weights(module: torch.nn.Module) -> None:
    """Draw random weights: an untrained network may predict the same points for every image."""
    for weight in module.parameters():
        if weight.dim() > 1:
            torch.nn.init.kaiming_normal_(weight)


def test_flip_test(model: str) -> None:
    """Would catch left and right exchanged in the flip test, or half a pixel lost by the flip."""
    module, batch = fitted_module(model)
    draw_weights(module)

    def flipped(points: Tensor) -> Tensor:
        x, y = points[:, list(module.layout.flip)].unbind(-1)
        return torch.stack([batch.image.shape[-1] - 1 - x, y], -1)

    with torch.no_grad():
        plain, swapped = (module.predict_points(image) for image in (batch.image, batch.image.flip(-1)))
        module.flip_test = True
        averaged, averaged_swapped = (module.predict_points(image) for image in (batch.image, batch.image.flip(-1)))
    assert (plain.points - flipped(swapped.points)).abs().max() > 1, "the network is equivariant to the flip"
    average = (plain.points + flipped(swapped.points)) / 2
    torch.testing.assert_close(averaged.points, average, atol=1e-3, rtol=0)
    torch.testing.assert_close(averaged_swapped.points, flipped(averaged.points), atol=1e-3, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(module.predict(batch.image).points, averaged.points, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        averaged_swapped.confidence, averaged.confidence[:, list(module.layout.flip)], atol=1e-5, rtol=0
    )


def test_load_run_restores_the_predictions(model: str, tmp_path: Path) -> None:
    """Would catch weights or statistics of the training set that are missing from the checkpoint."""
    cfg = compose_config(small(model))
    module, datamodule = build(cfg, "model"), build(cfg, "datamodule")
    module.save_hyperparameters(OmegaConf.to_container(cfg, resolve=False), logger=False)
    set_format_and_compile(module, cfg.memory_format, compile=False)  # as for the loaded one: results equal bit for bit
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(module, datamodule)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    loaded = load_run(tmp_path / "a.ckpt", cfg.paths).module
    batch = next(iter(datamodule.val_dataloader()))
    with torch.no_grad():
        original, restored = (each.eval().predict_points(batch.image) for each in (module, loaded))
    assert torch.equal(original.points, restored.points)
    assert torch.equal(original.confidence, restored.confidence)
    assert not any(each.training for each in loaded.modules())


class Average(Callback):
    """Callback that averages the weights by hand and saves a checkpoint at the end of an epoch."""

    def __init__(self, decay: float, path: Path) -> None:
        self.decay, self.path = decay, path
        self.weights: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        for name, weight in module.named_parameters():
            old = self.weights.get(name, weight.detach().clone())
            self.weights[name] = self.decay * old + (1 - self.decay) * weight.detach()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)


def test_ema_averages_and_saves_the_weights(model: str, tmp_path: Path) -> None:
    """Would catch an average over integer tables, or one that is computed but not saved."""
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
    for name, value in module.state_dict().items():
        if not value.is_floating_point() and not name.endswith("num_batches_tracked"):
            assert torch.equal(saved[name], current[name]), name
            assert torch.equal(value, current[name]), name


def test_method_trains_in_half_precision(model: str, tmp_path: Path) -> None:
    """Would catch coordinates in bfloat16, which has eight significant bits, and a table that does not accept them."""
    module, datamodule = build_small(model)
    runner = trainer(tmp_path, precision="bf16-mixed", limit_train_batches=2, max_epochs=1)
    runner.fit(module, datamodule)
    assert runner.callback_metrics["train/loss"].isfinite()
    assert np.isfinite(module.table.error).all()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert module.eval().predict_points(next(iter(datamodule.val_dataloader())).image).points.dtype == torch.float32


@pytest.mark.parametrize(("epochs", "full"), [(1, 1), (2, 1), (10, 5), (60, 30)])
def test_fractional_multi_step_lr_scales_with_the_epochs(epochs: int, full: int) -> None:
    """Would catch a shortened run whose learning rate is reduced by ten from the first step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = FractionalMultiStepLR(optimizer, at=[0.5, 0.8333], factor=0.1, max_epochs=epochs)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert len(list(itertools.takewhile(lambda rate: rate == 1.0, rates))) == full
    assert rates == sorted(rates, reverse=True)


def test_staged_cosine_begins_anew_in_each_stage() -> None:
    """Would catch one cosine over the whole run, or a second stage that begins at the end of the first one's."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = StagedCosineLR(optimizer, shares=[0.25, 0.75], max_epochs=16)
    rates = []
    for _ in range(16):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [2 * (1 + math.cos(math.pi * at / length)) / 2 for length in (4, 12) for at in range(length)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shares", "epochs", "first"),
    [
        ([0.25, 0.75], 600, [0, 150]),
        ([0.2, 0.3, 0.5], 10, [0, 2, 5]),
        ([0.01, 0.01, 0.98], 10, [0, 1, 2]),
        ([0.9, 0.1], 3, [0, 2]),
        ([0.5, 0.49, 0.01], 10, [0, 5, 9]),
        ([0.5, 0.5], 1, [0, 1]),
        ([1.0], 7, [0]),
    ],
)
def test_first_epochs_gives_every_part_an_epoch(shares: list[float], epochs: int, first: list[int]) -> None:
    """Would catch a part without an epoch, or shares that are not added up."""
    assert first_epochs(shares, epochs) == first
