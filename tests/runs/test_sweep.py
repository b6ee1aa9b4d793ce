"""Tests of sweeps: their jobs, the states of these, and the copy of the code that they run."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from composing import small
from conftest import PLAIN, ROOT, open_door, start_door
from omegaconf import OmegaConf

from facelab.files import write_json
from facelab.run_folder import now, read_status
from facelab.runs import snapshot
from facelab.runs.snapshot import CODE, copy_code, run_from_copy
from facelab.runs.sweep import read_job_states
from lightning_modules.pipnet import PIPNet

OVERRIDES = [*small("pipnet"), *PLAIN, "+trainer.enable_progress_bar=false", "trainer.max_epochs=1"]
SWEEP = Path("logs/train/multiruns/now")


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def states(folder: Path) -> dict[int, str]:
    """Return the states of the jobs by number."""
    return {job.number: job.status.state for job in read_job_states(folder)}


def starts(job: Path) -> int:
    """Return how often a job was started."""
    return 1 + len(load(job / "environment.json").get("resumed", []))


def train(*arguments: object, folder: Path) -> None:
    open_door("train", *arguments, folder=folder)


def test_sweep_adds_keys_of_the_trainer(tmp_path: Path) -> None:
    """Would catch keys that no YAML file has and that a sweep refuses, typed or in the params of a grid experiment."""
    grid = "hydra.sweeper.params={trainer.gradient_clip_val:'0.5,1.0'}"
    with pytest.raises(SystemExit):  # each job is refused before anything is built
        train(*OVERRIDES, "-m", grid, "trainer.accumulate_grad_batches=2", "optimizer.lr=-1", folder=tmp_path)
    cells = load(tmp_path / SWEEP / "sweep.json")["cells"]
    clipped = [[word for word in words if "gradient_clip" in word] for words in cells.values()]
    assert clipped == [["++trainer.gradient_clip_val=0.5"], ["++trainer.gradient_clip_val=1.0"]]
    reasons = [job.status.reason for job in read_job_states(tmp_path / SWEEP)]
    assert len(reasons) == 2 and all("optimizer.lr" in reason and "trainer" not in reason for reason in reasons)


@pytest.mark.slow
def test_sweep_trains_every_cell_of_a_grid(tmp_path: Path) -> None:
    """Would catch mixed-up numbers, folders, overrides or W&B groups, or another product of the axes."""
    train(*OVERRIDES, "-m", "seed=1,2", "test_ckpt=last,best", folder=tmp_path)
    sweep = load(tmp_path / SWEEP / "sweep.json")
    assert sweep["stamp"] == "now"
    swept = [[word for word in words if word.startswith(("seed", "test_ckpt"))] for words in sweep["cells"].values()]
    assert list(sweep["cells"]) == ["0", "1", "2", "3"]
    assert swept == [[f"seed={seed}", f"test_ckpt={which}"] for seed in (1, 2) for which in ("last", "best")]
    for number in range(4):
        cfg = OmegaConf.load(tmp_path / SWEEP / str(number) / "config.yaml")
        assert [f"seed={cfg.seed}", f"test_ckpt={cfg.test_ckpt}"] == swept[number]
        assert cfg.paths.group == "now"
        assert load(tmp_path / SWEEP / str(number) / "status.json")["stamp"] == "now"
    assert len({OmegaConf.load(tmp_path / SWEEP / str(i) / "config.yaml").paths.id for i in range(4)}) == 4
    files = [(tmp_path / SWEEP / number / "faces.csv").read_bytes() for number in "0123"]
    assert files[0] != files[2], "the seed is the same in all cells"
    assert set(states(tmp_path / SWEEP).values()) == {"finished"}
    assert {path.name for path in tmp_path.iterdir()} == {"logs"}


def test_sweep_lists_its_jobs_before_the_first_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a killed sweep without a list of its remaining jobs."""
    seen: list[dict[int, str]] = []
    monkeypatch.setattr(PIPNet, "on_fit_start", lambda _: seen.append(states(tmp_path / SWEEP)), raising=False)
    train(*OVERRIDES, "-m", "seed=1,2", folder=tmp_path)
    assert seen == [{0: "running", 1: "missing"}, {0: "finished", 1: "running"}]


