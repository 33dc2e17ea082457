"""What every store keeps and promises. ``tests/contract`` holds each engine to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from gradwatch_service import live
from gradwatch_service.queries.series import Pieces
from gradwatch_service.rows import StepRows
from gradwatch_wire import Manifest, Partial

__all__ = [
    "Commit",
    "CommitKind",
    "DeletedRunError",
    "Delivery",
    "Gap",
    "LimitReachedError",
    "ManifestConflictError",
    "Receipt",
    "Registered",
    "RunPage",
    "RunRecord",
    "SequenceConflictError",
    "Store",
    "StoreUnavailableError",
    "Stream",
    "UnknownAttemptError",
    "UnknownManifestError",
    "UnknownRunError",
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

    ``attempt``, ``optimizer``, ``rank`` and ``rows`` are set for reports (``rows`` may hold no
    step); ``counters`` are the run's counters as committed; ``record`` is the run as it is now,
    set for registrations, edits and finishes.
    """

    kind: CommitKind
    run: str
    project: str
    counters: live.Counters = live.EMPTY
    attempt: int | None = None
    optimizer: str | None = None
    rank: int | None = None
    rows: StepRows | None = None
    received: float | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    partial: bool = False
    status: str | None = None
    record: RunRecord | None = None


class Store(Protocol):
    """Keeps runs, their steps and what analysis says about them.

    Every method is called from threads, never from an event loop. A write answers after its
    commit is durable. The run comes first in every key, so that runs can be spread.
    """

    def on_commit(self, listener: Callable[[Sequence[Commit]], None]) -> None:
        """Call ``listener`` after every durable commit, in order; it must be quick and not raise."""

    def on_write(self, seen: Callable[[float, bool], None]) -> None:
        """Call ``seen`` after every transaction with its seconds and whether it was stored."""

    def start(self) -> None:
        """Begin the work that goes on in the background: chunks, roll-ups, retention."""

    def close(self) -> None:
        """Finish what was accepted, then let go of the store. Safe to repeat."""

    # Runs

    def register(self, run: str, manifest: Manifest, *, now: float) -> Registered:
        """Register, resume or extend a run.

        Raises:
            ManifestConflictError: Other tensors without ``extends``, or a known name with another
                shape or dtype, or the run belongs to another project.
            DeletedRunError: The run was deleted.
        """

    def run(self, run: str) -> RunRecord:
        """The run.

        Raises:
            UnknownRunError: There is none of that id.
            DeletedRunError: There was one.
        """

    def runs(
        self,
        *,
        project: str | None = None,
        state: str | None = None,
        q: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> RunPage:
        """Runs, newest first; ``q`` is looked for in id, name and tags.

        Raises:
            ValueError: The cursor is none of ours.
        """

    def edit(
        self,
        run: str,
        *,
        name: str | None = None,
        note: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> RunRecord:
        """Change what is given; None leaves it, an empty name or note clears it."""

    def finish(self, run: str, status: str, *, now: float) -> RunRecord:
        """Note how the run ended. Safe to repeat; later deliveries are still accepted."""

    def set_state(self, run: str, state: str) -> None:
        """Keep the state that analysis found, for listings."""

    def delete(self, run: str) -> None:
        """Delete everything of the run; its id stays known as deleted."""

    # Steps

    def manifest(self, run: str, manifest_hash: str) -> Manifest:
        """A manifest registered for the run.

        Raises:
            UnknownManifestError: None of that hash.
        """

    def append(self, delivery: Delivery) -> Future[Receipt]:
        """Store a delivery once; the future is done after its commit is durable.

        The future raises:
            SequenceConflictError: The identity is known with other content.
            UnknownRunError, UnknownAttemptError, UnknownManifestError: Not registered.
            StoreUnavailableError: Nothing was stored (disk full, closed).
        """

    def append_steps(self, deliveries: Sequence[Delivery]) -> Future[list[Receipt]]:
        """Store steps posted the short way: all or, on a conflict, none."""

    def streams(self, run: str) -> list[Stream]:
        """Every registered stream, by attempt, optimizer and rank; also those without a step."""

    def gaps(self, run: str, attempt: int) -> dict[int, Gap]:
        """Completeness of the numbered deliveries by rank; the short way numbers none."""

    def read(
        self,
        run: str,
        *,
        attempt: int,
        optimizer: str,
        rank: int,
        start: int | None = None,
        end: int | None = None,
        limit: int | None = None,
        tensors: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
        histograms: bool = True,
    ) -> Iterator[StepRows]:
        """Rows of one stream in step order, each step once, in blocks of any size.

        Args:
            run: Run id.
            attempt: Attempt of the run.
            optimizer: Name of the optimizer.
            rank: Rank that reported.
            start: First step, inclusive.
            end: Last step, inclusive.
            limit: Stop after this many steps, counted from ``start``.
            tensors: Indices into the manifest; the columns then hold these alone, in this order,
                and ``rows.manifest`` is cut alike. None reads all.
            columns: Tensor columns to read; None reads all. Scalars are always read.
            histograms: Whether histograms are read.
        """

    def curve(
        self,
        run: str,
        *,
        attempt: int,
        optimizer: str,
        rank: int,
        metric: str,
        tensor: int | None = None,
        columns: Sequence[str] | None = None,
        start: int | None = None,
        end: int | None = None,
        points: int = 1000,
    ) -> Iterator[StepRows | Pieces]:
        """One metric of a stream, as coarse as ``points`` points allow and as fine as it is kept.

        Rows hold single steps (cut to the tensor, if one is asked for); pieces stand for up to 64
        steps each, with least and greatest value. Together they cover every step once, in no
        certain order.

        Args:
            run: Run id.
            attempt: Attempt of the run.
            optimizer: Name of the optimizer.
            rank: Rank that reported.
            metric: A metric of runs or, with ``tensor``, of tensors; or a scalar.
            tensor: Index into the manifest, None for the run.
            columns: Tensor columns that the rows are to have.
            start: First step, inclusive.
            end: Last step, inclusive.
            points: Points that are wanted in the end.
        """

    # What analysis keeps

    def save(self, run: str, changes: Mapping[str, Mapping[str, bytes | None]]) -> None:
        """Write documents by collection and key in one transaction; None deletes one."""

    def documents(self, run: str, collection: str) -> dict[str, bytes]:
        """Every document of a collection of the run, by key."""

    def all_documents(
        self, collection: str, *, project: str | None = None
    ) -> Iterator[tuple[str, str, bytes]]:
        """Every (run, key, document) of a collection over all runs, newest run first."""

    # The store itself

    def check(self) -> None:
        """Raise StoreUnavailableError unless a write would be durable now."""

    def size_bytes(self) -> int:
        """Bytes on disk, journal included."""


class UnknownRunError(LookupError):
    """There is no run of that id."""

    def __init__(self, run: str) -> None:
        super().__init__(f"no run {run!r} on this service; PUT /api/v1/runs/{{run}} registers one")
        self.run = run


class DeletedRunError(LookupError):
    """The run was deleted."""

    def __init__(self, run: str) -> None:
        super().__init__(f"run {run!r} was deleted; choose another id")
        self.run = run


class UnknownAttemptError(LookupError):
    """The run has no such attempt."""

    def __init__(self, run: str, attempt: int) -> None:
        super().__init__(f"run {run!r} has no attempt {attempt}; the answer to PUT names it")
        self.attempt = attempt


class UnknownManifestError(LookupError):
    """No manifest of that hash is registered where the report says."""

    def __init__(self, run: str, manifest_hash: str) -> None:
        super().__init__(
            f"run {run!r} has no manifest {manifest_hash!r} for this attempt, optimizer and rank; "
            "register it with PUT and send the report again"
        )


class ManifestConflictError(ValueError):
    """The tensors do not go with those registered before."""


class SequenceConflictError(ValueError):
    """The identity is known with other content."""


class LimitReachedError(ValueError):
    """A limit of the settings does not allow one more."""


class StoreUnavailableError(RuntimeError):
    """The store cannot write at the moment; nothing was stored."""
