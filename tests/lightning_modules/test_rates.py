"""Tests of the learning rates of parts, frozen parts, the warm-up and the schedule by a metric."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import compose_config, options, small
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from facelab.errors import ConfigError
from facelab.runs.build import build

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("FACELAB_STAMP", "now")
    monkeypatch.setenv("FACELAB_CACHE", str(cache))
    torch.manual_seed(0)


def build_with_rates(*words: str, model: str = "pipnet") -> tuple[Any, Any]:
    """Build the module and the datamodule of a small method as train.py does."""
    cfg = compose_config([*small(model), *words])
    module = build(cfg, "model")
    module.rates = build(cfg, "rates")
    module.rates.freeze(module)
    return module, build(cfg, "datamodule")


def fit(module: Any, datamodule: Any, **options: Any) -> Trainer:
    """Train on the CPU without output."""
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", use_distributed_sampler=False, num_sanity_val_steps=0, **quiet, **options)
    trainer.fit(module, datamodule)
    return trainer


def rates_of(optimizer: Any) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def test_frozen_parts_do_not_change(tmp_path: Path) -> None:
    """Would catch a frozen part whose weights decay, or whose batch statistics follow the new faces."""
    module, datamodule = build_with_rates("rates.freeze=[backbone]", "optimizer.weight_decay=0.1")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, datamodule, max_epochs=1, enable_checkpointing=False)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("backbone.") for name in changed)
    assert {name for name, _ in module.head.named_parameters(prefix="head")} <= changed
    assert not any(part.training for part in module.train().backbone.modules()) and module.head.training


def test_a_partly_frozen_part_trains_the_rest() -> None:
    """Would catch a pattern with a wildcard that freezes too much, or a whole part in evaluation mode."""
    module, _ = build_with_rates("rates.freeze=['*.bias']")
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in module.named_parameters() if not name.endswith(".bias")}
    assert all(part.training for part in module.train().modules() if isinstance(part, torch.nn.BatchNorm2d))


def test_factors_multiply_the_learning_rate() -> None:
    """Would catch a factor without effect, a parameter in no group or in two, or a later pattern that wins."""
    words = ["rates.factors={backbone.*.bias:0.5,backbone:0.1}", "optimizer.lr=0.01", "scheduler=none"]
    module, _ = build_with_rates(*words)
    optimizer = module.configure_optimizers()
    rates = {id(each): group["lr"] for group in optimizer.param_groups for each in group["params"]}
    for name, parameter in module.named_parameters():
        expected = 0.01 if not name.startswith("backbone.") else 0.005 if name.endswith(".bias") else 0.001
        assert rates[id(parameter)] == pytest.approx(expected), name


@pytest.mark.parametrize("option", options("optimizer"))
def test_optimizers_take_the_groups_of_the_factors(option: str) -> None:
    """Would catch an optimizer, such as those of timm, that does not accept groups or changes nothing."""
    module, _ = build_with_rates(f"optimizer={option}", "rates.factors={head:0.5}", "scheduler=none")
    optimizer = module.configure_optimizers()
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not any(torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())
    head, rest = rates_of(optimizer)
    assert head == rest / 2


def test_the_warm_up_rises_at_each_optimizer_step() -> None:
    """Would catch a warm-up that counts batches or epochs, one without factors, or one that changes the schedule."""
    words = ["rates.warmup_epochs=1.5", "rates.factors={head:2}", "scheduler=cosine", "trainer.max_epochs=4"]
    module, datamodule = build_with_rates(*words, "optimizer.lr=0.01", "data.train=16")

    class Rates(Callback):
        def __init__(self) -> None:
            self.stepped: list[list[float]] = []
            self.between: list[float] = []

        def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
            self.stepped.append(rates_of(optimizer))

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            self.between.append(rates_of(trainer.optimizers[0])[1])

    seen = Rates()
    fit(module, datamodule, max_epochs=4, accumulate_grad_batches=2, callbacks=[seen], enable_checkpointing=False)
    cosine = [0.01, 0.008535533905932738, 0.005, 0.0014644660940672622]  # (1 + cos(pi epoch / 4)) / 200
    expected = [cosine[step // 2] * min(1, (step + 1) / 3) for step in range(8)]  # 2 steps an epoch
    assert [rest for _, rest in seen.stepped] == pytest.approx(expected)
    assert [head for head, _ in seen.stepped] == pytest.approx([2 * rate for rate in expected])
    assert seen.between[:4] == pytest.approx([0.01] * 3 + [cosine[1]]), "the schedule was changed"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rates.freeze=[bakbone]", "rates.freeze: `bakbone` matches no parameter that is left; there are backbone"),
        ("rates.freeze=[backbone,head]", "rates.freeze=['backbone', 'head']: nothing would be trained"),
        ("rates.factors={neck:2}", "rates.factors: `neck` matches no parameter that is left; there are backbone, head"),
        ("rates.factors={head:2,head.*:3}", "rates.factors: `head.*` matches no parameter that is left"),
    ],
)
def test_rates_refuse_patterns_without_effect(word: str, message: str) -> None:
    """Would catch a mistyped part that is trained as if it was not named."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_with_rates(word)[0].configure_optimizers()


