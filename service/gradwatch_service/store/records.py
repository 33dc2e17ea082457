"""What goes into a store and comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gradwatch_service import live
from gradwatch_service.rows import StepRows
from gradwatch_wire import Manifest, Partial

__all__ = [
    "Commit",
    "CommitKind",
    "Delivery",
    "Gap",
    "Receipt",
    "Registered",
    "RunPage",
    "RunRecord",
    "Stream",
]

CommitKind = Literal["registered", "report", "finished", "edited", "deleted"]


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """One delivery, decoded and validated, ready to be stored.

    Attributes:
        run: Run id.
        sequence: Number of the delivery within (run, attempt, rank). Negative for steps posted
            the short way, where it is ``-1 - step``: their identity is (run, step).
        manifest: Hash of the manifest that the columns belong to; empty for the short way.
        rows: The steps, which may be none.
        digest: 16 bytes that tell a repeat from other content under the same identity.
        packed: The rows as the store keeps them.
        received: Server clock, Unix seconds.
        dropped: Reports that the client gave up, by reason.
        partial: Set when the rows are one shard's part.
        counts: What the commit adds to the run's counters; see :mod:`gradwatch_service.live`.
    """

    run: str
    sequence: int
    manifest: str
    rows: StepRows
    digest: bytes
    packed: bytes
    received: float
    counts: live.Summary
    dropped: Mapping[str, int] = field(default_factory=dict)
    partial: Partial | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a delivery. ``stored`` is False for a repeat: it was stored before."""

    stored: bool


@dataclass(frozen=True, slots=True)
class Registered:
    """Answer to a registration.

    Attributes:
        run: Run id.
        attempt: The attempt that the session belongs to.
        manifest: Hash of the manifest now in force.
        created: Whether anything is new: run, attempt or manifest.
        new_run: Whether the run itself is new.
    """

    run: str
    attempt: int
    manifest: str
    created: bool
    new_run: bool


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run as stored.

    Attributes:
        run: Run id.
        project: Project it belongs to.
        name: Display name, or None.
        note: Free text, or None.
        tags: Tags.
        status: What ``finish`` said, or None while the run goes on.
        state: Newest state that analysis stored, such as ``"healthy"``.
        attempt: Newest attempt.
        steps: Steps stored, over all attempts and the lowest rank.
        first_step: Lowest step stored, or None.
        last_step: Newest step of the newest attempt that has one, or None.
        world_size: Ranks of the newest registration.
        policy: Clipping policy of the newest registration, or None.
        dropped: Reports that clients gave up, by reason.
        counters: Counters stored in the commits that changed them.
        created_at: Server clock, Unix seconds.
        last_report_at: The same, or None before the first report.
        finished_at: The same, or None.
        revision: Grows with every change of the run, its reports included.
    """

    run: str
    project: str
    name: str | None
    note: str | None
    tags: Mapping[str, str]
    status: str | None
    state: str
    attempt: int
    steps: int
    first_step: int | None
    last_step: int | None
    world_size: int
    policy: Mapping[str, Any] | None
    dropped: Mapping[str, int]
    counters: live.Counters
    created_at: float
    last_report_at: float | None
    finished_at: float | None
    revision: int


@dataclass(frozen=True, slots=True)
class RunPage:
    """A page of runs, newest first, and where the next one starts."""

    items: tuple[RunRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Stream:
    """Steps of one (attempt, optimizer, rank), with its newest manifest.

    ``valid_to`` is the last step that no newer attempt supersedes, or None while nothing does:
    steps above it are the superseded tail.
    """

    attempt: int
    optimizer: str
    rank: int
    manifest: Manifest
    first_step: int | None
    last_step: int | None
    steps: int
    valid_to: int | None


@dataclass(frozen=True, slots=True)
class Gap:
    """How complete the deliveries of one (attempt, rank) are.

    Attributes:
        contiguous: Largest n for which the sequences 0 to n are all there; -1 when 0 is missing.
        highest: Largest sequence there; -1 when there is none.
        steps: Optimizer to its last step within the contiguous sequences.
    """

    contiguous: int
    highest: int
    steps: Mapping[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class Commit:
    """What a transaction changed, told to listeners after it is durable.

    ``attempt``, ``optimizer``, ``rank``, ``sequence`` and ``rows`` are set for reports (``rows`` may
    hold no step); ``counters`` are the run's counters as committed; ``record`` is the run as it is now,
    set for registrations, edits and finishes.
    """

    kind: CommitKind
    run: str
    project: str
    counters: live.Counters = live.EMPTY
    attempt: int | None = None
    optimizer: str | None = None
    rank: int | None = None
    sequence: int | None = None
    rows: StepRows | None = None
    received: float | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    partial: bool = False
    status: str | None = None
    record: RunRecord | None = None
