"""What every store keeps and promises. ``tests/contract`` holds each engine to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

from gradwatch_service.queries.series import Pieces
from gradwatch_service.rows import StepRows
from gradwatch_service.store.errors import (
    DeletedRunError,
    LimitReachedError,
    ManifestConflictError,
    SequenceConflictError,
    StoreUnavailableError,
    UnknownAttemptError,
    UnknownManifestError,
    UnknownRunError,
)
from gradwatch_service.store.records import (
    Commit,
    CommitKind,
    Delivery,
    Gap,
    Receipt,
    Registered,
    RunPage,
    RunRecord,
    Stream,
)
from gradwatch_wire import Manifest

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
