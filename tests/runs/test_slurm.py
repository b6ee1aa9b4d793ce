"""Tests of sweeps as jobs of a Slurm that the tests start, and as local jobs."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import small
from conftest import ROOT

from facelab.metrics.face_table import read_faces
from facelab.run_folder import read_status

pytestmark = pytest.mark.slow
QUIET = ("logger=csv", "callbacks.face_grid=null", "callbacks.worst_faces=null")
SLURM = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2")
TWO_PROCESSES = (
    *("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"),
    *("trainer.sync_batchnorm=false", "trainer.max_epochs=1", "data.test=7"),
)
NODE = ["bash", str(ROOT / "tests" / "runs" / "slurm_node.sh")]
STEPS = 4
"""Steps of an epoch: 16 faces in batches of 4."""
LONG, PACE = 150, "{_target_: pace.MinimumEpochTime, seconds: 0.4}"
"""Epochs that together last at least a minute, the shortest time limit of Slurm, and the callback that ensures it."""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start a Slurm; return its configuration file."""
    folder = tmp_path_factory.mktemp("slurm")
    with (folder / "start.log").open("w+") as log:  # a pipe would stay open as long as the daemons
        code = subprocess.run([*NODE, "start", str(folder)], stdout=log, stderr=log, check=False).returncode
        output = (folder / "start.log").read_text()
    if code == 77:
        pytest.skip(output.strip().splitlines()[-1])
    assert code == 0, output
    yield folder / "slurm.conf"
    subprocess.run([*NODE, "stop", str(folder)], check=True)


def environment(slurm: Path | None) -> dict[str, str]:
    """Return the variables of a shell in which nobody has trained yet."""
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "FACELAB_", "SLURM_"))
    }
    variables["FACELAB_CACHE"] = os.environ["FACELAB_TEST_CACHE"]
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests" / "own"), os.environ["PYTHONPATH"]])
    return variables | ({"SLURM_CONF": str(slurm)} if slurm else {})


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]


def train(folder: Path, slurm: Path | None, *arguments: object) -> str:
    """Run train.py in a folder until all its jobs have ended; return its output."""
    done = subprocess.run(
        command_line(*arguments),
        cwd=folder,
        env=environment(slurm),
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def states(sweep: Path) -> list[str]:
    return [read_status(sweep / number).state for number in load(sweep / "sweep.json")["cells"]]


def arrays(sweep: Path) -> list[str]:
    """Return the job arrays in the submission files of sbatch, in their order."""
    files = sorted((sweep / ".submitit").glob(".submission_file_*.sh"), key=lambda path: path.stat().st_mtime)
    return [line.partition("=")[2] for file in files for line in file.read_text().splitlines() if "--array" in line]


def same_training(run: Path, reference: Path) -> None:
    """Assert that two runs have the same metrics, weights and number of steps."""
    assert (run / "metrics.csv").read_text() == (reference / "metrics.csv").read_text()
    assert (run / "faces.csv").read_text() == (reference / "faces.csv").read_text()
    one, two = (torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (run, reference))
    assert one["global_step"] == two["global_step"]
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())


def test_slurm_runs_a_grid_as_a_job_array(slurm: Path, tmp_path: Path) -> None:
    """Would catch options that sbatch refuses, jobs in one folder, or jobs that run in the submitting process."""
    line = [*small("pipnet"), *QUIET, "trainer.max_epochs=1", "-m", "seed=1,2,3", *SLURM, "hydra.sweep.dir=sweep"]
    train(tmp_path, slurm, *line, "hydra.launcher.array_parallelism=2")
    sweep = tmp_path / "sweep"
    assert states(sweep) == ["finished"] * 3
    assert arrays(sweep) == ["0-2%2"]
    jobs = [read_status(sweep / number).content["slurm_job"] for number in "012"]
    assert [job.partition("_")[2] for job in jobs] == ["0", "1", "2"]
    assert len({(sweep / number / "faces.csv").read_text() for number in "012"}) == 3


