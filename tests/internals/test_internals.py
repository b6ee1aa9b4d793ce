"""Tests of undocumented behaviour of Lightning, torch and Hydra that the project depends on."""

import inspect
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from lightning import LightningModule, Trainer
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from torch import nn
from torch.utils.data import DataLoader

from facelab import signals
from facelab.internals.lightning import (
    allow_unused_parameters,
    drop_wandb_setting,
    forget_best,
    is_last_batch,
    keep_handlers,
    number_files,
    processed_epochs,
    release_children,
    validates_after,
)
from facelab.internals.torch import Operands
from facelab.internals.trainer import trainer_arguments
from hydra_plugins.facelab_grid import GridSweeper


class ProgressProbe(LightningModule):
    """Module that records the progress functions after every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(1, 1), list[tuple[int, bool, bool]]()

    def training_step(self, batch: torch.Tensor, batch_index: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: torch.Tensor, batch_index: int) -> None:
        """Do nothing; Lightning needs the method to validate."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        progress = (
            processed_epochs(self.trainer),
            is_last_batch(self.trainer),
            validates_after(self.trainer, batch_index + 1),
        )
        self.seen.append(progress)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(("every", "validated"), [(1.0, [False, False, True]), (2, [False, True, False])])
def test_progress_functions_follow_the_trainer(every: float, validated: list[bool], tmp_path: Path) -> None:
    """Would catch a release of Lightning that counts otherwise: repeated orders, saves inside a validation."""
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=2,
        val_check_interval=every,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    probe = ProgressProbe()
    loader = DataLoader(torch.zeros(3, 1))  # type: ignore[arg-type]
    trainer.fit(probe, loader, loader)
    expected = [(epoch, batch == 2, validated[batch]) for epoch in range(2) for batch in range(3)]
    assert probe.seen == expected


@pytest.mark.slow
def test_release_children_stops_the_observer() -> None:
    """Would catch a process of a failed job that Lightning's observer ends together with the sweep that started it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    observer = _ChildProcessObserver(child_processes=[child], main_pid=-1)
    observer.start()
    try:
        assert release_children() == [child]
        assert release_children() == []
        child.kill()
        child.wait()
        for _ in range(100):
            if not any(thread is observer for thread in threading.enumerate()):
                break
            time.sleep(0.1)
        assert not observer.is_alive(), "the observer would kill this process"
    finally:
        child.kill()


def test_drop_wandb_setting_removes_the_setting(tmp_path: Path) -> None:
    """Would catch a warning of W&B in every run about a setting that the user did not set."""
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    assert "anonymous" in logger._wandb_init
    drop_wandb_setting(logger, "anonymous")
    drop_wandb_setting(logger, "anonymous")
    assert "anonymous" not in logger._wandb_init


def test_operands_collects_the_parameters_in_use() -> None:
    """Would catch a count without the parameters used inside an operator, or with unused parameters."""
    used, unused = nn.Linear(2, 2), nn.Linear(2, 2)
    with torch.no_grad(), Operands() as operands:
        used(torch.zeros(1, 2))
    assert {id(parameter) for parameter in used.parameters()} <= operands.ids
    assert not operands.ids & {id(parameter) for parameter in unused.parameters()}


def test_grid_sweeper_extends_the_methods_of_hydra() -> None:
    """Would catch a release of Hydra whose BasicSweeper has no method that the grid sweeper calls or replaces."""
    assert issubclass(GridSweeper, BasicSweeper)
    for name in ("setup", "split_arguments", "split_overrides_to_chunks", "validate_batch_is_legal", "_parse_config"):
        assert callable(getattr(BasicSweeper, name)), name


def test_keep_handlers_leaves_the_signal_handlers_of_the_process(tmp_path: Path) -> None:
    """Would catch a SIGTERM that Lightning broadcasts during a test, and a process that waits endlessly."""
    before, during = signals.current_handlers(), list[signals.Handlers]()
    trainer = Trainer(
        default_root_dir=tmp_path,
        fast_dev_run=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LambdaCallback(on_train_start=lambda *_: during.append(signals.current_handlers()))],
    )
    keep_handlers(trainer)
    trainer.fit(ProgressProbe(), DataLoader(torch.ones(2, 1)), DataLoader(torch.ones(2, 1)))
    assert during == [before]


def test_forget_best_lets_a_worse_checkpoint_win(tmp_path: Path) -> None:
    """Would catch a score of the callback that a release of Lightning renames, so that the old best stays."""
    callback = ModelCheckpoint(tmp_path, monitor="error", mode="min", save_top_k=1)
    trainer = Trainer(callbacks=[callback], logger=False, accelerator="cpu")
    callback.best_k_models = {"best.ckpt": torch.tensor(1.0)}
    callback.kth_best_model_path, callback.best_model_path = "best.ckpt", "best.ckpt"
    callback.best_model_score = callback.kth_value = torch.tensor(1.0)
    worse = torch.tensor(2.0)
    assert not callback.check_monitor_top_k(trainer, worse)
    forget_best(trainer)
    assert callback.check_monitor_top_k(trainer, worse)
    assert callback.best_model_path == "" and callback.best_model_score is None


def test_number_files_gives_each_checkpoint_a_name(tmp_path: Path) -> None:
    """Would catch an attribute that a release of Lightning renames, so that all checkpoints are one file."""
    callback = ModelCheckpoint(tmp_path, filename="best", enable_version_counter=False)
    (tmp_path / "best.ckpt").touch()
    trainer = Trainer(logger=False, accelerator="cpu")
    number_files(callback)
    name = callback._get_metric_interpolated_filepath_name({}, trainer)
    assert Path(name).name == "best-v1.ckpt"


def test_trainer_arguments_are_those_of_the_signature() -> None:
    """Would catch a release of Lightning whose Trainer is in another file, or has a wrapped constructor."""
    assert list(trainer_arguments()) == list(inspect.signature(Trainer).parameters)


def test_allow_unused_parameters_reaches_the_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an option that a release of Lightning no longer passes to torch, so that the second stage hangs."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        "lightning.pytorch.strategies.ddp.DistributedDataParallel", lambda **options: seen.update(options)
    )
    trainer = Trainer(strategy="ddp", accelerator="cpu", devices=2, logger=False)
    allow_unused_parameters(trainer)
    strategy: Any = trainer.strategy
    strategy._setup_model(nn.Linear(1, 1))
    assert seen["find_unused_parameters"] is True
