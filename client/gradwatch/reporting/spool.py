"""Deliveries on disk while the service is away: in order, bounded, safe from SIGKILL."""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradwatch.identity import Identity
from gradwatch.reporting import frames
from gradwatch.reporting.delivery import Delivery
from gradwatch.reporting.disk import LOCK_NAME, is_network_mount, try_lock
from gradwatch.reporting.segment import Segment
from gradwatch_wire import Manifest

__all__ = ["Spool"]

MAX_BYTES = 256 * 2**20
SEGMENT_BYTES = 8 * 2**20

_logger = logging.getLogger("gradwatch")


class Spool:
    """A folder of segments, written at one end and read at the other by one thread.

    ``DIR/RUN/SESSION-rRANK/0000000000.gw``. Nothing is created before something is written. Each
    segment begins with who reports and with every manifest, so that it can be read alone. Beyond the
    cap the oldest segment's steps are dropped: empty deliveries that count them take their place.
    Nothing is synced to the disk: it survives the death of the process, not of the machine.

    Args:
        directory: DIR.
        identity: Who reports.
        max_bytes: The cap.
        segment_bytes: Length at which a new segment is begun.

    Attributes:
        folder: Where the segments lie.
        off: Why nothing is written any more; None while it is.
    """

    def __init__(
        self,
        directory: Path,
        identity: Identity,
        *,
        max_bytes: int = MAX_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.folder = directory / identity.run / f"{identity.session}-r{identity.rank}"
        self.off: str | None = None
        self._identity = identity
        self._max_bytes = max_bytes
        self._segment_bytes = min(segment_bytes, max(1, max_bytes // 4))
        self._created = time.time()
        self._manifests: list[Manifest] = []
        self._segments: list[Segment] = []
        self._next_number = 0
        self._lock: int | None = None
        self._head: tuple[Delivery, int] | None = None
        self._done = 0  # deliveries of the oldest segment that are done with
        self._offset = 0  # where the next one is looked for; 0: from the beginning

    def __len__(self) -> int:
        return sum(segment.deliveries for segment in self._segments) - self._done

    @property
    def steps(self) -> int:
        """Steps in the segments."""
        return sum(segment.steps for segment in self._segments)

    def introduce(self, manifest: Manifest) -> None:
        """Take a manifest that deliveries will name."""
        self._manifests.append(manifest)
        if self._segments:
            self._write(frames.MANIFEST, manifest.to_json())

    def append(self, delivery: Delivery) -> Counter[str] | None:
        """Write a delivery; the steps dropped for it, by reason, or None when it is not written."""
        if self.off is not None:
            return None
        try:
            self._open_segment().append(delivery)
            return self._keep_cap()
        except OSError as error:
            self._switch_off(error)
            return None

    def finish(self, status: str) -> None:
        """Write how the run ended."""
        self._write(frames.FINISH, {"status": status})

    def head(self) -> Delivery | None:
        """The oldest delivery that is not done with."""
        if self._head is None and len(self):
            self._head = self._find()
            if self._head is None:
                # Somebody else deleted or damaged the file: what it held is lost, the rest is not.
                self._done = self._segments[0].deliveries - 1
                self.pop()
                return self.head()
        return None if self._head is None else self._head[0]

    def pop(self) -> None:
        """The head is done with; a segment that was read to its end is deleted."""
        if self._head is not None:
            self._offset = self._head[1]
        self._head = None
        self._done += 1
        if self._done >= self._segments[0].deliveries:
            self._segments.pop(0).remove()
            self._done = self._offset = 0
        if not self._segments:
            self._leave()

    def close(self) -> None:
        """Write no more; what is not done with stays."""
        for segment in self._segments:
            segment.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _find(self) -> tuple[Delivery, int] | None:
        skip = self._done if self._offset == 0 else 0
        with suppress(OSError, ValueError):
            for found in self._segments[0].read(self._offset):
                if skip == 0:
                    return found
                skip -= 1
        return None

    def _write(self, kind: bytes, content: Mapping[str, Any]) -> None:
        if self.off is not None:
            return
        try:
            self._open_segment().write(frames.pack(kind, _json(content)))
        except OSError as error:
            self._switch_off(error)

    def _open_segment(self) -> Segment:
        if self._segments and self._segments[-1].nbytes < self._segment_bytes:
            return self._segments[-1]
        if self._lock is None:
            self._enter()
        if self._segments:
            self._segments[-1].close()
        path = self.folder / f"{self._next_number:010d}.gw"
        segment = Segment.create(path, self._preamble())
        self._next_number += 1
        self._segments.append(segment)
        return segment

    def _enter(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = try_lock(self.folder)
        if self._next_number == 0 and is_network_mount(self.folder):
            _logger.warning(
                "the spool %s is on a network file system: slow, and its end may be lost with the "
                "connection. Set GRADWATCH_DIR to a local folder.",
                self.folder,
            )

    def _leave(self) -> None:
        """Nothing is left: remove what only stood around it."""
        self.close()
        with suppress(OSError):
            (self.folder / LOCK_NAME).unlink()
            self.folder.rmdir()
            self.folder.parent.rmdir()

    def _preamble(self) -> bytes:
        who = {
            "run": self._identity.run,
            "session": self._identity.session,
            "rank": self._identity.rank,
            "created": self._created,
        }
        manifests = [frames.pack(frames.MANIFEST, _json(m.to_json())) for m in self._manifests]
        return b"".join((frames.MAGIC, frames.pack(frames.IDENTITY, _json(who)), *manifests))

    def _keep_cap(self) -> Counter[str]:
        dropped: Counter[str] = Counter()
        for index, segment in enumerate(self._segments[:-1]):
            if sum(each.nbytes for each in self._segments) <= self._max_bytes:
                break
            if segment.steps:
                dropped["spool_full"] += segment.empty(self._identity.rank, "spool_full")
                if index == 0:
                    self._head, self._offset = None, 0
        return dropped

    def _switch_off(self, error: OSError) -> None:
        self.off = f"{error.strerror or error}"
        _logger.warning(
            "the spool %s is switched off (%s): reports are kept in memory as far as they fit. "
            "Set GRADWATCH_DIR to a folder with room, and where this user may write.",
            self.folder,
            self.off,
        )


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
