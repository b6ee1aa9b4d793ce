"""Tests of status.json, environment.json and the lock of a run."""

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import wandb
from composing import small
from conftest import PLAIN, ROOT, start_door
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from facelab import signals
from facelab.errors import ConfigError, DatasetError, FacelabError, RunError
from facelab.files import write_json
from facelab.run_folder import LOST_AFTER, now, read_status
from facelab.runs import environment as environment_module
from facelab.runs import recording
from facelab.runs.environment import commit, environment, write_environment
from facelab.runs.processes import RANKS, STAMP
from facelab.runs.recording import explain, track_run

HERE = socket.gethostname()


def load(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the job of Hydra and the variables of a cluster."""
    HydraConfig.instance().cfg = None
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", RANKS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(STAMP, "now")


@pytest.fixture(scope="module")
def dead() -> int:
    """Return the pid of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def other() -> Iterator[int]:
    """Start another process that stays alive during the test; return its pid."""
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def ago(seconds: float) -> str:
    return (datetime.now().astimezone() - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S%z")


def running_status(folder: Path, **changes: Any) -> Path:
    """Write a status.json of a running run of this process with these changes; return the folder."""
    content = {"state": "running", "host": HERE, "pid": os.getpid(), "started": now(), "heartbeat": now()}
    write_json(folder / "status.json", content | changes)
    return folder


# Reading


def test_read_status_of_a_folder_without_a_status(tmp_path: Path) -> None:
    """Would catch a job that has not started and is reported as lost."""
    assert read_status(tmp_path / "gone")[:2] == ("missing", "not started")
    assert read_status(tmp_path)[:2] == ("unknown", "")
    (tmp_path / "status.json").touch()
    assert read_status(tmp_path).state == "unknown", "an empty file: the disk has its name but not yet its content"


@pytest.mark.parametrize("content", ['{"state": "run', "[1]", "3"])
def test_read_status_of_a_malformed_file_is_unreadable(content: str, tmp_path: Path) -> None:
    """Would catch one broken file whose traceback hides the states of all other runs."""
    (tmp_path / "status.json").write_text(content)
    status = read_status(tmp_path)
    assert status.state == "unreadable"
    assert "status.json" in status.reason
    with track_run(tmp_path, "train"):  # the lock is free, so no process of this machine uses the folder
        pass
    assert read_status(tmp_path).state == "finished"


@pytest.mark.parametrize("state", ["finished", "failed", "stopped", "queued"])
def test_read_status_of_an_ended_run_ignores_its_process(state: str, tmp_path: Path, dead: int) -> None:
    """Would catch an ended run that is reported as lost because its process is missing."""
    running_status(tmp_path, state=state, pid=dead, heartbeat=ago(10**6), reason="two\nlines")
    assert read_status(tmp_path)[:2] == (state, "two lines")


def test_read_status_of_a_live_run_is_running(tmp_path: Path, other: int) -> None:
    """Would catch a live run that is reported as lost, on this machine or on another one."""
    assert read_status(running_status(tmp_path, pid=other)).state == "running"
    assert read_status(running_status(tmp_path, host="elsewhere", heartbeat=ago(LOST_AFTER - 60))).state == "running"


def test_read_status_of_a_killed_run_is_lost(tmp_path: Path, dead: int) -> None:
    """Would catch a run that stays running although it was killed: just now on this machine, or long ago on another."""
    status = read_status(running_status(tmp_path, pid=dead))
    assert (status.state, status.reason) == ("lost", f"process {dead} on {HERE}: the process does not exist")
    status = read_status(running_status(tmp_path, host="elsewhere", heartbeat=(seen := ago(LOST_AFTER + 60))))
    assert status.state == "lost"
    assert status.reason.endswith(f"on elsewhere: no heartbeat since {seen}")
    assert read_status(running_status(tmp_path, host="elsewhere", pid=dead)).state == "running", (
        "the pid belongs to another machine"
    )
    assert read_status(running_status(tmp_path, heartbeat=ago(LOST_AFTER + 60))).state == "lost", (
        "another process has received the pid"
    )
    assert read_status(running_status(tmp_path, host="elsewhere", heartbeat="soon")).state == "lost"


def test_read_status_of_a_foreign_pid_uses_the_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a run that stays running because a process of another user received its pid."""

    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert read_status(running_status(tmp_path)).state == "running"
    assert read_status(running_status(tmp_path, heartbeat=ago(LOST_AFTER + 60))).state == "lost"


# Writing


def test_track_run_writes_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a run that is lost after five minutes, or a thread that writes after the end of the run."""
    monkeypatch.setattr(recording, "HEARTBEAT", 0.02)
    beats = iter(range(10**6))
    monkeypatch.setattr(recording, "now", lambda: f"beat {next(beats)}")
    with track_run(tmp_path, "train") as status:
        first = load(tmp_path / "status.json")
        assert first["state"] == "running"
        status["tested"] = "last.ckpt"
        time.sleep(0.3)
        later = load(tmp_path / "status.json")
        assert int(later["heartbeat"].split()[1]) > int(first["heartbeat"].split()[1]) + 2
        assert later["tested"] == "last.ckpt", "the added entry is lost"
        assert (later["started"], later["state"]) == (first["started"], "running")
    ended = (tmp_path / "status.json").read_bytes()
    time.sleep(0.1)
    assert (tmp_path / "status.json").read_bytes() == ended
    assert load(tmp_path / "status.json")["state"] == "finished"
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_track_run_survives_a_failed_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch a disk that is full for a minute and ends the heartbeat or the training."""
    monkeypatch.setattr(recording, "HEARTBEAT", 0.02)
    with track_run(tmp_path, "train"):
        write, failures = recording.write_json, iter(range(10**6))

        def failing(*args: Any) -> None:
            if next(failures) < 2:
                raise OSError(28, "No space left on device")
            write(*args)

        monkeypatch.setattr(recording, "write_json", failing)
        (tmp_path / "status.json").unlink()
        time.sleep(0.3)
        assert load(tmp_path / "status.json")["state"] == "running"
    assert "the heartbeat could not be written" in caplog.text


@pytest.mark.parametrize(
    ("error", "raised", "state", "reason"),
    [
        (DatasetError("a.txt:3: no number"), DatasetError, "failed", "a.txt:3: no number"),
        (ConfigError("crop.size", "=100 must be even"), ConfigError, "failed", "crop.size=100 must be even"),
        (ValueError("crop.size=100 must be even"), ValueError, "failed", "ValueError: crop.size=100 must be even"),
        (ValueError("too few values to unpack"), ValueError, "failed", "ValueError: too few values to unpack"),
        (RuntimeError("out of memory"), RuntimeError, "failed", "RuntimeError: out of memory"),
        (
            OSError(28, "No space left on device", "run/last.ckpt"),
            FacelabError,
            "failed",
            "run/last.ckpt: No space left on device. All files written before are complete.",
        ),
        (
            FileNotFoundError(2, "No such file", "a"),
            FileNotFoundError,
            "failed",
            "FileNotFoundError: [Errno 2] No such",
        ),
        (KeyboardInterrupt(), KeyboardInterrupt, "stopped", "interrupted"),
    ],
)
def test_track_run_records_state_and_reason_of_an_error(
    error: BaseException, raised: type[BaseException], state: str, reason: str, tmp_path: Path
) -> None:
    """Would catch a failed run with the state running, or a message or a traceback that is lost."""
    file = logging.FileHandler(tmp_path / "train.log")
    logging.getLogger().addHandler(file)
    try:
        with pytest.raises(raised), track_run(tmp_path, "train"):
            raise error
    finally:
        logging.getLogger().removeHandler(file)
        file.close()
    status = load(tmp_path / "status.json")
    assert status["state"] == state
    assert status["reason"].startswith(reason)
    assert "ended" in status
    assert "Traceback" in (text := (tmp_path / "train.log").read_text())
    assert f"{type(error).__name__}" in text


def test_track_run_records_interrupted_for_the_exit_of_lightning(tmp_path: Path) -> None:
    """Would catch Ctrl-C that is recorded as `SystemExit: 1`."""
    with pytest.raises(SystemExit), track_run(tmp_path, "train"):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SystemExit(1)  # noqa: B904  as Lightning does
    status = load(tmp_path / "status.json")
    assert (status["state"], status["reason"]) == ("stopped", "interrupted")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_track_run_stops_on_a_signal_outside_the_training(number: signal.Signals, tmp_path: Path) -> None:
    """Would catch a run that receives a signal while it reads its data and ends without a reason."""
    before = signal.getsignal(number)
    with pytest.raises(signals.Stopped, match="stopped by"), track_run(tmp_path, "train"):
        os.kill(os.getpid(), number)
        time.sleep(1)
        pytest.fail("the run was not stopped")
    assert read_status(tmp_path)[:2] == ("stopped", f"stopped by {number.name}")
    assert signal.getsignal(number) == before


def test_track_run_keeps_finished_for_a_late_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a run with results and the state stopped, because W&B was still ending at the signal."""
    monkeypatch.setattr(wandb, "finish", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(signals.Stopped), track_run(tmp_path, "train"):
        pass
    assert read_status(tmp_path).state == "finished"


# Ownership of a folder


def test_track_run_takes_over_an_ended_or_lost_run(tmp_path: Path, dead: int) -> None:
    """Would catch a folder that works only once, or a killed run that cannot resume at once."""
    for before in ({"pid": dead}, {"state": "finished"}, {"host": "elsewhere", "heartbeat": ago(LOST_AFTER + 9)}):
        with track_run(running_status(tmp_path, **before), "train"):
            assert load(tmp_path / "status.json")["pid"] == os.getpid()
        assert load(tmp_path / "status.json")["state"] == "finished"


def test_track_run_refuses_a_run_on_another_machine(tmp_path: Path) -> None:
    """Would catch two machines that write into one folder."""
    before = load(running_status(tmp_path, host="elsewhere") / "status.json")
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(RunError, match=r"still running \(since .* on elsewhere\)"), track_run(tmp_path, "train"):
        pytest.fail("the run began")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers, (
        "the next job would ignore signals"
    )
    assert load(tmp_path / "status.json") == before
    assert not (tmp_path / "environment.json").exists()


@pytest.mark.parametrize(("job", "taken"), [("7", True), ("8", False), (None, False)])
@pytest.mark.parametrize("array", [True, False])
def test_track_run_lets_a_requeued_job_take_over(
    job: str | None, taken: bool, array: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a job, restarted on another machine, that waits five minutes for its own heartbeat."""
    running_status(tmp_path, host="elsewhere", slurm_job="7_3" if array else "7")
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", "99" if array else job)
        if array:
            monkeypatch.setenv("SLURM_ARRAY_JOB_ID", job)
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    if taken:
        with track_run(tmp_path, "train"):
            pass
        assert read_status(tmp_path).state == "finished"
    else:
        with pytest.raises(RunError, match="still running"), track_run(tmp_path, "train"):
            pytest.fail("the run began")


CLAIM = """
import sys, time
from pathlib import Path
from facelab.runs.recording import track_run
with track_run(Path(sys.argv[1]), "train"):
    print("run started", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_track_run_locks_the_folder(tmp_path: Path) -> None:
    """Would catch two short runs that mix their results, or a lock that outlives a killed process."""
    line = [sys.executable, "-c", CLAIM, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout
        assert first.stdout.readline() == "run started\n"
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(RunError, match="still running"), track_run(tmp_path, "train"):
            pytest.fail("the run began")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        (tmp_path / "status.json").unlink()  # the state before the first write
        with pytest.raises(RunError, match="still running"), track_run(tmp_path, "train"):
            pytest.fail("the run began")
        first.kill()
    with track_run(tmp_path, "train"):
        pass
    assert read_status(tmp_path).state == "finished"


def test_track_run_works_without_file_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: int, dead: int
) -> None:
    """Would catch a network disk on which no run starts, or on which two runs share a folder."""

    def refuse(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(recording.fcntl, "lockf", refuse)
    with pytest.raises(RunError, match="still running"), track_run(running_status(tmp_path, pid=other), "train"):
        pytest.fail("the run began")
    with track_run(running_status(tmp_path, pid=dead), "train"):
        pass
    assert read_status(tmp_path).state == "finished"


@pytest.mark.slow
def test_train_refuses_the_folder_of_a_running_run(tmp_path: Path) -> None:
    """Would catch a second training that overwrites the configuration of the first."""
    overrides = [*small("pipnet"), *PLAIN, "hydra.run.dir=run"]
    first = start_door("train", *overrides, "trainer.max_epochs=2000", folder=tmp_path, log=tmp_path / "first.log")
    try:
        wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", first)
        names = ("config.yaml", "environment.json", "overrides.yaml")
        before = {name: (tmp_path / "run" / name).read_bytes() for name in names}
        second = start_door("train", *overrides, "seed=2", folder=tmp_path, log=tmp_path / "second.log")
        third = start_door("train", "resume=run", "seed=3", folder=tmp_path, log=tmp_path / "third.log")
        assert (second.wait(90), third.wait(90)) == (1, 1)
        for name in ("second", "third"):
            text = (tmp_path / f"{name}.log").read_text()
            assert "is the folder of a run that is still running" in text
            assert "Traceback" not in text
        assert {name: (tmp_path / "run" / name).read_bytes() for name in names} == before
        assert (read_status(tmp_path / "run").state, first.poll()) == ("running", None)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        assert read_status(tmp_path / "run").state == "lost"
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(900):
        if path.exists():
            return
        assert process.poll() is None, "the process has ended"
        time.sleep(0.1)
    pytest.fail(f"{path} was not written")


# Environment and ranks


def test_environment_of_a_code_copy_reads_its_commit_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a job without a commit, because the copy of the code is no repository."""
    assert len(commit(ROOT)["git_commit"] or "0" * 40) == 40
    assert commit(tmp_path) == {"git_commit": None, "git_changed_files": []}
    (tmp_path / "facelab").mkdir()
    write_json(tmp_path / "commit.json", {"git_commit": "abc", "git_changed_files": ["M x"]})
    monkeypatch.setattr(environment_module, "ROOT", tmp_path)
    recorded = environment()
    assert (recorded["git_commit"], recorded["git_changed_files"]) == ("abc", ["M x"])
    assert recorded["code"] == str(tmp_path)


@pytest.mark.parametrize("content", ["[1]", '{"resumed": 5}', "{", 2**40])
def test_write_environment_replaces_a_malformed_file(content: str | int, tmp_path: Path) -> None:
    """Would catch a traceback on resume, or a sparse file that fills the memory."""
    path = tmp_path / "environment.json"
    path.write_text(content if isinstance(content, str) else "")
    if isinstance(content, int):
        os.truncate(path, content)
    write_environment(path)
    assert load(path).keys() >= {"python", "host"}


@pytest.mark.parametrize("number", [errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENOSPC])
def test_explain_names_the_path_of_an_os_error(number: int) -> None:
    """Would catch a traceback for a run folder that was assembled by hand."""
    assert explain(OSError(number, os.strerror(number), "samples")) == (
        f"samples: {os.strerror(number)}. All files written before are complete."
    )


def test_track_run_keeps_the_first_environment(tmp_path: Path) -> None:
    """Would catch versions of the last start that replace those of most of the training."""
    for _ in range(3):
        with track_run(tmp_path, "train"):
            pass
    content = load(tmp_path / "environment.json")
    assert len(content["resumed"]) == 2
    assert content["resumed"][0].keys() == content.keys() - {"resumed"}
    (tmp_path / "environment.json").write_text("{")
    with track_run(tmp_path, "train"):
        pass
    assert load(tmp_path / "environment.json")["packages"]


def test_track_run_passes_the_job_to_the_other_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a rank that repeats the sweep, or uses another folder or configuration."""
    folder = tmp_path / "it's, a [run]"
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "--config-dir", "mine", "seed=1,2"])
    monkeypatch.setattr(HydraConfig, "initialized", classmethod(lambda _: True))
    source = {"provider": "hydra.searchpath in command-line", "schema": "file", "path": "/mine"}
    hydra = {
        "overrides": {"task": ["seed=1"]},
        "mode": None,
        "runtime": {"config_sources": [source]},
        "job": {"config_name": "train"},
    }
    monkeypatch.setattr(HydraConfig, "get", classmethod(lambda _: OmegaConf.create(hydra)))
    with track_run(folder, "train"):
        arguments = json.loads(os.environ[RANKS])
    assert RANKS not in os.environ
    assert arguments[:2] == ["--config-dir", "mine"]
    parsed = {each.key_or_group: each.value() for each in OverridesParser.create().parse_overrides(arguments[2:])}
    assert parsed == {"hydra.searchpath": ["/mine"], "seed": 1, "hydra.run.dir": str(folder)}
