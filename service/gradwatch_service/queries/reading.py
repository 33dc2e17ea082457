"""Which stored steps a question is about: the newest attempt wins, unless one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from gradwatch_service.problems import invalid
from gradwatch_service.queries.series import Pieces
from gradwatch_service.rows import StepRows
from gradwatch_service.store.base import Store, Stream, UnknownAttemptError
from gradwatch_wire import TensorInfo

__all__ = ["Selection", "blocks", "curve", "select", "unknown_name"]

Pick = Callable[[TensorInfo], bool]


@dataclass(frozen=True, slots=True)
class Selection:
    """The streams a question is about, in step order, with no step twice.

    Attributes:
        run: Run id.
        attempt: The attempt asked for, or the newest one.
        optimizer: Name of the optimizer, or None when the run has no stream at all.
        streams: One per attempt, oldest first, each cut to the steps it contributes.
    """

    run: str
    attempt: int
    optimizer: str | None
    streams: tuple[Stream, ...]

    @property
    def first_step(self) -> int | None:
        """The lowest step, or None without one."""
        firsts = [s.first_step for s in self.streams if s.first_step is not None]
        return min(firsts, default=None)

    @property
    def last_step(self) -> int | None:
        """The highest step, or None without one."""
        lasts = [s.last_step for s in self.streams if s.last_step is not None]
        return max(lasts, default=None)

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by name, as registered last."""
        return {t.name: t for s in self.streams for t in s.manifest.tensors}


def select(
    store: Store,
    run: str,
    *,
    attempt: int | None = None,
    optimizer: str | None = None,
    rank: int | None = None,
) -> Selection:
    """Choose streams; an unnamed optimizer is ``default``, else the first; the rank the lowest.

    Raises:
        ServiceError: 422, no such optimizer or rank.
        UnknownAttemptError: No such attempt.
    """
    streams = store.streams(run)
    newest = max((s.attempt for s in streams), default=0)
    if attempt is not None:
        streams = [s for s in streams if s.attempt == attempt]
        if not streams and (attempt != 0 or newest != 0):
            raise UnknownAttemptError(run, attempt)
    if not streams:
        return Selection(run, newest if attempt is None else attempt, None, ())
    names = sorted({s.optimizer for s in streams})
    chosen = optimizer or _speaks_for_the_run(streams, names)
    if chosen not in names:
        raise invalid("optimizer", unknown_name("optimizer", chosen, names))
    streams = [s for s in streams if s.optimizer == chosen]
    if rank is not None and not any(s.rank == rank for s in streams):
        known = sorted({s.rank for s in streams})
        raise invalid("rank", f"no report of rank {rank}; ranks that reported: {known}.")
    kept = _one_per_attempt(streams, rank)
    if attempt is None:
        kept = [cut for s in kept if (cut := _without_tail(s)) is not None]
    return Selection(run, newest if attempt is None else attempt, chosen, tuple(kept))


def blocks(
    store: Store,
    selection: Selection,
    *,
    start: int | None = None,
    end: int | None = None,
    columns: Sequence[str] | None = None,
    pick: Pick | None = None,
    histograms: bool = False,
) -> Iterator[StepRows]:
    """Rows of the selection in step order; ``pick`` keeps only some tensors."""
    for stream in selection.streams:
        if stream.last_step is None:
            continue
        low = stream.first_step if start is None else start
        high = stream.last_step if end is None else min(end, stream.last_step)
        if low is not None and low > high:
            continue
        tensors = None
        if pick is not None:
            tensors = [i for i, t in enumerate(stream.manifest.tensors) if pick(t)]
        yield from store.read(
            selection.run,
            attempt=stream.attempt,
            optimizer=stream.optimizer,
            rank=stream.rank,
            start=start,
            end=high,
            tensors=tensors,
            columns=columns,
            histograms=histograms,
        )


def curve(
    store: Store,
    selection: Selection,
    *,
    metric: str,
    tensor: str | None,
    columns: Sequence[str],
    start: int | None,
    end: int | None,
    points: int,
) -> Iterator[StepRows | Pieces]:
    """One metric of the run or of a tensor, in rows and roll-ups that cover every step once.

    They come in no certain order; see :meth:`Store.curve`.
    """
    for stream in selection.streams:
        if stream.last_step is None or (start is not None and start > stream.last_step):
            continue
        index = None
        if tensor is not None:
            names = [t.name for t in stream.manifest.tensors]
            if tensor not in names:
                continue
            index = names.index(tensor)
        yield from store.curve(
            selection.run,
            attempt=stream.attempt,
            optimizer=stream.optimizer,
            rank=stream.rank,
            metric=metric,
            tensor=index,
            columns=columns,
            start=start,
            end=stream.last_step if end is None else min(end, stream.last_step),
            points=points,
        )


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """A sentence that names what there is; never more than forty names."""
    shown = ", ".join(known[:40]) + (f" and {len(known) - 40} more" if len(known) > 40 else "")
    return f"no {kind} {name!r}; known: {shown or 'none yet'}."


def _speaks_for_the_run(streams: Sequence[Stream], names: Sequence[str]) -> str:
    """``default``, else the first by name; those that have reported come before the others."""
    reported = {s.optimizer for s in streams if s.first_step is not None}
    candidates = [name for name in names if name in reported] or names
    return "default" if "default" in candidates else candidates[0]


def _one_per_attempt(streams: Sequence[Stream], rank: int | None) -> list[Stream]:
    best: dict[int, Stream] = {}
    for stream in streams:
        if rank is not None and stream.rank != rank:
            continue
        held = best.get(stream.attempt)
        # A rank without a step yet must not hide one that has reported.
        key = (stream.last_step is None, stream.rank)
        if held is None or key < (held.last_step is None, held.rank):
            best[stream.attempt] = stream
    return [best[a] for a in sorted(best)]


def _without_tail(stream: Stream) -> Stream | None:
    """The stream up to where a newer attempt took over, or None when nothing of it is left."""
    limit = stream.valid_to
    if limit is None or stream.last_step is None or stream.last_step <= limit:
        return stream
    if stream.first_step is not None and stream.first_step > limit:
        return None
    return replace(stream, last_step=limit)
