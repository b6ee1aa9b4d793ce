"""Tests of DAN: which stages are trained, used and measured, and the start from given landmarks."""

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import compose_config, small
from conftest import PLAIN, ROOT, open_door, start_door
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LambdaCallback, ModelCheckpoint
from torch import Tensor, nn

from callbacks.results import results
from datamodules.dan import DANDataModule
from facelab.errors import CheckpointError, ConfigError
from facelab.faces.geometry import affine_about_centre, transform_points
from facelab.metrics.landmarks import example
from facelab.runs.build import build
from lightning_modules.dan import DAN, _name_worse_stages

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")

SIZE = 64
"""Side of the small crops in pixels."""


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("FACELAB_STAMP", "now")
    monkeypatch.setenv("FACELAB_CACHE", str(cache))
    torch.manual_seed(0)


def build_dan(*words: str) -> tuple[DAN, Any]:
    """Build module and datamodule of a small configuration."""
    cfg = compose_config([*small("dan"), *words])
    return build(cfg, "model"), build(cfg, "datamodule")


def fit(module: DAN, datamodule: Any, epochs: int, **options: Any) -> Trainer:
    """Train without output."""
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "use_distributed_sampler": False, "num_sanity_val_steps": 0}
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", **(quiet | options))
    trainer.fit(module, datamodule)
    return trainer


def snapshots(at: Callable[[Trainer, Any], Any]) -> tuple[list[Any], LambdaCallback]:
    """Return a list and a callback that appends to it before each training batch and at the end of the training."""
    seen: list[Any] = []

    def store(trainer: Trainer, module: LightningModule, *_: Any) -> None:
        seen.append(copy.deepcopy(at(trainer, module)))

    return seen, LambdaCallback(on_train_batch_start=store, on_train_end=store)


def frozen_state(module: DAN) -> dict[str, Tensor]:
    """Return all tensors of the first stage."""
    return module.stages[0].state_dict()


def crops(count: int = 2, seed: int = 0) -> Tensor:
    """Return smooth random crops ``(count, 3, 64, 64)`` uint8."""
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (255 * nn.functional.interpolate(noise, SIZE, mode="bicubic").clamp(0, 1)).to(torch.uint8)


