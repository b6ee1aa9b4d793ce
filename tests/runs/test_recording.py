"""What a run says of itself while it goes on, and how others read it."""

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
    """No job of Hydra or of a cluster."""
    HydraConfig.instance().cfg = None
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", RANKS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(STAMP, "now")


@pytest.fixture(scope="module")
def dead() -> int:
    """A process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def other() -> Iterator[int]:
    """Another process that lives."""
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def ago(seconds: float) -> str:
    return (datetime.now().astimezone() - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S%z")


def told(folder: Path, **changes: Any) -> Path:
    """A folder whose status.json says that its run goes on, but for the changes."""
    content = {"state": "running", "host": HERE, "pid": os.getpid(), "started": now(), "heartbeat": now()}
    write_json(folder / "status.json", content | changes)
    return folder


# Reading


def test_what_is_no_run(tmp_path: Path) -> None:
    """A job that is not begun taken for one that is lost."""
    assert read_status(tmp_path / "gone")[:2] == ("missing", "not started")
    assert read_status(tmp_path)[:2] == ("unknown", "")
    (tmp_path / "status.json").touch()
    assert read_status(tmp_path).state == "unknown", "the name came to disk before the content"


@pytest.mark.parametrize("content", ['{"state": "run', "[1]", "3"])
def test_a_state_that_cannot_be_read(content: str, tmp_path: Path) -> None:
    """One broken file that hides the states of all other runs behind a traceback."""
    (tmp_path / "status.json").write_text(content)
    status = read_status(tmp_path)
    assert status.state == "unreadable"
    assert "status.json" in status.reason
    with track_run(tmp_path, "train"):  # nobody can be at work here on this machine, or the lock would say so
        pass
    assert read_status(tmp_path).state == "finished"


@pytest.mark.parametrize("state", ["finished", "failed", "stopped", "queued"])
def test_a_state_that_was_written_at_the_end(state: str, tmp_path: Path, dead: int) -> None:
    """An ended run that is taken for lost, since its process is gone."""
    told(tmp_path, state=state, pid=dead, heartbeat=ago(10**6), reason="two\nlines")
    assert read_status(tmp_path)[:2] == (state, "two lines")


def test_a_run_that_goes_on(tmp_path: Path, other: int) -> None:
    """A live run taken for dead: here, or on a machine that cannot be asked."""
    assert read_status(told(tmp_path, pid=other)).state == "running"
    assert read_status(told(tmp_path, host="elsewhere", heartbeat=ago(LOST_AFTER - 60))).state == "running"


def test_a_run_that_died(tmp_path: Path, dead: int) -> None:
    """A dead run that is waited for: killed here a moment ago, or elsewhere long since."""
    status = read_status(told(tmp_path, pid=dead))
    assert (status.state, status.reason) == ("lost", f"process {dead} on {HERE}: the process does not exist")
    status = read_status(told(tmp_path, host="elsewhere", heartbeat=(seen := ago(LOST_AFTER + 60))))
    assert status.state == "lost"
    assert status.reason.endswith(f"on elsewhere: no heartbeat since {seen}")
    assert read_status(told(tmp_path, host="elsewhere", pid=dead)).state == "running", "a pid of another machine"
    assert read_status(told(tmp_path, heartbeat=ago(LOST_AFTER + 60))).state == "lost", "a pid that was given anew"
    assert read_status(told(tmp_path, host="elsewhere", heartbeat="soon")).state == "lost"


def test_a_process_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run for ever at work, since its number went to somebody else's process."""

    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert read_status(told(tmp_path)).state == "running"
    assert read_status(told(tmp_path, heartbeat=ago(LOST_AFTER + 60))).state == "lost"


# Writing