@pytest.mark.slow
def test_sweep_continues_after_a_failed_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a mistake that ends the sweep, is not listed, or makes a resume repeat finished jobs."""
    with pytest.raises(SystemExit) as stop:
        train(*OVERRIDES, "-m", "crop.size=64,50,96", folder=tmp_path)
    output = capsys.readouterr()
    assert str(stop.value.code).startswith("1 of 3 jobs are not finished: 1. python train.py -m resume=")
    assert "Traceback" not in output.out + output.err
    assert states(tmp_path / SWEEP) == {0: "finished", 1: "failed", 2: "finished"}
    (line,) = [line for line in output.out.splitlines() if "crop.size=50" in line and "failed" in line]
    assert "finished" not in line
    assert read_job_states(tmp_path / SWEEP)[1].status.reason.startswith("crop.size=50")

    before = {number: (tmp_path / SWEEP / number / "status.json").read_bytes() for number in "02"}
    with pytest.raises(SystemExit):
        train("-m", f"resume={SWEEP}", folder=tmp_path)
    assert [starts(tmp_path / SWEEP / number) for number in "012"] == [1, 2, 1]
    train("-m", f"resume={SWEEP}", "crop.size=64", folder=tmp_path)
    assert states(tmp_path / SWEEP) == dict.fromkeys(range(3), "finished")
    assert [starts(tmp_path / SWEEP / number) for number in "012"] == [1, 3, 1]
    assert {number: (tmp_path / SWEEP / number / "status.json").read_bytes() for number in "02"} == before
    assert OmegaConf.load(tmp_path / SWEEP / "1" / "config.yaml").crop.size == 64
    assert read_job_states(tmp_path / SWEEP)[1].overrides[-1] == "crop.size=64", "the next resume would use 50 again"
    assert read_job_states(tmp_path / SWEEP)[0].overrides.count("crop.size=64") == 1
    train("-m", f"resume={SWEEP}", folder=tmp_path)
    assert [starts(tmp_path / SWEEP / number) for number in "012"] == [1, 3, 1]


def test_resumed_sweep_stores_no_refused_override(tmp_path: Path) -> None:
    """Would catch a typing mistake that each resume repeats, or a list of jobs of a refused sweep."""
    with pytest.raises(SystemExit):
        train(*OVERRIDES, "-m", "crop.size=50", folder=tmp_path)
    with pytest.raises(SystemExit):
        train("-m", f"resume={SWEEP}", "crop.size=64", "+typo=1", folder=tmp_path)
    train("-m", f"resume={SWEEP}", "crop.size=64", folder=tmp_path)
    assert states(tmp_path / SWEEP) == {0: "finished"}
    with pytest.raises(SystemExit):
        train(*OVERRIDES, "-m", "seed=1,2", "backbone=nonsense", "hydra.sweep.dir=other", folder=tmp_path)
    assert not (tmp_path / "other" / "sweep.json").exists()


@pytest.mark.parametrize("params", ["{data: [lapa106,wflw98]}", "{data: '[lapa106,wflw98],ytf68', seed: '1,2'}"])
def test_sweep_refuses_a_list_for_a_group(params: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a grid whose list of datasets becomes one job with the last of them."""
    with pytest.raises(SystemExit, match=r"data takes one option; .*: data=lapa106,wflw98"):
        train(*OVERRIDES, "-m", f"hydra.sweeper.params={params}", folder=tmp_path)
    assert capsys.readouterr().err == ""
    assert not (tmp_path / SWEEP / "sweep.json").exists()


def test_sweep_records_why_a_job_was_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a job without results and without a reason."""
    with pytest.raises(SystemExit):
        train(*OVERRIDES, "-m", "optimizer.lr=fast,slow", folder=tmp_path)
    reasons = [job.status.reason for job in read_job_states(tmp_path / SWEEP)]
    for reason, value in zip(reasons, ("fast", "slow"), strict=True):
        assert reason.startswith("The configuration has faults:")
        assert f"optimizer.lr: '{value}'" in reason
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("ending", [KeyboardInterrupt, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_sweep_stops_with_its_job(ending: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch Ctrl-C that must be typed once for each job, or jobs that are lost afterwards."""

    def end(module: PIPNet) -> None:
        if ending is KeyboardInterrupt:
            raise KeyboardInterrupt
        os.kill(os.getpid(), ending)

    with monkeypatch.context() as patch:
        patch.setattr(PIPNet, "on_train_epoch_start", end, raising=False)
        with pytest.raises(SystemExit):
            train(*OVERRIDES, "-m", "seed=1,2", folder=tmp_path)
    assert states(tmp_path / SWEEP) == {0: "stopped", 1: "missing"}
    train("-m", f"resume={SWEEP}", folder=tmp_path)
    assert states(tmp_path / SWEEP) == {0: "finished", 1: "finished"}


