"""One file of the spool."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gradwatch.reporting import frames
from gradwatch.reporting.delivery import Delivery, emptied, read_delivery

__all__ = ["Segment"]


@dataclass(slots=True, eq=False)
class Segment:
    """Deliveries in the order they were made.

    Attributes:
        path: The file.
        nbytes: Its length.
        deliveries: How many it holds.
        steps: Steps in them.
    """

    path: Path
    nbytes: int = 0
    deliveries: int = 0
    steps: int = 0
    _file: int | None = None

    @classmethod
    def create(cls, path: Path, preamble: bytes) -> "Segment":
        """A new file that only its owner may read.

        Raises:
            OSError: It cannot be written, or is there already.
        """
        segment = cls(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        segment._file = os.open(path, flags, 0o600)
        segment.write(preamble)
        return segment

    def write(self, data: bytes) -> None:
        """Append bytes: all of them, or none.

        Raises:
            OSError: They could not be written.
        """
        if self._file is None:
            raise OSError(f"{self.path} is closed")
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self.nbytes)
            raise
        self.nbytes += len(data)

    def append(self, delivery: Delivery) -> None:
        """Append a delivery.

        Raises:
            OSError: It could not be written.
        """
        self.write(frames.pack(frames.DELIVERY, delivery.body))
        self.deliveries += 1
        self.steps += delivery.steps

    def read(self, offset: int = 0) -> Iterator[tuple[Delivery, int]]:
        """Its deliveries, each with the offset behind it.

        Raises:
            OSError: The file cannot be read.
        """
        with self.path.open("rb") as file:
            for frame in frames.unpack(file, offset):
                if frame.kind == frames.DELIVERY:
                    yield read_delivery(frame.body), frame.end

    def empty(self, rank: int, reason: str) -> int:
        """Replace every delivery by an empty one that counts its steps; how many that were.

        Raises:
            OSError: The file cannot be replaced; it is as it was.
        """
        self.close()
        shorter = self.path.with_suffix(".tmp")
        with self.path.open("rb") as file, shorter.open("wb") as out:
            out.write(frames.MAGIC)
            for frame in frames.unpack(file):
                body = frame.body
                if frame.kind == frames.DELIVERY:
                    body = emptied(read_delivery(body), rank, reason).body
                out.write(frames.pack(frame.kind, body))
            self.nbytes = out.tell()
        shorter.chmod(0o600)
        shorter.replace(self.path)
        steps, self.steps = self.steps, 0
        return steps

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def remove(self) -> None:
        """Delete the file."""
        self.close()
        with suppress(OSError):
            self.path.unlink()
