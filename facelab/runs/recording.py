"""Records of a run in its folder: its state, its environment, and the reason of its end."""

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
from facelab.runs.processes import STAMP, is_first, join_tasks, prepare_ranks, restart_with_next_stamp, slurm_job

log = logging.getLogger(__name__)

REFUSED = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
)
"""Error numbers of a full or read-only file system, of missing permissions, and of a folder in the place of a file."""


@contextmanager
def track_run(folder: Path, task: str) -> Iterator[dict[str, Any]]:
    """Record environment and state of a run in its folder, and finish its W&B run in every case.

    The state has a heartbeat, which distinguishes a running run from a killed one. The traceback of an error that ends
    the run is written to its log file. SIGTERM and SIGUSR2 end the run in the state ``stopped``; under submitit its own
    handler decides on SIGUSR2, and a requeued job is ``queued``.

    Args:
        folder: folder of the run.
        task: name of the script, such as ``train``.

    Yields:
        The content of status.json, to which the caller may add.

    Raises:
        RunError: the folder belongs to a sweep, to a run of another script or to a running one; it is not changed.
        FacelabError: a mistake of the user, also if it was raised as another exception, see :func:`explain`.
    """
    status: dict[str, Any] = {
        "state": "running",
        "stamp": os.environ.get(STAMP),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "slurm_job": slurm_job(),
        "started": now(),
        "begun": False,  # whether more was done than checking the configuration
    }
    join_tasks()
    files = RunFolder(folder)
    _check_owner(files, task)
    before = read_status(folder) if is_first() else None
    with ExitStack() as stack:
        try:
            # Entered first, because handlers must be restored last in every case.
            stack.enter_context(signals.stopping(lambda: status.update(state="queued")))
            if is_first():
                stack.enter_context(_claimed(files))
                unknown = None if files.overrides.is_file() else False  # None: a run of an earlier version
                status["saved"] = before.content.get("saved", unknown) if before else unknown
                write_environment(files.environment)
                stack.enter_context(_beating(files, status))
            stack.enter_context(prepare_ranks(folder))
            yield status
            status["state"] = "finished"
        except BaseException as raised:
            error = _end_of(raised)
            signals.ignore(interrupt=True)  # ignore further stop signals while writing the end of the run
            _log_traceback(error)
            message = explain(error)
            status |= _ending(error, message, status["state"])
            if before and before.state == "finished" and not status["begun"]:
                status |= before.content | {"reason": ""}  # its results are still valid; only this start failed
            if message is None and error is raised:
                raise
            if message is None:
                raise error from None
            if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
                log.error("%s; the sweep runs its other jobs", message)  # Hydra shows it only at the end of the sweep
            if isinstance(error, FacelabError):
                raise
            raise FacelabError(message) from error
        finally:
            if "wandb" in sys.modules:  # importing it takes a second
                import wandb

                try:
                    wandb.finish()
                except Exception as error:  # its process may have been killed, and the run has ended anyway
                    log.warning("W&B could not finish its run: %s", error)


def _check_owner(files: RunFolder, task: str) -> None:
    """Refuse the folder of a sweep, or of a run of another script, whose files would be overwritten."""
    owner = read_yaml(files.config) if files.config.is_file() else None
    kind = "a sweep" if files.sweep.is_file() else f"{owner.get('task')}.py" if isinstance(owner, dict) else ""
    if kind not in ("", f"{task}.py"):
        raise RunError(f"{files.path} is the folder of {kind}, whose files would be overwritten; choose another")


