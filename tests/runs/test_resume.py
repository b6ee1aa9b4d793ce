"""Tests of resuming: an interrupted run ends with the results of an uninterrupted one."""

import csv
import filecmp
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from composing import compose_config, small
from conftest import PLAIN, members, open_door, start_door
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from torch.nn import functional

from callbacks.results import Results
from callbacks.resume import ResumableCheckpoint
from facelab.errors import RunError
from facelab.renames import renamed_config
from facelab.run_folder import read_status
from facelab.runs.argv import quoted, with_trainer_keys
from facelab.runs.overrides import check_reach, check_words, resumed_argv, task_overrides
from facelab.runs.resume import _pin
from facelab.runs.sweep import write_jobs
from lightning_modules.pipnet import PIPNet

EPOCHS, STEPS = 3, 6
LOGGED = 3
"""Steps between two logged steps."""
OVERRIDES = [
    *small("pipnet"),
    *PLAIN,
    "+trainer.enable_progress_bar=false",
    f"data.train={4 * STEPS}",
    f"trainer.max_epochs={EPOCHS}",
    f"trainer.log_every_n_steps={LOGGED}",
    "optimizer.lr=0.003",
]
SAVE_EVERY_STEP = "callbacks.resume.minutes=0"
VARIANTS = {
    "epochs": [],
    "steps": [SAVE_EVERY_STEP],
    "workers": [SAVE_EVERY_STEP, "datamodule.num_workers=2"],
    "average": [SAVE_EVERY_STEP, "callbacks=ema", *PLAIN],
    "cosine": [SAVE_EVERY_STEP, "scheduler=cosine"],
    "accumulated gradients": [SAVE_EVERY_STEP, "+trainer.accumulate_grad_batches=2"],
    "validation within epochs": [SAVE_EVERY_STEP, "+trainer.val_check_interval=2"],
    "every step": [SAVE_EVERY_STEP, "trainer.log_every_n_steps=1"],
    "rates, plateau and SWA": [
        *(SAVE_EVERY_STEP, "callbacks=swa", "callbacks.swa.start=0.3", *PLAIN),
        *("scheduler=plateau", "scheduler.patience=0", "scheduler.threshold=0.999"),
        *("rates.freeze=[backbone.pyramid.conv1]", "rates.factors={head:0.5}", "rates.warmup_epochs=1.5"),
    ],
    "overfitting": [SAVE_EVERY_STEP, "trainer.overfit_batches=5"],
}


SLOW = pytest.mark.slow


def slow_or_quick(slow_cases: Sequence[Any], *cases: Any) -> list[Any]:
    """Return the parameter sets of a test; those in `slow_cases` get the mark slow, the others run everywhere."""
    return [*cases, *(pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=SLOW) for case in slow_cases)]


class Crash(BaseException):
    """Exception that simulates a crash of the machine."""


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def train(*arguments: object, folder: Path) -> None:
    open_door("train", *arguments, folder=folder)


Interrupt = Callable[[str, int, Callable[[], Any]], None]


@pytest.fixture
def interrupt() -> Iterator[Interrupt]:
    """Return a function that runs an action before the n-th call (from 1) of a method; the call itself follows."""
    with pytest.MonkeyPatch.context() as patch:

        def at(name: str, number: int, action: Callable[[], Any]) -> None:
            owner: Any = Results if name == "on_test_end" else ResumableCheckpoint if name == "_save" else PIPNet
            original, calls = getattr(owner, name), itertools.count(1)

            def method(self: Any, *args: Any) -> Any:
                if next(calls) == number:
                    action()
                return original(self, *args)

            patch.setattr(owner, name, method)

        yield at


def crash() -> None:
    raise Crash


@pytest.fixture(autouse=True)
def dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add dropout to the network, so that training draws random numbers."""
    plain = PIPNet.forward

    def forward(self: PIPNet, image: torch.Tensor) -> Any:
        maps = plain(self, image)
        return type(maps)(*(functional.dropout(each, 0.3, self.training) for each in maps))

    monkeypatch.setattr(PIPNet, "forward", forward)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that trains a run with these overrides without interruption, once for each set of overrides."""
    runs: dict[tuple[str, ...], Path] = {}

    def run(*overrides: str) -> Path:
        if overrides not in runs:
            folder = tmp_path_factory.mktemp("uninterrupted")
            train(*OVERRIDES, *overrides, "hydra.run.dir=run", folder=folder)
            runs[overrides] = folder / "run"
        return runs[overrides]

    return run


def flat(node: Any, at: str = "") -> dict[str, Any]:
    """Return every value of nested containers by its path."""
    if isinstance(node, dict):
        children: Any = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    else:
        return {at: node}
    return {key: value for name, child in children for key, value in flat(child, f"{at}/{name}").items()}


def differences(one: Path, other: Path) -> list[str]:
    """Return the paths of the values in which two checkpoints differ, except file names."""
    a, b = (flat(torch.load(path, weights_only=True)) for path in (one, other))
    a, b = ({key: value for key, value in each.items() if not is_file_name(key, value)} for each in (a, b))
    return [key for key in {**a, **b} if key not in a or key not in b or not equal(a[key], b[key])]


def is_file_name(key: str, value: Any) -> bool:
    # Lightning neither restores nor reads `current_score`, the latest score among the best.
    return "ModelCheckpoint" in key and (isinstance(value, str) or ".ckpt" in key or key.endswith("/current_score"))


def equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def same_runs(run: Path, reference: Path) -> None:
    """Assert that two runs have the same results, to the last bit."""
    assert (run / "metrics.csv").read_text() == (reference / "metrics.csv").read_text()
    assert filecmp.cmp(run / "faces.csv", reference / "faces.csv", shallow=False)
    for name in ("last", "best"):
        differ = differences(*(each / "checkpoints" / f"{name}.ckpt" for each in (run, reference)))
        assert [key for key in differ if not key.startswith("/loops")] == [], name
    assert load(run / "metrics.json")["metrics"] == load(reference / "metrics.json")["metrics"]
    assert load(run / "status.json")["state"] == "finished"
    assert [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")] == []


# Exactness


@pytest.mark.parametrize("variant", slow_or_quick([name for name in VARIANTS if name != "steps"], "steps"))
def test_resume_after_repeated_crashes_gives_the_uninterrupted_results(
    variant: str, tmp_path: Path, interrupt: Interrupt, uninterrupted: Callable[..., Path]
) -> None:
    """Would catch a checkpoint without the order of faces, RNG state, averages, learning rate, progress or metrics."""
    overrides = VARIANTS[variant]
    reference = uninterrupted(*overrides)
    arguments: list[str] = [*OVERRIDES, *overrides, "hydra.run.dir=run"]
    for steps in (2, STEPS, 4) if variant == "steps" else (2, 3, STEPS, 5, 4):
        interrupt("training_step", steps, crash)
        with pytest.raises(Crash):
            train(*arguments, folder=tmp_path)
        assert load(tmp_path / "run" / "status.json")["state"] == "failed"
        arguments = ["resume=run"]
    train(*arguments, folder=tmp_path)
    same_runs(tmp_path / "run", reference)


@pytest.mark.parametrize(
    ("method", "number", "words"),
    slow_or_quick(
        [
            ("training_step", STEPS, []),
            ("validation_step", 2, []),
            ("validation_step", 3, []),
            ("on_test_end", 1, []),
            ("training_step", 4, [SAVE_EVERY_STEP, "+trainer.accumulate_grad_batches=2"]),
            ("_save", 1, []),
            ("_save", 2, [SAVE_EVERY_STEP]),
            ("test_step", 2, []),
            ("training_step", 3, [SAVE_EVERY_STEP, "+trainer.val_check_interval=2"]),
            ("training_step", 3, [SAVE_EVERY_STEP, "trainer.log_every_n_steps=1"]),
            ("validation_step", 2, [SAVE_EVERY_STEP, "+trainer.val_check_interval=2"]),
            ("validation_step", 3, [SAVE_EVERY_STEP]),
        ],
        ("_save", 2, []),
    ),
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_resume_after_a_crash_at_a_boundary_gives_the_uninterrupted_results(
    method: str,
    number: int,
    words: list[str],
    tmp_path: Path,
    interrupt: Interrupt,
    uninterrupted: Callable[..., Path],
) -> None:
    """Would catch a validation that is lost or logged twice, half an accumulated gradient, or a partial test result."""
    interrupt(method, number, crash)
    with pytest.raises(Crash):
        train(*OVERRIDES, *words, "hydra.run.dir=run", folder=tmp_path)
    assert not (tmp_path / "run" / "metrics.json").exists()
    train("resume=run", folder=tmp_path)
    same_runs(tmp_path / "run", uninterrupted(*words))


def test_resume_of_a_training_that_stopped_early_trains_no_further(tmp_path: Path, interrupt: Interrupt) -> None:
    """Would catch an early stop that the checkpoint does not contain, so that a run killed in its test trains on."""
    stopping = ["callbacks/early_stopping=patience", "callbacks.early_stopping.patience=1"]
    stopping += ["callbacks.early_stopping.min_delta=1.0"]  # no validation but the first is an improvement
    interrupt("on_test_end", 1, crash)
    with pytest.raises(Crash):
        train(*OVERRIDES, *stopping, "trainer.max_epochs=4", "hydra.run.dir=run", folder=tmp_path)
    curves = tmp_path / "run" / "metrics.csv"
    trained = [row["step"] for row in csv.DictReader(curves.open()) if row["val/nme_box"]]
    assert len(trained) == 2
    train("resume=run", folder=tmp_path)
    assert [row["step"] for row in csv.DictReader(curves.open()) if row["val/nme_box"]] == trained
    assert load(tmp_path / "run" / "status.json")["state"] == "finished"


def test_resumable_checkpoint_restores_the_rng_state_once(tmp_path: Path) -> None:
    """Would catch a resume with the RNG state of the set-up, or one that restores the state before every step."""
    state = ResumableCheckpoint(str(tmp_path), 1)
    torch.manual_seed(7)
    saved = state.state_dict()
    expected = torch.rand(3)
    torch.manual_seed(8)
    state.load_state_dict(saved)
    torch.rand(5)
    state.on_train_batch_start(SimpleNamespace(global_rank=0))  # type: ignore[arg-type]
    assert torch.equal(torch.rand(3), expected)
    state.on_train_batch_start(SimpleNamespace(global_rank=0))  # type: ignore[arg-type]
    assert not torch.equal(torch.rand(3), expected), "each step has the same random numbers"


# Signals


def kill(number: signal.Signals, workers: bool = False) -> Callable[[], None]:
    """Return a function that sends a signal to this process, and with `workers` to its child processes."""

    def send() -> None:
        children = multiprocessing.active_children() if workers else []
        # Another process sends it, as a cluster does: workers obey a SIGTERM of their parent.
        line = ["kill", "-s", str(int(number)), *(str(child.pid) for child in children), str(os.getpid())]
        subprocess.run(line, check=True)
        time.sleep(0.1)  # until Python has run its handler

    return send


@pytest.mark.parametrize(
    ("number", "method", "call", "words", "steps"),
    slow_or_quick(
        [
            (signal.SIGUSR2, "training_step", 2, [], 2),
            (signal.SIGUSR2, "training_step", 3, ["trainer.log_every_n_steps=1"], 3),
            (signal.SIGTERM, "training_step", LOGGED, [], LOGGED),
            (signal.SIGTERM, "training_step", 2 * STEPS, [], STEPS),  # a validation would follow
            (signal.SIGUSR2, "training_step", STEPS + 2, ["datamodule.num_workers=2"], STEPS + 2),
            (signal.SIGUSR2, "validation_step", 3, [], STEPS),
            (signal.SIGUSR2, "test_step", 1, [], EPOCHS * STEPS),
            (signal.SIGTERM, "training_step", STEPS + 2, ["datamodule.num_workers=2"], STEPS + 2),
            (signal.SIGTERM, "test_step", 1, [], EPOCHS * STEPS),
            (signal.SIGTERM, "validation_step", 3, [], STEPS),
        ],
        (signal.SIGTERM, "training_step", 2, [], 2),
    ),
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_train_saves_and_stops_on_a_signal(
    number: signal.Signals,
    method: str,
    call: int,
    words: list[str],
    steps: int,
    tmp_path: Path,
    interrupt: Interrupt,
    uninterrupted: Callable[..., Path],
) -> None:
    """Would catch lost steps, a run that does not stop, or a stopped run with the state failed or running."""
    interrupt(method, call, kill(number, workers="datamodule.num_workers=2" in words))
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR2)]
    with pytest.raises(SystemExit) as stop:
        train(*OVERRIDES, *words, "hydra.run.dir=run", folder=tmp_path)
    assert stop.value.code == f"stopped by {number.name}"
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR2)] == handlers
    status = load(tmp_path / "run" / "status.json")
    assert (status["state"], status["reason"]) == ("stopped", f"stopped by {number.name}")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert saved == steps
    train("resume=run", folder=tmp_path)
    same_runs(tmp_path / "run", uninterrupted(*words))


