"""A run that was interrupted ends as if it had not been."""

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
from facelab.runs.argv import quoted
from facelab.runs.overrides import check_reach, check_words, resumed_argv, task_overrides
from facelab.runs.resume import _pin
from facelab.runs.sweep import write_jobs
from lightning_modules.pipnet import PIPNet

EPOCHS, STEPS = 3, 6
LOGGED = 3
"""Every so many steps."""
WORDS = [
    *small("pipnet"),
    *PLAIN,
    "+trainer.enable_progress_bar=false",
    f"data.train={4 * STEPS}",
    f"trainer.max_epochs={EPOCHS}",
    f"trainer.log_every_n_steps={LOGGED}",
    "optimizer.lr=0.003",
]
AT_ONCE = "callbacks.resume.minutes=0"
VARIANTS = {
    "epochs": [],
    "steps": [AT_ONCE],
    "workers": [AT_ONCE, "datamodule.num_workers=2"],
    "average": [AT_ONCE, "callbacks=ema", *PLAIN],
    "cosine": [AT_ONCE, "scheduler=cosine"],
    "accumulated gradients": [AT_ONCE, "+trainer.accumulate_grad_batches=2"],
    "validation within epochs": [AT_ONCE, "+trainer.val_check_interval=2"],
    "every step": [AT_ONCE, "trainer.log_every_n_steps=1"],
}


SLOW = pytest.mark.slow


def but_for(slow: Sequence[Any], *cases: Any) -> list[Any]:
    """Cases of a test; all are run by CI, those that are not slow by a developer too."""
    return [*cases, *(pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=SLOW) for case in slow)]


class Crash(BaseException):
    """The machine goes down."""


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def train(*words: object, folder: Path) -> None:
    open_door("train", *words, folder=folder)


Interrupt = Callable[[str, int, Callable[[], Any]], None]


@pytest.fixture
def interrupt() -> Iterator[Interrupt]:
    """Have something happen at the n-th call (from 1) of a method, in place of the call; each happens once."""
    with pytest.MonkeyPatch.context() as patch:

        def at(name: str, number: int, what: Callable[[], Any]) -> None:
            owner: Any = Results if name == "on_test_end" else ResumableCheckpoint if name == "_save" else PIPNet
            original, calls = getattr(owner, name), itertools.count(1)

            def method(self: Any, *given: Any) -> Any:
                if next(calls) == number:
                    what()
                return original(self, *given)

            patch.setattr(owner, name, method)

        yield at


def crash() -> None:
    raise Crash


@pytest.fixture(autouse=True)
def dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that draws random numbers while it trains."""
    plain = PIPNet.forward

    def forward(self: PIPNet, image: torch.Tensor) -> Any:
        maps = plain(self, image)
        return type(maps)(*(functional.dropout(each, 0.3, self.training) for each in maps))

    monkeypatch.setattr(PIPNet, "forward", forward)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run with these words that nothing happened to."""
    known: dict[tuple[str, ...], Path] = {}

    def run(*words: str) -> Path:
        if words not in known:
            folder = tmp_path_factory.mktemp("uninterrupted")
            train(*WORDS, *words, "hydra.run.dir=run", folder=folder)
            known[words] = folder / "run"
        return known[words]

    return run


def flat(node: Any, at: str = "") -> dict[str, Any]:
    """Every value in nested containers, by where it stands; without the names of files."""
    if isinstance(node, dict):
        children: Any = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    else:
        return {at: node}
    return {key: value for name, child in children for key, value in flat(child, f"{at}/{name}").items()}


def differences(one: Path, other: Path) -> list[str]:
    """What two checkpoints do not have in common."""
    a, b = (flat(torch.load(path, weights_only=True)) for path in (one, other))
    a, b = ({key: value for key, value in each.items() if not is_file_name(key, value)} for each in (a, b))
    return [key for key in {**a, **b} if key not in a or key not in b or not equal(a[key], b[key])]


def is_file_name(key: str, value: Any) -> bool:
    # Lightning does not restore `current_score`, the latest score that was among the best, and never reads it.
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


@pytest.mark.parametrize("variant", but_for([name for name in VARIANTS if name != "steps"], "steps"))
def test_a_run_that_crashed_again_and_again(
    variant: str, tmp_path: Path, interrupt: Interrupt, uninterrupted: Callable[..., Path]
) -> None:
    """Anything that a checkpoint forgets: order of faces, random state, averages, rate, progress, rows of metrics."""
    words = VARIANTS[variant]
    reference = uninterrupted(*words)
    typed: list[str] = [*WORDS, *words, "hydra.run.dir=run"]
    for steps in (2, 3, STEPS, 5, 4):
        interrupt("training_step", steps, crash)
        with pytest.raises(Crash):
            train(*typed, folder=tmp_path)
        assert load(tmp_path / "run" / "status.json")["state"] == "failed"
        typed = ["resume=run"]
    train(*typed, folder=tmp_path)
    same_runs(tmp_path / "run", reference)


