"""What a run says of itself while it goes on: its state, its environment, and why it ended."""

import errno
import fcntl
import json
import logging
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode

from facelab.argv import options_of
from facelab.atomic import remove_leftovers, write_json
from facelab.landmarks.face import DataFault
from facelab.status import ENDED_BY, FILE, HEARTBEAT, TOLD, now, read_status

log = logging.getLogger(__name__)

STAMP = "FACELAB_STAMP"
RANKS = "FACELAB_RANKS"
"""What the other processes of this run are to be started with, as a list of words in JSON."""
CODE = "FACELAB_CODE"
"""The copy of the code that a sweep runs from."""
COMMIT = "commit.json"
"""In such a copy: the state of the code when it was made."""
PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "timm", "albumentations", "torchmetrics", "numpy")
CHILDREN_END = 20
"""Seconds that the other processes of a run have to end after it."""
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What a file system says that is full or closed to us."""


class JobFailed(CompactHydraException):
    """A job of a sweep that cannot be done. The other jobs go on; Hydra shows the message without a traceback."""


class Stopped(SystemExit):
    """Somebody ended the run, which can be continued. It ends a sweep too."""


@contextmanager
def recorded(folder: Path) -> Iterator[dict[str, Any]]:
    """Keep a run's environment and state in its folder, and end its W&B run whatever happens.

    The state has a heartbeat, so that a run which was killed can be told from one that goes on. What ends the run early
    is told as :func:`_message` says, and its traceback written to the run's log file. SIGTERM and SIGUSR2 end the run
    in the state ``stopped``; under submitit its own handler decides on SIGUSR2, and a requeued job is ``queued``.

    Yields:
        What status.json holds, to be added to.

    Raises:
        SystemExit: a mistake of the user's; or another process is at work in the folder, which is then left as it is.
        JobFailed: the same in a sweep.
    """
    status: dict[str, Any] = {
        "state": "running",
        "stamp": os.environ.get(STAMP),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "slurm_job": _slurm_job(),
        "started": now(),
        "begun": False,  # whether more was done than to look at what was typed
    }
    _join_tasks()
    before = read_status(folder) if is_first() else None
    with ExitStack() as stack:
        try:
            stack.enter_context(_listening(status))  # first, so that handlers are put back last, whatever fails
            if is_first():
                stack.enter_context(_claimed(folder))
                _write_environment(folder / "environment.json")
                stack.enter_context(_beating(folder / FILE, status))
            stack.enter_context(_ranks(folder))
            yield status
            status["state"] = "finished"
        except BaseException as error:
            _listen_no_more()
            _log_traceback(error)
            message = _message(error)
            status |= _ending(error, message, status["state"])
            if before and before.state == "finished" and not status["begun"]:
                status |= before.content | {"reason": ""}  # its results stand; this start was a mistake
            if message is None or isinstance(error, Stopped):
                raise
            raise _stop(message) from error
        finally:
            if "wandb" in sys.modules:  # importing it takes a second
                import wandb

                try:
                    wandb.finish()
                except Exception as error:  # it may have died with the machine, and the run is over anyway
                    log.warning("W&B could not end its run: %s", error)


def _join_tasks() -> None:
    """Tell Lightning of the other tasks of a job that submitit started on this machine; those of Slurm it finds."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "local" and int(os.environ["SUBMITIT_LOCAL_NTASKS"]) > 1:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def is_first() -> bool:
    """Whether this is the process that writes, of those that train together."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    first_machine = os.environ.get("NODE_RANK", "0") == "0"  # of a cluster that names no ranks
    return rank_zero_only.rank == 0 and first_machine  # type: ignore[attr-defined]


def _slurm_job() -> str | None:
    job, array = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{array}" if job else os.environ.get("SLURM_JOB_ID")


# State


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Be the only process at work in a folder.

    On one machine a lock says so, which ends with its process; elsewhere the heartbeat. A requeued job of a cluster
    takes over from itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        at_work = f"{folder} is the folder of a run that is at work"
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process alone: its workers do not inherit it
            elsewhere = read_status(folder).content.get("host") != socket.gethostname()
        except (BlockingIOError, PermissionError):
            raise SystemExit(f"{at_work}; this one leaves it alone") from None
        except OSError:  # a file system without locks
            elsewhere = True
        status = read_status(folder)
        mine = status.content.get("slurm_job") is not None and status.content["slurm_job"] == _slurm_job()
        if status.state == "running" and elsewhere and not mine:
            raise SystemExit(f"{at_work} ({status.reason}); this one leaves it alone")
        for place in (folder, folder / "checkpoints", folder / "samples"):
            remove_leftovers(place)
        yield


@contextmanager
def _beating(path: Path, status: dict[str, Any]) -> Iterator[None]:
    """Write the state at once, every minute, and at the end."""
    done = threading.Event()

    def write() -> None:
        write_json(path, status | {"heartbeat": now()})

    def beat() -> None:
        while not done.wait(HEARTBEAT):
            try:
                write()
            except OSError as error:
                log.warning("no sign of life could be given: %s", error)

    write()
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        try:
            write_json(path, status | {"heartbeat": now(), "ended": now()})
        except OSError as error:  # what ended the run is more important than that it could not be written down
            log.error("the state %s could not be kept: %s", status["state"], error)


def _ending(error: BaseException, message: str | None, state: str) -> dict[str, str]:
    """State and reason of a run that ended early."""
    # Lightning ends an interrupted training by SystemExit(1).
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return {"state": "stopped", "reason": "interrupted"}
    if isinstance(error, Stopped):
        return {"state": "stopped", "reason": str(error)}
    if notes := [note for note in getattr(error, "__notes__", ()) if note.startswith(ENDED_BY)]:
        return {"state": "stopped", "reason": f"{notes[0]}; then {type(error).__name__}: {error}"}
    if state == "queued" and isinstance(error, SystemExit):
        return {"state": "queued", "reason": "told to end by the cluster, which starts it again"}
    return {"state": "failed", "reason": message or f"{type(error).__name__}: {error}"}


@contextmanager
def _listening(status: dict[str, Any]) -> Iterator[None]:
    """End the run in order when the machine says that it will be ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(f"stopped by {signal.Signals(number).name}")

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (*TOLD, signal.SIGINT)}
    submitit = before[signal.SIGUSR2]

    def requeue(number: int, frame: FrameType | None) -> None:
        # Slurm then ends all processes of the job, also the one that has asked it to requeue it; and of several
        # processes each may be told on its own after it has heard it from another.
        for each in TOLD:
            signal.signal(each, signal.SIG_IGN)
        status["state"] = "queued"
        submitit(number, frame)
        raise SystemExit(0)  # returned in all processes of a job but its first

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGUSR2, requeue if callable(submitit) else stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen_no_more() -> None:
    """Write the end of a run in peace, whoever asks again to end it."""
    if threading.current_thread() is threading.main_thread():
        for number in (*TOLD, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def _ranks(folder: Path) -> Iterator[None]:
    """Say what Lightning's other processes of this run are to do: in a sweep, this job and not the sweep.

    Afterwards the process is as if it had never been one of several, so that the next job of a sweep starts its own.
    """
    before = dict(os.environ)
    os.environ["WANDB_DIR"] = str(folder)  # in a process that was spawned, a W&B run forgets where it lies
    if not HydraConfig.initialized() or RANKS in os.environ:
        yield
        return
    words = [*options_of(sys.argv[1:]), *HydraConfig.get().overrides.task, f"hydra.run.dir={quoted(folder)}"]
    os.environ[RANKS] = json.dumps(words)
    try:
        yield
    finally:
        _end_children()
        if "torch" in sys.modules:
            from torch import distributed

            if distributed.is_available() and distributed.is_initialized():
                distributed.destroy_process_group()
        for key in os.environ.keys() - before.keys():
            del os.environ[key]
        os.environ.update(before)


def _end_children() -> None:
    """Wait for the processes that Lightning started for this run, and end those that do not end.

    The thread by which Lightning watches them would otherwise kill this process, in the midst of the next job.
    """
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            observer: Any = thread
            observer._finished = True
            children, observer._child_processes = observer._child_processes, []
            for child in children:
                try:
                    child.wait(CHILDREN_END)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


def quoted(folder: Path) -> str:
    """A path as a value on Hydra's command line."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text=str(folder), quote=Quote.single).with_quotes()


# What is said when a run ends early


def _stop(message: str) -> BaseException:
    """What ends a run with a message instead of a traceback. SystemExit would end all jobs of a sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return SystemExit(message)
    log.error("%s; the sweep goes on", message)  # Hydra tells it only when the sweep ends
    return JobFailed(message)


def _message(error: BaseException) -> str | None:
    """What to tell the user instead of a traceback; None where the traceback is to be seen.

    A mistake of the user's is a ``SystemExit`` with words, a ``DataFault``, an error of W&B, a file that cannot be
    written, or a ``ValueError`` that begins with the key to change, as where parts do not fit each other
    (``crop.size=100 must be ...``). Any other error is one of the code. The traceback of both stands in the run's log
    file.
    """
    if isinstance(error, SystemExit) and isinstance(error.code, str):
        return error.code
    if isinstance(error, DataFault) or (isinstance(error, ValueError) and re.match(r"\w+(\.\w+)+=", str(error))):
        return str(error)
    if isinstance(error, OSError) and error.errno in REFUSED:
        return f"{error.filename or 'a file'}: {error.strerror}. What was written before is whole."
    if "wandb" in sys.modules:  # importing it takes a second
        import wandb

        if isinstance(error, wandb.Error):
            return f"logger.wandb: {error}\nlogger.wandb.offline=true needs neither an account nor a network."
    return None


def _log_traceback(error: BaseException) -> None:
    """Write how an error came about into the run's log file, and not to the screen."""
    where = (type(error), error, error.__traceback__)
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, "the run ended so:", (), where)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


# Environment


def _write_environment(path: Path) -> None:
    """Keep the environment of the first start, and with it those of the later ones."""
    with suppress(FileNotFoundError, ValueError):
        first = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, first | {"resumed": [*first.get("resumed", []), environment()]})
        return
    write_json(path, environment())


def environment() -> dict[str, Any]:
    """Versions, machine and state of the code; of a copy of the code, its state when the copy was made."""
    copied = Path(__file__).parents[1] / COMMIT
    return {
        "time": now(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "slurm_job": _slurm_job(),
        "command": sys.argv,
        "code": str(Path(__file__).parents[1]),
        **(json.loads(copied.read_text()) if copied.is_file() else commit(Path(__file__).parent)),
    }


def commit(folder: Path) -> dict[str, Any]:
    """The git commit of a folder and what was changed since; null where there is none."""

    def git(*words: str) -> str | None:
        if shutil.which("git") is None:
            return None
        result = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
        return result.stdout.rstrip() if result.returncode == 0 else None

    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_changed_files": (git("status", "--porcelain") or "").splitlines(),
    }
