"""Tests of cost, latency, compilation and benchmark.py. No test asserts a time."""

import copy
import csv
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from composing import MODELS, small
from conftest import PLAIN, ROOT, open_door
from hydra import compose, initialize_config_dir
from lightning import LightningModule
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional

from facelab.comparison.figures import figures_of_curves, section_data
from facelab.comparison.grid import build_cells
from facelab.comparison.group import compare
from facelab.comparison.read import read_runs
from facelab.errors import ConfigError
from facelab.faces.batch import LandmarkBatch
from facelab.profiling.compile import set_format_and_compile
from facelab.profiling.cost import cost, latency, predicts_pose
from facelab.runs.build import build
from lightning_modules.landmark import Prediction

KEYS = {
    *("params", "macs", "flops", "latency_p50_ms", "latency_p95_ms", "throughput_32"),
    *("threads", "device", "cpu", "torch"),
}
QUICK = ("threads=1", "seconds=0", "repeats=2")


def load(path: Path) -> Any:
    return json.loads(path.read_text())


class Tiny(LightningModule):
    """Module with a convolution from 8 to 4 pixels and a weight that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.flip_test = False
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.weight = nn.Parameter(torch.rand(10, 64))
        self.auxiliary = nn.Conv2d(4, 100, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.body(image.float())
        if self.training:
            features = features + self.auxiliary(features).sum()
        return functional.linear(features.flatten(1), self.weight)

    def predict_points(self, image: Tensor) -> Tensor:
        return self(image) + self(image.flip(-1)) if self.flip_test else self(image)

    def predict(self, image: Tensor) -> Prediction:
        features = self.body(image.float())
        points = functional.linear(features.flatten(1), self.weight)
        return Prediction(points, points, pose=self.auxiliary(features).mean((2, 3))[:, :3])


@pytest.fixture
def tiny() -> Any:
    return Tiny()


@pytest.fixture
def pipnet() -> Any:
    """Build a small PIPNet as train.py does, for crops of 64 pixels."""
    with pytest.MonkeyPatch.context() as patch, initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        patch.setenv("FACELAB_STAMP", "now")
        cfg = compose("train", [*small("pipnet"), "paths.run=null", "paths.name=null"])
    return build(cfg, "model")


class State(NamedTuple):
    """State of a module and of torch that measuring must not change."""

    training: list[bool]
    strides: list[tuple[int, ...]]
    tensors: dict[str, Tensor]
    flip_test: bool
    hooks: int
    threads: int


def state(module: Any) -> State:
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())
    return State(
        [part.training for part in module.modules()],
        [parameter.stride() for parameter in module.parameters()],
        copy.deepcopy(dict(module.state_dict())),
        module.flip_test,
        hooks,
        torch.get_num_threads(),
    )


# Cost


def test_cost_matches_values_computed_by_hand(tiny: Any) -> None:
    """Would catch a counted training-only branch, a missing weight outside of layers, and FLOPs taken for MACs."""
    macs = 4 * 3 * 9 * 4 * 4 + 10 * 64
    params = (4 * 27 + 4) + 2 * 4 + 640
    assert cost(tiny, 8, pose=False) == {"params": params, "macs": macs, "flops": 2 * macs}
    macs_with_pose = macs + 100 * 4 * 4 * 4
    assert cost(tiny, 8, pose=True) == {"params": params + 500, "macs": macs_with_pose, "flops": 2 * macs_with_pose}


def test_cost_counts_pipnet_completely_and_once(pipnet: Any) -> None:
    """Would catch parameters that are not counted, and a flipped crop counted as a second face."""
    once = cost(pipnet, 64, pose=False)
    assert once["params"] == sum(parameter.numel() for parameter in pipnet.parameters())
    pipnet.flip_test = True
    assert cost(pipnet, 64, pose=False) == once
    larger = cost(pipnet, 128, pose=False)
    assert larger["params"] == once["params"]
    assert 3 < larger["macs"] / once["macs"] < 4.1


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
def test_cost_and_latency_leave_the_module_unchanged(pipnet: Any, memory_format: str) -> None:
    """Would catch changed training modes, statistics, strides or hooks, and another number of threads in torch."""
    set_format_and_compile(pipnet, memory_format, False)
    pipnet.train()
    pipnet.backbone.eval()
    pipnet.flip_test = True
    before = state(pipnet)
    cost(pipnet, 64, pose=False)
    assert not predicts_pose(pipnet, 64)
    times = latency(pipnet, 64, batch=2, seconds=0, repeats=3, threads=before.threads + 1, pose=False)
    after = state(pipnet)
    assert times.calls == 3
    assert 0 < times.p50 <= times.p95
    assert after._replace(tensors={}) == before._replace(tensors={})
    assert all(torch.equal(value, before.tensors[name]) for name, value in after.tensors.items())
    assert all(parameter.grad is None for parameter in pipnet.parameters())


def test_latency_times_the_requested_prediction(tiny: Any) -> None:
    """Would catch the latency of landmarks alone reported as that with pose, or the other way round."""
    called: list[str] = []
    for name in ("predict", "predict_points"):
        setattr(tiny, name, lambda image, name=name: called.append(name))
    for pose, name in ((True, "predict"), (False, "predict_points")):
        called.clear()
        latency(tiny, 8, batch=1, seconds=0, repeats=2, threads=1, pose=pose)
        assert {*called} == {name}


# Speed


@pytest.mark.parametrize(
    ("memory_format", "layout"), [("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)]
)
def test_prepare_applies_the_memory_format_to_weights_and_images(pipnet: Any, memory_format: str, layout: Any) -> None:
    """Would catch images that keep the memory format of the loader, so that the option has no effect."""
    images: list[Tensor] = []
    pipnet.backbone.pyramid.register_forward_pre_hook(lambda _, args: images.append(args[0]))
    set_format_and_compile(pipnet, memory_format, False)
    weights = [parameter for parameter in pipnet.parameters() if parameter.ndim == 4]
    assert all(weight.is_contiguous(memory_format=layout) for weight in weights)
    for other in (torch.channels_last, torch.contiguous_format):
        image = torch.zeros(2, 3, 64, 64, dtype=torch.uint8).contiguous(memory_format=other)
        pipnet.eval().predict_points(image)
        points = torch.rand(2, pipnet.layout.num_points, 2) * 64
        empty: Any = torch.empty(0)
        batch = LandmarkBatch(image, points, torch.ones(points.shape[:2], dtype=torch.bool), *[empty] * 5)
        pipnet.log = pipnet.log_dict = lambda *_, **__: None
        pipnet.train().training_step(batch, 0)
    assert len(images) == 4
    assert all(image.is_contiguous(memory_format=layout) for image in images)


def test_prepare_compiles_only_networks(pipnet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a compiled loss or metric, or a compiled ModuleList, whose compiled form is never called."""
    pipnet.stages = nn.ModuleList([nn.Linear(1, 1)])
    pipnet.errors = nn.Identity()
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda part: compiled.append(part))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    set_format_and_compile(pipnet, "channels_last", True)
    assert compiled == [pipnet.backbone, pipnet.head, pipnet.stages[0]]