@pytest.mark.parametrize(
    ("method", "number", "words"),
    but_for(
        [
            ("training_step", STEPS, []),
            ("validation_step", 2, []),
            ("validation_step", 3, []),
            ("on_test_end", 1, []),
            ("training_step", 4, [AT_ONCE, "+trainer.accumulate_grad_batches=2"]),
            ("_save", 1, []),
            ("_save", 2, [AT_ONCE]),
            ("test_step", 2, []),
            ("training_step", 3, [AT_ONCE, "+trainer.val_check_interval=2"]),
            ("training_step", 3, [AT_ONCE, "trainer.log_every_n_steps=1"]),
            ("validation_step", 2, [AT_ONCE, "+trainer.val_check_interval=2"]),
            ("validation_step", 3, [AT_ONCE]),
        ],
        ("_save", 2, []),
    ),
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_crash_in_the_worst_place(
    method: str,
    number: int,
    words: list[str],
    tmp_path: Path,
    interrupt: Interrupt,
    uninterrupted: Callable[..., Path],
) -> None:
    """A validation left out or written twice, half an accumulated gradient, a result of a test that was cut off."""
    interrupt(method, number, crash)
    with pytest.raises(Crash):
        train(*WORDS, *words, "hydra.run.dir=run", folder=tmp_path)
    assert not (tmp_path / "run" / "metrics.json").exists()
    train("resume=run", folder=tmp_path)
    same_runs(tmp_path / "run", uninterrupted(*words))


def test_a_resumed_run_says_so_in_its_checkpoint_only(tmp_path: Path) -> None:
    """A resumption whose random state is taken from the setting up, which draws the weights anew."""
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
    """Send a signal to this process, and to those that it has started."""

    def send() -> None:
        children = multiprocessing.active_children() if workers else []
        # By another process, as a cluster does: workers obey a SIGTERM of their parent.
        line = ["kill", "-s", str(int(number)), *(str(child.pid) for child in children), str(os.getpid())]
        subprocess.run(line, check=True)
        time.sleep(0.1)  # until Python has seen it

    return send


@pytest.mark.parametrize(
    ("number", "method", "call", "words", "steps"),
    but_for(
        [
            (signal.SIGUSR2, "training_step", 2, [], 2),
            (signal.SIGUSR2, "training_step", 3, ["trainer.log_every_n_steps=1"], 3),
            (signal.SIGTERM, "training_step", LOGGED, [], LOGGED),
            (signal.SIGTERM, "training_step", 2 * STEPS, [], STEPS),  # a validation would be next
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
def test_a_run_that_is_told_to_end(
    number: signal.Signals,
    method: str,
    call: int,
    words: list[str],
    steps: int,
    tmp_path: Path,
    interrupt: Interrupt,
    uninterrupted: Callable[..., Path],
) -> None:
    """Minutes of training lost, a run that does not end, or one that ends and says that it failed or goes on."""
    interrupt(method, call, kill(number, workers="datamodule.num_workers=2" in words))
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR2)]
    with pytest.raises(SystemExit) as stop:
        train(*WORDS, *words, "hydra.run.dir=run", folder=tmp_path)
    assert stop.value.code == f"stopped by {number.name}"
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR2)] == handlers
    status = load(tmp_path / "run" / "status.json")
    assert (status["state"], status["reason"]) == ("stopped", f"stopped by {number.name}")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert saved == steps
    train("resume=run", folder=tmp_path)
    same_runs(tmp_path / "run", uninterrupted(*words))


@pytest.mark.parametrize(
    ("method", "call", "saved"), but_for([("validation_step", 1, False)], ("training_step", 4, True))
)
def test_the_handler_of_the_cluster_decides(
    method: str, call: int, saved: bool, tmp_path: Path, interrupt: Interrupt, uninterrupted: Callable[..., Path]
) -> None:
    """A job that is put back into the queue before its checkpoint, or never, or that reads as failed meanwhile."""
    seen: list[tuple[bool, Any]] = []

    def requeue(given: int, frame: object) -> None:  # as submitit's
        path = tmp_path / "run" / "checkpoints" / "last.ckpt"
        seen.append((path.exists(), signal.getsignal(signal.SIGTERM)))
        raise SystemExit(-1)

    interrupt(method, call, kill(signal.SIGUSR2))
    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit):
            train(*WORDS, "hydra.run.dir=run", folder=tmp_path)
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert seen == [(saved, signal.SIG_IGN)], "the cluster ends the process before it has asked for another try"
    assert load(tmp_path / "run" / "status.json")["state"] == "queued"
    train("resume=run", folder=tmp_path)
    same_runs(tmp_path / "run", uninterrupted())


def test_a_cluster_that_does_not_start_the_job_again(tmp_path: Path, interrupt: Interrupt) -> None:
    """A job out of time for good that is waited for."""

    def refuse(given: int, frame: object) -> None:
        raise RuntimeError("timed out too often")

    interrupt("training_step", 1, kill(signal.SIGUSR2))
    before = signal.signal(signal.SIGUSR2, refuse)
    try:
        with pytest.raises(SystemExit):
            train(*WORDS, "hydra.run.dir=run", folder=tmp_path)
    finally:
        signal.signal(signal.SIGUSR2, before)
    status = load(tmp_path / "run" / "status.json")
    assert (status["state"], status["reason"]) == ("failed", "RuntimeError: timed out too often")


