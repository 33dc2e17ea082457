"""The page of one run with a series per tensor: opt-in, a scrape target of its own."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.exposition.text import header, labels
from gradwatch_service.rows import StepRows
from gradwatch_service.store.base import RunRecord, Store

__all__ = ["MAX_TENSORS", "TENSOR_FAMILIES", "TensorPage", "last_steps", "tensor_page"]

MAX_TENSORS = 2000

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TensorPage:
    """The page and how many series were left out of it."""

    text: str
    dropped: int


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    text: str
    column: str
    value: Callable[[Values, Values], Values]


def _as_it_is(values: Values, _: Values) -> Values:
    return values


def _share(values: Values, numel: Values) -> Values:
    return values / np.maximum(numel, 1.0)


TENSOR_FAMILIES = (
    _Family(
        "gradwatch_tensor_gradient_norm",
        "L2 norm before clipping at the last step.",
        "norm",
        _as_it_is,
    ),
    _Family(
        "gradwatch_tensor_gradient_max_abs",
        "Largest magnitude before clipping at the last step.",
        "max_abs",
        _as_it_is,
    ),
    _Family(
        "gradwatch_tensor_clipped_elements_ratio",
        "Share of elements that clipping changed at the last step.",
        "clipped_count",
        _share,
    ),
    _Family(
        "gradwatch_tensor_zero_elements_ratio",
        "Share of elements that were exactly 0 at the last step.",
        "zero_count",
        _share,
    ),
    _Family(
        "gradwatch_tensor_nonfinite_elements",
        "Elements that were NaN or infinite at the last step.",
        "nonfinite_count",
        _as_it_is,
    ),
    _Family(
        "gradwatch_tensor_gradient_cosine",
        "Cosine between the gradient and that of the step before, -1 to 1.",
        "cosine_previous",
        _as_it_is,
    ),
)


def last_steps(store: Store, run: str) -> Iterator[StepRows]:
    """The last step of each optimizer of the run's newest attempt, from its lowest rank."""
    streams = [s for s in store.streams(run) if s.last_step is not None]
    newest = max((s.attempt for s in streams), default=0)
    seen: set[str] = set()
    for stream in sorted(streams, key=lambda s: s.rank):
        if stream.attempt != newest or stream.optimizer in seen:
            continue
        seen.add(stream.optimizer)
        yield from store.read(
            run,
            attempt=stream.attempt,
            optimizer=stream.optimizer,
            rank=stream.rank,
            start=stream.last_step,
            histograms=False,
        )


def tensor_page(record: RunRecord, steps: Iterable[StepRows]) -> TensorPage:
    """Write a series per tensor and statistic.

    Args:
        record: The run.
        steps: One row for each optimizer.
    """
    lines: dict[str, list[str]] = {family.name: [] for family in TENSOR_FAMILIES}
    dropped, room = 0, MAX_TENSORS
    for rows in steps:
        tensors = rows.manifest.tensors
        shown, room = min(room, len(tensors)), room - min(room, len(tensors))
        base = [("project", record.project), ("run", record.run), ("optimizer", rows.optimizer)]
        prefixes = [
            labels([*base, ("group", t.group), ("tensor", t.name)]) for t in tensors[:shown]
        ]
        numel = np.array([t.numel for t in tensors], np.float64)
        for family in TENSOR_FAMILIES:
            if family.column not in rows.tensors:
                continue
            values = family.value(np.asarray(rows.tensors[family.column][-1], np.float64), numel)
            dropped += len(tensors) - shown
            lines[family.name] += [
                f"{family.name}{{{prefix}}} {value!r}\n"
                for prefix, value in zip(prefixes, values[:shown].tolist(), strict=True)
                if np.isfinite(value)
            ]
    parts = [
        "".join([header(family.name, "gauge", family.text), *lines[family.name]])
        for family in TENSOR_FAMILIES
        if lines[family.name]
    ]
    return TensorPage("".join(parts), dropped)