def test_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is taken for dead after five minutes; a thread that writes after the end."""
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
        assert later["tested"] == "last.ckpt", "what is added is lost"
        assert (later["started"], later["state"]) == (first["started"], "running")
    ended = (tmp_path / "status.json").read_bytes()
    time.sleep(0.1)
    assert (tmp_path / "status.json").read_bytes() == ended
    assert load(tmp_path / "status.json")["state"] == "finished"
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_a_sign_of_life_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk for a minute that ends the heartbeat, or the training."""
    monkeypatch.setattr(recording, "HEARTBEAT", 0.02)
    with track_run(tmp_path, "train"):
        write, failures = recording.write_json, iter(range(10**6))

        def failing(*given: Any) -> None:
            if next(failures) < 2:
                raise OSError(28, "No space left on device")
            write(*given)

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
def test_why_a_run_ended(
    error: BaseException, raised: type[BaseException], state: str, reason: str, tmp_path: Path
) -> None:
    """A run that died and says `running`; a message lost in a traceback, or a traceback lost behind a message."""
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


def test_lightning_ends_an_interrupted_training_by_an_exit(tmp_path: Path) -> None:
    """Ctrl-C that reads `SystemExit: 1` the next day."""
    with pytest.raises(SystemExit), track_run(tmp_path, "train"):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SystemExit(1)  # noqa: B904  as Lightning does
    status = load(tmp_path / "status.json")
    assert (status["state"], status["reason"]) == ("stopped", "interrupted")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_told_to_end_outside_of_the_training(number: signal.Signals, tmp_path: Path) -> None:
    """A run that is told to end while it reads its data, and dies without a word."""
    before = signal.getsignal(number)
    with pytest.raises(signals.Stopped, match="stopped by"), track_run(tmp_path, "train"):
        os.kill(os.getpid(), number)
        time.sleep(1)
        pytest.fail("it goes on")
    assert read_status(tmp_path)[:2] == ("stopped", f"stopped by {number.name}")
    assert signal.getsignal(number) == before


