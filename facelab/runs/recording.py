"""What a run keeps of itself while it lasts: its state, its environment, and why it ended."""

import errno
import fcntl
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from facelab import signals
from facelab.errors import FacelabError, RunError
from facelab.files import remove_leftovers, write_json
from facelab.run_folder import HEARTBEAT, RunFolder, now, read_status
from facelab.runs.environment import write_environment
from facelab.runs.overrides import read_yaml
from facelab.runs.processes import STAMP, is_first, join_tasks, ranks, restart_with_next_stamp, slurm_job

log = logging.getLogger(__name__)

REFUSED = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
)
"""Errors of a file system that is full or closed to us, and of a folder in the place of a file or the reverse."""


@contextmanager
def track_run(folder: Path, task: str) -> Iterator[dict[str, Any]]:
    """Keep a run's environment and state in its folder, and end its W&B run whatever happens.

    The state has a heartbeat, so that a run which was killed can be told from one that goes on. The traceback of what
    ends the run early is written to the run's log file. SIGTERM and SIGUSR2 end the run in the state ``stopped``; under
    submitit its own handler decides on SIGUSR2, and a requeued job is ``queued``.

    Args:
        folder: of the run.
        task: of the door, as ``train``.

    Yields:
        What status.json holds, to be added to.

    Raises:
        RunError: the folder is that of a sweep, or of a run of another door, which stays as it is.
        FacelabError: a mistake of the user's, also where it showed as another exception, see :func:`explain`.
        RunError: another process is at work in the folder, which is then left as it is.
    """
    status: dict[str, Any] = {
        "state": "running",
        "stamp": os.environ.get(STAMP),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "slurm_job": slurm_job(),
        "started": now(),
        "begun": False,  # whether more was done than to look at what was typed
    }
    join_tasks()
    files = RunFolder(folder)
    _check_owner(files, task)
    before = read_status(folder) if is_first() else None
    with ExitStack() as stack:
        try:
            # First, so that handlers are put back last, whatever fails.
            stack.enter_context(signals.stopping(lambda: status.update(state="queued")))
            if is_first():
                stack.enter_context(_claimed(files))
                unknown = None if files.overrides.is_file() else False  # a run of an earlier version
                status["saved"] = before.content.get("saved", unknown) if before else unknown
                write_environment(files.environment)
                stack.enter_context(_beating(files, status))
            stack.enter_context(ranks(folder))
            yield status
            status["state"] = "finished"
        except BaseException as raised:
            error = _end_of(raised)
            signals.ignore(interrupt=True)  # the end of the run is written in peace, whoever asks again to end it
            _log_traceback(error)
            message = explain(error)
            status |= _ending(error, message, status["state"])
            if before and before.state == "finished" and not status["begun"]:
                status |= before.content | {"reason": ""}  # its results stand; this start was a mistake
            if message is None and error is raised:
                raise
            if message is None:
                raise error from None
            if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
                log.error("%s; the sweep goes on", message)  # Hydra tells it only when the sweep ends
            if isinstance(error, FacelabError):
                raise
            raise FacelabError(message) from error
        finally:
            if "wandb" in sys.modules:  # importing it takes a second
                import wandb

                try:
                    wandb.finish()
                except Exception as error:  # it may have died with the machine, and the run is over anyway
                    log.warning("W&B could not end its run: %s", error)


def _check_owner(files: RunFolder, task: str) -> None:
    """Refuse the folder of a sweep, or of a run of another door, whose files would be overwritten."""
    owner = read_yaml(files.config) if files.config.is_file() else None
    kind = "a sweep" if files.sweep.is_file() else f"{owner.get('task')}.py" if isinstance(owner, dict) else ""
    if kind not in ("", f"{task}.py"):
        raise RunError(f"{files.path} is the folder of {kind}, whose files would be overwritten; choose another")


@contextmanager
def _claimed(files: RunFolder) -> Iterator[None]:
    """Be the only process at work in a folder.

    On one machine a lock says so, which ends with its process; elsewhere the heartbeat. A requeued job of a cluster
    takes over from itself.
    """
    folder = files.path
    folder.mkdir(parents=True, exist_ok=True)
    try:
        files.lock.touch(exist_ok=False)
    except FileExistsError:
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN:
            restart_with_next_stamp(folder)
    if not files.lock.is_file():
        raise RunError(f"{files.lock} is no file")  # to open a pipe would wait for its reader
    with files.lock.open("w") as file:
        at_work = f"{folder} is the folder of a run that is at work"
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process alone: its workers do not inherit it
            elsewhere = read_status(folder).content.get("host") != socket.gethostname()
        except (BlockingIOError, PermissionError):
            raise RunError(f"{at_work}; this one leaves it alone") from None
        except OSError:  # a file system without locks
            elsewhere = True
        status = read_status(folder)
        mine = status.content.get("slurm_job") is not None and status.content["slurm_job"] == slurm_job()
        if status.state == "running" and elsewhere and not mine:
            raise RunError(f"{at_work} ({status.reason}); this one leaves it alone")
        for place in (folder, files.checkpoints, files.samples):
            remove_leftovers(place)
        yield


@contextmanager
def _beating(files: RunFolder, status: dict[str, Any]) -> Iterator[None]:
    """Write the state at once, every minute, and at the end, and with it whether a checkpoint was saved."""
    done = threading.Event()

    def write(**more: Any) -> None:
        status["saved"] = files.checkpoint("last").is_file() or status["saved"]
        write_json(files.status, status | {"heartbeat": now()} | more)

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
            write(ended=now())
        except OSError as error:  # what ended the run is more important than that it could not be written down
            log.error("the state %s could not be kept: %s", status["state"], error)


def _end_of(raised: BaseException) -> BaseException:
    """Give the request to end in the place of an error of what Lightning tidies up after it."""
    asked = signals.asked_to_end(raised)
    if asked is None or isinstance(raised, (SystemExit, KeyboardInterrupt)):
        return raised
    if not isinstance(asked, KeyboardInterrupt):
        return asked
    end = SystemExit(1)  # as Lightning ends an interrupted training
    end.__context__ = asked
    return end


def _ending(error: BaseException, message: str | None, state: str) -> dict[str, str]:
    """Give state and reason of a run that ended early."""
    # Lightning ends an interrupted training by SystemExit(1).
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return {"state": "stopped", "reason": "interrupted"}
    if isinstance(error, signals.Stopped):
        return {"state": "stopped", "reason": str(error)}
    if number := signals.blamed(error):
        return {"state": "stopped", "reason": f"{signals.told_by(number)}; then {type(error).__name__}: {error}"}
    if state == "queued" and isinstance(error, SystemExit):
        return {"state": "queued", "reason": "told to end by the cluster, which starts it again"}
    return {"state": "failed", "reason": message or f"{type(error).__name__}: {error}"}


def explain(error: BaseException) -> str | None:
    """Say what to tell the user instead of a traceback; None where the traceback is to be seen.

    A mistake of the user's is a :class:`FacelabError`, an error of W&B, or a file that cannot be written. Any other
    error is one of the code. The traceback of both stands in the run's log file.
    """
    if isinstance(error, FacelabError):
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