def prepared(folder: Path, *states: str) -> Path:
    """Write a sweep of three seeds whose first jobs have these states."""
    jobs = {str(number): [*OVERRIDES, f"seed={number}"] for number in range(3)}
    write_json(folder / SWEEP / "sweep.json", {"stamp": "then", "cells": jobs})
    for number, state in enumerate(states):
        content = {"state": state, "host": socket.gethostname(), "pid": os.getpid(), "heartbeat": now()}
        write_json(folder / SWEEP / str(number) / "status.json", content)
    return folder / SWEEP


def test_resumed_sweep_skips_running_and_queued_jobs(tmp_path: Path) -> None:
    """Would catch a job that is started twice because two users resume one sweep."""
    folder = prepared(tmp_path, "running", "queued")
    with pytest.raises(SystemExit) as stop:
        train("-m", f"resume={SWEEP}", folder=tmp_path)
    assert str(stop.value.code).startswith("2 of 3 jobs are not finished: 0, 1.")
    assert states(folder) == {0: "running", 1: "queued", 2: "finished"}
    assert [path.name for path in (folder / "0").iterdir()] == ["status.json"]
    assert load(folder / "2" / "status.json")["stamp"] == "then", "W&B shows the job in another sweep"


@pytest.mark.parametrize(
    ("words", "message"),
    [(["seed=1,2"], "seed=1,2 would add others"), (["seed=range(3)"], "would add others")],
)
def test_sweep_refuses_other_jobs_in_its_folder(words: list[str], message: str, tmp_path: Path) -> None:
    """Would catch new jobs under the numbers of others."""
    folder = prepared(tmp_path)
    before = (folder / "sweep.json").read_bytes()
    with pytest.raises(SystemExit, match=message):
        train("-m", f"resume={SWEEP}", *words, folder=tmp_path)
    with pytest.raises(SystemExit, match=message):
        train("-m", f"hydra.sweep.dir={SWEEP}", *OVERRIDES, *words, folder=tmp_path)
    assert (folder / "sweep.json").read_bytes() == before
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"cells": []}',
        '{"cells": {"a": ["seed=1"]}}',
        '{"cells": {"0": "seed=1"}}',
        '{"cells": {"0": ["seed=1", "hydra.callbacks.x._target_=os.system"]}}',
        '{"cells": {"0": ["--config-dir=/x"]}}',
        '{"cells": {"../../elsewhere": ["seed=1"]}}',
        "{}",
    ],
)
def test_resumed_sweep_refuses_a_malformed_sweep_file(content: str, tmp_path: Path) -> None:
    """Would catch a traceback, a sweep of no jobs that succeeds, or a program that a received file starts."""
    (tmp_path / SWEEP).mkdir(parents=True)
    (tmp_path / SWEEP / "sweep.json").write_text(content)
    with pytest.raises(SystemExit, match=r"sweep\.json"):
        train("-m", f"resume={SWEEP}", folder=tmp_path)
    assert [path.name for path in (tmp_path / SWEEP).iterdir() if path.is_dir()] == []


@pytest.mark.slow
def test_sweep_numbers_jobs_across_batches(tmp_path: Path) -> None:
    """Would catch cells of a second batch in the folders of the first."""
    train(*OVERRIDES, "-m", "seed=1,2,3", "hydra.sweeper.max_batch_size=2", folder=tmp_path)
    seeds = [OmegaConf.load(tmp_path / SWEEP / str(number) / "config.yaml").seed for number in range(3)]
    assert seeds == [1, 2, 3]
    assert states(tmp_path / SWEEP) == dict.fromkeys(range(3), "finished")


def test_sweep_accepts_relative_paths(tmp_path: Path) -> None:
    """Would catch a sweep over a dataset beside the working folder that refuses its own jobs."""
    (tmp_path / "here").mkdir()
    with pytest.raises(SystemExit) as stop:
        train("-m", "data=lapa106", "data.root=../gone,../away", "logger=none", folder=tmp_path / "here")
    assert str(stop.value.code).startswith("2 of 2 jobs are not finished")


