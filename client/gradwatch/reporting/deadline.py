"""A socket that keeps one deadline for a whole request, however slowly the other side drips."""

import io
import socket
import time
from contextlib import suppress
from typing import Any

__all__ = ["Deadline", "DeadlineSocket"]


class Deadline:
    """The moment at which the request under way ends, in monotonic seconds.

    A socket's own timeout starts anew with every byte that arrives; this one does not.
    """

    def __init__(self) -> None:
        self._at = 0.0
        self._limit = float("inf")
        self._socket: socket.socket | None = None

    def start(self, seconds: float) -> None:
        """Begin a request that may take this long."""
        self._at = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left.

        Raises:
            TimeoutError: None are.
        """
        left = min(self._at, self._limit) - time.monotonic()
        if left <= 0:
            raise TimeoutError("took longer than allowed")
        return left

    def limit(self, at: float) -> None:
        """From now on no request lasts beyond this moment. Callable from any thread."""
        self._limit = at

    def watch(self, sock: socket.socket) -> None:
        """Remember the socket in use."""
        self._socket = sock

    def abort(self) -> None:
        """End the request under way at once. Callable from any thread."""
        self._limit = 0.0
        if self._socket is not None:
            with suppress(OSError):
                # The plain socket's method even under TLS, whose own would wait for its peer.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class DeadlineSocket:
    """A connected socket whose sends and receives together keep a deadline.

    Args:
        sock: A connected socket, plain or TLS.
        deadline: Asked before every system call.
    """

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline
        deadline.watch(sock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def settimeout(self, seconds: float | None) -> None:
        """Do nothing: the deadline decides."""

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send everything before the deadline."""
        self._sock.settimeout(self._deadline.remaining())
        self._sock.sendall(data, flags)

    def makefile(self, mode: str = "rb", *_: Any, **__: Any) -> io.BufferedReader:
        """A reader whose every read keeps the deadline."""
        if mode != "rb":
            raise ValueError(f"mode {mode!r}: only 'rb' is read here")
        return io.BufferedReader(_Reader(self._sock, self._deadline))


class _Reader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        super().__init__()
        self._sock = sock
        # The socket stays open until this file is closed, as http.client expects.
        self._file = sock.makefile("rb", buffering=0)
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._deadline.remaining())
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()
