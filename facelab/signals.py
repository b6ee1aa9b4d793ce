"""Stop signals and their handlers. No other file below the scripts imports :mod:`signal`."""

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
"""Handlers by signal number; a handler may be a constant of :mod:`signal` or None."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""Stop signals: SIGTERM at a shutdown or for a cancelled job, SIGUSR2 before the time limit of a cluster."""
PRIORITY = (0, signal.SIGTERM, signal.SIGUSR2)
"""Increasing priority when ranks received different signals: after a time limit the job must be requeued."""
PARENT_CHECK = 1.0
"""Seconds between two checks of a process whether its parent is running."""
SIGNAL_ATTRIBUTE = "facelab_signal"
"""Name of an attribute of an exception that was raised after a stop signal: the number of the signal."""


class Stopped(SystemExit):
    """Exit after a stop signal; the run can be resumed.

    Like any SystemExit, it is not caught by ``except Exception``, it ends a sweep, and it ends a spawned process
    without a traceback.
    """


class Requeued(SystemExit):
    """Exit after the cluster was asked to requeue the job."""


def name_of(number: int) -> str:
    """Return the name of a signal, such as ``SIGTERM``."""
    return signal.Signals(number).name


def record_signal(error: BaseException, number: int) -> None:
    """Record in an exception the stop signal that was received before it was raised."""
    setattr(error, SIGNAL_ATTRIBUTE, number)
    error.add_note(stop_reason(number))


def stop_reason(number: int) -> str:
    """Return the reason for a stop by a signal."""
    return f"stopped by {name_of(number)}"


def find_stop_request(error: BaseException) -> "Stopped | Requeued | KeyboardInterrupt | None":
    """Return the first stop request in an error's chain (the error, its context, and so on); None if there is none."""
    request: BaseException | None = error
    while request is not None and not isinstance(request, (Stopped, Requeued, KeyboardInterrupt)):
        request = request.__context__
    return request


def recorded_signal(error: BaseException) -> int | None:
    """Return the number of the signal that :func:`record_signal` recorded in an exception."""
    return getattr(error, SIGNAL_ATTRIBUTE, None)


def current_handlers() -> Handlers:
    """Return the handlers of the stop signals."""
    return {number: signal.getsignal(number) for number in STOP_SIGNALS}


def install(handlers: Mapping[int, Any]) -> Handlers:
    """Install handlers and return those that they replace; do nothing outside the main thread, as Python requires."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    # None means a handler that was not set by Python, which cannot be restored.
    return {number: signal.signal(number, handler) for number, handler in handlers.items() if handler is not None}


def ignore(*, interrupt: bool = False) -> None:
    """Ignore the stop signals, and with ``interrupt`` Ctrl-C as well."""
    numbers = (*STOP_SIGNALS, signal.SIGINT) if interrupt else STOP_SIGNALS
    install(dict.fromkeys(numbers, signal.SIG_IGN))


@contextmanager
def deferred() -> Iterator[None]:
    """Defer the stop signals and Ctrl-C until the end of the block, which starts processes.

    Otherwise an exception of a handler could leave a started process without a reference. The new processes start with
    these signals blocked: until they call :func:`end_with_pool_parent`, no such signal can end them.
    """
    numbers, received = (*STOP_SIGNALS, signal.SIGINT), list[int]()
    # The new processes inherit the mask; in this process, other threads may still receive the signals.
    handlers = install(dict.fromkeys(numbers, lambda number, frame: received.append(number)))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        install(handlers)
        for number in received:
            signal.raise_signal(number)


def end_with_pool_parent(clean_up: Callable[[], None] = lambda: None) -> None:
    """Ignore stop signals and Ctrl-C in a worker process, and end it with its parent.

    A cluster sends a signal to all processes of a job, but the parent still needs its workers to finish the step.
    Therefore SIGTERM ends a worker only if the parent sent it. A worker also ends when its parent has ended for any
    reason.

    Args:
        clean_up: called when the parent has ended without ending this process.
    """
    started_by = multiprocessing.parent_process()
    assert started_by is not None and started_by.pid, "only for a process that multiprocessing started"
    parent = started_by.pid  # not os.getppid(): the parent may have ended since
    install(dict.fromkeys((signal.SIGUSR2, signal.SIGINT), signal.SIG_IGN))
    if not hasattr(signal, "sigtimedwait"):  # macOS does not report the sender of a signal
        install({signal.SIGTERM: signal.SIG_DFL})
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def wait() -> None:
        """End this process when the parent sends SIGTERM or has ended."""
        while os.getppid() == parent:
            sent = signal.sigtimedwait([signal.SIGTERM], PARENT_CHECK)
            if sent and sent.si_pid == parent:
                os._exit(0)  # the DataLoader treats any other code as a crash
        clean_up()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def end_with_parent(parent: int) -> None:
    """End this rank when its parent has ended; ignore stop signals until :func:`stopping`.

    Without the check, a rank waits half an hour for another one to join. A signal that ends a rank before
    :func:`stopping` would look like a crash of the run.
    """
    ignore()

    def wait() -> None:
        """End this process when the parent has ended."""
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK)
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def call_handler(number: int, handlers: Mapping[int, Any]) -> None:
    """Install handlers and call the one of a received signal, which usually ends the process.

    Raises:
        Stopped: the handler returned, or is not callable.
    """
    install(handlers)
    if callable(handler := handlers[number]):
        handler(number, None)
    raise Stopped(stop_reason(number))


@contextmanager
def stopping(requeueing: Callable[[], None]) -> Iterator[None]:
    """End the block by an exception when a stop signal is received.

    SIGTERM and SIGUSR2 raise :class:`Stopped`; if submitit has a handler for SIGUSR2, that one decides. Afterwards all
    handlers are restored, including that of Ctrl-C.

    Args:
        requeueing: called before submitit's handler.

    Raises:
        Stopped: at any point of the block.
        Requeued: at any point of the block, if submitit's handler returns, as in all but the first process of a job.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        """Raise :class:`Stopped`."""
        received.append(number)
        raise Stopped(stop_reason(number))

    def unraisable(event: "sys.UnraisableHookArgs") -> None:
        """Send the signal again if its exception was dropped."""
        if isinstance(event.exc_value, Stopped) and received:  # raised in a destructor, which drops it
            threading.Timer(0.1, os.kill, (os.getpid(), received[-1])).start()
        else:
            hook(event)

    received, hook = list[int](), sys.unraisablehook
    before: Handlers = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGINT)}
    submitit = before[signal.SIGUSR2]

    def requeue(number: int, frame: FrameType | None) -> None:
        """Call submitit's handler, which requeues the job."""
        # After the requeue Slurm ends all processes of the job, including the one that requested it. With several
        # ranks, each may receive a signal after another rank has already passed it on.
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
