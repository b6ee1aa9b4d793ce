"""Signals that ask a run to stop, and who handles them. No other file below the scripts imports :mod:`signal`."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]
Handlers = dict[int, Any]
"""Number of a signal to its handler, which may be one of :mod:`signal`'s own or None."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""How a machine says that it will end a run: a shutdown or a cancelled job, and a time limit of a cluster."""
PRIORITY = (0, signal.SIGTERM, signal.SIGUSR2)
"""Increasing priority when ranks received different signals: after a time limit the job is to go on."""
PARENT_CHECK = 1.0
"""Seconds between two looks of a worker process for its parent."""
BLAMED = "facelab_signal"
"""Attribute of an exception that was raised after a signal had asked the run to stop: the number of the signal."""


class Stopped(SystemExit):
    """A signal asked the process to end; the run can be continued.

    It exits like any SystemExit: no ``except Exception`` keeps it, it ends a sweep, and a process that was spawned
    leaves without a traceback.
    """


class Requeued(SystemExit):
    """The cluster was asked to start the job again, and the process ends."""


def name_of(number: int) -> str:
    """Name a signal, as ``SIGTERM``."""
    return signal.Signals(number).name


def blame(error: BaseException, number: int) -> None:
    """Note at an exception that a signal had asked the run to stop before it was raised."""
    setattr(error, BLAMED, number)
    error.add_note(told_by(number))


def told_by(number: int) -> str:
    """Say that a signal asked the run to stop."""
    return f"told to end by {name_of(number)}"


def asked_to_end(error: BaseException) -> "Stopped | Requeued | KeyboardInterrupt | None":
    """Find the request to end in an error, or in those during whose handling it was raised."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, (Stopped, Requeued, KeyboardInterrupt)):
        found = found.__context__
    return found


def blamed(error: BaseException) -> int | None:
    """Return the signal that :func:`blame` noted at an exception."""
    return getattr(error, BLAMED, None)


def current() -> Handlers:
    """Return the handlers of the stop signals."""
    return {number: signal.getsignal(number) for number in STOP_SIGNALS}


def install(handlers: Mapping[int, Any]) -> Handlers:
    """Install handlers and return those that they replace; outside the main thread, which alone may, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    # None stands for a handler that was not set by Python, and cannot be.
    return {number: signal.signal(number, handler) for number, handler in handlers.items() if handler is not None}


def ignore(*, interrupt: bool = False) -> None:
    """Ignore the stop signals, and with ``interrupt`` Ctrl-C as well."""
    numbers = (*STOP_SIGNALS, signal.SIGINT) if interrupt else STOP_SIGNALS
    install(dict.fromkeys(numbers, signal.SIG_IGN))


@contextmanager
def held() -> Iterator[None]:
    """Hold back the stop signals and Ctrl-C until the end of the block, which starts processes.

    An exception of a handler would otherwise leave a process that nobody knows. The processes are born with these
    signals blocked: until they call :func:`obey_parent` none can end them.
    """
    numbers, came = (*STOP_SIGNALS, signal.SIGINT), list[int]()
    # The mask is for the new processes; in this one, other threads may still receive the signals.
    handlers = install(dict.fromkeys(numbers, lambda number, frame: came.append(number)))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        install(handlers)
        for number in came:
            signal.raise_signal(number)


def obey_parent(tidy: Callable[[], None] = lambda: None) -> None:
    """Ignore stop signals and Ctrl-C in a worker process, and end with its parent.

    A cluster sends a signal to all processes of a job, and the parent still needs its workers to finish the step. So
    SIGTERM ends a worker only if the parent has sent it, and the end of the parent, however it came, does too.

    Args:
        tidy: is called when the parent has ended without ending this process.
    """
    started_by = multiprocessing.parent_process()
    assert started_by is not None and started_by.pid, "of a process that multiprocessing started"
    parent = started_by.pid  # not os.getppid(): the parent may have ended since
    install(dict.fromkeys((signal.SIGUSR2, signal.SIGINT), signal.SIG_IGN))
    if not hasattr(signal, "sigtimedwait"):  # macOS does not tell who sent a signal
        install({signal.SIGTERM: signal.SIG_DFL})
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def wait() -> None:
        while os.getppid() == parent:
            sent = signal.sigtimedwait([signal.SIGTERM], PARENT_CHECK)
            if sent and sent.si_pid == parent:
                os._exit(0)  # the DataLoader takes another code for a crash
        tidy()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def end_with(parent: int) -> None:
    """End this process, a rank of a run, when its parent has ended; until :func:`stopping`, ignore the stop signals.

    A rank that waits for another to join does so for half an hour. One that a signal ends before it is ready to record
    that takes the whole run along as if it had crashed.
    """
    ignore()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK)
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def hand_over(number: int, handlers: Mapping[int, Any]) -> None:
    """Install handlers and have theirs decide on a signal that has come; as a rule it ends the process.

    Raises:
        Stopped: the handler returned, or there is none.
    """
    install(handlers)
    if callable(handler := handlers[number]):
        handler(number, None)
    raise Stopped(f"stopped by {name_of(number)}")


@contextmanager
def stopping(requeueing: Callable[[], None]) -> Iterator[None]:
    """End what runs here in order when the machine says that it will be ended.

    SIGTERM and SIGUSR2 raise :class:`Stopped`; but where submitit listens to SIGUSR2, its handler decides. Afterwards
    all handlers are as they were, that of Ctrl-C too.

    Args:
        requeueing: called before submitit's handler.

    Raises:
        Stopped: at any place of the block.
        Requeued: at any place of the block, of a process whose handler returned, as all but the first of a job.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        last.append(number)
        raise Stopped(f"stopped by {name_of(number)}")

    def unraisable(told: "sys.UnraisableHookArgs") -> None:
        if isinstance(told.exc_value, Stopped) and last:  # it came in a destructor, which drops it
            threading.Timer(0.1, os.kill, (os.getpid(), last[-1])).start()
        else:
            hook(told)

    last, hook = list[int](), sys.unraisablehook
    before: Handlers = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGINT)}
    submitit = before[signal.SIGUSR2]

    def requeue(number: int, frame: FrameType | None) -> None:
        # Slurm then ends all processes of the job, also the one that has asked it to requeue it; and of several
        # processes each may be told on its own after it has heard it from another.
        ignore()
        requeueing()
        submitit(number, frame)
        raise Requeued(0)

    install({signal.SIGTERM: stop, signal.SIGUSR2: requeue if callable(submitit) else stop})
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        install(before)