@pytest.mark.parametrize("launcher", ["slurm", "local_jobs"])
def test_launcher_runs_two_processes_for_a_job(launcher: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Would catch tasks that train alone or wait for each other, or faces that are counted twice or never."""
    cluster = request.getfixturevalue("slurm") if launcher == "slurm" else None
    options = SLURM if launcher == "slurm" else ("hydra/launcher=local_jobs",)
    line = [*small("pipnet"), *QUIET, *TWO_PROCESSES, "-m", "seed=1,2", *options, "hydra.sweep.dir=sweep"]
    train(tmp_path, cluster, *line)
    sweep = tmp_path / "sweep"
    assert states(sweep) == ["finished"] * 2
    for number in "01":
        assert read_faces(sweep / number / "faces.csv")["face_id"].tolist() == list(range(7))
        steps = torch.load(sweep / number / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
        assert steps == STEPS / 2, "each process trained on all faces"
    assert len(list((sweep / ".submitit").glob("*/*_1_log.out"))) == 2, "the second tasks are missing"


def test_slurm_resumes_a_job_at_its_time_limit(slurm: Path, tmp_path: Path) -> None:
    """Would catch a job that is killed at its time limit, starts anew, or repeats or omits a step."""
    line = [*small("pipnet"), *QUIET, f"trainer.max_epochs={LONG}"]
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=10")
    slow = (f"+callbacks.pace={PACE}", "trust=[pace]")
    whole = subprocess.Popen(
        command_line(*line, "hydra.run.dir=whole"), cwd=tmp_path, env=environment(None), stdout=subprocess.DEVNULL
    )
    try:
        train(tmp_path, slurm, *line, *slow, "-m", "seed=1", *SLURM, *limit, "hydra.sweep.dir=sweep")
        assert whole.wait(timeout=600) == 0
    finally:
        whole.kill()
    run = tmp_path / "sweep" / "0"
    assert states(run.parent) == ["finished"]
    assert load(run / "environment.json")["resumed"], "the job ended before its time limit"
    same_training(run, tmp_path / "whole")


def test_slurm_resumes_failed_and_cancelled_jobs(slurm: Path, tmp_path: Path) -> None:
    """Would catch a failed job that ends others, or a resumed sweep that repeats finished jobs or loses one."""
    (tmp_path / "broken").touch()  # a missing disk: a file in the place of a folder
    line = [*small("pipnet"), *QUIET, "trainer.max_epochs=60", "-m", "data.cache=one,two,broken"]
    process = subprocess.Popen(
        command_line(*line, *SLURM, "hydra.sweep.dir=sweep"),
        cwd=tmp_path,
        env=environment(slurm),
        stdout=subprocess.PIPE,
        text=True,
    )
    sweep, deadline = tmp_path / "sweep", time.monotonic() + 300
    try:
        while not (sweep / "1" / "checkpoints" / "last.ckpt").exists():
            assert time.monotonic() < deadline, "the second job does not train"
            time.sleep(0.1)
        job = read_status(sweep / "1").content["slurm_job"]
        subprocess.run(["scancel", job], env=environment(slurm), check=True)
        while states(sweep) != ["finished", "stopped", "failed"]:
            assert time.monotonic() < deadline, states(sweep)
            time.sleep(0.5)
        # Without accounting the launcher does not see that a job was cancelled; the jobs do not need the launcher.
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "stopped by SIGTERM" in output, "the list of the jobs was not printed"
    assert "broken" in read_status(sweep / "2").reason
    finished = {path: path.read_bytes() for path in (sweep / "0").glob("*.*") if path.is_file()}

    (tmp_path / "broken").unlink()
    train(tmp_path, slurm, "-m", "resume=sweep", *SLURM)
    assert states(sweep) == ["finished"] * 3
    assert arrays(sweep) == ["0-2%3", "0-1%2"], "the second time, two jobs were missing"
    assert {path: path.read_bytes() for path in finished} == finished
    for number in "12":
        with (sweep / number / "metrics.csv").open() as file:
            epochs = [row["epoch"] for row in csv.DictReader(file) if row["val/nme_box"]]
        assert epochs == [str(epoch) for epoch in range(60)], "an epoch was repeated or left out"
    assert len(load(sweep / "1" / "environment.json")["resumed"]) == 1
