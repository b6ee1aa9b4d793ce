"""Tests that a run on several processes gives the results of one process, whichever way they start."""

import json
from pathlib import Path

import pytest
from composing import small
from conftest import ROOT, open_door, start_door

pytestmark = pytest.mark.slow

ODD = ("data.train=16", "data.val=6", "data.test=7")
TRAINING = (*ODD, "trainer=ddp_cpu", "trainer.max_epochs=2", "datamodule.batch_size=2", "logger=csv")
LOGGING_TRAIN = f"""
import json, os, sys
sys.path.insert(0, {str(ROOT)!r})
from facelab.losses.pfld import HardExampleWeight
def logging_move(self, distance, move=HardExampleWeight._update_mean):
    move(self, distance)
    with open("rank_" + os.environ.get("LOCAL_RANK", "0"), "a") as file:
        print(json.dumps([distance.tolist(), self.mean.item()]), file=file)
HardExampleWeight._update_mean = logging_move
exec(compile(open({str(ROOT / "train.py")!r}).read(), {str(ROOT / "train.py")!r}, "exec"))
"""
"""Script of train.py; each rank logs the errors of its faces in each step and the running mean after it."""
STARTED = {"script": (), "spawned": ("trainer.strategy=ddp_spawn",)}


def run_door(name: str, *arguments: object, folder: Path) -> None:
    """Run a door until it ends, and require exit code 0."""
    log = folder / "screen.log"
    assert start_door(name, *arguments, folder=folder, log=log).wait(300) == 0, log.read_text(errors="replace")


def states(sweep: Path) -> dict[str, str]:
    """Return the state of each job of a sweep."""
    return {path.parent.name: json.loads(path.read_text())["state"] for path in sweep.glob("*/status.json")}


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run the same sweep of two jobs on two processes for each way to start them; return the working folders."""
    folders = {}
    for name, strategy in STARTED.items():
        folders[name] = tmp_path_factory.mktemp(name)
        arguments = [*small("pipnet"), *TRAINING, *strategy, "hydra.sweep.dir=sweep", "-m", "seed=1,2"]
        run_door("train", *arguments, folder=folders[name])
    return folders


def test_evaluate_on_two_processes_gives_the_same_table(trained: Path, tmp_path: Path) -> None:
    """Would catch a face of an odd number that is measured twice or never, or another order of the rows."""
    arguments = ["ckpt=" + str(trained), "data=synthetic68", *ODD, "data.size=96"]
    open_door("evaluate", *arguments, "hydra.run.dir=one", folder=tmp_path)
    for name, strategy in STARTED.items():
        run_door("evaluate", *arguments, "trainer=ddp_cpu", *strategy, f"hydra.run.dir={name}", folder=tmp_path)
        assert (tmp_path / name / "faces.csv").read_bytes() == (tmp_path / "one" / "faces.csv").read_bytes()
        one, two = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("one", name))
        assert one | {"name": ""} == two | {"name": ""}
    assert len((tmp_path / "one" / "faces.csv").read_text().splitlines()) == 1 + 7
    assert {path.name for path in tmp_path.iterdir()} == {"one", *STARTED, "screen.log"}


def test_train_gives_the_same_results_with_spawned_processes(sweeps: dict[str, Path]) -> None:
    """Would catch results that only an ended process has, or a second process with other faces or another seed."""
    for job in ("0", "1"):
        one, two = (sweeps[start] / "sweep" / job / "faces.csv" for start in STARTED)
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("start", STARTED)
def test_sweep_runs_jobs_on_two_processes(start: str, sweeps: dict[str, Path]) -> None:
    """Would catch a second process that repeats the sweep, writes elsewhere, or is missing in the next job."""
    folder = sweeps[start]
    assert states(folder / "sweep") == {"0": "finished", "1": "finished"}
    assert {path.name for path in folder.iterdir()} == {"sweep", "logs", "screen.log"}
    assert {path.name for path in (folder / "logs").iterdir()} == {"code"}
    first, second = (folder / "sweep" / job / "faces.csv" for job in ("0", "1"))
    assert first.read_bytes() != second.read_bytes()


def test_sweep_continues_after_a_failed_job_on_two_processes(tmp_path: Path) -> None:
    """Would catch a watcher of a failed job's processes that ends the next job."""
    arguments = [*small("pipnet"), *TRAINING, "hydra.sweep.dir=sweep", "-m", "data.test=0,7"]
    log = tmp_path / "screen.log"
    assert start_door("train", *arguments, folder=tmp_path, log=log).wait(300) == 1, log.read_text(errors="replace")
    assert states(tmp_path / "sweep") == {"0": "failed", "1": "finished"}


def test_hard_example_weight_uses_the_faces_of_all_ranks(tmp_path: Path) -> None:
    """Would catch a rank that weights its faces by a mean over these alone."""
    (tmp_path / "told.py").write_text(LOGGING_TRAIN)
    arguments = [*small("pfld"), *TRAINING, "loss/class_weight=hard_faces", "hydra.run.dir=run"]
    log = tmp_path / "screen.log"
    process = start_door("told", *arguments, folder=tmp_path, log=log, root=tmp_path)
    assert process.wait(300) == 0, log.read_text(errors="replace")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "told.py", "rank_0", "rank_1", "screen.log"}
    ranks = [[json.loads(line) for line in (tmp_path / f"rank_{rank}").read_text().splitlines()] for rank in (0, 1)]
    assert [len(rank) for rank in ranks] == [8, 8]
    mean = 0.0
    for (first, one), (second, other) in zip(*ranks, strict=True):
        joined = sum(first + second) / len(first + second)
        mean = 0.99 * mean + 0.01 * joined if mean else joined
        assert first != second
        assert one == other == pytest.approx(mean, rel=1e-5)