@pytest.mark.slow
def test_interrupted_by_hand(tmp_path: Path, interrupt: Interrupt, uninterrupted: Callable[..., Path]) -> None:
    """Ctrl-C that reads as a failure, or goes on with the test of half a training."""
    interrupt("training_step", STEPS + 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit):
        train(*WORDS, "hydra.run.dir=run", folder=tmp_path)
    assert load(tmp_path / "run" / "status.json")["state"] == "stopped"
    assert not (tmp_path / "run" / "metrics.json").exists()
    train("resume=run", folder=tmp_path)
    same_runs(tmp_path / "run", uninterrupted())


# What resume= stands for


def interrupted(folder: Path, interrupt: Interrupt, *words: str) -> Path:
    """A run that crashed in its second epoch, in ``run`` of this folder."""
    interrupt("training_step", STEPS + 2, crash)
    with pytest.raises(Crash):
        train(*WORDS, *words, "hydra.run.dir=run", folder=folder)
    return folder / "run"


@pytest.fixture
def crashed(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, interrupt: Interrupt) -> Path:
    """A copy of one such run, in ``run`` of the folder of the test."""
    if not CRASHED:
        CRASHED.append(interrupted(tmp_path_factory.mktemp("crashed"), interrupt))
    return Path(shutil.copytree(CRASHED[0], tmp_path / "run"))


CRASHED: list[Path] = []
"""The run that is copied; no fixture of the module, which would come before the network that draws random numbers."""


@pytest.mark.slow
def test_longer_than_it_was(tmp_path: Path, interrupt: Interrupt) -> None:
    """A finished run that is trained on, killed, and still shows the results of the shorter training as its own."""
    train(*WORDS, "scheduler=none", "trainer.max_epochs=1", "hydra.run.dir=run", folder=tmp_path)
    run = tmp_path / "run"
    interrupt("training_step", 2, crash)
    with pytest.raises(Crash):
        train("resume=run", f"trainer.max_epochs={EPOCHS}", folder=tmp_path)
    assert load(run / "status.json")["state"] == "failed"
    assert not (run / "metrics.json").exists() and not (run / "faces.csv").exists()
    train("resume=run", folder=tmp_path)
    train(*WORDS, "scheduler=none", "hydra.run.dir=whole", folder=tmp_path)
    same_runs(run, tmp_path / "whole")


def test_a_finished_run_stays_what_it_was(tmp_path: Path) -> None:
    """Results of one crop in a folder that says another; a test that is run again for nothing."""
    train(*WORDS, "trainer.max_epochs=1", "hydra.run.dir=run", folder=tmp_path)
    run = tmp_path / "run"
    kept = {path: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != "train.log"}
    with pytest.raises(SystemExit, match=r"is finished.*only trainer\.max_epochs may change"):
        train("resume=run", "data.test=9", folder=tmp_path)
    train("resume=run", folder=tmp_path)
    told = ("status.json", "environment.json")
    assert {path.name for path in kept if path.read_bytes() != kept[path]} <= {*told}
    assert load(run / "status.json")["state"] == "finished"