@pytest.mark.parametrize(
    ("method", "call", "saved"), slow_or_quick([("validation_step", 1, False)], ("training_step", 4, True))
)
def test_train_saves_before_the_requeue_handler_runs(
    method: str, call: int, saved: bool, tmp_path: Path, interrupt: Interrupt, uninterrupted: Callable[..., Path]
) -> None:
    """Would catch a job that is requeued before its checkpoint is written, never requeued, or recorded as failed."""
    seen: list[tuple[bool, Any]] = []

    def requeue(number: int, frame: object) -> None:  # like the handler of submitit
        path = tmp_path / "run" / "checkpoints" / "last.ckpt"
        seen.append((path.exists(), signal.getsignal(signal.SIGTERM)))
        raise SystemExit(-1)

    interrupt(method, call, kill(signal.SIGUSR2))
    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit):
            train(*OVERRIDES, "hydra.run.dir=run", folder=tmp_path)
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert seen == [(saved, signal.SIG_IGN)], "SIGTERM could end the process before the requeue"
    assert load(tmp_path / "run" / "status.json")["state"] == "queued"
    train("resume=run", folder=tmp_path)
    same_runs(tmp_path / "run", uninterrupted())


def test_train_records_failed_if_the_requeue_is_refused(tmp_path: Path, interrupt: Interrupt) -> None:
    """Would catch a job that keeps the state queued although the cluster will not start it again."""

    def refuse(number: int, frame: object) -> None:
        raise RuntimeError("timed out too often")

    interrupt("training_step", 1, kill(signal.SIGUSR2))
    before = signal.signal(signal.SIGUSR2, refuse)
    try:
        with pytest.raises(SystemExit):
            train(*OVERRIDES, "hydra.run.dir=run", folder=tmp_path)
    finally:
        signal.signal(signal.SIGUSR2, before)
    status = load(tmp_path / "run" / "status.json")
    assert (status["state"], status["reason"]) == ("failed", "RuntimeError: timed out too often")


@pytest.mark.slow
def test_train_stops_on_ctrl_c_and_resumes(
    tmp_path: Path, interrupt: Interrupt, uninterrupted: Callable[..., Path]
) -> None:
    """Would catch Ctrl-C that is recorded as a failure, or that tests a half-trained network."""
    interrupt("training_step", STEPS + 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit):
        train(*OVERRIDES, "hydra.run.dir=run", folder=tmp_path)
    assert load(tmp_path / "run" / "status.json")["state"] == "stopped"
    assert not (tmp_path / "run" / "metrics.json").exists()
    train("resume=run", folder=tmp_path)
    same_runs(tmp_path / "run", uninterrupted())


# Arguments of resume=


def interrupted(folder: Path, interrupt: Interrupt, *overrides: str) -> Path:
    """Train a run in ``run`` of this folder that crashes in its second epoch."""
    interrupt("training_step", STEPS + 2, crash)
    with pytest.raises(Crash):
        train(*OVERRIDES, *overrides, "hydra.run.dir=run", folder=folder)
    return folder / "run"


@pytest.fixture
def crashed(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, interrupt: Interrupt) -> Path:
    """Copy a run that crashed in its second epoch to ``run`` in the folder of the test."""
    if not CRASHED:
        CRASHED.append(interrupted(tmp_path_factory.mktemp("crashed"), interrupt))
    return Path(shutil.copytree(CRASHED[0], tmp_path / "run"))


CRASHED: list[Path] = []
"""Cache of the run that `crashed` copies; a module fixture would run before `dropout` changes the network."""


@pytest.mark.slow
def test_resume_with_more_epochs_removes_the_old_results(tmp_path: Path, interrupt: Interrupt) -> None:
    """Would catch results of the shorter training in a folder whose longer training was killed."""
    train(*OVERRIDES, "scheduler=none", "trainer.max_epochs=1", "hydra.run.dir=run", folder=tmp_path)
    run = tmp_path / "run"
    interrupt("training_step", 2, crash)
    with pytest.raises(Crash):
        train("resume=run", f"trainer.max_epochs={EPOCHS}", folder=tmp_path)
    assert load(run / "status.json")["state"] == "failed"
    assert not (run / "metrics.json").exists() and not (run / "faces.csv").exists()
    train("resume=run", folder=tmp_path)
    train(*OVERRIDES, "scheduler=none", "hydra.run.dir=whole", folder=tmp_path)
    same_runs(run, tmp_path / "whole")


def test_resume_of_a_finished_run_refuses_other_changes(tmp_path: Path, uninterrupted: Callable[..., Path]) -> None:
    """Would catch results that do not belong to the configuration beside them, or a test that is repeated."""
    run = Path(shutil.copytree(uninterrupted(), tmp_path / "run"))
    kept = {path: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != "train.log"}
    with pytest.raises(SystemExit, match=r"is finished.*only trainer\.max_epochs may change"):
        train("resume=run", "data.test=9", folder=tmp_path)
    train("resume=run", folder=tmp_path)
    touched = ("status.json", "environment.json")
    assert {path.name for path in kept if path.read_bytes() != kept[path]} <= {*touched}
    assert load(run / "status.json")["state"] == "finished"


