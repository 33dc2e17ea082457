"""One delivery, added up: the heavy half of counting, done before the writer sees the delivery."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.live.counts import LARGEST, NORM_BOUNDS, Counts, GroupCounts
from gradwatch_service.live.layout import Layout, layout_of
from gradwatch_service.live.magnitude import magnitudes
from gradwatch_service.live.newest import GroupNewest, Newest
from gradwatch_service.rows import StepRows

__all__ = ["Summary", "summarise"]

Floats = NDArray[np.float64]

# A step that claims to have lasted longer than this is a broken clock, not a step.
_LONGEST_STEP = 1e7


@dataclass(frozen=True, slots=True)
class Summary:
    """What one delivery adds.

    Attributes:
        attempt: Attempt of the run.
        optimizer: Whose steps.
        rank: Who reported.
        manifest: Hash of the tensors it is about.
        partial: Whether it covers only a share of each tensor; then it counts for nothing but
            ``dropped``: the combined step counts.
        counts: What adds up.
        newest: Values of its last step, None when it has no step.
        peak: Largest global norm of its finite steps.
        thresholds: The threshold at each step where it was sent, repeats left out.
        dropped: What the client dropped, by reason.
        folded: Groups that went into ``other``.
    """

    attempt: int
    optimizer: str
    rank: int
    manifest: str
    partial: bool
    counts: Counts
    newest: Newest | None
    peak: float | None
    thresholds: tuple[float, ...]
    dropped: Mapping[str, int]
    folded: int


def summarise(
    rows: StepRows,
    *,
    manifest: str,
    dropped: Mapping[str, int] | None = None,
    partial: bool = False,
) -> Summary:
    """Add up one validated delivery. Pure; some ten microseconds, and linear in its numbers.

    Args:
        rows: Its steps, which may be none.
        manifest: Hash of the tensors that the columns stand for; empty when there are none.
        dropped: What the client dropped, by reason.
        partial: Whether the rows cover only this rank's share of each tensor.
    """
    layout = layout_of(manifest, rows.manifest.tensors)
    counted = len(rows) > 0 and not partial
    delivery = _Delivery(rows, layout)
    return Summary(
        attempt=rows.attempt,
        optimizer=rows.optimizer,
        rank=rows.rank,
        manifest=manifest,
        partial=partial,
        counts=delivery.counts(magnitudes(rows.histograms, layout)) if counted else Counts(),
        newest=delivery.newest() if counted else None,
        peak=delivery.peak() if counted else None,
        thresholds=delivery.thresholds() if counted else (),
        dropped=dict(dropped or {}),
        folded=layout.folded,
    )


class _Delivery:
    """The arrays of one delivery and what is derived from them once."""

    def __init__(self, rows: StepRows, layout: Layout) -> None:
        self._attempt = rows.attempt
        self._steps = rows.steps
        self._scalars = rows.scalars
        self._columns = rows.tensors
        self._layout = layout
        self._norms = self._global("norm", "global_norm")
        self._nonfinite = self._nonfinite_per_step()
        self._finite = (self._nonfinite == 0) & np.isfinite(self._norms)

    def counts(self, magnitude: Mapping[str, tuple[tuple[int, ...], float]]) -> Counts:
        """What adds up over these steps."""
        norms = self._norms[self._finite]
        buckets = np.bincount(
            np.searchsorted(NORM_BOUNDS, norms, side="left"), minlength=len(NORM_BOUNDS) + 1
        )
        groups = self._groups(magnitude)
        clipped = self._per_step("clipped_count")
        return Counts(
            steps=self._since("steps_since", np.ones(len(self._steps))),
            clipped_steps=self._since("clipped_steps_since", clipped > 0),
            nonfinite_steps=self._since("nonfinite_steps_since", self._nonfinite > 0),
            skipped_steps=int((self._scalar("skipped") > 0).sum()),
            elements=sum(g.elements for g in groups.values()),
            clipped_elements=sum(g.clipped for g in groups.values()),
            nonfinite_elements=int(min(self._nonfinite.sum(), 2.0**63)),
            norm_buckets=tuple(buckets.tolist()),
            norm_sum=min(float(norms.sum()), LARGEST),
            training_seconds=self._seconds("duration_seconds"),
            overhead_seconds=self._seconds("overhead_seconds"),
            groups=groups,
        )

    def newest(self) -> Newest:
        """Values of the last step; nothing of its gradient where it was not finite."""
        finite = bool(self._finite[-1])
        after = self._global("norm_after", "global_norm_after")
        max_abs = self._columns.get("max_abs")
        largest = self._scalar("max_abs")[-1]
        if max_abs is not None and max_abs.shape[1]:
            largest = max_abs[-1].max()
        return Newest(
            attempt=self._attempt,
            step=int(self._steps[-1]),
            norm=_number(self._norms[-1]) if finite else None,
            norm_after=_number(after[-1]) if finite else None,
            max_abs=_number(largest) if finite else None,
            threshold=_number(self._scalar("threshold")[-1]),
            loss=_number(self._scalar("loss")[-1]),
            learning_rate=_number(self._scalar("learning_rate")[-1]),
            groups=self._newest_groups(),
        )

    def peak(self) -> float | None:
        """Largest global norm of the finite steps."""
        return _number(self._norms[self._finite].max()) if self._finite.any() else None

    def thresholds(self) -> tuple[float, ...]:
        """The threshold in force, step by step, repeats and unmeasured steps left out."""
        values = self._scalar("threshold")
        values = values[np.isfinite(values)]
        if not len(values):
            return ()
        moved = np.flatnonzero(np.diff(values)) + 1
        return tuple(values[np.concatenate(([0], moved))].tolist())

    def _groups(
        self, magnitude: Mapping[str, tuple[tuple[int, ...], float]]
    ) -> dict[str, GroupCounts]:
        if not len(self._layout.index):
            return {}
        present = self._columns.get("present")
        reported = len(self._steps) if present is None else (present > 0).sum(axis=0)
        elements = self._layout.sums(self._layout.numel * reported)
        clipped, nonfinite = self._sums("clipped_count"), self._sums("nonfinite_count")
        zero = self._sums("zero_count")
        # Lists: reading an array number by number takes several times as long.
        columns = zip(
            self._layout.groups,
            elements.tolist(),
            [0] * len(elements) if clipped is None else clipped.tolist(),
            [0] * len(elements) if nonfinite is None else nonfinite.tolist(),
            [None] * len(elements) if zero is None else zero.tolist(),
            strict=True,
        )
        return {
            name: GroupCounts(
                int(count),
                int(cut),
                int(bad),
                None if empty is None else int(empty),
                *magnitude.get(name, (None, 0.0)),
            )
            for name, count, cut, bad, empty in columns
        }

    def _newest_groups(self) -> dict[str, GroupNewest]:
        if "norm" not in self._columns or not len(self._layout.index):
            return {}
        squares = np.square(self._last("norm"))
        norms = np.sqrt(self._layout.sums(squares))
        bad = self._layout.sums(self._last("nonfinite_count"))
        largest = self._layout.maxima(self._last("max_abs"))
        cosine = self._weighted("cosine_previous", squares)
        weights = np.sqrt(self._layout.sums(np.square(self._last("weight_norm"))))
        # NaN stands for what was not measured.
        if "max_abs" not in self._columns:
            largest = np.full(len(norms), np.nan)
        ratio = np.divide(norms, weights, out=np.full(len(norms), np.nan), where=weights > 0)
        measured = zip(*map(_numbers, (norms, largest, cosine, ratio)), strict=True)
        return {
            name: GroupNewest() if faulty else GroupNewest(*values)
            for name, faulty, values in zip(
                self._layout.groups, bad.tolist(), measured, strict=True
            )
        }

    def _weighted(self, column: str, weights: Floats) -> Floats:
        """Mean of the last step's values by group, [G]; NaN where none was measured."""
        if column not in self._columns:
            return np.full(len(self._layout.groups), np.nan)
        values = np.asarray(self._columns[column][-1], np.float64)
        weights = np.where(np.isfinite(values), weights, 0.0)
        total = self._layout.sums(weights)
        product = self._layout.sums(np.nan_to_num(values) * weights)
        return np.where(total > 0, product / np.where(total > 0, total, 1.0), np.nan)

    def _last(self, column: str) -> Floats:
        """[T] the column at the last step, 0 where it was not measured."""
        if column not in self._columns:
            return np.zeros(len(self._layout.index))
        return np.nan_to_num(np.asarray(self._columns[column][-1], np.float64))

    def _global(self, column: str, scalar: str) -> Floats:
        """[S] root of the sum of squares over the tensors, or the scalar that a script sent."""
        values = self._columns.get(column)
        if values is None or not values.shape[1]:
            return self._scalar(scalar)
        wide = values.astype(np.float64)
        return np.asarray(np.sqrt(np.einsum("st,st->s", wide, wide)), np.float64)

    def _nonfinite_per_step(self) -> Floats:
        if not len(self._layout.index):
            return np.nan_to_num(self._scalar("nonfinite_count"))
        return self._per_step("nonfinite_count")

    def _per_step(self, column: str) -> Floats:
        values = self._columns.get(column)
        if values is None:
            return np.zeros(len(self._steps))
        return np.asarray(values.sum(axis=1, dtype=np.float64))

    def _sums(self, column: str) -> Floats | None:
        values = self._columns.get(column)
        return None if values is None else self._layout.sums(values.sum(axis=0, dtype=np.float64))

    def _scalar(self, name: str) -> Floats:
        values = self._scalars.get(name)
        return np.full(len(self._steps), np.nan) if values is None else values

    def _since(self, scalar: str, each: NDArray[np.generic]) -> int:
        """Steps counted since the last report where the client thinned reports, else per step."""
        counted = self._scalar(scalar)
        usable = np.isfinite(counted) & (counted >= 0) & (counted < 2**53)
        return int(np.where(usable, counted, each).sum())

    def _seconds(self, scalar: str) -> float:
        values = self._scalar(scalar)
        return float(values[(values >= 0) & (values < _LONGEST_STEP)].sum())


def _numbers(values: Floats) -> list[float | None]:
    """The values as floats, None where one is not finite."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _number(value: object) -> float | None:
    """The value as a float, None when it is not finite: a gauge never shows NaN."""
    number = float(value)  # type: ignore[arg-type]  # a numpy scalar
    return number if math.isfinite(number) else None