@contextmanager
def _claimed(files: RunFolder) -> Iterator[None]:
    """Ensure that no other process is running in a folder.

    On one machine this is ensured by a lock, which the system releases when its process ends; between machines by the
    heartbeat. A requeued job may take over the folder from its own earlier start.
    """
    folder = files.path
    folder.mkdir(parents=True, exist_ok=True)
    try:
        files.lock.touch(exist_ok=False)
    except FileExistsError:
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN:
            restart_with_next_stamp(folder)
    if not files.lock.is_file():
        raise RunError(f"{files.lock} is not a file")  # opening a pipe would wait for its reader
    with files.lock.open("w") as file:
        running = f"{folder} is the folder of a run that is still running"
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process only: its workers do not inherit it
            elsewhere = read_status(folder).content.get("host") != socket.gethostname()
        except (BlockingIOError, PermissionError):
            raise RunError(f"{running}; nothing was changed there") from None
        except OSError:  # a file system without locks
            elsewhere = True
        status = read_status(folder)
        same_job = status.content.get("slurm_job") is not None and status.content["slurm_job"] == slurm_job()
        if status.state == "running" and elsewhere and not same_job:
            raise RunError(f"{running} ({status.reason}); nothing was changed there")
        for place in (folder, files.checkpoints, files.samples):
            remove_leftovers(place)
        yield


@contextmanager
def _beating(files: RunFolder, status: dict[str, Any]) -> Iterator[None]:
    """Write the state now, every :data:`HEARTBEAT` seconds and at the end.

    It records whether a checkpoint was saved.
    """
    done = threading.Event()

    def write(**more: Any) -> None:
        """Write the state with the time."""
        status["saved"] = files.checkpoint("last").is_file() or status["saved"]
        write_json(files.status, status | {"heartbeat": now()} | more)

    def beat() -> None:
        """Write the state regularly; log a failure, which does not stop the run."""
        while not done.wait(HEARTBEAT):
            try:
                write()
            except OSError as error:
                log.warning("the heartbeat could not be written: %s", error)

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
        except OSError as error:  # logged only: the error that ended the run is more important
            log.error("the state %s could not be written: %s", status["state"], error)


def _end_of(raised: BaseException) -> BaseException:
    """Return the stop request if Lightning raised an error while it handled one; otherwise return the error."""
    request = signals.find_stop_request(raised)
    if request is None or isinstance(raised, (SystemExit, KeyboardInterrupt)):
        return raised
    if not isinstance(request, KeyboardInterrupt):
        return request
    end = SystemExit(1)  # as Lightning ends an interrupted training
    end.__context__ = request
    return end


def _ending(error: BaseException, message: str | None, state: str) -> dict[str, str]:
    """Return state and reason of a run that ended early."""
    # Lightning ends an interrupted training by SystemExit(1).
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return {"state": "stopped", "reason": "interrupted"}
    if isinstance(error, signals.Stopped):
        return {"state": "stopped", "reason": str(error)}
    if number := signals.recorded_signal(error):
        return {"state": "stopped", "reason": f"{signals.stop_reason(number)}; then {type(error).__name__}: {error}"}
    if state == "queued" and isinstance(error, SystemExit):
        return {"state": "queued", "reason": "stopped by the cluster, which starts it again"}
    return {"state": "failed", "reason": message or f"{type(error).__name__}: {error}"}


def explain(error: BaseException) -> str | None:
    """Return the message that the user sees instead of a traceback; None if the traceback is shown.

    Mistakes of the user are a :class:`FacelabError`, an error of W&B, or a file that cannot be written. Any other error
    is a fault of the code. The log file of the run contains the traceback of both.
    """
    if isinstance(error, FacelabError):
        return str(error)
    if isinstance(error, OSError) and error.errno in REFUSED:
        return f"{error.filename or 'a file'}: {error.strerror}. All files written before are complete."
    if "wandb" in sys.modules:  # importing it takes a second
        import wandb

        if isinstance(error, wandb.Error):
            return f"logger.wandb: {error}\nlogger.wandb.offline=true needs neither an account nor a network."
    return None


def _log_traceback(error: BaseException) -> None:
    """Write the traceback of an error to the log file of the run, but not to the screen."""
    where = (type(error), error, error.__traceback__)
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, "the run ended with an error:", (), where)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
