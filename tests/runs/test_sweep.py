"""Sweeps: which jobs there are, what became of them, and the code that they run."""

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
from facelab.runs.sweep import ledger
from lightning_modules.pipnet import PIPNet

WORDS = [*small("pipnet"), *PLAIN, "+trainer.enable_progress_bar=false", "trainer.max_epochs=1"]
SWEEP = Path("logs/train/multiruns/now")


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def states(folder: Path) -> dict[int, str]:
    """The states of the jobs, by number."""
    return {job.number: job.status.state for job in ledger(folder)}


def starts(job: Path) -> int:
    """How often a job was started."""
    return 1 + len(load(job / "environment.json").get("resumed", []))


def train(*words: object, folder: Path) -> None:
    open_door("train", *words, folder=folder)


@pytest.mark.slow
def test_a_grid_of_seeds(tmp_path: Path) -> None:
    """Cells that are mixed up: numbers, folders, overrides or the W&B group; another product of the axes."""
    train(*WORDS, "-m", "seed=1,2", "test_ckpt=last,best", folder=tmp_path)
    sweep = load(tmp_path / SWEEP / "sweep.json")
    assert sweep["stamp"] == "now"
    own = [[word for word in words if word.startswith(("seed", "test_ckpt"))] for words in sweep["cells"].values()]
    assert list(sweep["cells"]) == ["0", "1", "2", "3"]
    assert own == [[f"seed={seed}", f"test_ckpt={which}"] for seed in (1, 2) for which in ("last", "best")]
    for number in range(4):
        cfg = OmegaConf.load(tmp_path / SWEEP / str(number) / "config.yaml")
        assert [f"seed={cfg.seed}", f"test_ckpt={cfg.test_ckpt}"] == own[number]
        assert cfg.paths.group == "now"
        assert load(tmp_path / SWEEP / str(number) / "status.json")["stamp"] == "now"
    assert len({OmegaConf.load(tmp_path / SWEEP / str(i) / "config.yaml").paths.id for i in range(4)}) == 4
    files = [(tmp_path / SWEEP / number / "faces.csv").read_bytes() for number in "0123"]
    assert files[0] != files[2], "the seed is the same in all cells"
    assert set(states(tmp_path / SWEEP).values()) == {"finished"}
    assert {path.name for path in tmp_path.iterdir()} == {"logs"}


def test_the_jobs_are_known_before_the_first_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed sweep of which nobody knows what was to come."""
    seen: list[dict[int, str]] = []
    monkeypatch.setattr(PIPNet, "on_fit_start", lambda _: seen.append(states(tmp_path / SWEEP)), raising=False)
    train(*WORDS, "-m", "seed=1,2", folder=tmp_path)
    assert seen == [{0: "running", 1: "missing"}, {0: "finished", 1: "running"}]


@pytest.mark.slow
def test_a_sweep_in_which_some_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One mistake that ends the night's work, or is found only by looking into each folder; a whole sweep again."""
    with pytest.raises(SystemExit) as stop:
        train(*WORDS, "-m", "crop.size=64,50,96", folder=tmp_path)
    said = capsys.readouterr()
    assert str(stop.value.code).startswith("1 of 3 jobs are not finished: 1. python train.py -m resume=")
    assert "Traceback" not in said.out + said.err
    assert states(tmp_path / SWEEP) == {0: "finished", 1: "failed", 2: "finished"}
    (line,) = [line for line in said.out.splitlines() if "crop.size=50" in line and "failed" in line]
    assert "finished" not in line
    assert ledger(tmp_path / SWEEP)[1].status.reason.startswith("crop.size=50")

    before = {number: (tmp_path / SWEEP / number / "status.json").read_bytes() for number in "02"}
    with pytest.raises(SystemExit):
        train("-m", f"resume={SWEEP}", folder=tmp_path)
    assert [starts(tmp_path / SWEEP / number) for number in "012"] == [1, 2, 1]
    train("-m", f"resume={SWEEP}", "crop.size=64", folder=tmp_path)
    assert states(tmp_path / SWEEP) == dict.fromkeys(range(3), "finished")
    assert [starts(tmp_path / SWEEP / number) for number in "012"] == [1, 3, 1]
    assert {number: (tmp_path / SWEEP / number / "status.json").read_bytes() for number in "02"} == before
    assert OmegaConf.load(tmp_path / SWEEP / "1" / "config.yaml").crop.size == 64
    assert ledger(tmp_path / SWEEP)[1].overrides[-1] == "crop.size=64", "the next time it is 50 again"
    assert ledger(tmp_path / SWEEP)[0].overrides.count("crop.size=64") == 1
    train("-m", f"resume={SWEEP}", folder=tmp_path)
    assert [starts(tmp_path / SWEEP / number) for number in "012"] == [1, 3, 1]


