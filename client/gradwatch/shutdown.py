"""The end of the process: every open Watch is closed once, all of them within one deadline."""

import atexit
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Literal, Protocol

__all__ = ["Closer", "handle_signals", "register", "unregister"]

Status = Literal["completed", "failed", "interrupted"]

EXIT_SECONDS = 5.0


class Closer(Protocol):
    """What is closed when the process ends."""

    def close_at_exit(self, status: Status, timeout: float) -> None:
        """Close within ``timeout`` seconds; ``status`` says how the run ended."""
        ...


_open: "weakref.WeakSet[Any]" = weakref.WeakSet()


class _Ending:
    """How the process is about to end, as far as is known."""

    status: Status = "completed"
    hooked: bool = False


def register(closer: Closer) -> None:
    """Close this one when the process ends: as ``failed`` when an exception ends it."""
    if not _Ending.hooked:
        _Ending.hooked = True
        atexit.register(_close_all)
        _notice_exceptions()
    _open.add(closer)


def unregister(closer: Closer) -> None:
    """It is closed already."""
    _open.discard(closer)


def handle_signals(*signals: signal.Signals) -> None:
    """Close as ``interrupted`` on these signals, then let the signal do what it did before.

    A signal by default ends the process without running anything: schedulers announce preemption
    that way. Opt-in, since a handler belongs to the program and not to a library. Call it from the
    main thread.

    Args:
        *signals: Which ones; none: SIGTERM.

    Raises:
        ValueError: Not called from the main thread.
    """
    for number in signals or (signal.SIGTERM,):
        previous = signal.getsignal(number)
        signal.signal(number, _chained(previous))


def _chained(previous: Any) -> Callable[[int, FrameType | None], None]:
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        # A forked worker inherits the handler, but not the threads that would deliver.
        if os.getpid() == owner:
            _Ending.status = "interrupted"
            _close_all()
        if callable(previous):
            previous(number, frame)
        elif previous != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    return handle


def _close_all() -> None:
    deadline = time.monotonic() + EXIT_SECONDS
    for closer in list(_open):
        _open.discard(closer)
        left = max(0.1, deadline - time.monotonic())
        with suppress(Exception):  # the program is ending: its own exit code counts, not ours
            closer.close_at_exit(_Ending.status, left)


def _notice_exceptions() -> None:
    """Remember that an exception ended the program; what it prints stays as it was."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            _Ending.status = "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
        previous(kind, error, trace)

    sys.excepthook = hook