@pytest.mark.parametrize("name", ["a run", "it's, a {run}", "a=b (c) [d]", 'a "b" c', "back\\slash", "über", "$HOME"])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("write", [str, quoted], ids=["as it is", "quoted"])
def test_resumed_argv_quotes_any_folder_name(
    name: str, write: Callable[[str], str], relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a folder name that Hydra reads as a list, a mapping or an interpolation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACELAB_STAMP", "later")
    file = tmp_path / name / "overrides.yaml"
    file.parent.mkdir()
    file.write_text("- seed=3\n- data.root=../faces\n")
    argv = resumed_argv(["test_ckpt=best", f"resume={write(name if relative else str(tmp_path / name))}"])
    assert argv[:3] == ["seed=3", "data.root=../faces", "test_ckpt=best"], "overrides of this command must win"
    parsed = {each.key_or_group: each.value() for each in OverridesParser.create().parse_overrides(argv)}
    assert parsed["hydra.run.dir"] == str(tmp_path / name)
    assert os.environ["FACELAB_STAMP"] == name


def test_resumed_argv_refuses_an_unknown_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a traceback for a mistyped user name."""
    monkeypatch.setenv("FACELAB_RESUMED", "[]")
    with pytest.raises(RunError, match=r"~nobody-of-this-name/run is not the folder of a run"):
        resumed_argv(["resume=~nobody-of-this-name/run"])


@pytest.mark.parametrize("sweep", [True, False])
def test_resumed_argv_refuses_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweep: bool) -> None:
    """Would catch the traceback of Hydra, which opens its log in a folder on a read-only medium."""
    (tmp_path / "overrides.yaml").write_text("- seed=3\n")
    (tmp_path / "sweep.json").write_text('{"cells": {"0": ["seed=3"]}}')
    monkeypatch.setattr("facelab.files.why_not_writable", lambda folder: f"{folder}: Read-only file system")
    monkeypatch.setenv("FACELAB_STAMP", "later")
    monkeypatch.setenv("FACELAB_RESUMED", "[]")
    with pytest.raises(RunError, match=r"it is not writable \(.*Read-only file system\)"):
        resumed_argv([*["-m"] * sweep, f"resume={tmp_path}"])


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path.name)])
def test_resumed_argv_refuses_an_unwritable_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any]
) -> None:
    """Would catch a run that blocks on a log that is a pipe, or a traceback if it is a folder."""
    (tmp_path / "overrides.yaml").write_text("- seed=3\n")
    make(tmp_path / "train.log")
    monkeypatch.setenv("FACELAB_RESUMED", "[]")
    monkeypatch.setenv("FACELAB_STAMP", "later")
    with pytest.raises(RunError, match=r"train\.log cannot be written to"):
        resumed_argv([f"resume={tmp_path}"])


@pytest.mark.parametrize("best_is_there", slow_or_quick([True], False))
def test_resume_works_in_a_renamed_folder(tmp_path: Path, crashed: Path, best_is_there: bool) -> None:
    """Would catch a path that is not quoted after the command line, or a moved run that loses its best checkpoint."""
    folder = tmp_path / "it's, a {run}"
    crashed.rename(folder)
    last, best = (folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    checkpoint = torch.load(last, weights_only=True)
    (state,) = (state for key, state in checkpoint["callbacks"].items() if key.startswith("ModelCheckpoint"))
    perfect = torch.tensor(0.0)  # no later validation can be better
    state |= {
        "best_model_score": perfect,
        "kth_value": perfect,
        "best_k_models": dict.fromkeys(state["best_k_models"], perfect),
    }
    torch.save(checkpoint, last)
    before = best.read_bytes()
    if not best_is_there:
        best.unlink()
    train(f"resume={folder}", folder=tmp_path)
    assert load(folder / "status.json")["state"] == "finished"
    assert (best.read_bytes() == before) is best_is_there
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_resume_keeps_the_wandb_id_and_the_first_environment(
    tmp_path: Path, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a resumed run that is a new run in W&B, or that overwrites its first environment."""
    interrupted(tmp_path, interrupt, "logger=wandb", "logger.wandb.tags=[mine]")
    run = tmp_path / "run"
    first, status = load(run / "environment.json"), load(run / "status.json")
    monkeypatch.setattr("conftest.NOW", "tomorrow")
    train("resume=run", folder=tmp_path)
    assert load(run / "status.json")["stamp"] == status["stamp"] == "now"
    environment = load(run / "environment.json")
    (again,) = environment.pop("resumed")
    assert environment == first
    assert again.keys() == first.keys()
    assert again["command"] != first["command"]
    # Compare file names; a folder name ends in -1 if both runs began in the same second.
    ids = [path.stem for path in (run / "wandb").glob("offline-run-*/run-*.wandb")]
    assert len(ids) == 2
    assert len(set(ids)) == 1, "W&B has two runs"
    assert OmegaConf.load(run / "config.yaml").logger.wandb.group == "now"


def test_resume_prints_and_stores_changed_overrides(
    tmp_path: Path, crashed: Path, interrupt: Interrupt, capfd: pytest.CaptureFixture[str]
) -> None:
    """Would catch a change that is not printed, or one that the next resume loses."""
    run = crashed
    interrupt("training_step", 2, crash)
    with pytest.raises(Crash):
        train("resume=run", "datamodule.num_workers=1", "data.val=5", folder=tmp_path)
    output = capfd.readouterr().out
    assert "changed: datamodule.num_workers: 0 -> 1" in output
    assert "changed: data.val: 6 -> 5" in output
    assert output.count("changed: ") == 2
    train("resume=run", folder=tmp_path)
    assert "changed: " not in capfd.readouterr().out
    assert OmegaConf.load(run / "config.yaml").data.val == 5
    stored = yaml.safe_load((run / "overrides.yaml").read_text())
    assert stored == with_trainer_keys([*OVERRIDES, "datamodule.num_workers=1", "data.val=5"])


@pytest.mark.parametrize(
    "word",
    slow_or_quick(
        ["scheduler=cosine", "scheduler.factor=0.5", "optimizer.weight_decay=0.1", "rates.warmup_epochs=1"],
        "optimizer.lr=0.1",
    ),
)
def test_resume_refuses_overrides_of_the_optimizer_state(word: str, tmp_path: Path, crashed: Path) -> None:
    """Would catch a learning rate in config.yaml that was never used, or a refused override that is stored."""
    run = crashed
    kept = {name: (run / name).read_bytes() for name in ("config.yaml", "metrics.csv", "overrides.yaml")}
    with pytest.raises(SystemExit, match="would have no effect") as stop:
        train("resume=run", word, folder=tmp_path)
    assert word.partition("=")[0].partition(".")[0] in str(stop.value.code)
    assert {name: (run / name).read_bytes() for name in kept} == kept
    train("resume=run", folder=tmp_path)
    assert load(run / "status.json")["state"] == "finished"


@pytest.mark.parametrize("word", slow_or_quick(["+typo=1", "data.root=7"], "optimizer.lr=0.1"))
def test_resume_with_a_mistake_keeps_a_finished_run(
    word: str, tmp_path: Path, uninterrupted: Callable[..., Path]
) -> None:
    """Would catch a finished run that gets the state failed because of a mistyped override."""
    shutil.copytree(uninterrupted(), tmp_path / "run")
    files = ("metrics.csv", "metrics.json", "faces.csv", "checkpoints/last.ckpt")
    kept = {name: (tmp_path / "run" / name).read_bytes() for name in files}
    with pytest.raises(SystemExit):
        train("resume=run", word, folder=tmp_path)
    assert load(tmp_path / "run" / "status.json")["state"] == "finished"
    assert {name: (tmp_path / "run" / name).read_bytes() for name in kept} == kept


HOSTILE = [
    "hydra.callbacks.x._target_=os.system",
    "+hydra.callbacks.x._target_=os.system",
    "++hydra.job.env_set.LD_PRELOAD=x",
    "~hydra.run",
    "hydra/launcher=slurm",
    "hydra.run.dir=elsewhere",
    "+callbacks@hydra.callbacks=default",
    "experiment=../../evil",
    "experiment=/elsewhere/evil",
    "+experiment@a.b=../../evil",
    "+experiment@_global_=../../evil",
    "+experiment=[../../evil]",
    "--config-dir=/x",
    "-cd=/x",
    "--multirun",
    "--cfg",
    "'hydra.run.dir'=x",
    " hydra.run.dir=x",
    "\nhydra.run.dir=x",
    "=x",
    "",
]


@pytest.mark.parametrize("word", HOSTILE)
def test_task_overrides_refuses_hostile_overrides(word: str, tmp_path: Path) -> None:
    """Would catch a received folder whose overrides make Hydra start a program, or read or write elsewhere."""
    with pytest.raises(RunError, match="nothing was started"):
        task_overrides(["seed=1", word], tmp_path / "overrides.yaml")


@pytest.mark.parametrize(
    "content",
    [
        "- hydra.callbacks.x._target_=os.system\n",
        "seed: 1\n",
        "text",
        "",
        "- [seed=1]\n",
        "- 3\n",
        "- !!python/object/apply:os.system ['touch owned']\n",
        "!!python/object/apply:os.system ['touch owned']\n",
        "- a: [\n",
    ],
)
def test_resume_refuses_a_malformed_overrides_file(content: str, tmp_path: Path) -> None:
    """Would catch a traceback, or a program that is started while the YAML file is read."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "overrides.yaml").write_text(content)
    with pytest.raises(SystemExit) as stop:
        train("resume=run", folder=tmp_path)
    assert "overrides.yaml" in str(stop.value.code)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["overrides.yaml", "run"]


def test_task_overrides_accepts_relative_paths() -> None:
    """Would catch a dataset beside the working folder that prevents a resume."""
    overrides = [
        "data.root=../faces",
        "backbone.weights=../../a.pth",
        "seed=1",
        "~logger",
        "+trainer.limit_val_batches=2",
    ]
    assert task_overrides(overrides, Path("overrides.yaml")) == overrides


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resume=gone"], "is not the folder of a run"),
        (["resume=sweep"], r"train\.py -m resume=.*sweep resumes a sweep"),
        (["resume=a sweep"], r"train\.py -m 'resume=.*a sweep' resumes a sweep"),
        (["resume=/a/b=c (d)"], r"/a/b=c \(d\) is not the folder of a run"),
        (["resume=/a/my", "run"], r"'resume=\"/a/my run\"'"),
        (["-m", "resume=run"], r"contains no sweep\.json"),
        (["-m", "resume=gone"], r"contains no sweep\.json"),
        (["resume=run", "hydra.run.dir=x"], "already sets the folder of the run"),
        (["resume=run", "hydra.sweep.dir=x", "-m"], "already sets the folder of the run"),
        (["resume="], "is not the folder of a run"),
    ],
)
def test_resume_refuses_a_folder_of_another_kind(words: list[str], message: str, tmp_path: Path) -> None:
    """Would catch a new run in the place of a resume, or a traceback."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "overrides.yaml").write_text("- seed=1\n")
    for name in ("sweep", "a sweep"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sweep.json").write_text('{"stamp": "now", "cells": {}}')
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match=message):
        train(*words, folder=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("content", [b"no checkpoint", b""])
def test_resume_refuses_an_unreadable_checkpoint(content: bytes, tmp_path: Path, crashed: Path) -> None:
    """Would catch a traceback of torch, or a run that starts anew and overwrites the damaged one."""
    run = crashed
    metrics = (run / "metrics.csv").read_bytes()
    (run / "checkpoints" / "last.ckpt").write_bytes(content)
    with pytest.raises(SystemExit, match=r"last\.ckpt"):
        train("resume=run", folder=tmp_path)
    assert (run / "metrics.csv").read_bytes() == metrics


def test_evaluate_refuses_resume_and_the_folder_of_the_run(tmp_path: Path, trained: Path) -> None:
    """Would catch `evaluate.py resume=...` that is accepted, or a test that overwrites the run that it measures."""
    with pytest.raises(SystemExit):
        open_door("evaluate", f"resume={trained}", folder=tmp_path)
    files = ("config.yaml", "metrics.json", "faces.csv", "status.json", "overrides.yaml")
    kept = {name: (trained / name).read_bytes() for name in files}
    with pytest.raises(SystemExit):
        open_door("evaluate", f"ckpt={trained}", "split=val", f"hydra.run.dir={trained}", folder=tmp_path)
    assert {name: (trained / name).read_bytes() for name in files} == kept


# Whole processes


KILLS = int(os.environ.get("FACELAB_KILLS", "3"))
"""Number of kills; 100 before a release."""


@pytest.mark.slow
def test_resume_after_sigkill_at_random_moments_gives_the_same_results(tmp_path: Path) -> None:
    """Would catch a moment at which SIGKILL of the process, or of its group with the workers, damages a run."""
    overrides = [*OVERRIDES, "trainer.max_epochs=40", "datamodule.num_workers=2", "callbacks.resume.minutes=0.005"]
    log, rng = tmp_path / "log", random.Random(KILLS)
    begin = time.monotonic()
    assert start_door("train", *overrides, "hydra.run.dir=reference", folder=tmp_path, log=log).wait() == 0, (
        log.read_text()
    )
    duration, kills, run = time.monotonic() - begin, 0, tmp_path / "run"
    typed: list[str] = [*overrides, "hydra.run.dir=run"]
    while True:
        log = tmp_path / f"log_{kills}"  # a worker prints a traceback if its parent is killed while it sends a tensor
        process = start_door("train", *typed, folder=tmp_path, log=log)
        try:
            code = process.wait(rng.uniform(0.4, 1) * duration if kills < KILLS else None)
        except subprocess.TimeoutExpired:
            (os.kill if rng.random() < 0.5 else os.killpg)(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            assert read_status(run).state in ("lost", "missing", "unknown", "finished")
        else:
            assert code == 0, log.read_text()
            assert "Traceback" not in log.read_text()
            same_runs(run, tmp_path / "reference")
            if kills >= KILLS:
                break
            shutil.rmtree(run)
        typed = ["resume=run"] if (run / "overrides.yaml").exists() else [*overrides, "hydra.run.dir=run"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_train_stops_when_its_process_group_receives_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    """Would catch workers that stop before the checkpoint is written, or processes that remain."""
    overrides = [*OVERRIDES, "trainer.max_epochs=20", "datamodule.num_workers=2"]
    log = tmp_path / "log"
    assert start_door("train", *overrides, "hydra.run.dir=reference", folder=tmp_path, log=log).wait() == 0, (
        log.read_text()
    )
    process = start_door("train", *overrides, "hydra.run.dir=run", folder=tmp_path, log=log)
    wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", process)
    os.killpg(process.pid, number)
    assert process.wait(60) == 1, log.read_text()
    assert read_status(tmp_path / "run")[:2] == ("stopped", f"stopped by {number.name}")
    assert members(process.pid) == []
    assert start_door("train", "resume=run", folder=tmp_path, log=log).wait() == 0, log.read_text()
    same_runs(tmp_path / "run", tmp_path / "reference")
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_train_stops_all_ranks_if_one_receives_a_signal(tmp_path: Path) -> None:
    """Would catch a rank that waits half an hour for the stopped one, in training or in a validation."""
    two_processes = [
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        "trainer.sync_batchnorm=false",
    ]
    overrides = [*OVERRIDES, *two_processes, "trainer.log_every_n_steps=12", "scheduler=none"]
    validation = ["trainer.max_epochs=1", "datamodule.batch_size=1", "data.val=1000"]
    for number, extra in enumerate((["trainer.max_epochs=500"], validation)):
        folder = tmp_path / str(number)
        folder.mkdir()
        log = folder / "log"
        process = start_door("train", *overrides, *extra, "hydra.run.dir=run", folder=folder, log=log)
        try:
            wait_for(folder / "run" / ("metrics.csv" if number else "checkpoints/last.ckpt"), process)
            while number and "\n0,11," not in (folder / "run" / "metrics.csv").read_text():
                time.sleep(0.05)
            time.sleep(0.5 * number)  # wait until the last step of the epoch is done
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(60) == 1, log.read_text()
            for _ in range(100):
                if not (alive := members(process.pid)):
                    break
                time.sleep(0.1)
            assert not alive, log.read_text()
            assert read_status(folder / "run").state == "stopped", log.read_text()
        finally:
            for pid in members(process.pid):
                os.kill(pid, signal.SIGKILL)


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None, "the process has ended"
        time.sleep(0.1)
    pytest.fail(f"{path} was not written")


# The disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 24 MB."""
    if os.geteuid():
        pytest.skip("only root may mount a disk of a few megabytes")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path) -> None:
    """Fill a disk to its last byte."""
    with (disk / "filling").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"0" * 4096)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "file", "step"),
    [([SAVE_EVERY_STEP], "checkpoints/last.ckpt", STEPS + 1), ([], "checkpoints/best.ckpt", STEPS)],
)
def test_train_keeps_the_last_checkpoint_on_a_full_disk(
    words: list[str],
    file: str,
    step: int,
    disk: Path,
    tmp_path: Path,
    interrupt: Interrupt,
    uninterrupted: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Would catch half a checkpoint that replaces the last complete one, or a traceback without the file's path."""
    interrupt("training_step", STEPS + 2, lambda: fill(disk))
    with pytest.raises(SystemExit) as stop:
        train(*OVERRIDES, *words, f"hydra.run.dir={disk}/run", folder=tmp_path)
    assert stop.value.code == f"{disk}/run/{file}: No space left on device. All files written before are complete."
    assert "Traceback" not in capfd.readouterr().err
    assert torch.load(disk / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step
    assert [path.name for path in disk.rglob(".*") if path.name != ".lock"] == []
    with pytest.raises(SystemExit) as stop:
        train(f"resume={disk}/run", folder=tmp_path)
    assert "No space left on device" in str(stop.value.code)
    assert "Traceback" not in capfd.readouterr().err
    (disk / "filling").unlink()
    train(f"resume={disk}/run", folder=tmp_path)
    same_runs(disk / "run", uninterrupted(*words))


@pytest.mark.slow
@pytest.mark.usefixtures("disk")
def test_train_reports_a_folder_that_becomes_read_only(
    tmp_path: Path, interrupt: Interrupt, uninterrupted: Callable[..., Path]
) -> None:
    """Would catch the same with a file system that the kernel remounts read-only after an error."""
    folder = str(tmp_path / "run" / "checkpoints")

    def close() -> None:
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)

    interrupt("training_step", STEPS + 2, close)
    try:
        with pytest.raises(SystemExit) as stop:
            train(*OVERRIDES, "hydra.run.dir=run", folder=tmp_path)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
    message = "checkpoints/best.ckpt: Read-only file system. All files written before are complete."
    assert str(stop.value.code).replace("last", "best").endswith(message)
    train("resume=run", folder=tmp_path)
    same_runs(tmp_path / "run", uninterrupted())


# Rendered faces


@pytest.mark.slow
def test_train_shares_an_empty_cache_with_another_job(tmp_path: Path) -> None:
    """Would catch a job that reads faces that another job has only half rendered."""
    overrides = [*OVERRIDES, "data.train=200", "data.seed=77", "trainer.max_epochs=1"]
    jobs = [
        start_door(
            "train",
            *overrides,
            f"hydra.run.dir={name}",
            folder=tmp_path,
            log=tmp_path / f"{name}.log",
            FACELAB_CACHE=str(tmp_path / "cache"),
        )
        for name in ("one", "other")
    ]
    assert [job.wait(180) for job in jobs] == [0, 0], (tmp_path / "one.log").read_text()
    (faces,) = (tmp_path / "cache" / "synthetic").iterdir()
    assert len(list(faces.rglob("*.jpg"))) == 214
    for name in ("metrics.csv", "faces.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.mark.slow
def test_train_renders_again_after_a_killed_rendering(tmp_path: Path) -> None:
    """Would catch a partial set of faces that the next run uses as complete."""
    overrides = [*OVERRIDES, "data.train=400", "data.seed=78", "trainer.max_epochs=1", "hydra.run.dir=run"]
    cache = str(tmp_path / "cache")
    first = start_door("train", *overrides, folder=tmp_path, log=tmp_path / "log", FACELAB_CACHE=cache)
    for _ in range(1200):
        if len(list(tmp_path.glob("cache/synthetic/.*/train/*.jpg"))) > 20 or first.poll() is not None:
            break
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert [path.name for path in (tmp_path / "cache" / "synthetic").iterdir() if path.name[0] != "."] == []
    again = start_door("train", "resume=run", folder=tmp_path, log=tmp_path / "log", FACELAB_CACHE=cache)
    assert again.wait(180) == 0, (tmp_path / "log").read_text()
    (faces,) = (path for path in (tmp_path / "cache" / "synthetic").iterdir() if path.name[0] != ".")
    assert len(list(faces.rglob("*.jpg"))) == 414
    assert read_status(tmp_path / "run").state == "finished"


def test_pin_keeps_the_old_behaviour_of_new_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a run on a custom dataset whose pixels change on resume because a new option has another default."""
    target = "facelab.annotations.folder.Folder"
    recorded = {"data": {"_target_": target, "root": "x"}, "seed": 1}
    for overrides, expected in ([], "stored"), (["data.orientation=shown"], "shown"):
        hydra = OmegaConf.create({"overrides": {"task": overrides}})
        monkeypatch.setattr(HydraConfig, "get", classmethod(lambda _, hydra=hydra: hydra))
        cfg = OmegaConf.create(
            {"data": {"_target_": target, "root": "y", "orientation": "shown"}, "seed": 1, "test": True}
        )
        _pin(cfg, recorded, renamed_config(recorded))
        assert cfg.data.orientation == expected
        assert cfg.data.root == "y" and cfg.test is True


# Missing and damaged files


def contents(run: Path) -> dict[str, bytes]:
    """Return the content of every file of a run, except the files that each start rewrites."""
    passing = ("status.json", "environment.json", ".lock", "train.log")
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name not in passing}


@pytest.mark.parametrize("lost", ["config.yaml", "checkpoints/last.ckpt"])
@pytest.mark.parametrize("finished", [False, True])
def test_resume_refuses_a_run_with_a_missing_file(
    lost: str, finished: bool, tmp_path: Path, crashed: Path, trained: Path
) -> None:
    """Would catch a run copied without its large files that is silently started anew."""
    run = tmp_path / "run"
    if finished:
        shutil.rmtree(crashed)
        shutil.copytree(trained, run)
    (run / lost).unlink()
    before = contents(run)
    for _ in range(2):  # the second attempt is refused too
        with pytest.raises(SystemExit, match=f"{lost} is missing"):
            train("resume=run", folder=tmp_path)
    assert contents(run) == before


def test_resume_with_a_mistake_keeps_the_run_resumable(tmp_path: Path, crashed: Path) -> None:
    """Would catch a configuration that is stored before it is checked, so that every later resume fails."""
    before = contents(crashed)
    for word in ("crop.size=96", "backbone.name=test_vit", "trainer.max_epochs=nonsense"):
        with pytest.raises(SystemExit):
            train("resume=run", word, folder=tmp_path)
        assert contents(crashed) == before, word
    train("resume=run", folder=tmp_path)
    assert (crashed / "metrics.json").is_file()


def test_resume_refuses_weights_of_another_shape(tmp_path: Path, crashed: Path) -> None:
    """Would catch a checkpoint of another run that is detected only after the folder is overwritten."""
    run = crashed
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    name, value = next(iter(content["state_dict"].items()))
    content["state_dict"][name] = torch.zeros(*value.shape, 2)
    torch.save(content, run / "checkpoints" / "last.ckpt")
    before = contents(run)
    with pytest.raises(SystemExit, match=f"contains other weights .*: {name}$"):
        train("resume=run", folder=tmp_path)
    assert contents(run) == before


def test_resume_with_a_broken_metrics_csv_changes_nothing(tmp_path: Path, crashed: Path) -> None:
    """Would catch a configuration that is replaced before a broken table of metrics is found."""
    run = crashed
    (run / "metrics.csv").write_text("epoch,loss\n0,1.5\n")
    before = contents(run)
    with pytest.raises(SystemExit, match=r"metrics\.csv is not a table of the run's metrics"):
        train("resume=run", "trainer.max_epochs=9", folder=tmp_path)
    assert contents(run) == before


def set_entry(content: Any, *keys: Any, value: Any = ...) -> None:
    """Set an entry of nested containers, or delete it."""
    for key in keys[:-1]:
        content = content[key]
    if value is ...:
        del content[keys[-1]]
    else:
        content[keys[-1]] = value


BEST = (
    "callbacks",
    "ModelCheckpoint{'monitor': 'val/nme_box', 'mode': 'min', 'every_n_train_steps': 0, 'every_n_epochs': 1, "
    "'train_time_interval': None}",
)
"""Keys of the best checkpoint callback's state."""


@pytest.mark.parametrize(
    ("entry", "value"),
    slow_or_quick(
        [
            *[((key,), value) for key in ("global_step", "loops", "callbacks") for value in (..., "a", None)],
            *[((key,), value) for key in ("optimizer_states", "lr_schedulers") for value in (..., 5, [5])],
            (("loops", "fit_loop"), ...),
            *[((*BEST, "best_k_models"), value) for value in (..., 5)],
            *[(("callbacks", "ResumableCheckpoint", "processes"), value) for value in (..., 5, [{"cpu": 5}])],
        ],
        (("loops", "fit_loop"), 5),
        (("optimizer_states", 0, "param_groups"), []),
    ),
)
def test_resume_refuses_a_malformed_checkpoint_state(
    entry: tuple[Any, ...], value: Any, tmp_path: Path, crashed: Path
) -> None:
    """Would catch a traceback of Lightning after the folder was changed, or a resume from a wrong state."""
    run = crashed
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    set_entry(content, *entry, value=value)
    torch.save(content, run / "checkpoints" / "last.ckpt")
    before = contents(run)
    with pytest.raises(SystemExit, match=r"last\.ckpt"):
        train("resume=run", folder=tmp_path)
    assert contents(run) == before


def test_resume_writes_the_pictures_of_a_killed_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a run killed between metrics.json and its last picture that never gets the picture."""
    with monkeypatch.context() as patch:
        patch.setattr("callbacks.pictures.WorstFaces.on_test_end", lambda *_: crash())
        with pytest.raises(Crash):
            train(*small("pipnet"), "logger=csv", "trainer.max_epochs=1", "hydra.run.dir=run", folder=tmp_path)
    train("resume=run", folder=tmp_path)
    assert (tmp_path / "run" / "samples" / "worst.png").is_file()
    assert (tmp_path / "run" / "metrics.json").is_file()


# Received folders


@pytest.mark.parametrize(
    "word",
    [
        "logger.csv.path=/home/user/.bashrc",
        "logger.csv.path=authorized_keys",
        "callbacks.checkpoint.dirpath='~/.ssh'",
        "callbacks.checkpoint.filename=../../../thesis",
        "logger.tensorboard.save_dir=elsewhere",
        "logger.tensorboard.name=${cache}",
        "+logger.mine={_target_: lightning.pytorch.loggers.CSVLogger, save_dir: .ssh}",
        "+logger.mine={_target_: lightning.pytorch.loggers.MLFlowLogger, tracking_uri: 'http://elsewhere'}",
        "+trainer.default_root_dir=/srv",
        "paths.cache=/srv",
        "paths.cache=${cache}",
        "data.cache=/srv",
    ],
)
def test_check_reach_asks_to_confirm_places_outside_the_folder(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a received run folder whose resume overwrites files of the user or contacts a server."""
    place = "/elsewhere" if "${cache}" in word else "data"
    cfg = compose_config([*small("pipnet"), f"+cache={place}", f"paths.run={tmp_path / 'run'}", "paths.group=g", word])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FACELAB_RESUMED", raising=False)
    check_reach(cfg, tmp_path / "run")  # not resumed: the user typed all overrides
    monkeypatch.setenv("FACELAB_RESUMED", json.dumps(["trainer.max_epochs=3", "cache=data"]))
    with pytest.raises(RunError, match="please confirm"):
        check_reach(cfg, tmp_path / "run")
    monkeypatch.setenv("FACELAB_RESUMED", json.dumps([word, "cache=data"]))
    check_reach(cfg, tmp_path / "run")


def test_check_reach_accepts_places_within_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a resume that requires the user to type every override again."""
    overrides = [
        *(*small("pipnet"), "callbacks=ema", "logger.wandb.project=faces/2026", f"paths.run={tmp_path / 'run'}"),
        *("callbacks.checkpoint.monitor=val/nme_ioc", "trainer.precision=bf16-mixed", "paths.data=/data"),
        *("callbacks.checkpoint.filename=best", "callbacks.checkpoint.dirpath=${paths.run}/checkpoints/more"),
        *("paths.group=g", f"logger.csv.path={tmp_path / 'run'}/curves.csv"),
    ]
    monkeypatch.setenv("FACELAB_RESUMED", "[]")
    check_reach(compose_config(overrides), tmp_path / "run")


def test_check_words_asks_to_confirm_the_environment(tmp_path: Path) -> None:
    """Would catch a received run folder that writes a password of this machine into config.yaml."""
    word = "paths.name=${oc.env:SECRET}"
    with pytest.raises(RunError, match="reads the environment"):
        check_words(["seed=1", word], [], tmp_path / "overrides.yaml")
    check_words(["seed=1", word], [word], tmp_path / "overrides.yaml")


@pytest.mark.parametrize("name", [".lock", "metrics.csv", "checkpoints/last.ckpt", "samples"])
def test_resume_refuses_links_out_of_the_folder(name: str, tmp_path: Path, crashed: Path) -> None:
    """Would catch a received run folder whose link makes a resume write into a file of the user."""
    run = crashed
    (tmp_path / "thesis").write_text("mine")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "thesis")
    with pytest.raises(SystemExit, match=f"{name} is a link to a place outside"):
        train("resume=run", folder=tmp_path)
    assert (tmp_path / "thesis").read_text() == "mine"


@pytest.mark.parametrize(
    "name", slow_or_quick(["{}/../thesis", "local://{}/../../thesis", "s3://bucket/thesis"], "{}/../../thesis")
)
def test_resume_keeps_best_checkpoints_outside_the_folder(name: str, tmp_path: Path, interrupt: Interrupt) -> None:
    """Would catch a received checkpoint that makes Lightning remove a file of the user for a better checkpoint."""
    run = interrupted(tmp_path, interrupt)
    files = [tmp_path / "thesis", run / "thesis"]
    for file in files:
        file.write_text("mine")
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    state = next(state for key, state in content["callbacks"].items() if key.startswith("ModelCheckpoint"))
    place = name.format(state["dirpath"])
    state |= {"kth_best_model_path": place, "best_model_path": place, "best_k_models": {place: torch.tensor(9.0)}}
    state["dirpath"] = "local:" if name.startswith("local") else state["dirpath"]
    torch.save(content, run / "checkpoints" / "last.ckpt")
    train("resume=run", folder=tmp_path)
    assert [file.read_text() for file in files] == ["mine", "mine"]


# Concurrent starts


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [False, True])
def test_train_chooses_another_folder_in_the_same_second(sweep: bool, tmp_path: Path) -> None:
    """Would catch two runs or sweeps of one name that share a folder and overwrite each other."""
    overrides = [*OVERRIDES, "trainer.max_epochs=1", *(["-m", "seed=1,2"] if sweep else [])]
    second = int(time.time()) + 12
    clock = "import time; real = time.strftime; "
    clock += f"time.strftime = lambda form, *t: real(form, *(t or (time.localtime({second}),)))"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(clock)  # both processes choose this second
    site = str(tmp_path / "site")
    processes = [
        start_door("train", *overrides, folder=tmp_path, log=tmp_path / f"log{number}", PYTHONPATH=site)
        for number in "01"
    ]
    assert [process.wait(240) for process in processes] == [0, 0], (tmp_path / "log0").read_text()
    folders = sorted((tmp_path / "logs" / "train" / ("multiruns" if sweep else "runs")).iterdir())
    assert len(folders) == 2
    for folder in folders:
        for run in (folder / "0", folder / "1") if sweep else (folder,):
            assert read_status(run).state == "finished"
            assert (run / "metrics.json").is_file()


@pytest.mark.parametrize("door", ["predict", "evaluate", "benchmark"])
def test_doors_refuse_the_folder_of_a_training(door: str, tmp_path: Path, trained: Path) -> None:
    """Would catch a training whose configuration and status another door overwrites."""
    shutil.copytree(trained, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    overrides = {
        "predict": ["images=.", "landmarker=run"],
        "evaluate": ["ckpt=run"],
        "benchmark": ["model=pipnet", "data=synthetic68"],
    }[door]
    with pytest.raises(SystemExit, match=r"is the folder of train\.py"):
        open_door(door, *overrides, "hydra.run.dir=run", folder=tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_write_jobs_and_train_refuse_the_folder_of_the_other(tmp_path: Path, trained: Path) -> None:
    """Would catch a run in the folder of a sweep, or a sweep in the folder of a run."""
    (tmp_path / "sweep").mkdir()
    write_jobs(tmp_path / "sweep", {0: ["seed=1"]}, [])
    with pytest.raises(SystemExit, match="is the folder of a sweep"):
        train(*OVERRIDES, "hydra.run.dir=sweep", folder=tmp_path)
    with pytest.raises(RunError, match="another sweep has just started"):
        write_jobs(tmp_path / "sweep", {0: ["seed=2"]}, [])
    with pytest.raises(RunError, match="is the folder of a run"):
        write_jobs(trained, {0: ["seed=1"]}, [])


def test_train_repeats_a_check_in_the_same_folder(tmp_path: Path) -> None:
    """Would catch `trainer=check` that works only once in a folder."""
    for _ in range(2):
        train(*small("pipnet"), "trainer=check", "logger=csv", "hydra.run.dir=run", folder=tmp_path)


def test_resume_that_is_refused_keeps_the_configuration(tmp_path: Path) -> None:
    """Would catch a run without a checkpoint that gets the configuration of a refused start."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr(PIPNet, "training_step", lambda *_: crash())
        train(*OVERRIDES, "hydra.run.dir=run", folder=tmp_path)
    before = contents(tmp_path / "run")
    with pytest.raises(SystemExit):
        train("resume=run", "seed=9", "trainer.check_val_every_n_epoch=5", folder=tmp_path)
    assert contents(tmp_path / "run") == before


def test_resume_refuses_metrics_without_a_checkpoint(tmp_path: Path, crashed: Path) -> None:
    """Would catch a run copied without its checkpoint and status that is started anew over its metrics."""
    run = crashed
    for name in ("status.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        (run / name).unlink()
    before = contents(run)
    with pytest.raises(SystemExit, match=r"last\.ckpt is missing"):
        train("resume=run", folder=tmp_path)
    assert contents(run) == before


def test_resume_restarts_an_unfinished_run_without_checkpoints(tmp_path: Path) -> None:
    """Would catch a requeued job without checkpoints that is refused, or whose results a new training removes."""
    overrides = [*small("pipnet"), "logger=csv", "callbacks=none", "trainer.max_epochs=1", "hydra.run.dir=run"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr("callbacks.results.results", lambda *_: crash())
        train(*overrides, folder=tmp_path)
    train("resume=run", folder=tmp_path)
    before = contents(tmp_path / "run")
    with pytest.raises(SystemExit, match="was never written, but the run was trained"):
        train("resume=run", folder=tmp_path)
    assert contents(tmp_path / "run") == before


def test_check_reach_checks_below_a_typed_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch `callbacks=ema` that also confirms a path outside the folder from the stored overrides."""
    overrides = [
        *small("pipnet"),
        "callbacks=ema",
        "callbacks.checkpoint.dirpath=/srv",
        f"paths.run={tmp_path / 'run'}",
    ]
    monkeypatch.setenv("FACELAB_RESUMED", json.dumps(["callbacks=ema"]))
    with pytest.raises(RunError, match=r"callbacks\.checkpoint\.dirpath=/srv"):
        check_reach(compose_config([*overrides, "paths.group=g"]), tmp_path / "run")