@pytest.mark.parametrize("words", [(), ("optimizer.weight_decay=0.1",), ("optimizer._target_=torch.optim.SGD",)])
def test_dan_trains_one_stage_after_the_other(words: tuple[str, ...]) -> None:
    """Would catch momentum, weight decay or running statistics that still change a stage that is not trained."""
    module, datamodule = build_dan("trainer.max_epochs=4", "model.stage_shares=[0.5,0.5]", *words)
    seen, callback = snapshots(lambda trainer, m: (trainer.current_epoch, m.num_active, m.state_dict()))
    fit(module, datamodule, 4, callbacks=[callback])
    assert [(epoch, active) for epoch, active, _ in seen[:-1]] == [(e, 1 + e // 2) for e in range(4) for _ in range(4)]
    assert int(module.trained_stages) == 2
    start, switch, end = seen[0][2], seen[8][2], seen[-1][2]
    for before, after, changed in ((start, switch, "stages.0."), (switch, end, "stages.1.")):
        names = {name for name in before if not torch.equal(before[name], after[name])} - {"trained_stages"}
        # The bias of an image that the first ReLU cuts to 0 may stay.
        assert {name for name in names if not name.startswith(changed)} == set()
        expected = {name for name in before if name.startswith(changed) and not name.endswith("feature.bias")}
        assert expected <= names


def test_dan_keeps_frozen_stages_in_evaluation_mode_after_a_validation() -> None:
    """Would catch dropout or batch statistics in the first stage, which then shows other landmarks than at test."""
    module, datamodule = build_dan("trainer.max_epochs=4", "model.stage_shares=[0.5,0.5]")
    modes, callback = snapshots(lambda _, m: [{each.training for each in stage.modules()} for stage in m.stages])
    fit(module, datamodule, 4, callbacks=[callback])
    assert modes[:8] == [[{True}, {True}]] * 8
    assert modes[8:16] == [[{False}, {True}]] * 8


def test_dan_official_training_mode_moves_the_running_statistics() -> None:
    """Would catch an option without effect, or one that also trains the weights of the first stage."""
    overrides = ("trainer.max_epochs=4", "model.stage_shares=[0.5,0.5]", "model.official_training_mode=true")
    module, datamodule = build_dan(*overrides)
    states, callback = snapshots(lambda _, m: frozen_state(m))
    modes, second = snapshots(lambda _, m: {each.training for each in m.stages[0].modules()})
    fit(module, datamodule, 4, callbacks=[callback, second])
    assert modes[8] == {True}
    changed = {name for name in states[8] if not torch.equal(states[8][name], states[-1][name])}
    assert changed and all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)


def test_dan_selects_the_best_checkpoint_anew_for_each_stage(tmp_path: Path) -> None:
    """Would catch a first validation of stage 2 that can never beat stage 1, so that the best file has one stage."""
    module, datamodule = build_dan("trainer.max_epochs=4", "model.stage_shares=[0.5,0.5]", "optimizer.lr=0.0")
    with torch.no_grad():
        module.stages[1].points.bias.fill_(20.0)  # stage 2 is far worse
        module.stages[0].points.weight.zero_()
    best = ModelCheckpoint(tmp_path, "best", "val/nme_box", save_top_k=1, enable_version_counter=False)
    fit(module, datamodule, 4, callbacks=[best], enable_checkpointing=True)
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert int(saved["state_dict"]["trained_stages"]) == 2
    assert Path(best.best_model_path) == tmp_path / "best.ckpt"


def test_dan_measures_every_stage_and_names_a_worse_one(caplog: pytest.LogCaptureFixture) -> None:
    """Would catch the last stage's number for all, stages exchanged, or a stage that loses without a word."""
    overrides = ("trainer.max_epochs=3", "model.stage_shares=[0.4,0.3,0.3]", "optimizer.lr=0.0")
    module, datamodule = build_dan(*overrides)
    with torch.no_grad():
        module.stages[1].points.bias.fill_(20.0)
        module.stages[2].points.bias.fill_(-5.0)
    caplog.set_level(logging.WARNING)
    trainer = fit(module, datamodule, 3)
    metrics = trainer.callback_metrics
    one, two, three = (float(metrics[f"val/nme_box_stage{number}"]) for number in (1, 2, 3))
    assert three == float(metrics["val/nme_box"]) and two > one + 0.1 and two > three + 0.01
    records = {name: metric.record(100, seed=0) for name, metric in module.metrics(module.table).items()}
    for number, value in (("1", one), ("2", two), ("3", three)):
        record = records[f"nme_box_stage{number}"]
        assert record.value == pytest.approx(value) and record.low < value < record.high
        assert record[3:] == (6, 0, "fraction", "lower", "nme_box", "stage", number)
    for count, expected in ((1, one), (2, two)):
        module.use_stages(count)
        alone = trainer.validate(module, datamodule, verbose=False)[0]
        assert alone["val/nme_box"] == pytest.approx(expected, abs=1e-6)
        assert alone[f"val/nme_box_stage{count}"] == alone["val/nme_box"]
        assert f"val/nme_box_stage{count + 1}" not in alone
    worse = [record.message for record in caplog.records if "worse" in record.message]
    sentence = f"stage 2 is worse than stage 1: nme_box {two:.2%} instead of {one:.2%}"
    assert worse == [f"val: {sentence}"] * 2  # at the end of stage 2 and of stage 3
    module.use_stages(3)
    trainer.test(module, datamodule, verbose=False)
    assert len(module.remarks) == 1 and module.remarks[0].startswith("stage 2 is worse than stage 1")
    assert f"test: {module.remarks[0]}" in caplog.text
    assert results(module, datamodule)["remarks"] == module.remarks


def test_dan_names_equal_stages_neither_better_nor_worse() -> None:
    """Would catch a remark with twice the same number."""
    assert _name_worse_stages([0.28251, 0.28254, 0.2825, 0.3]) == [
        "stage 4 is worse than stage 3: nme_box 30.00% instead of 28.25%"
    ]


def build_constant(*words: str) -> tuple[DAN, Any]:
    """Build a small configuration whose training changes nothing, not even running statistics."""
    module, datamodule = build_dan("optimizer.lr=0.0", *words)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.momentum = 0.0
    return module, datamodule


def test_dan_names_stages_that_early_stopping_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Would catch a run that ends in stage 1 and is tested with one stage as if it were whole."""
    module, datamodule = build_constant("trainer.max_epochs=8", "model.stage_shares=[0.5,0.5]")
    stopping = EarlyStopping("val/nme_box", patience=2)
    trainer = fit(module, datamodule, 8, callbacks=[stopping])
    assert trainer.current_epoch == 3
    sentence = "the training ended in stage 1 of 2; the later stages are not used"
    assert sentence in caplog.text
    trainer.test(module, datamodule, verbose=False)
    assert module.remarks == [sentence]


def test_dan_gives_early_stopping_a_new_start_in_each_stage() -> None:
    """Would catch a patience that stage 1 has used up, or a score of stage 1 that stage 2 must beat at once."""
    module, datamodule = build_constant("trainer.max_epochs=8", "model.stage_shares=[0.5,0.5]")
    with torch.no_grad():
        module.stages[1].points.bias.fill_(20.0)  # stage 2 is worse
    stopping = EarlyStopping("val/nme_box", patience=4)
    trainer = fit(module, datamodule, 8, callbacks=[stopping])
    assert trainer.current_epoch == 8 and stopping.stopped_epoch == 0


def test_dan_does_not_compute_statistics_again_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch every training photo decoded once more at each restart, for statistics that are replaced."""
    arguments = (*small("dan"), *STAGES, "trainer.max_epochs=2")
    crash = pytest.MonkeyPatch()
    crash.setattr(DAN, "on_train_end", lambda self: (_ for _ in ()).throw(Crash()))
    with pytest.raises(Crash):
        open_door("train", *arguments, "hydra.run.dir=run", folder=tmp_path)
    crash.undo()
    monkeypatch.setattr(DANDataModule, "statistics", lambda self: pytest.fail("computed again"))
    open_door("train", "resume=run", folder=tmp_path)
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_dan_checks_all_stages(caplog: pytest.LogCaptureFixture) -> None:
    """Would catch trainer=check that never runs the second stage, whose faults then appear after hours."""
    module, datamodule = build_dan("trainer=check", "datamodule.batch_size=2")
    fit(module, datamodule, 1, fast_dev_run=2)
    assert module.num_active == 2 and "stage" not in caplog.text
    faces = datamodule.faces["train"]
    assert int(faces.readings._read.sum()) <= 8 < len(faces), "the statistics read more than some batches"


def test_dan_does_not_return_to_an_earlier_stage(tmp_path: Path) -> None:
    """Would catch an extended run whose later boundary makes it train stage 1 again."""
    module, datamodule = build_dan("trainer.max_epochs=4", "model.stage_shares=[0.5,0.5]")
    fit(module, datamodule, 3).save_checkpoint(tmp_path / "a.ckpt")
    longer, datamodule = build_dan("trainer.max_epochs=20", "model.stage_shares=[0.5,0.5]")
    before = copy.deepcopy(frozen_state(module))
    trainer = Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(longer, datamodule, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert longer.num_active == 2
    assert all(torch.equal(before[name], value) for name, value in frozen_state(longer).items())


def test_dan_checkpoint_opens_with_the_trained_stages_only() -> None:
    """Would catch random weights of stage 2 in the predictions of a run that ended in stage 1."""
    module, _ = build_dan()
    module.use_stages(1)
    loaded, _ = build_dan()
    loaded.load_state_dict(module.state_dict())
    image = crops()
    with torch.no_grad():
        assert len(loaded.eval().run_stages(image)) == 1
        torch.testing.assert_close(loaded.predict(image).points, module.eval().predict(image).points)
    state = module.state_dict() | {"trained_stages": torch.tensor(3)}
    with pytest.raises(CheckpointError, match="3 trained stages, the model has 2"):
        loaded.load_state_dict(state)


def with_statistics(module: DAN) -> DAN:
    """Give a module statistics that differ from pixel to pixel, and return it in evaluation mode."""
    generator = torch.Generator().manual_seed(3)
    module.mean_shape.copy_(16 + 32 * torch.rand(68, 2, generator=generator))
    module.image_mean.copy_(100 * torch.rand(SIZE, SIZE, generator=generator))
    module.image_deviation.copy_(50 + 20 * torch.rand(SIZE, SIZE, generator=generator))
    return module.eval()


def test_dan_normalises_the_plain_mean_of_the_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch luma instead of the plain mean, or a division by the variance."""
    module = with_statistics(build_dan("model.stage_shares=[1.0]")[0])
    image, seen = crops(1), list[Tensor]()
    stage = module.stages[0]
    monkeypatch.setattr(stage, "forward", lambda x: seen.append(x) or type(stage).forward(stage, x))
    with torch.no_grad():
        module.run_stages(image)
    expected = (image[0].double().numpy().mean(0) - module.image_mean.numpy()) / module.image_deviation.numpy()
    np.testing.assert_allclose(seen[0][0, 0], expected, atol=1e-5)


def test_dan_starts_from_given_landmarks() -> None:
    """Would catch a start without effect, or one whose rotation and scale are turned round."""
    module = with_statistics(build_dan()[0])
    image = crops(1, seed=2)
    with torch.no_grad():
        plain = module.run_stages(image)[-1]
        same = module.run_stages(image, module.mean_shape[None])[-1]
        # The last row and column of a warped image are those before them, so that equal is not bit for bit.
        torch.testing.assert_close(same, plain, atol=0.02, rtol=0)
        turn = torch.tensor(affine_about_centre(SIZE, 90), dtype=torch.float32)
        turned = image.rot90(-1, (2, 3))  # clockwise, as a positive angle
        started = module.run_stages(turned, transform_points(turn, module.mean_shape)[None])[-1]
        torch.testing.assert_close(started, transform_points(turn, plain), atol=0.02, rtol=0)


def test_dan_has_only_the_first_stage_before_a_validation() -> None:
    """Would catch a monitored stage that is accepted before the training and not logged by the first validation."""
    module, datamodule = build_dan()
    names = module.metrics(example(module.layout, datamodule.data.tags))
    assert [name for name in names if "stage" in name] == ["nme_box_stage1"]


def test_dan_predicts_the_same_alone_and_in_a_batch() -> None:
    """Would catch a shape, a statistic or a map that is shared by the faces of a batch."""
    module, _ = build_dan()
    image = crops(3)
    with torch.no_grad():
        batch = module.eval().predict(image).points
        for row in range(3):
            torch.testing.assert_close(module.predict(image[[row]]).points[0], batch[row], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("stage.size=96",), "stage.size=96 must be coder.size=64"),
        (("coder.size=80", "stage.size=80"), "coder.size=80 must be the crop's side, which is 64"),
        (("loss=pfld_paper",), "loss: PFLDLoss needs angles, pose, tags, which DAN does not have"),
    ],
)
def test_dan_refuses_parts_that_do_not_fit(words: tuple[str, ...], message: str) -> None:
    """Would catch a traceback in the first step."""
    with pytest.raises(ConfigError, match=message):
        module, datamodule = build_dan(*words)
        datamodule.setup("fit")
        module.fit_statistics(datamodule)


class Points(nn.Module):
    """Network whose only output is the landmarks."""

    def __init__(self, module: DAN) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> Tensor:
        return self.module.predict_points(image).points


@pytest.mark.slow
def test_dan_exports_to_onnx(tmp_path: Path) -> None:
    """Would catch an operation that no exporter knows, such as an inverse, or a fixed batch size."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, datamodule = build_dan()
    datamodule.setup("fit")
    module.fit_statistics(datamodule)
    points = Points(module.eval()).eval()
    dynamic = ({0: torch.export.Dim("batch")},)
    exported: Any = torch.onnx.export(
        points, (crops(2),), dynamo=True, dynamic_shapes=dynamic, opset_version=18, verbose=False
    )
    file = tmp_path / "dan.onnx"
    exported.save(str(file))
    session = onnxruntime.InferenceSession(str(file))
    for count in (1, 5):
        image = crops(count, seed=count)
        with torch.no_grad():
            expected = points(image)
        (given,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        torch.testing.assert_close(torch.from_numpy(given), expected, atol=1e-3, rtol=0)


class Crash(BaseException):
    """Exception that simulates a crash of the machine."""


STAGES = ("trainer.max_epochs=4", "model.stage_shares=[0.5,0.5]", "stage.dropout=0.5", *PLAIN)
LOGGING_TRAIN = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from lightning_modules.dan import DAN
def logging_end(self, *_):
    state = {{k: v for k, v in self.state_dict().items() if "num_batches" not in k}}
    grads = [n for n, p in self.named_parameters() if p.requires_grad]
    torch.save([state, len(grads)], f"rank_{{os.environ.get('LOCAL_RANK', '0')}}_{{self.current_epoch}}.pt")
DAN.on_train_epoch_end = logging_end
exec(compile(open({str(ROOT / "train.py")!r}).read(), {str(ROOT / "train.py")!r}, "exec"))
"""
"""Script of train.py; each rank saves its weights after each epoch."""


@pytest.mark.slow
def test_dan_ranks_agree_in_both_stages(tmp_path: Path) -> None:
    """Would catch ranks that wait for gradients of the frozen stage, or whose weights or statistics differ."""
    (tmp_path / "train.py").write_text(LOGGING_TRAIN)
    arguments = [*small("dan"), *STAGES, "trainer=ddp_cpu", "trainer.max_epochs=4", "datamodule.batch_size=2"]
    log = tmp_path / "log"
    process = start_door("train", *arguments, "hydra.run.dir=run", folder=tmp_path, log=log, root=tmp_path)
    assert process.wait(300) == 0, log.read_text()
    for epoch in range(4):
        (one, grads), (two, _) = (torch.load(tmp_path / f"rank_{rank}_{epoch}.pt") for rank in (0, 1))
        # Running statistics are those of each rank's own faces, except that rank 0's are broadcast before each step.
        different = [name for name in one if not torch.equal(one[name], two[name]) and "running" not in name]
        assert different == [] and grads == len(list(build_dan()[0].parameters()))
    first, switch, last = (torch.load(tmp_path / f"rank_0_{epoch}.pt")[0] for epoch in (0, 1, 3))
    for name in (name for name in first if name.endswith("weight")):
        assert torch.equal(switch[name], last[name]) == name.startswith("stages.0."), name
        assert torch.equal(first[name], switch[name]) == name.startswith("stages.1."), name


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_dan_resumes_within_each_stage(epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a stage, its optimizer state or its best checkpoint that a resumed run starts anew."""
    arguments = (*small("dan"), *STAGES, "callbacks.resume.minutes=0")
    open_door("train", *arguments, "hydra.run.dir=whole", folder=tmp_path)
    step = DAN.training_step

    def crash(self: DAN, batch: Any, index: int) -> Tensor:
        if (self.current_epoch, index) == (epoch, 2):
            raise Crash
        return step(self, batch, index)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(DAN, "training_step", crash)
        open_door("train", *arguments, "hydra.run.dir=crashed", folder=tmp_path)
    open_door("train", "resume=crashed", folder=tmp_path)
    for name in ("last", "best"):
        whole, resumed = (
            torch.load(tmp_path / run / "checkpoints" / f"{name}.ckpt", weights_only=True)
            for run in ("whole", "crashed")
        )
        for key, value in whole["state_dict"].items():
            assert torch.equal(value, resumed["state_dict"][key]), key
    metrics = [json.loads((tmp_path / run / "metrics.json").read_text())["metrics"] for run in ("whole", "crashed")]
    assert metrics[0] == metrics[1] and "nme_box_stage1" in metrics[0]
    curves = [(tmp_path / run / "metrics.csv").read_text() for run in ("whole", "crashed")]
    assert curves[0] == curves[1]
