"""A spool brought to the service: in order, repeatable, interruptible."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradwatch.identity import Identity
from gradwatch.reporting import frames
from gradwatch.reporting.backoff import Backoff
from gradwatch.reporting.delivery import Delivery, emptied, read_delivery
from gradwatch.reporting.disk import LOCK_NAME, try_lock
from gradwatch.reporting.sender import Sender
from gradwatch.reporting.transport import Transport
from gradwatch.reporting.verdict import Action
from gradwatch_wire import Manifest

__all__ = ["Replayed", "Spooled", "find_spools", "replay"]

FINISH_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Spooled:
    """What one rank of one job start left behind.

    Attributes:
        folder: Where its segments lie.
        run: Its run.
        session: Which start of the job.
        rank: Which rank.
        created: When it started, in Unix seconds.
        deliveries: How many whole ones there are.
        damaged: Segments that do not end with a whole frame.
    """

    folder: Path
    run: str
    session: str
    rank: int
    created: float
    deliveries: int
    damaged: int


@dataclass(slots=True)
class Replayed:
    """What became of a spool.

    Attributes:
        delivered: Deliveries that the service acknowledged.
        dropped: Steps that it refused, by reason.
        left: Deliveries that could not be brought there.
        why: What stood in the way; empty when nothing did.
    """

    delivered: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    left: int = 0
    why: str = ""


def find_spools(directory: Path) -> list[Spooled]:
    """The spools below a directory, in the order in which the jobs started.

    Raises:
        OSError: A segment cannot be read.
    """
    folders = sorted({path.parent for path in directory.rglob("*.gw")})
    found = [spool for folder in folders if (spool := _survey(folder)) is not None]
    # Attempts are numbered as their sessions register: the order decides which is the newest.
    return sorted(found, key=lambda spool: (spool.run, spool.created, spool.rank))


def replay(
    spool: Spooled,
    connect: Callable[[], Transport],
    *,
    keep: bool = False,
    backoff: Backoff | None = None,
    patience: int = 5,
    on_delivery: Callable[[], None] = lambda: None,
) -> Replayed:
    """Bring a spool to the service. What was acknowledged is deleted, segment by segment.

    Args:
        spool: Which.
        connect: Makes what asks the service.
        keep: Whether to delete nothing.
        backoff: How long to wait after a failure.
        patience: Failures in a row after which to give up.
        on_delivery: Called after each delivery.

    Returns:
        What became of it. Interrupted or repeated, nothing is counted twice: the service knows what
        it has.
    """
    outcome = Replayed(left=spool.deliveries)
    lock = try_lock(spool.folder)
    if lock is None:
        outcome.why = "its job is still running, and delivers it itself"
        return outcome
    try:
        identity = Identity(run=spool.run, session=spool.session, rank=spool.rank)
        sender = Sender(connect, identity, backoff or Backoff(patience=patience + 1))
        for path in sorted(spool.folder.glob("*.gw")):
            progress = _Progress(sender, outcome, spool.rank, patience, on_delivery)
            if not progress.bring_segment(path):
                outcome.why = sender.stopped or sender.last_error or "no answer"
                break
            if not keep:
                path.unlink()
        sender.close()
    finally:
        os.close(lock)
    _tidy(spool.folder)
    return outcome


@dataclass(frozen=True, slots=True)
class _Progress:
    sender: Sender
    outcome: Replayed
    rank: int
    patience: int
    on_delivery: Callable[[], None]

    def bring_segment(self, path: Path) -> bool:
        """Bring one segment to the service; whether all of it is done with."""
        for frame in _frames(path):
            if frame.kind == frames.MANIFEST:
                self.sender.introduce(Manifest.from_json(json.loads(frame.body)))
            elif frame.kind == frames.FINISH:
                if not self._finish(json.loads(frame.body)["status"]):
                    return False
            elif frame.kind == frames.DELIVERY:
                if not self._bring(read_delivery(frame.body)):
                    return False
                self.outcome.left -= 1
                self.on_delivery()
        return True

    def _finish(self, status: str) -> bool:
        finished = self.sender.finish(status, until=time.monotonic() + FINISH_SECONDS)
        self.sender.limit(float("inf"))
        return finished

    def _bring(self, delivery: Delivery) -> bool:
        failures = 0
        while self.sender.stopped is None and failures < self.patience:
            time.sleep(min(self.sender.ready_in(), 60.0))
            verdict = self.sender.deliver(delivery)
            if verdict.action is Action.DONE:
                self.outcome.delivered += 1
                return True
            if verdict.action is Action.DROP:
                self.outcome.dropped[verdict.reason] += delivery.steps
                if delivery.steps == 0:
                    return True
                delivery = emptied(delivery, self.rank, verdict.reason)
            else:
                failures += 1
        return False


def _survey(folder: Path) -> Spooled | None:
    who: dict[str, Any] | None = None
    deliveries = damaged = 0
    for path in sorted(folder.glob("*.gw")):
        end = 0
        for frame in _frames(path):
            end = frame.end
            deliveries += frame.kind == frames.DELIVERY
            if frame.kind == frames.IDENTITY and who is None:
                who = json.loads(frame.body)
        damaged += end != path.stat().st_size
    if who is None:
        return None
    return Spooled(
        folder=folder,
        run=str(who["run"]),
        session=str(who["session"]),
        rank=int(who["rank"]),
        created=float(who["created"]),
        deliveries=deliveries,
        damaged=damaged,
    )


def _frames(path: Path) -> Iterator[frames.Frame]:
    with path.open("rb") as file:
        yield from frames.unpack(file)


def _tidy(folder: Path) -> None:
    """Remove the folder and its run's when nothing is left in them."""
    if any(folder.glob("*.gw")):
        return
    with suppress(OSError):
        (folder / LOCK_NAME).unlink()
        folder.rmdir()
        folder.parent.rmdir()
