"""Short pauses within long work, so that the training thread gets the interpreter when it wants it."""

import time

__all__ = ["Pause"]

WORK_SECONDS = 0.0002
# Long enough for a waiting thread to wake up and take the interpreter. A thread that merely lets go
# of it, as torch does in each operation, has it back before the other one has noticed.
PAUSE_SECONDS = 0.00005


class Pause:
    """Pauses when it is asked to and enough work was done since the last pause.

    Without pauses the interpreter's switch interval, 5 ms, is how long a burst of small pieces of
    work keeps other threads waiting.
    """

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def __call__(self) -> None:
        """Pause if it is time to."""
        if time.perf_counter() - self._since >= WORK_SECONDS:
            time.sleep(PAUSE_SECONDS)
            self._since = time.perf_counter()