def test_a_finished_run_that_is_told_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that are there, of a run that says it was stopped: the signal came while W&B was ending."""
    monkeypatch.setattr(wandb, "finish", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(signals.Stopped), track_run(tmp_path, "train"):
        pass
    assert read_status(tmp_path).state == "finished"


# Who may write


def test_a_run_that_is_left_behind_is_taken_over(tmp_path: Path, dead: int) -> None:
    """A folder that can be used only once; a killed run that cannot go on for five minutes, or for ever."""
    for before in ({"pid": dead}, {"state": "finished"}, {"host": "elsewhere", "heartbeat": ago(LOST_AFTER + 9)}):
        with track_run(told(tmp_path, **before), "train"):
            assert load(tmp_path / "status.json")["pid"] == os.getpid()
        assert load(tmp_path / "status.json")["state"] == "finished"


def test_a_run_on_another_machine_is_left_alone(tmp_path: Path) -> None:
    """Two machines that write into one folder, each over the other."""
    before = load(told(tmp_path, host="elsewhere") / "status.json")
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(RunError, match=r"still running \(since .* on elsewhere\)"), track_run(tmp_path, "train"):
        pytest.fail("the run began")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers, (
        "nothing ends the next job"
    )
    assert load(tmp_path / "status.json") == before
    assert not (tmp_path / "environment.json").exists()


@pytest.mark.parametrize(("job", "taken"), [("7", True), ("8", False), (None, False)])
@pytest.mark.parametrize("array", [True, False])
def test_a_requeued_job_takes_over_from_itself(
    job: str | None, taken: bool, array: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that the cluster started again on another machine and that waits five minutes for itself."""
    told(tmp_path, host="elsewhere", slurm_job="7_3" if array else "7")
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
    print("at work", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_two_processes_in_one_folder(tmp_path: Path) -> None:
    """Two runs of one second that mix their results; a lock that a killed process leaves behind."""
    line = [sys.executable, "-c", CLAIM, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout
        assert first.stdout.readline() == "at work\n"
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(RunError, match="still running"), track_run(tmp_path, "train"):
            pytest.fail("the run began")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        (tmp_path / "status.json").unlink()  # as in the moment before it is written
        with pytest.raises(RunError, match="still running"), track_run(tmp_path, "train"):
            pytest.fail("the run began")
        first.kill()
    with track_run(tmp_path, "train"):
        pass
    assert read_status(tmp_path).state == "finished"


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: int, dead: int) -> None:
    """A run that cannot be started on a network disk, or one that starts beside another there."""

    def refuse(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(recording.fcntl, "lockf", refuse)
    with pytest.raises(RunError, match="still running"), track_run(told(tmp_path, pid=other), "train"):
        pytest.fail("the run began")
    with track_run(told(tmp_path, pid=dead), "train"):
        pass
    assert read_status(tmp_path).state == "finished"


@pytest.mark.slow
def test_a_door_leaves_a_run_at_work_alone(tmp_path: Path) -> None:
    """The same through the doors: the second writes its configuration over that of the first."""
    words = [*small("pipnet"), *PLAIN, "hydra.run.dir=run"]
    first = start_door("train", *words, "trainer.max_epochs=2000", folder=tmp_path, log=tmp_path / "first.log")
    try:
        wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", first)
        names = ("config.yaml", "environment.json", "overrides.yaml")
        before = {name: (tmp_path / "run" / name).read_bytes() for name in names}
        second = start_door("train", *words, "seed=2", folder=tmp_path, log=tmp_path / "second.log")
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
        assert process.poll() is None, "it has ended"
        time.sleep(0.1)
    pytest.fail(f"{path} does not come")


# Environment and ranks


def test_the_environment_of_a_copy_is_that_of_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that names no commit, since a copy of the code is no repository."""
    assert len(commit(ROOT)["git_commit"] or "0" * 40) == 40
    assert commit(tmp_path) == {"git_commit": None, "git_changed_files": []}
    (tmp_path / "facelab").mkdir()
    write_json(tmp_path / "commit.json", {"git_commit": "abc", "git_changed_files": ["M x"]})
    monkeypatch.setattr(environment_module, "ROOT", tmp_path)
    found = environment()
    assert (found["git_commit"], found["git_changed_files"]) == ("abc", ["M x"])
    assert found["code"] == str(tmp_path)


@pytest.mark.parametrize("content", ["[1]", '{"resumed": 5}', "{", 2**40])
def test_an_environment_that_is_none_is_written_anew(content: str | int, tmp_path: Path) -> None:
    """A traceback of a run that goes on, or all memory taken by a file of holes."""
    path = tmp_path / "environment.json"
    path.write_text(content if isinstance(content, str) else "")
    if isinstance(content, int):
        os.truncate(path, content)
    write_environment(path)
    assert load(path).keys() >= {"python", "host"}


@pytest.mark.parametrize("number", [errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENOSPC])
def test_a_folder_in_the_place_of_a_file_is_told(number: int) -> None:
    """A traceback for a run folder that was put together by hand."""
    assert explain(OSError(number, os.strerror(number), "samples")) == (
        f"samples: {os.strerror(number)}. All files written before are complete."
    )


def test_the_first_environment_stays(tmp_path: Path) -> None:
    """Versions of the last start in the place of those that most of the training ran with."""
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


def test_what_the_other_processes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process of a job that repeats the sweep, works in another folder, or with another configuration."""
    folder = tmp_path / "it's, a [run]"
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "--config-dir", "mine", "seed=1,2"])
    monkeypatch.setattr(HydraConfig, "initialized", classmethod(lambda _: True))
    hydra = {"overrides": {"task": ["seed=1"]}, "mode": None}
    monkeypatch.setattr(HydraConfig, "get", classmethod(lambda _: OmegaConf.create(hydra)))
    with track_run(folder, "train"):
        words = json.loads(os.environ[RANKS])
    assert RANKS not in os.environ
    assert words[:2] == ["--config-dir", "mine"]
    parsed = {each.key_or_group: each.value() for each in OverridesParser.create().parse_overrides(words[2:])}
    assert parsed == {"seed": 1, "hydra.run.dir": str(folder)}
