"""Tests that every detector that can be trained must pass, with small parts and few rendered scenes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from composing import DETECTORS, TRAINED, compose_config, method, small
from lightning import Trainer
from omegaconf import OmegaConf

from facelab.faces.batch import DetectionBatch
from facelab.faces.boxes import iou
from facelab.profiling.compile import set_format_and_compile
from facelab.runs.build import build
from facelab.runs.checkpoint import load_run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


@pytest.fixture(params=[model for model in TRAINED if model in DETECTORS])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, cache: Path) -> str:
    monkeypatch.setenv("FACELAB_STAMP", "now")
    monkeypatch.setenv("FACELAB_CACHE", str(cache))
    torch.manual_seed(0)
    return request.param


def build_small(model: str, *words: str) -> tuple[Any, Any]:
    """Build the module and the datamodule of a small configuration."""
    cfg = compose_config([*small(model), *words])
    return build(cfg, "model"), build(cfg, "datamodule")


def first_batch(datamodule: Any) -> DetectionBatch:
    datamodule.setup("fit")
    batch: DetectionBatch = next(iter(datamodule.train_dataloader()))
    assert len(batch.boxes)
    return batch


def trainer(folder: Path, **options: Any) -> Trainer:
    """Return a trainer of two epochs without output."""
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"max_epochs": 2, "accelerator": "cpu", "enable_checkpointing": False, "use_distributed_sampler": False}
    return Trainer(default_root_dir=folder, num_sanity_val_steps=0, **(quiet | settings | options))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_detector_fits_validates_and_tests(model: str, precision: str, tmp_path: Path) -> None:
    """Would catch a detector without one of the steps, with other log names, or that fails in mixed precision."""
    module, datamodule = build_small(model)
    runner = trainer(tmp_path, precision=precision)
    runner.fit(module, datamodule)
    assert {"train/loss", "val/ap50", "val/recall", "val/photos"} <= runner.callback_metrics.keys()
    assert runner.progress_bar_metrics.keys() == {"train/loss", "val/ap50"}, "the progress bar lacks a metric"
    (tested,) = runner.test(module, datamodule, verbose=False)
    assert tested["test/photos"] == 5
    assert tested["test/faces"] == len(module.table.true_boxes)


def test_detector_validates_at_its_own_scale(model: str, tmp_path: Path) -> None:
    """Would catch a validation at the scale of the test, which may be ten times as slow."""
    module, datamodule = build_small(model, "model.val_scale=vga")
    used = []
    detect = module.detect
    module.detect = lambda image, size, rule=None: used.append(rule) or detect(image, size, rule)
    runner = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=1, limit_test_batches=1)
    runner.fit(module, datamodule)
    runner.test(module, datamodule, verbose=False)
    assert [rule.scale for rule in used] == ["vga", "original"]
    assert module.protocol()["scale"] == "original"


def test_detector_overfits_one_batch(model: str) -> None:
    """Would catch a target, loss and decoding that do not fit each other, so the network learns something else."""
    num_steps, extra = method(model).steps, method(model).overfit
    module, datamodule = build_small(model, "augment.pixels=[]", *extra)
    batch = first_batch(datamodule)
    optimizer = module.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 0.003
    module.train()
    for step in range(num_steps):
        if step == num_steps // 2:
            module.eval()  # statistics of so few pixels differ from those used in evaluation
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    with torch.no_grad():
        found = module.detect(batch.image, batch.size)
    sure = found.scores > 0.5
    same = found.photo[sure][:, None] == batch.photo
    overlap = torch.where(same, iou(found.boxes[sure], batch.boxes), 0)
    learned = (batch.boxes[:, 2:] - batch.boxes[:, :2]).amin(dim=1) > 12  # smaller faces have no anchor
    assert (overlap.amax(dim=0)[learned] > 0.7).all()
    assert (overlap.amax(dim=1) > 0.5).all()
    error = (found.points[sure][overlap.argmax(dim=0)] - batch.points).norm(dim=-1)[learned]
    assert error[error.isfinite()].max() < 5


def test_detector_trains_every_parameter(model: str) -> None:
    """Would catch a layer that nothing uses, which breaks DDP, or one without a gradient from the loss."""
    module, datamodule = build_small(model)
    module.train().training_step(first_batch(datamodule), 0).backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in module.parameters())
    assert all(each.grad.any() for name, each in module.named_parameters() if "predict" in name)


def test_detector_ignores_a_batch_without_a_face(model: str) -> None:
    """Would catch a batch of unreadable photos that makes the loss NaN, or a parameter without gradient under DDP."""
    module, datamodule = build_small(model)
    batch = first_batch(datamodule)
    empty = batch._replace(**{name: getattr(batch, name)[:0] for name in batch._fields if name not in PHOTOS})
    loss = module.train().training_step(empty, 0)
    loss.backward()
    assert loss.item() == 0
    assert all(each.grad is not None and not each.grad.any() for each in module.parameters())


PHOTOS = ("image", "size", "to_photo", "photo_id")
"""Fields of a batch with a row for each photo."""


def test_load_run_restores_the_detections(model: str, tmp_path: Path) -> None:
    """Would catch weights that are missing from the checkpoint."""
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
        original, restored = (each.eval().detect(batch.image, batch.size) for each in (module, loaded))
    assert len(original.boxes)
    assert all(torch.equal(a, b) for a, b in zip(original, restored, strict=True))