def test_a_mistake_in_a_resumption_is_not_kept(tmp_path: Path) -> None:
    """A typing mistake that a sweep repeats for ever; jobs of a sweep that was never possible."""
    with pytest.raises(SystemExit):
        train(*WORDS, "-m", "crop.size=50", folder=tmp_path)
    with pytest.raises(SystemExit):
        train("-m", f"resume={SWEEP}", "crop.size=64", "+typo=1", folder=tmp_path)
    train("-m", f"resume={SWEEP}", "crop.size=64", folder=tmp_path)
    assert states(tmp_path / SWEEP) == {0: "finished"}
    with pytest.raises(SystemExit):
        train(*WORDS, "-m", "seed=1,2", "backbone=nonsense", "hydra.sweep.dir=other", folder=tmp_path)
    assert not (tmp_path / "other" / "sweep.json").exists()


@pytest.mark.parametrize("params", ["{data: [lapa106,wflw98]}", "{data: '[lapa106,wflw98],ytf68', seed: '1,2'}"])
def test_a_list_in_a_grid_is_refused(params: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A grid of an experiment whose list of datasets is one job with the last of them."""
    with pytest.raises(SystemExit, match=r"data takes one option, .*: data=lapa106,wflw98"):
        train(*WORDS, "-m", f"hydra.sweeper.params={params}", folder=tmp_path)
    assert capsys.readouterr().err == ""
    assert not (tmp_path / SWEEP / "sweep.json").exists()


def test_reasons_of_a_refused_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A job of a sweep of which nothing says why it has no numbers."""
    with pytest.raises(SystemExit):
        train(*WORDS, "-m", "optimizer.lr=fast,slow", folder=tmp_path)
    reasons = [job.status.reason for job in ledger(tmp_path / SWEEP)]
    for reason, value in zip(reasons, ("fast", "slow"), strict=True):
        assert reason.startswith("The configuration has faults:")
        assert f"optimizer.lr: '{value}'" in reason
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("ending", [KeyboardInterrupt, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_who_ends_a_job_ends_the_sweep(ending: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C that must be typed once for each job; jobs that are forgotten afterwards."""

    def end(module: PIPNet) -> None:
        if ending is KeyboardInterrupt:
            raise KeyboardInterrupt
        os.kill(os.getpid(), ending)

    with monkeypatch.context() as patch:
        patch.setattr(PIPNet, "on_train_epoch_start", end, raising=False)
        with pytest.raises(SystemExit):
            train(*WORDS, "-m", "seed=1,2", folder=tmp_path)
    assert states(tmp_path / SWEEP) == {0: "stopped", 1: "missing"}
    train("-m", f"resume={SWEEP}", folder=tmp_path)
    assert states(tmp_path / SWEEP) == {0: "finished", 1: "finished"}


def prepared(folder: Path, *states: str) -> Path:
    """A sweep of three seeds in which the first jobs are in these states."""
    jobs = {str(number): [*WORDS, f"seed={number}"] for number in range(3)}
    write_json(folder / SWEEP / "sweep.json", {"stamp": "then", "cells": jobs})
    for number, state in enumerate(states):
        content = {"state": state, "host": socket.gethostname(), "pid": os.getpid(), "heartbeat": now()}
        write_json(folder / SWEEP / str(number) / "status.json", content)
    return folder / SWEEP


def test_jobs_at_work_are_left_alone(tmp_path: Path) -> None:
    """A job that is started beside itself, by two people who take up the same sweep."""
    folder = prepared(tmp_path, "running", "queued")
    with pytest.raises(SystemExit) as stop:
        train("-m", f"resume={SWEEP}", folder=tmp_path)
    assert str(stop.value.code).startswith("2 of 3 jobs are not finished: 0, 1.")
    assert states(folder) == {0: "running", 1: "queued", 2: "finished"}
    assert [path.name for path in (folder / "0").iterdir()] == ["status.json"]
    assert load(folder / "2" / "status.json")["stamp"] == "then", "the job belongs to another sweep in W&B"


@pytest.mark.parametrize(
    ("words", "message"),
    [(["seed=1,2"], "seed=1,2 would add others"), (["seed=range(3)"], "would add others")],
)
def test_a_sweep_has_its_jobs(words: list[str], message: str, tmp_path: Path) -> None:
    """New jobs under the numbers of others."""
    folder = prepared(tmp_path)
    before = (folder / "sweep.json").read_bytes()
    with pytest.raises(SystemExit, match=message):
        train("-m", f"resume={SWEEP}", *words, folder=tmp_path)
    with pytest.raises(SystemExit, match=message):
        train("-m", f"hydra.sweep.dir={SWEEP}", *WORDS, *words, folder=tmp_path)
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
def test_a_sweep_that_cannot_be_read(content: str, tmp_path: Path) -> None:
    """A traceback, a sweep of no jobs that succeeds, or a program that somebody else's file starts."""
    (tmp_path / SWEEP).mkdir(parents=True)
    (tmp_path / SWEEP / "sweep.json").write_text(content)
    with pytest.raises(SystemExit, match=r"sweep\.json"):
        train("-m", f"resume={SWEEP}", folder=tmp_path)
    assert [path.name for path in (tmp_path / SWEEP).iterdir() if path.is_dir()] == []


@pytest.mark.slow
def test_batches_of_jobs(tmp_path: Path) -> None:
    """Cells of a second batch in the folders of the first."""
    train(*WORDS, "-m", "seed=1,2,3", "hydra.sweeper.max_batch_size=2", folder=tmp_path)
    seeds = [OmegaConf.load(tmp_path / SWEEP / str(number) / "config.yaml").seed for number in range(3)]
    assert seeds == [1, 2, 3]
    assert states(tmp_path / SWEEP) == dict.fromkeys(range(3), "finished")


def test_relative_data_in_a_sweep(tmp_path: Path) -> None:
    """A sweep over a dataset beside the working folder that refuses its own jobs."""
    (tmp_path / "here").mkdir()
    with pytest.raises(SystemExit) as stop:
        train("-m", "data=lapa106", "data.root=../gone,../away", "logger=none", folder=tmp_path / "here")
    assert str(stop.value.code).startswith("2 of 2 jobs are not finished")


def test_one_cell_alone(tmp_path: Path) -> None:
    """A job of a sweep that cannot be taken up by itself, or is another run in W&B then."""
    with pytest.raises(SystemExit):
        train(*WORDS, "-m", "crop.size=50,64", folder=tmp_path)
    id_before = OmegaConf.load(tmp_path / SWEEP / "1" / "config.yaml").paths.id
    train(f"resume={SWEEP}/0", "crop.size=96", folder=tmp_path)
    train(f"resume={SWEEP}/1", folder=tmp_path)
    assert states(tmp_path / SWEEP) == {0: "finished", 1: "finished"}
    cfg = OmegaConf.load(tmp_path / SWEEP / "1" / "config.yaml")
    assert (cfg.paths.id, cfg.paths.group) == (id_before, "now")


# The code of a sweep


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project that may be changed."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for part in snapshot.PARTS:
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    for door in ROOT.glob("*.py"):
        shutil.copy(door, tree)
    monkeypatch.setattr(snapshot, "ROOT", tree)
    return tree


def test_the_copy_of_the_code(scratch: Path, tmp_path: Path) -> None:
    """A copy that lacks what a run needs, is made again for each sweep, or stays as it was when the code changes."""
    where = tmp_path / "code"
    first = copy_code(where)
    names = {path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file()}
    assert {path.relative_to(first) for path in first.rglob("*") if path.is_file()} == names | {Path("commit.json")}
    assert load(first / "commit.json") == {"git_commit": None, "git_changed_files": []}
    assert copy_code(where) == first
    assert [path.name for path in where.iterdir()] == [first.name]
    (scratch / "facelab" / "__pycache__").mkdir()
    (scratch / "facelab" / "__pycache__" / "x.pyc").touch()
    assert copy_code(where) == first
    changed = scratch / "conf" / "train.yaml"
    changed.write_text(changed.read_text() + "\n# another\n")
    second = copy_code(where)
    assert second != first
    (scratch / "facelab" / "new.py").touch()
    assert copy_code(where) not in (first, second)
    assert [path.name for path in where.iterdir() if path.name.startswith(".")] == []


def test_nothing_is_started_again_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test, or a notebook, that is replaced by another program."""
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


def test_how_it_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags of Python or words that are lost on the way, or modules of the tree that is edited meanwhile."""
    monkeypatch.chdir(tmp_path)
    started: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda *words: started.append(words))
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), "-m", "seed=1,2"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-W", "ignore", str(ROOT / "train.py"), "-m", "seed=2,1"])
    monkeypatch.setenv(CODE, "to be restored")
    monkeypatch.delenv(CODE)
    monkeypatch.setenv("PYTHONPATH", "/before")
    run_from_copy()
    (copy,) = (tmp_path / "logs" / "code").iterdir()
    flags = ["-W", "ignore", str(copy / "train.py"), "-m", "seed=1,2"]
    assert started == [(sys.executable, [sys.executable, *flags])]
    assert os.environ["PYTHONPATH"] == f"{copy}:/before"
    assert os.environ[CODE] == str(copy)


@pytest.mark.slow
def test_a_sweep_runs_the_code_of_its_submission(scratch: Path, tmp_path: Path) -> None:
    """A job that starts an hour later with what was edited meanwhile; a commit that is not the one that ran."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(scratch)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    log = tmp_path / "sweep.log"
    words = [*WORDS, "-m", "seed=1,2,3", "scheduler=none", "trainer.max_epochs=30"]
    process = start_door("train", *words, folder=tmp_path, log=log, root=scratch)
    try:
        for _ in range(900):
            found = list(tmp_path.glob("logs/train/multiruns/*/0/checkpoints/last.ckpt"))
            if found or process.poll() is not None:
                break
            time.sleep(0.1)
        assert found, log.read_text()
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        sweep = found[0].parents[2]
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
def test_a_sweep_that_was_killed(tmp_path: Path) -> None:
    """A sweep whose process died: jobs done twice, or never."""
    log = tmp_path / "sweep.log"
    process = start_door("train", *WORDS, "-m", "seed=1,2,3", folder=tmp_path, log=log)
    for _ in range(900):
        found = list(tmp_path.glob("logs/train/multiruns/*/1/environment.json"))
        if found or process.poll() is not None:
            break
        time.sleep(0.05)
    assert found, log.read_text()
    sweep = found[0].parents[1]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert states(sweep)[0] == "finished"
    assert read_status(sweep / "1").state in ("lost", "unknown", "running")
    assert states(sweep)[2] == "missing"
    assert start_door("train", "-m", f"resume={sweep}", folder=tmp_path, log=log).wait(120) == 0, log.read_text()
    assert states(sweep) == dict.fromkeys(range(3), "finished")
    assert starts(sweep / "0") == 1


@pytest.mark.slow
def test_sweep_from_an_installed_wheel(tmp_path: Path) -> None:
    """A package or a data file that the wheel lacks, or a folder that the copy of the code does."""
    source, root = tmp_path / "source", tmp_path / "root"
    leave = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "data", "logs", "tests")
    shutil.copytree(ROOT, source, ignore=leave)
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
    assert start_door("train", *WORDS, "-m", "seed=1,2", folder=folder, log=log, root=root).wait(300) == 0, (
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
def test_a_resumed_sweep_takes_options_of_its_dataset(tmp_path: Path) -> None:
    """A remedy that cannot be typed: the default dataset, which has no root, stands in the place of the sweep's."""
    backbone = ("backbone=timm", "backbone.name=test_resnet", "backbone.pretrained=false")
    words = ("model=pipnet", "data=lapa106", "data.root=gone", *backbone, "trainer=check", "-m", "seed=1,2")
    with pytest.raises(SystemExit):
        open_door("train", *words, "hydra.sweep.dir=sweep", folder=tmp_path)
    with pytest.raises(SystemExit):
        open_door("train", "-m", "resume=sweep", "data.root=elsewhere", folder=tmp_path)
    for number in "01":
        assert "elsewhere" in read_status(tmp_path / "sweep" / number).reason
        words = yaml.safe_load((tmp_path / "sweep" / number / "overrides.yaml").read_text())
        assert words.count("model=pipnet") == 1