@pytest.mark.parametrize("name", ["a run", "it's, a {run}", "a=b (c) [d]", 'a "b" c', "back\\slash", "über", "$HOME"])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("write", [str, quoted], ids=["as it is", "quoted"])
def test_names_of_folders(
    name: str, write: Callable[[str], str], relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that Hydra takes for something else: several folders, a mapping, an interpolation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACELAB_STAMP", "later")
    overrides = tmp_path / name / "overrides.yaml"
    overrides.parent.mkdir()
    overrides.write_text("- seed=3\n- data.root=../faces\n")
    words = resumed_argv(["test_ckpt=best", f"resume={write(name if relative else str(tmp_path / name))}"])
    assert words[:3] == ["seed=3", "data.root=../faces", "test_ckpt=best"], "what is typed now must win"
    parsed = {each.key_or_group: each.value() for each in OverridesParser.create().parse_overrides(words)}
    assert parsed["hydra.run.dir"] == str(tmp_path / name)
    assert os.environ["FACELAB_STAMP"] == name


def test_a_home_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback for a mistyped name of a user."""
    monkeypatch.setenv("FACELAB_RESUMED", "[]")
    with pytest.raises(RunError, match=r"~nobody-of-this-name/run is not the folder of a run"):
        resumed_argv(["resume=~nobody-of-this-name/run"])


@pytest.mark.parametrize("sweep", [True, False])
def test_a_folder_that_cannot_be_written_to_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweep: bool
) -> None:
    """A run on a medium that can only be read: a traceback of Hydra, which opens its log there."""
    (tmp_path / "overrides.yaml").write_text("- seed=3\n")
    (tmp_path / "sweep.json").write_text('{"cells": {"0": ["seed=3"]}}')
    monkeypatch.setattr("facelab.files.closed", lambda folder: f"{folder}: Read-only file system")
    monkeypatch.setenv("FACELAB_STAMP", "later")
    monkeypatch.setenv("FACELAB_RESUMED", "[]")
    with pytest.raises(RunError, match=r"it is not writable \(.*Read-only file system\)"):
        resumed_argv([*["-m"] * sweep, f"resume={tmp_path}"])


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path.name)])
def test_a_log_that_cannot_be_written_to_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any]
) -> None:
    """A folder from somebody else whose log is a pipe, on whose reader the run waits for ever, or a folder."""
    (tmp_path / "overrides.yaml").write_text("- seed=3\n")
    make(tmp_path / "train.log")
    monkeypatch.setenv("FACELAB_RESUMED", "[]")
    monkeypatch.setenv("FACELAB_STAMP", "later")
    with pytest.raises(RunError, match=r"train\.log cannot be written to"):
        resumed_argv([f"resume={tmp_path}"])


@pytest.mark.parametrize("best_is_there", but_for([True], False))
def test_the_folder_may_have_any_name(tmp_path: Path, crashed: Path, best_is_there: bool) -> None:
    """The same with all that comes after the command line; a moved run whose best checkpoint is forgotten."""
    folder = tmp_path / "it's, a {run}"
    crashed.rename(folder)
    last, best = (folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    checkpoint = torch.load(last, weights_only=True)
    (state,) = (state for key, state in checkpoint["callbacks"].items() if key.startswith("ModelCheckpoint"))
    perfect = torch.tensor(0.0)  # so that no later validation is better
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


def test_a_run_keeps_its_identity(tmp_path: Path, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run that is another one in W&B, or whose environment is that of the last start alone."""
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
    # The files' names, not the folders': those end in -1 where both runs began in the same second.
    ids = [path.stem for path in (run / "wandb").glob("offline-run-*/run-*.wandb")]
    assert len(ids) == 2
    assert len(set(ids)) == 1, "another run in W&B"
    assert OmegaConf.load(run / "config.yaml").logger.wandb.group == "now"


def test_what_changed_is_said_and_kept(
    tmp_path: Path, crashed: Path, interrupt: Interrupt, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run of two halves that nobody knows of; a value typed once that is lost at the next interruption."""
    run = crashed
    interrupt("training_step", 2, crash)
    with pytest.raises(Crash):
        train("resume=run", "datamodule.num_workers=1", "data.val=5", folder=tmp_path)
    said = capfd.readouterr().out
    assert "changed: datamodule.num_workers: 0 -> 1" in said
    assert "changed: data.val: 6 -> 5" in said
    assert said.count("changed: ") == 2
    train("resume=run", folder=tmp_path)
    assert "changed: " not in capfd.readouterr().out
    assert OmegaConf.load(run / "config.yaml").data.val == 5
    words = yaml.safe_load((run / "overrides.yaml").read_text())
    assert words == [*WORDS, "datamodule.num_workers=1", "data.val=5"]


@pytest.mark.parametrize(
    "word", but_for(["scheduler=cosine", "scheduler.factor=0.5", "optimizer.weight_decay=0.1"], "optimizer.lr=0.1")
)
def test_what_would_have_no_effect_is_refused(word: str, tmp_path: Path, crashed: Path) -> None:
    """A learning rate in config.yaml that was never used; a refusal that is remembered as if it had been accepted."""
    run = crashed
    kept = {name: (run / name).read_bytes() for name in ("config.yaml", "metrics.csv", "overrides.yaml")}
    with pytest.raises(SystemExit, match="would have no effect") as stop:
        train("resume=run", word, folder=tmp_path)
    assert word.partition("=")[0].partition(".")[0] in str(stop.value.code)
    assert {name: (run / name).read_bytes() for name in kept} == kept
    train("resume=run", folder=tmp_path)
    assert load(run / "status.json")["state"] == "finished"


@pytest.mark.parametrize("word", but_for(["+typo=1", "data.root=7"], "optimizer.lr=0.1"))
def test_a_mistake_does_not_spoil_a_finished_run(word: str, tmp_path: Path) -> None:
    """A finished run that reads as failed since somebody mistyped."""
    train(*WORDS, "hydra.run.dir=run", folder=tmp_path)
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
def test_a_hostile_override_is_refused(word: str, tmp_path: Path) -> None:
    """A folder from somebody else that has Hydra start a program, read another configuration, or write elsewhere."""
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
def test_a_file_of_overrides_that_is_none(content: str, tmp_path: Path) -> None:
    """The same in a file, a traceback, or a program that YAML starts."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "overrides.yaml").write_text(content)
    with pytest.raises(SystemExit) as stop:
        train("resume=run", folder=tmp_path)
    assert "overrides.yaml" in str(stop.value.code)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["overrides.yaml", "run"]


def test_relative_paths_are_no_options() -> None:
    """A dataset beside the working folder that makes a run impossible to take up."""
    words = ["data.root=../faces", "backbone.weights=../../a.pth", "seed=1", "~logger", "+trainer.limit_val_batches=2"]
    assert task_overrides(words, Path("overrides.yaml")) == words


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
def test_what_cannot_be_taken_up(words: list[str], message: str, tmp_path: Path) -> None:
    """A new run where an old one was meant, or a traceback."""
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
def test_a_checkpoint_that_cannot_be_read(content: bytes, tmp_path: Path, crashed: Path) -> None:
    """A traceback of torch, or a run that begins anew and overwrites what could be mended."""
    run = crashed
    metrics = (run / "metrics.csv").read_bytes()
    (run / "checkpoints" / "last.ckpt").write_bytes(content)
    with pytest.raises(SystemExit, match=r"last\.ckpt"):
        train("resume=run", folder=tmp_path)
    assert (run / "metrics.csv").read_bytes() == metrics


def test_only_train_goes_on(tmp_path: Path, trained: Path) -> None:
    """`evaluate.py resume=...` taken for something, or a test that overwrites the run that it measures."""
    with pytest.raises(SystemExit):
        open_door("evaluate", f"resume={trained}", folder=tmp_path)
    files = ("config.yaml", "metrics.json", "faces.csv", "status.json", "overrides.yaml")
    kept = {name: (trained / name).read_bytes() for name in files}
    with pytest.raises(SystemExit):
        open_door("evaluate", f"ckpt={trained}", "split=val", f"hydra.run.dir={trained}", folder=tmp_path)
    assert {name: (trained / name).read_bytes() for name in files} == kept


# Whole processes


KILLS = int(os.environ.get("FACELAB_KILLS", "3"))
"""How often the killer kills; a hundred times before a release."""


@pytest.mark.slow
def test_killed_at_any_time(tmp_path: Path) -> None:
    """What no one thinks of: kill -9 at random moments, of the process or with its workers, again and again."""
    words = [*WORDS, "trainer.max_epochs=40", "datamodule.num_workers=2", "callbacks.resume.minutes=0.005"]
    log, rng = tmp_path / "log", random.Random(KILLS)
    begin = time.monotonic()
    assert start_door("train", *words, "hydra.run.dir=reference", folder=tmp_path, log=log).wait() == 0, log.read_text()
    whole, kills, run = time.monotonic() - begin, 0, tmp_path / "run"
    typed: list[str] = [*words, "hydra.run.dir=run"]
    while True:
        log = tmp_path / f"log_{kills}"  # a worker whose parent is killed while it hands a tensor over has a traceback
        process = start_door("train", *typed, folder=tmp_path, log=log)
        try:
            code = process.wait(rng.uniform(0.4, 1) * whole if kills < KILLS else None)
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
        typed = ["resume=run"] if (run / "overrides.yaml").exists() else [*words, "hydra.run.dir=run"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_group_of_processes_is_told_to_end(number: signal.Signals, tmp_path: Path) -> None:
    """Workers that die first, and thereby the training before its checkpoint; processes that are left over."""
    words = [*WORDS, "trainer.max_epochs=20", "datamodule.num_workers=2"]
    log = tmp_path / "log"
    assert start_door("train", *words, "hydra.run.dir=reference", folder=tmp_path, log=log).wait() == 0, log.read_text()
    process = start_door("train", *words, "hydra.run.dir=run", folder=tmp_path, log=log)
    wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", process)
    os.killpg(process.pid, number)
    assert process.wait(60) == 1, log.read_text()
    assert read_status(tmp_path / "run")[:2] == ("stopped", f"stopped by {number.name}")
    assert members(process.pid) == []
    assert start_door("train", "resume=run", folder=tmp_path, log=log).wait() == 0, log.read_text()
    same_runs(tmp_path / "run", tmp_path / "reference")
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_processes_that_train_together_end_together(tmp_path: Path) -> None:
    """A second process that waits for the first for half an hour, in training or in a validation."""
    together = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.sync_batchnorm=false"]
    words = [*WORDS, *together, "trainer.log_every_n_steps=12", "scheduler=none"]
    validation = ["trainer.max_epochs=1", "datamodule.batch_size=1", "data.val=1000"]
    for number, more in enumerate((["trainer.max_epochs=500"], validation)):
        folder = tmp_path / str(number)
        folder.mkdir()
        log = folder / "log"
        process = start_door("train", *words, *more, "hydra.run.dir=run", folder=folder, log=log)
        try:
            wait_for(folder / "run" / ("metrics.csv" if number else "checkpoints/last.ckpt"), process)
            while number and "\n0,11," not in (folder / "run" / "metrics.csv").read_text():
                time.sleep(0.05)
            time.sleep(0.5 * number)  # the last step of the epoch is done
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(60) == 1, log.read_text()
            for _ in range(100):
                if not (left := members(process.pid)):
                    break
                time.sleep(0.1)
            assert not left, log.read_text()
            assert read_status(folder / "run").state == "stopped", log.read_text()
        finally:
            for pid in members(process.pid):
                os.kill(pid, signal.SIGKILL)


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None, "it has ended"
        time.sleep(0.1)
    pytest.fail(f"{path} does not come")


# The disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB."""
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
    """Leave nothing free."""
    with (disk / "filling").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"0" * 4096)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "file", "step"), [([AT_ONCE], "checkpoints/last.ckpt", STEPS + 1), ([], "checkpoints/best.ckpt", STEPS)]
)
def test_a_full_disk(
    words: list[str],
    file: str,
    step: int,
    disk: Path,
    tmp_path: Path,
    interrupt: Interrupt,
    uninterrupted: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Half a checkpoint in the place of the last whole one, and a traceback of torch that does not say which disk."""
    interrupt("training_step", STEPS + 2, lambda: fill(disk))
    with pytest.raises(SystemExit) as stop:
        train(*WORDS, *words, f"hydra.run.dir={disk}/run", folder=tmp_path)
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


@pytest.mark.usefixtures("disk")
def test_a_folder_that_is_closed(tmp_path: Path, interrupt: Interrupt, uninterrupted: Callable[..., Path]) -> None:
    """The same with a disk that the system has closed after an error."""
    folder = str(tmp_path / "run" / "checkpoints")

    def close() -> None:
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)

    interrupt("training_step", STEPS + 2, close)
    try:
        with pytest.raises(SystemExit) as stop:
            train(*WORDS, "hydra.run.dir=run", folder=tmp_path)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
    message = "checkpoints/best.ckpt: Read-only file system. All files written before are complete."
    assert str(stop.value.code).replace("last", "best").endswith(message)
    train("resume=run", folder=tmp_path)
    same_runs(tmp_path / "run", uninterrupted())


# Rendered faces


@pytest.mark.slow
def test_two_jobs_render_the_same_faces(tmp_path: Path) -> None:
    """Two jobs of a sweep that start on an empty cache: one reads half of what the other writes."""
    words = [*WORDS, "data.train=200", "data.seed=77", "trainer.max_epochs=1"]
    jobs = [
        start_door(
            "train",
            *words,
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
def test_a_rendering_that_was_killed(tmp_path: Path) -> None:
    """Half a set of faces that the next run takes for the whole."""
    words = [*WORDS, "data.train=400", "data.seed=78", "trainer.max_epochs=1", "hydra.run.dir=run"]
    cache = str(tmp_path / "cache")
    first = start_door("train", *words, folder=tmp_path, log=tmp_path / "log", FACELAB_CACHE=cache)
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


def test_resumption_keeps_what_options_meant_before_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of own photos that changes its pixels in mid-training since the default of a new option is another."""
    target = "facelab.annotations.folder.Folder"
    before = {"data": {"_target_": target, "root": "x"}, "seed": 1}
    for typed, expected in ([], "stored"), (["data.orientation=shown"], "shown"):
        hydra = OmegaConf.create({"overrides": {"task": typed}})
        monkeypatch.setattr(HydraConfig, "get", classmethod(lambda _, hydra=hydra: hydra))
        cfg = OmegaConf.create(
            {"data": {"_target_": target, "root": "y", "orientation": "shown"}, "seed": 1, "test": True}
        )
        _pin(cfg, before, renamed_config(before))
        assert cfg.data.orientation == expected
        assert cfg.data.root == "y" and cfg.test is True


# What a folder has lost


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run but those that say that somebody looked."""
    passing = ("status.json", "environment.json", ".lock", "train.log")
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name not in passing}


@pytest.mark.parametrize("lost", ["config.yaml", "checkpoints/last.ckpt"])
@pytest.mark.parametrize("finished", [False, True])
def test_a_run_that_lost_a_file_is_left_alone(
    lost: str, finished: bool, tmp_path: Path, crashed: Path, trained: Path
) -> None:
    """A run that was copied without its large files, begun anew in silence over what is left of it."""
    run = tmp_path / "run"
    if finished:
        shutil.rmtree(crashed)
        shutil.copytree(trained, run)
    (run / lost).unlink()
    before = contents(run)
    for _ in range(2):  # nor is it forgotten at the second try
        with pytest.raises(SystemExit, match=f"{lost} is missing"):
            train("resume=run", folder=tmp_path)
    assert contents(run) == before


def test_a_mistyped_resumption_leaves_the_run_as_it_was(tmp_path: Path, crashed: Path) -> None:
    """A configuration that is kept before it is known to fit, so that the plain resumption fails from then on."""
    before = contents(crashed)
    for word in ("crop.size=96", "backbone.name=test_vit", "trainer.max_epochs=nonsense"):
        with pytest.raises(SystemExit):
            train("resume=run", word, folder=tmp_path)
        assert contents(crashed) == before, word
    train("resume=run", folder=tmp_path)
    assert (crashed / "metrics.json").is_file()


def test_weights_that_do_not_fit_leave_the_run_as_it_was(tmp_path: Path, crashed: Path) -> None:
    """A checkpoint of another run, which is found when the folder is overwritten."""
    run = crashed
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    name, value = next(iter(content["state_dict"].items()))
    content["state_dict"][name] = torch.zeros(*value.shape, 2)
    torch.save(content, run / "checkpoints" / "last.ckpt")
    before = contents(run)
    with pytest.raises(SystemExit, match=f"contains other weights .*: {name}$"):
        train("resume=run", folder=tmp_path)
    assert contents(run) == before


def malformed(content: Any, *keys: Any, value: Any = ...) -> None:
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
"""Keys of the state of the callback that keeps the best checkpoint."""


@pytest.mark.parametrize(
    ("entry", "value"),
    but_for(
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
def test_a_malformed_state_leaves_the_run_as_it_was(
    entry: tuple[Any, ...], value: Any, tmp_path: Path, crashed: Path
) -> None:
    """A traceback of Lightning after the folder was prepared, or a run that continues from another state."""
    run = crashed
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    malformed(content, *entry, value=value)
    torch.save(content, run / "checkpoints" / "last.ckpt")
    before = contents(run)
    with pytest.raises(SystemExit, match=r"last\.ckpt"):
        train("resume=run", folder=tmp_path)
    assert contents(run) == before


def test_a_run_is_finished_by_its_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed between its numbers and its last picture, which then never comes."""
    with monkeypatch.context() as patch:
        patch.setattr("callbacks.pictures.WorstFaces.on_test_end", lambda *_: crash())
        with pytest.raises(Crash):
            train(*small("pipnet"), "logger=csv", "trainer.max_epochs=1", "hydra.run.dir=run", folder=tmp_path)
    train("resume=run", folder=tmp_path)
    assert (tmp_path / "run" / "samples" / "worst.png").is_file()
    assert (tmp_path / "run" / "metrics.json").is_file()


# A folder from somebody else


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
def test_a_place_outside_of_a_resumed_folder_is_for_the_user_to_say(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run folder that was received, and has a resumption overwrite files of the user's or ask a server."""
    place = "/elsewhere" if "${cache}" in word else "data"
    cfg = compose_config([*small("pipnet"), f"+cache={place}", f"paths.run={tmp_path / 'run'}", "paths.group=g", word])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FACELAB_RESUMED", raising=False)
    check_reach(cfg, tmp_path / "run")  # not resumed: all of it is typed
    monkeypatch.setenv("FACELAB_RESUMED", json.dumps(["trainer.max_epochs=3", "cache=data"]))
    with pytest.raises(RunError, match="please confirm"):
        check_reach(cfg, tmp_path / "run")
    monkeypatch.setenv("FACELAB_RESUMED", json.dumps([word, "cache=data"]))
    check_reach(cfg, tmp_path / "run")


def test_places_of_a_run_that_lie_within_it_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumption that asks the user to type everything again."""
    words = [
        *(*small("pipnet"), "callbacks=ema", "logger.wandb.project=faces/2026", f"paths.run={tmp_path / 'run'}"),
        *("callbacks.checkpoint.monitor=val/nme_ioc", "trainer.precision=bf16-mixed", "paths.data=/data"),
        *("callbacks.checkpoint.filename=best", "callbacks.checkpoint.dirpath=${paths.run}/checkpoints/more"),
        *("paths.group=g", f"logger.csv.path={tmp_path / 'run'}/curves.csv"),
    ]
    monkeypatch.setenv("FACELAB_RESUMED", "[]")
    check_reach(compose_config(words), tmp_path / "run")


def test_an_override_that_reads_the_environment_is_for_the_user_to_say(tmp_path: Path) -> None:
    """A run folder that was received, and has a password of this machine written into config.yaml."""
    word = "paths.name=${oc.env:SECRET}"
    with pytest.raises(RunError, match="reads the environment"):
        check_words(["seed=1", word], [], tmp_path / "overrides.yaml")
    check_words(["seed=1", word], [word], tmp_path / "overrides.yaml")


@pytest.mark.parametrize("name", [".lock", "metrics.csv", "checkpoints/last.ckpt", "samples"])
def test_a_link_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path, crashed: Path) -> None:
    """A run folder that was received, with a link through which a resumption writes into a file of the user's."""
    run = crashed
    (tmp_path / "thesis").write_text("mine")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "thesis")
    with pytest.raises(SystemExit, match=f"{name} is a link to a place outside"):
        train("resume=run", folder=tmp_path)
    assert (tmp_path / "thesis").read_text() == "mine"


@pytest.mark.parametrize(
    "name", but_for(["{}/../thesis", "local://{}/../../thesis", "s3://bucket/thesis"], "{}/../../thesis")
)
def test_a_best_checkpoint_elsewhere_is_not_removed(name: str, tmp_path: Path, interrupt: Interrupt) -> None:
    """A checkpoint that was received, for which Lightning removes a file of the user's when a better one comes."""
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


# Two at once


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [False, True])
def test_two_that_start_in_one_second_take_two_folders(sweep: bool, tmp_path: Path) -> None:
    """Two runs, or sweeps, of one name that share a folder: jobs overwritten, others never trained."""
    words = [*WORDS, "trainer.max_epochs=1", *(["-m", "seed=1,2"] if sweep else [])]
    at = int(time.time()) + 12
    clock = "import time; real = time.strftime; "
    clock += f"time.strftime = lambda form, *t: real(form, *(t or (time.localtime({at}),)))"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(clock)  # both of them choose this second
    place = str(tmp_path / "site")
    both = [
        start_door("train", *words, folder=tmp_path, log=tmp_path / f"log{number}", PYTHONPATH=place) for number in "01"
    ]
    assert [process.wait(240) for process in both] == [0, 0], (tmp_path / "log0").read_text()
    folders = sorted((tmp_path / "logs" / "train" / ("multiruns" if sweep else "runs")).iterdir())
    assert len(folders) == 2
    for folder in folders:
        for run in (folder / "0", folder / "1") if sweep else (folder,):
            assert read_status(run).state == "finished"
            assert (run / "metrics.json").is_file()