def test_prepare_refuses_invalid_options_and_a_missing_compiler(pipnet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a mistyped option taken for the default, and a traceback of the compiler in the first step."""
    with pytest.raises(ConfigError, match="memory_format=nhwc: channels_last or contiguous expected"):
        set_format_and_compile(pipnet, "nhwc", False)
    with pytest.raises(ConfigError, match="compile=yes: true or false expected"):
        set_format_and_compile(pipnet, "contiguous", "yes")  # type: ignore[arg-type]

    def no_compiler(_: Tensor) -> Tensor:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(torch, "compile", lambda _: no_compiler)
    with pytest.raises(
        ConfigError, match=r"(?s)compile=true: .*No working C\+\+ compiler found\nIt needs .*compile=fal"
    ):
        set_format_and_compile(pipnet, "contiguous", True)


@pytest.mark.slow
def test_prepare_compiles_without_changing_the_network(pipnet: Any) -> None:
    """Would catch other names in checkpoints, other points, a copy with shared weights, or a lower cost."""
    pipnet.eval()
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names, points, cost_before = list(pipnet.state_dict()), pipnet(image).offset, cost(pipnet, 64, pose=False)
    set_format_and_compile(pipnet, "channels_last", True)
    assert list(pipnet.state_dict()) == names
    torch.testing.assert_close(pipnet(image).offset, points, atol=1e-4, rtol=1e-3)
    assert cost(pipnet, 64, pose=False) == cost_before
    other = copy.deepcopy(pipnet)
    nn.init.zeros_(other.head.predict.weight)
    assert not other(image).score.any()
    assert pipnet(image).score.any()


# benchmark.py


def test_benchmark_writes_into_each_run_folder(trained: Path, tmp_path: Path) -> None:
    """Would catch numbers in another run's folder, a missing key, or a checkpoint file without its run."""
    for name in ("first", "second"):
        shutil.copytree(trained / "checkpoints", tmp_path / name / "checkpoints")
        shutil.copy(trained / "config.yaml", tmp_path / name)
    shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path / "alone.ckpt")
    words = ["ckpt=[first,second/checkpoints/best.ckpt,alone.ckpt]", *QUICK]
    open_door("benchmark", *words, folder=tmp_path)
    folder = tmp_path / "logs" / "benchmark" / "runs" / "now_3-runs"
    with (folder / "benchmark.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["first", "second", "alone.ckpt"]
    for row, name in zip(rows, ("first", "second"), strict=False):
        content = load(tmp_path / name / "benchmark.json")
        assert content.keys() >= KEYS
        assert [row[key] for key in content] == [str(value) for value in content.values()]
        assert content["flops"] == 2 * content["macs"]
        assert (content["size"], content["threads"], content["device"]) == (64, 1, "cpu")
    assert not (folder / "benchmark.json").exists(), "a benchmark of several runs must not write the file of one model"
    config = OmegaConf.load(folder / "config.yaml")
    assert "model" not in config, "the config has a model that was not measured"
    assert config.ckpt[0] == "first"
    assert load(folder / "status.json")["state"] == "finished"


def test_benchmark_keeps_numbers_of_a_read_only_run_folder(trained: Path, tmp_path: Path) -> None:
    """Would catch measurements of all runs that are lost because one run folder is read-only."""
    for name in ("closed", "open"):
        shutil.copytree(trained, tmp_path / name)
    (tmp_path / "closed" / "benchmark.json").mkdir()
    open_door("benchmark", "ckpt=[closed,open]", *QUICK, "hydra.run.dir=run", folder=tmp_path)
    with (tmp_path / "run" / "benchmark.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["closed", "open"]
    assert load(tmp_path / "open" / "benchmark.json")["size"] == 64
    assert "the results are only in benchmark.csv" in (tmp_path / "run" / "benchmark.log").read_text()


def test_benchmark_names_its_folder_after_a_single_run(trained: Path, tmp_path: Path) -> None:
    """Would catch benchmarks of two runs with equal folder names, and a throughput under another batch's key."""
    shutil.copytree(trained, tmp_path / "mine")
    open_door("benchmark", "ckpt=mine", *QUICK, "batch=3", "memory_format=contiguous", folder=tmp_path)
    assert (tmp_path / "logs" / "benchmark" / "runs" / "now_mine" / "benchmark.csv").exists()
    content = load(tmp_path / "mine" / "benchmark.json")
    assert content["memory_format"] == "contiguous"
    assert {key for key in content if key.startswith("throughput")} == {"throughput_3"}


def test_benchmark_measures_the_jobs_of_a_sweep(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Would catch a sweep typed job by job, and a missing job that ends the benchmark or is not reported."""
    sweep, jobs = tmp_path / "sweep", {str(number): [f"seed={number}"] for number in range(5)}
    for number in "0123":
        shutil.copytree(trained, sweep / number)
        (sweep / number / "overrides.yaml").unlink()
    (sweep / "sweep.json").write_text(json.dumps({"stamp": "now", "cells": jobs}))
    status = load(sweep / "1" / "status.json")
    (sweep / "1" / "status.json").write_text(json.dumps(status | {"state": "failed"}))
    shutil.rmtree(sweep / "2" / "checkpoints")
    open_door("benchmark", "ckpt=sweep", *QUICK, "hydra.run.dir=run", folder=tmp_path)
    with (tmp_path / "run" / "benchmark.csv").open() as file:
        assert [(row["name"], row["pose"]) for row in csv.DictReader(file)] == [
            ("sweep/0", "False"),
            ("sweep/3", "False"),
        ]
    out = " ".join(capfd.readouterr().out.split())
    for number, reason in (("1", "failed"), ("2", "finished, without a checkpoint"), ("4", "missing")):
        assert f"sweep/{number} is skipped: {reason}" in out
    (table,) = compare(read_runs([sweep]), None)
    column = [cell.text for cell in build_cells(table)[0]].index("latency ms")
    assert [row[column].text == "-" for row in build_cells(table, with_single_runs=True)[1:]].count(False) == 2
    assert [cost["title"] for cost in section_data(table, figures_of_curves(table.runs))["costs"]] == [
        "MACs",
        "Latency",
    ]
    for number in "03":
        shutil.rmtree(sweep / number / "checkpoints")
    with pytest.raises(SystemExit, match="sweep: none of its 5 jobs can be measured"):
        open_door("benchmark", "ckpt=sweep", *QUICK, "hydra.run.dir=again", folder=tmp_path)


@pytest.mark.slow
def test_benchmark_writes_costs_with_pose_to_a_separate_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Would catch the cost with pose written as that of landmarks, and a model without pose measured as one with it."""
    words = [word for word in small("pfld") if not word.startswith("pose=")]
    words += [*PLAIN, "trainer.max_epochs=1", "loss=l1", "model.angle_weight=1", "hydra.sweep.dir=sweep"]
    open_door("train", *words, "-m", "pose=none,shared", folder=tmp_path)
    for folder, with_pose in (("alone", "false"), ("both", "true")):
        arguments = ["ckpt=sweep", f"with_pose={with_pose}", *QUICK, f"hydra.run.dir={folder}"]
        open_door("benchmark", *arguments, folder=tmp_path)
    assert "sweep/0 is skipped: with_pose=true: this model predicts no pose" in capfd.readouterr().out
    with (tmp_path / "both" / "benchmark.csv").open() as file:
        assert [(row["name"], row["pose"]) for row in csv.DictReader(file)] == [("sweep/1", "True")]
    alone, both = (load(tmp_path / "sweep" / "1" / f"{name}.json") for name in ("benchmark", "benchmark_pose"))
    assert (alone["pose"], both["pose"]) == (False, True)
    assert alone["params"] < both["params"]
    assert alone["macs"] < both["macs"]
    assert not (tmp_path / "sweep" / "0" / "benchmark_pose.json").exists()
    (table,) = compare(read_runs([tmp_path / "sweep"]), ["nme_box"])
    heading, *rows = build_cells(table)
    column = [cell.text for cell in heading].index("with pose: MACs M")
    assert {row[column].text for row in rows} == {"-", f"{both['macs'] / 1e6:.1f}"}
    with pytest.raises(SystemExit, match="with_pose=true: this model predicts no pose"):
        open_door("benchmark", "ckpt=[sweep/1,sweep/0]", "with_pose=true", *QUICK, "hydra.run.dir=run", folder=tmp_path)


@pytest.mark.parametrize("model", MODELS)
def test_benchmark_measures_an_untrained_model(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch weights downloaded although latency does not need them, and a folder that compare.py cannot read."""
    monkeypatch.setattr(
        "facelab.networks.backbone.published_network", lambda name: pytest.fail(f"{name} is downloaded")
    )
    words = [word for word in small(model) if "pretrained" not in word]
    open_door("benchmark", *words, *QUICK, "hydra.run.dir=run", folder=tmp_path)
    content, config = load(tmp_path / "run" / "benchmark.json"), OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert content.keys() >= KEYS
    assert (config.seed, config.data.name, config.task) == (1, "synthetic68", "benchmark")
    assert config.model._target_.startswith(f"lightning_modules.{model}")
    with (tmp_path / "run" / "benchmark.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["params"] == str(content["params"])


def test_benchmark_agrees_with_published_numbers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Would catch FLOPs shown as MACs: PIPNet with MobileNetV2 and 106 points has 5.35 M parameters and 591 M MACs."""
    open_door("benchmark", "model=pipnet", "backbone=mbv2", *QUICK, "batch=1", "hydra.run.dir=run", folder=tmp_path)
    content = load(tmp_path / "run" / "benchmark.json")
    assert content["params"] / 1e6 == pytest.approx(5.35, rel=0.002)
    assert content["macs"] / 1e6 == pytest.approx(591, rel=0.002)
    out = capfd.readouterr().out
    for text in ("params", "MACs", "FLOPs", "5.35", "591.", "1,182.", "threads=1", f"torch {torch.__version__}"):
        assert text in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ckpt=/gone"], "/gone is neither a run folder nor a checkpoint file"),
        (["ckpt=[]"], "ckpt=[]: a run folder"),
        (["ckpt={run}", "backbone=mbv2"], "backbone=... has no effect with ckpt=..."),
        (["ckpt={run}", "+typo=1"], "typo=... has no effect with ckpt=..."),
        (
            ["threads=0", "batch=many", "repeats=1.5", "seconds=-1", "device=gpu", "with_pose=1"],
            [
                "threads: 0 given, int >= 1",
                "batch: 'many' given, int >= 1",
                "repeats: 1.5 given, int >= 1",
                "seconds: -1 given, float >= 0",
                "device: 'gpu' given, Literal['auto', 'cpu', 'cuda'] expected",
                "with_pose: 1 given, bool expected",
            ],
        ),
        (["with_pose=true", *QUICK], "with_pose=true: this model predicts no pose"),
        (["memory_format=nhwc"], "memory_format=nhwc: channels_last or contiguous expected"),
        (["+typo=1"], "typo: nothing reads this key"),
        pytest.param(
            ["device=cuda"],
            "device=cuda: torch finds no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_benchmark_reports_mistakes(
    words: list[str], message: str | list[str], trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Would catch a traceback, and an option that is accepted silently and changes nothing."""
    arguments = [word.format(run=trained) for word in words]
    if not words[0].startswith("ckpt"):
        arguments = [*small("pipnet"), *arguments]
    with pytest.raises(SystemExit) as stop:
        open_door("benchmark", *arguments, "hydra.run.dir=run", folder=tmp_path)
    out = capfd.readouterr()
    text = f"{stop.value.code} {out.out} {out.err}"
    assert [part for part in ([message] if isinstance(message, str) else message) if part not in text] == []
    assert "Traceback" not in out.err
    assert not (tmp_path / "run" / "benchmark.csv").exists()
