"""Several processes for one run: the same numbers as one gives, however they are started."""

import json
from pathlib import Path

import pytest
from composing import small
from conftest import ROOT, start_door

pytestmark = pytest.mark.slow

ODD = ("data.train=16", "data.val=6", "data.test=7")
TRAINING = (*ODD, "trainer=ddp_cpu", "trainer.max_epochs=2", "datamodule.batch_size=2", "logger=csv")
TOLD = f"""
import json, os, sys
sys.path.insert(0, {str(ROOT)!r})
from facelab.losses.pfld import HardExampleWeight
def told(self, distance, move=HardExampleWeight._move):
    move(self, distance)
    with open("rank_" + os.environ.get("LOCAL_RANK", "0"), "a") as file:
        print(json.dumps([distance.tolist(), self.mean.item()]), file=file)
HardExampleWeight._move = told
exec(compile(open({str(ROOT / "train.py")!r}).read(), {str(ROOT / "train.py")!r}, "exec"))
"""
"""train.py, each process of which writes down what its faces were off by in each step, and the mean after it."""
STARTED = {"script": (), "spawned": ("trainer.strategy=ddp_spawn",)}


def typed(name: str, *words: object, folder: Path) -> None:
    """Type a command, and wait for its good end."""
    log = folder / "screen.log"
    assert start_door(name, *words, folder=folder, log=log).wait(300) == 0, log.read_text(errors="replace")


def states(sweep: Path) -> dict[str, str]:
    """The state of each job of a sweep."""
    return {path.parent.name: json.loads(path.read_text())["state"] for path in sweep.glob("*/status.json")}


def test_two_processes_measure_what_one_does(trained: Path, tmp_path: Path) -> None:
    """A face that is measured twice, or not at all, where their number is odd; another order of the rows."""
    asked = ["ckpt=" + str(trained), "data=synthetic68", *ODD, "data.size=96"]
    typed("evaluate", *asked, "hydra.run.dir=one", folder=tmp_path)
    for name, words in STARTED.items():
        typed("evaluate", *asked, "trainer=ddp_cpu", *words, f"hydra.run.dir={name}", folder=tmp_path)
        assert (tmp_path / name / "faces.csv").read_bytes() == (tmp_path / "one" / "faces.csv").read_bytes()
        one, two = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("one", name))
        assert one | {"name": ""} == two | {"name": ""}
    assert len((tmp_path / "one" / "faces.csv").read_text().splitlines()) == 1 + 7


def test_both_ways_to_start_them_train_the_same(tmp_path: Path) -> None:
    """A result that only exists in processes that have ended; a second process with other faces or another seed."""
    for name, words in STARTED.items():
        run = [*small("pipnet"), *TRAINING, *words, f"hydra.run.dir={name}"]
        typed("train", *run, folder=tmp_path)
    one, two = (tmp_path / name / "faces.csv" for name in STARTED)
    assert one.read_bytes() == two.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {*STARTED, "screen.log"}


@pytest.mark.parametrize("start", STARTED)
def test_in_a_sweep(start: str, tmp_path: Path) -> None:
    """A second process that repeats the whole sweep, writes beside it, or is not started again for the next job."""
    words = [*small("pipnet"), *TRAINING, *STARTED[start], "hydra.sweep.dir=sweep", "-m", "seed=1,2"]
    typed("train", *words, folder=tmp_path)
    assert states(tmp_path / "sweep") == {"0": "finished", "1": "finished"}
    assert {path.name for path in tmp_path.iterdir()} == {"sweep", "logs", "screen.log"}
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"code"}
    first, second = (tmp_path / "sweep" / job / "faces.csv" for job in ("0", "1"))
    assert first.read_bytes() != second.read_bytes()


def test_a_job_of_several_processes_that_fails(tmp_path: Path) -> None:
    """Who watches the processes of a job that failed ends the next one."""
    words = [*small("pipnet"), *TRAINING, "hydra.sweep.dir=sweep", "-m", "data.test=0,7"]
    log = tmp_path / "screen.log"
    assert start_door("train", *words, folder=tmp_path, log=log).wait(300) == 1, log.read_text(errors="replace")
    assert states(tmp_path / "sweep") == {"0": "failed", "1": "finished"}


def test_hard_faces_are_those_of_all_processes(tmp_path: Path) -> None:
    """Each process weighs its faces by a mean over these alone: how hard a face is depends on its neighbours."""
    (tmp_path / "told.py").write_text(TOLD)
    words = [*small("pfld"), *TRAINING, "loss/class_weight=hard_faces", "hydra.run.dir=run"]
    log = tmp_path / "screen.log"
    started = start_door("told", *words, folder=tmp_path, log=log, root=tmp_path)
    assert started.wait(300) == 0, log.read_text(errors="replace")
    ranks = [[json.loads(line) for line in (tmp_path / f"rank_{rank}").read_text().splitlines()] for rank in (0, 1)]
    assert [len(rank) for rank in ranks] == [8, 8]
    mean = 0.0
    for (first, one), (second, other) in zip(*ranks, strict=True):
        joined = sum(first + second) / len(first + second)
        mean = 0.99 * mean + 0.01 * joined if mean else joined
        assert first != second
        assert one == other == pytest.approx(mean, rel=1e-5)