@pytest.mark.parametrize("door", ["predict", "evaluate", "benchmark"])
def test_a_door_leaves_the_folder_of_another_alone(door: str, tmp_path: Path, trained: Path) -> None:
    """A training whose configuration and state are overwritten by a prediction."""
    shutil.copytree(trained, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    words = {
        "predict": ["images=.", "landmarker=run"],
        "evaluate": ["ckpt=run"],
        "benchmark": ["model=pipnet", "data=synthetic68"],
    }[door]
    with pytest.raises(SystemExit, match=r"is the folder of train\.py"):
        open_door(door, *words, "hydra.run.dir=run", folder=tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_sweep_is_no_folder_of_a_run(tmp_path: Path, trained: Path) -> None:
    """A run among the files of a sweep, or a sweep in the folder of a run."""
    (tmp_path / "sweep").mkdir()
    write_jobs(tmp_path / "sweep", {0: ["seed=1"]})
    with pytest.raises(SystemExit, match="is the folder of a sweep"):
        train(*WORDS, "hydra.run.dir=sweep", folder=tmp_path)
    with pytest.raises(RunError, match="another sweep has just started"):
        write_jobs(tmp_path / "sweep", {0: ["seed=2"]})
    with pytest.raises(RunError, match="is the folder of a run"):
        write_jobs(trained, {0: ["seed=1"]})


def test_a_run_that_saves_nothing_is_begun_again(tmp_path: Path) -> None:
    """A check of the configuration that may be done once in a folder, and never again."""
    for _ in range(2):
        train(*small("pipnet"), "trainer=check", "logger=csv", "hydra.run.dir=run", folder=tmp_path)


def test_a_refused_start_leaves_the_configuration(tmp_path: Path) -> None:
    """A run without a checkpoint whose configuration is that of a start which was refused."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr(PIPNet, "training_step", lambda *_: crash())
        train(*WORDS, "hydra.run.dir=run", folder=tmp_path)
    before = contents(tmp_path / "run")
    with pytest.raises(SystemExit):
        train("resume=run", "seed=9", "trainer.check_val_every_n_epoch=5", folder=tmp_path)
    assert contents(tmp_path / "run") == before


def test_a_run_without_its_checkpoint_is_known_by_its_metrics(tmp_path: Path, crashed: Path) -> None:
    """A run of an earlier version, or one that was copied without its state, begun anew over its metrics."""
    run = crashed
    for name in ("status.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        (run / name).unlink()
    before = contents(run)
    with pytest.raises(SystemExit, match=r"last\.ckpt is missing"):
        train("resume=run", folder=tmp_path)
    assert contents(run) == before


def test_a_run_that_never_saves_is_begun_again_until_it_is_finished(tmp_path: Path) -> None:
    """A requeued job without checkpoints that is refused, or whose results are removed to train again."""
    words = [*small("pipnet"), "logger=csv", "callbacks=none", "trainer.max_epochs=3", "hydra.run.dir=run"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr("callbacks.results.results", lambda *_: crash())
        train(*words, folder=tmp_path)
    train("resume=run", folder=tmp_path)
    before = contents(tmp_path / "run")
    with pytest.raises(SystemExit, match="was never written, but the run was trained"):
        train("resume=run", folder=tmp_path)
    assert contents(tmp_path / "run") == before


def test_a_group_that_is_typed_excuses_nothing_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumption with `callbacks=ema` that takes a place outside from the folder."""
    words = [*small("pipnet"), "callbacks=ema", "callbacks.checkpoint.dirpath=/srv", f"paths.run={tmp_path / 'run'}"]
    monkeypatch.setenv("FACELAB_RESUMED", json.dumps(["callbacks=ema"]))
    with pytest.raises(RunError, match=r"callbacks\.checkpoint\.dirpath=/srv"):
        check_reach(compose_config([*words, "paths.group=g"]), tmp_path / "run")