def test_dan_keeps_its_stages_beside_frozen_parts() -> None:
    """Would catch an earlier stage in training mode, and a frozen stage that fails in its epochs with a traceback."""
    module, datamodule = build_with_rates("rates.freeze=['*.bias']", model="dan")
    module.use_stages(2)
    module.train()
    assert not module.stages[0].training and module.stages[1].training
    module, datamodule = build_with_rates("rates.freeze=[stages.0]", model="dan")
    with pytest.raises(ConfigError, match=r"rates\.freeze: stages\.0 could not be trained in its epochs"):
        fit(module, datamodule, max_epochs=1, enable_checkpointing=False)


class RateInCheckpoint(Checkpoint):
    """Reader of the learning rate that a checkpoint at the end of an epoch contains."""

    def __init__(self, path: Path) -> None:
        self.path, self.rates = path, list[float]()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)
        (state,) = torch.load(self.path, weights_only=True)["optimizer_states"]
        self.rates.append(state["param_groups"][0]["lr"])


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 0.1, 0.01, 0.001]), (2, [1, 1, 1, 0.1])])
def test_plateau_lowers_the_rate_before_the_checkpoint(every: int, expected: list[float], tmp_path: Path) -> None:
    """Would catch a drop that a resumed run misses, one that counts epochs without a validation, or two at once."""
    words = ["scheduler=plateau", "scheduler.patience=0", "scheduler.threshold=0.999", f"scheduler.every={every}"]
    module, datamodule = build_with_rates(*words, "optimizer.lr=1e-3")
    saved = RateInCheckpoint(tmp_path / "a.ckpt")  # no validation but the first is an improvement
    fit(module, datamodule, max_epochs=4, check_val_every_n_epoch=every, callbacks=[saved])
    assert saved.rates == pytest.approx([1e-3 * rate for rate in expected])


def test_plateau_accepts_a_training_that_ends_within_an_epoch() -> None:
    """Would catch a traceback at the end of a training of few steps, which has no validation."""
    module, datamodule = build_with_rates("scheduler=plateau", "optimizer.lr=1e-3")
    trainer = fit(module, datamodule, max_steps=1, enable_checkpointing=False)
    assert "val/nme_box" not in trainer.callback_metrics and rates_of(trainer.optimizers[0]) == [1e-3]


def test_a_plateau_without_its_metric_is_refused() -> None:
    """Would catch torch's class, which does not name its metric, and fails in Lightning with a traceback."""
    words = ["scheduler=cosine", "scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau", "~scheduler.T_max"]
    with pytest.raises(ConfigError, match="scheduler=plateau"):
        build_with_rates(*words)[0].configure_optimizers()