def test_resume_continues_one_job_of_a_sweep(tmp_path: Path) -> None:
    """Would catch a job that only its sweep can resume, or that becomes another run in W&B."""
    with pytest.raises(SystemExit):
        train(*OVERRIDES, "-m", "crop.size=50,64", folder=tmp_path)
    id_before = OmegaConf.load(tmp_path / SWEEP / "1" / "config.yaml").paths.id
    train(f"resume={SWEEP}/0", "crop.size=96", folder=tmp_path)
    train(f"resume={SWEEP}/1", folder=tmp_path)
    assert states(tmp_path / SWEEP) == {0: "finished", 1: "finished"}
    cfg = OmegaConf.load(tmp_path / SWEEP / "1" / "config.yaml")
    assert (cfg.paths.id, cfg.paths.group) == (id_before, "now")


# The code of a sweep


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the project to a folder that a test may change."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for part in snapshot.PARTS:
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    for door in ROOT.glob("*.py"):
        shutil.copy(door, tree)
    monkeypatch.setattr(snapshot, "ROOT", tree)
    return tree


def test_copy_code_makes_one_copy_of_each_version(scratch: Path, tmp_path: Path) -> None:
    """Would catch a copy that is incomplete, is repeated for each sweep, or does not follow a change of the code."""
    copies = tmp_path / "code"
    first = copy_code(copies)
    names = {path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file()}
    assert {path.relative_to(first) for path in first.rglob("*") if path.is_file()} == names | {Path("commit.json")}
    assert load(first / "commit.json") == {"git_commit": None, "git_changed_files": []}
    assert copy_code(copies) == first
    assert [path.name for path in copies.iterdir()] == [first.name]
    (scratch / "facelab" / "__pycache__").mkdir()
    (scratch / "facelab" / "__pycache__" / "x.pyc").touch()
    assert copy_code(copies) == first
    edited = scratch / "conf" / "train.yaml"
    edited.write_text(edited.read_text() + "\n# another\n")
    second = copy_code(copies)
    assert second != first
    (scratch / "facelab" / "new.py").touch()
    assert copy_code(copies) not in (first, second)
    assert [path.name for path in copies.iterdir() if path.name.startswith(".")] == []


def test_run_from_copy_starts_only_doors_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a test or a notebook that is replaced by another program."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started again"))
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), "-m", "seed=1,2"])
    run_from_copy()
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, str(ROOT / "train.py"), "-m", "seed=1,2"])
    monkeypatch.setenv(CODE, "copy")
    run_from_copy()
    monkeypatch.delenv(CODE)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "other.py"), "-m"])
    run_from_copy()
    assert list(tmp_path.iterdir()) == []


def test_run_from_copy_keeps_the_flags_and_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch lost flags of Python or arguments, or modules of the edited project."""
    monkeypatch.chdir(tmp_path)
    calls: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda *args: calls.append(args))
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), "-m", "seed=1,2"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-W", "ignore", str(ROOT / "train.py"), "-m", "seed=2,1"])
    monkeypatch.setenv(CODE, "to be restored")
    monkeypatch.delenv(CODE)
    monkeypatch.setenv("PYTHONPATH", "/before")
    run_from_copy()
    (copy,) = (tmp_path / "logs" / "code").iterdir()
    flags = ["-W", "ignore", str(copy / "train.py"), "-m", "seed=1,2"]
    assert calls == [(sys.executable, [sys.executable, *flags])]
    assert os.environ["PYTHONPATH"] == f"{copy}:/before"
    assert os.environ[CODE] == str(copy)


@pytest.mark.slow
def test_sweep_runs_the_code_of_its_start(scratch: Path, tmp_path: Path) -> None:
    """Would catch a later job that runs edited code, or records another commit than it ran."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(scratch)]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    log = tmp_path / "sweep.log"
    arguments = [*OVERRIDES, "-m", "seed=1,2,3", "scheduler=none", "trainer.max_epochs=30"]
    process = start_door("train", *arguments, folder=tmp_path, log=log, root=scratch)
    try:
        for _ in range(900):
            checkpoints = list(tmp_path.glob("logs/train/multiruns/*/0/checkpoints/last.ckpt"))
            if checkpoints or process.poll() is not None:
                break
            time.sleep(0.1)
        assert checkpoints, log.read_text()
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        sweep = checkpoints[0].parents[2]
        assert sorted(states(sweep).values()) == ["missing", "missing", "stopped"], log.read_text()
        again = start_door(
            "train", "-m", f"resume={sweep}", "trainer.max_epochs=1", folder=tmp_path, log=log, root=scratch
        )
        for _ in range(900):
            if (sweep / "0" / "environment.json").exists() and starts(sweep / "0") == 2:
                break
            time.sleep(0.05)
        (scratch / "facelab" / "networks" / "pipnet.py").write_text("raise RuntimeError('edited')\n")
        (scratch / "conf" / "model" / "pipnet.yaml").write_text("edited: true\n")
        assert again.wait(120) == 0, log.read_text()
    finally:
        for each in (process, *([again] if "again" in locals() else [])):
            if each.poll() is None:
                os.killpg(each.pid, signal.SIGKILL)
    assert states(sweep) == dict.fromkeys(range(3), "finished")
    (copy,) = (tmp_path / "logs" / "code").iterdir()
    for number in "012":
        environment = load(sweep / number / "environment.json")
        assert (environment["git_commit"], environment["git_changed_files"]) == (commit, [])
        assert environment["code"] == str(copy)


