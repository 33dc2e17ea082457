"""From a decoded report to rows whose numbers can be trusted, or a list of what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.rows import HistogramRows, StepRows
from gradwatch_service.settings import Settings
from gradwatch_wire import (
    TENSOR_COLUMNS,
    UNKNOWN_COLUMN,
    Column,
    Histograms,
    Manifest,
    Problem,
    Report,
    WireError,
    check,
)

__all__ = ["array", "check_manifest", "numel_of", "rows_of"]

Array = NDArray[Any]
MAX_PROBLEMS = 20


def array(column: Column) -> Array:
    """The column as a numpy array over its bytes, not copied."""
    return np.frombuffer(column.data, "<" + column.dtype).reshape(column.shape)


def numel_of(manifest: Manifest) -> NDArray[np.uint64]:
    """Elements of each tensor, [T]."""
    return np.array([tensor.numel for tensor in manifest.tensors], dtype=np.uint64)


def check_manifest(manifest: Manifest, settings: Settings) -> None:
    """Hold a manifest to the service's limits.

    Raises:
        WireError: Too many tensors or a name that is too long.
    """
    problems = []
    if len(manifest.tensors) > settings.max_tensors:
        given = len(manifest.tensors)
        problems.append(
            Problem("tensors", f"{given} given; allowed: at most {settings.max_tensors}")
        )
    limit = settings.max_tensor_name_bytes
    for index, tensor in enumerate(manifest.tensors):
        if len(tensor.name.encode()) > limit:
            problems.append(Problem(f"tensors[{index}].name", f"allowed: at most {limit} bytes"))
    if problems:
        raise WireError(*problems[:MAX_PROBLEMS])


def rows_of(
    report: Report, manifest: Manifest, numel: NDArray[np.uint64], settings: Settings
) -> StepRows:
    """Check a report's shapes, sizes and values, and return it as rows.

    Afterwards every number is finite (NaN alone means "not measured", where that is allowed),
    norms and counts are not negative, and no count exceeds its tensor's elements.

    Raises:
        WireError: Something does not hold; every wrong field is named, nothing was changed.
    """
    _check_sizes(report, settings)
    check(report, len(manifest.tensors))
    problems: list[Problem] = []
    steps = array(report.steps)
    shape = (len(steps), len(manifest.tensors))
    tensors = {
        name: _tensor_column(name, column, shape, numel, problems)
        for name, column in report.tensors.items()
    }
    scalars = {name: _scalar(f"scalars.{name}", c, problems) for name, c in report.scalars.items()}
    time = np.full(len(steps), np.nan)
    if report.time is not None:
        time = _scalar("time", report.time, problems)
    histograms: tuple[HistogramRows, ...] = ()
    if report.histograms is not None and report.histograms.steps.items:
        histograms = (_histogram(report.histograms, numel, problems),)
    _check_partial(report, numel, problems)
    if problems:
        raise WireError(*problems[:MAX_PROBLEMS])
    return StepRows(
        attempt=report.attempt,
        optimizer=report.optimizer,
        rank=report.rank,
        steps=steps,
        time=time,
        scalars=scalars,
        tensors=tensors,
        manifest=manifest,
        histograms=histograms,
    )


def _check_sizes(report: Report, settings: Settings) -> None:
    limits: Mapping[str, tuple[int, int]] = {
        "steps": (report.steps.items, settings.max_steps),
        "tensors": (len(report.tensors), settings.max_tensor_columns),
        "scalars": (len(report.scalars), settings.max_scalars),
    }
    problems = [
        Problem(at, f"{given} given; allowed: at most {limit}")
        for at, (given, limit) in limits.items()
        if given > limit
    ]
    if problems:
        raise WireError(*problems)


def _tensor_column(
    name: str,
    column: Column,
    shape: tuple[int, int],
    numel: NDArray[np.uint64],
    problems: list[Problem],
) -> Array:
    kind = TENSOR_COLUMNS.get(name, UNKNOWN_COLUMN)
    at = f"tensors.{name}"
    values: Array = array(column).reshape(shape)
    if not values.size:
        return values
    if values.dtype.kind == "f":
        _check_floats(values, at, problems, gaps=kind.optional, signed=kind.signed)
    elif kind.count:
        beyond = values > numel
        if beyond.any():
            where = _first(beyond)
            limit = int(numel[where[-1]])
            problems.append(
                Problem(
                    at + _place(where),
                    f"{int(values[where])} given; the tensor has {limit} elements",
                )
            )
        elif values.dtype.itemsize == 8 and int(values.max()) < 2**32:
            # One width wherever it holds them: a repeat in the other form is then the same bytes.
            values = values.astype("<u4")
    elif name == "present" and int(values.max()) > 1:
        problems.append(Problem(at, f"{int(values.max())} given; allowed: 0 or 1"))
    return values


def _scalar(at: str, column: Column, problems: list[Problem]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = array(column)
    if values.size:
        _check_floats(values, at, problems, gaps=True, signed=True)
    return values


def _check_floats(
    values: Array, at: str, problems: list[Problem], *, gaps: bool, signed: bool
) -> None:
    # Two reductions decide the usual case: both propagate NaN, which fails every comparison.
    low, high = values.min(), values.max()
    if (low >= 0 or (signed and low > -np.inf)) and high < np.inf:
        return
    wrong = np.isinf(values)
    if not gaps:
        wrong |= np.isnan(values)
    if not signed:
        with np.errstate(invalid="ignore"):
            wrong |= values < 0
    if wrong.any():
        where = _first(wrong)
        allowed = "a finite number" if signed else "a finite number, 0 or above"
        unless = " (or null: not measured)" if gaps else ""
        given = float(values[where])
        problems.append(Problem(at + _place(where), f"{given!r} given; allowed: {allowed}{unless}"))


def _histogram(
    given: Histograms, numel: NDArray[np.uint64], problems: list[Problem]
) -> HistogramRows:
    counts = array(given.counts)
    if counts.size:
        beyond = counts.sum(axis=2, dtype=np.uint64) > numel
        if beyond.any():
            step, tensor = _first(beyond)
            problems.append(
                Problem(
                    f"histograms.counts[{step}][{tensor}]",
                    f"adds up to more than the tensor's {int(numel[tensor])} elements",
                )
            )
    if counts.dtype.itemsize == 8 and (not counts.size or int(counts.max()) < 2**32):
        counts = counts.astype("<u4")
    return HistogramRows(
        array(given.steps), given.bins_per_octave, given.lowest_exponent, given.sampled, counts
    )


def _check_partial(report: Report, numel: NDArray[np.uint64], problems: list[Problem]) -> None:
    if report.partial is None or not len(numel):
        return
    weights = array(report.partial.weights)
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        problems.append(Problem("partial.weights", "allowed: finite numbers, 0 or above"))
    local = array(report.partial.local_numel)
    if (local > numel).any():
        tensor = int(np.argmax(local > numel))
        problems.append(
            Problem(
                f"partial.local_numel[{tensor}]",
                f"{int(local[tensor])} given; the tensor has {int(numel[tensor])} elements",
            )
        )


def _first(wrong: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))


def _place(where: tuple[int, ...]) -> str:
    return "".join(f"[{index}]" for index in where)
