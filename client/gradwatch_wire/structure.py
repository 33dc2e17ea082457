"""Whether a report's lengths fit each other and its manifest."""

from itertools import pairwise

from gradwatch_wire.column import Column
from gradwatch_wire.errors import Problem, WireError
from gradwatch_wire.kinds import TENSOR_COLUMNS
from gradwatch_wire.report import Report

__all__ = ["check"]


def check(report: Report, tensors: int) -> None:
    """Check every length of a report against its manifest.

    Afterwards every scalar has S values, every tensor column S x T, and the steps rise strictly
    from 0 or above. Whether values are finite or within bounds is not looked at.

    Args:
        report: What was decoded.
        tensors: T, how many tensors the manifest names.

    Raises:
        WireError: Some length does not fit; every wrong field is named.
    """
    problems: list[Problem] = []
    count = report.steps.items
    _check_steps(report.steps, "steps", problems)
    for name, column in report.scalars.items():
        _check_shape(column, (count,), f"scalars.{name}", problems)
    for name, column in report.tensors.items():
        _check_shape(column, (count, tensors), f"tensors.{name}", problems)
    for name, kind in TENSOR_COLUMNS.items():
        if not kind.optional and count and name not in report.tensors:
            problems.append(Problem(f"tensors.{name}", "required in a report that has steps"))
    if report.time is not None:
        _check_shape(report.time, (count,), "time", problems)
    _check_histograms(report, tensors, problems)
    _check_partial(report, tensors, problems)
    if problems:
        raise WireError(*problems[:20])


def _check_steps(steps: Column, at: str, problems: list[Problem]) -> None:
    _check_shape(steps, (steps.items,), at, problems)
    values = steps.flat()
    if any(b <= a for a, b in pairwise(values)):
        problems.append(Problem(at, "allowed: strictly increasing"))
    if values and not 0 <= values[0] <= values[-1] < 2**53:
        problems.append(Problem(at, "allowed: 0 to 2^53 - 1"))


def _check_shape(column: Column, shape: tuple[int, ...], at: str, problems: list[Problem]) -> None:
    # JSON's [] says nothing about the lengths within it.
    if column.shape != shape and not (
        column.items == 0 and 0 in shape and column.shape[0] == shape[0]
    ):
        problems.append(Problem(at, f"shape {list(column.shape)} given; expected {list(shape)}"))
    elif len(column.data) != column.nbytes:
        problems.append(Problem(at, f"{len(column.data)} bytes given; expected {column.nbytes}"))


def _check_histograms(report: Report, tensors: int, problems: list[Problem]) -> None:
    histograms = report.histograms
    if histograms is None:
        return
    _check_steps(histograms.steps, "histograms.steps", problems)
    if not set(histograms.steps.flat()) <= set(report.steps.flat()):
        problems.append(Problem("histograms.steps", "allowed: steps of this report"))
    bins = histograms.counts.shape[-1]
    if bins > 64 * histograms.bins_per_octave:
        allowed = f"allowed: at most {64 * histograms.bins_per_octave}"
        problems.append(Problem("histograms.counts", f"{bins} bins given; {allowed}"))
    shape = (histograms.steps.items, tensors, bins)
    _check_shape(histograms.counts, shape, "histograms.counts", problems)


def _check_partial(report: Report, tensors: int, problems: list[Problem]) -> None:
    if report.partial is None:
        return
    if report.rank not in report.partial.ranks:
        why = f"rank {report.rank} reports; it must be one of {list(report.partial.ranks)[:8]}"
        problems.append(Problem("partial.ranks", why))
    _check_shape(report.partial.weights, (tensors,), "partial.weights", problems)
    _check_shape(report.partial.local_numel, (tensors,), "partial.local_numel", problems)