@pytest.mark.slow
def test_resumed_sweep_completes_a_killed_sweep(tmp_path: Path) -> None:
    """Would catch jobs of a killed sweep that run twice or never."""
    log = tmp_path / "sweep.log"
    process = start_door("train", *OVERRIDES, "-m", "seed=1,2,3", folder=tmp_path, log=log)
    for _ in range(900):
        started = list(tmp_path.glob("logs/train/multiruns/*/1/environment.json"))
        if started or process.poll() is not None:
            break
        time.sleep(0.05)
    assert started, log.read_text()
    sweep = started[0].parents[1]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert states(sweep)[0] == "finished"
    assert read_status(sweep / "1").state in ("lost", "unknown", "running")
    assert states(sweep)[2] == "missing"
    assert start_door("train", "-m", f"resume={sweep}", folder=tmp_path, log=log).wait(120) == 0, log.read_text()
    assert states(sweep) == dict.fromkeys(range(3), "finished")
    assert starts(sweep / "0") == 1


@pytest.mark.slow
def test_sweep_runs_from_an_installed_wheel(tmp_path: Path) -> None:
    """Would catch a package or data file missing from the wheel, or a folder missing from the copy of the code."""
    source, root = tmp_path / "source", tmp_path / "root"
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "data", "logs", "tests")
    shutil.copytree(ROOT, source, ignore=ignore)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path / "wheel", source], check=True)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", root, wheel], check=True)
    for door in ROOT.glob("*.py"):
        shutil.copy(door, root)
    shutil.copytree(ROOT / "conf", root / "conf")
    shutil.rmtree(source)
    log, folder = tmp_path / "log", tmp_path / "work"
    folder.mkdir()
    assert start_door("train", *OVERRIDES, "-m", "seed=1,2", folder=folder, log=log, root=root).wait(300) == 0, (
        log.read_text()
    )
    (sweep,) = (folder / "logs/train/multiruns").iterdir()
    assert states(sweep) == {0: "finished", 1: "finished"}
    code = load(sweep / "1" / "environment.json")["code"]
    assert Path(code).parent == folder / "logs/code"
    line = ("compare", sweep, "--html", "page.html")
    assert start_door(*line, folder=folder, log=log, root=root).wait(120) == 0, log.read_text()
    assert "(2 seeds)" in log.read_text() and (folder / "page.html").stat().st_size > 10_000


@pytest.mark.slow
def test_resumed_sweep_accepts_options_of_its_dataset(tmp_path: Path) -> None:
    """Would catch a resume that checks the override against the default dataset, which has no root."""
    backbone = ("backbone=timm", "backbone.name=test_resnet", "backbone.pretrained=false")
    overrides = ("model=pipnet", "data=lapa106", "data.root=gone", *backbone, "trainer=check", "-m", "seed=1,2")
    with pytest.raises(SystemExit):
        open_door("train", *overrides, "hydra.sweep.dir=sweep", folder=tmp_path)
    with pytest.raises(SystemExit):
        open_door("train", "-m", "resume=sweep", "data.root=elsewhere", folder=tmp_path)
    for number in "01":
        assert "elsewhere" in read_status(tmp_path / "sweep" / number).reason
        overrides = yaml.safe_load((tmp_path / "sweep" / number / "overrides.yaml").read_text())
        assert overrides.count("model=pipnet") == 1
