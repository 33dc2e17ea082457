"""A report as rows of a table, and rows as reports again: float32 stays float32, bit for bit."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradwatch_cli.parquet.layout import BINS, COUNTS, SCALAR, TENSOR, Source
from gradwatch_wire import Column, Histograms, Report

__all__ = ["NewColumn", "reports_of", "rows_of"]

Array = NDArray[Any]


class NewColumn(Exception):  # noqa: N818 - no error: the file is begun again with one column more
    """A report holds something that the table has no column for."""


def rows_of(report: Report, schema: pa.Schema) -> pa.Table:
    """One row per step.

    Raises:
        NewColumn: A scalar or statistic is not in the schema; its name there is the message.
    """
    steps = _array(report.steps)
    size = len(steps)
    names = [SCALAR + name for name in report.scalars] + [TENSOR + name for name in report.tensors]
    for name in names:
        if name not in schema.names:
            raise NewColumn(name)
    columns: dict[str, pa.Array] = {
        "attempt": pa.repeat(pa.scalar(report.attempt, pa.int32()), size),
        "optimizer": pa.array([report.optimizer] * size).dictionary_encode(),
        "rank": pa.repeat(pa.scalar(report.rank, pa.int32()), size),
        "step": pa.array(steps),
    }
    if report.time is not None:
        columns["time"] = _nullable(_array(report.time))
    for name, column in report.scalars.items():
        columns[SCALAR + name] = _nullable(_array(column))
    for name, column in report.tensors.items():
        kind = schema.field(TENSOR + name).type.value_type
        columns[TENSOR + name] = _lists(_array(column), kind)
    if report.histograms is not None:
        columns |= _histogram_columns(report.histograms, steps)
    filled = [columns.get(f.name, pa.nulls(size, f.type)) for f in schema]
    return pa.table([c.cast(f.type) for c, f in zip(filled, schema, strict=True)], schema=schema)


def reports_of(table: pa.Table, source: Source) -> Iterator[Report]:
    """Reports of the rows, all of one source; split where what was measured changes.

    ``sequence`` is 0: whoever sends them numbers them.
    """
    keys = [name for name in table.column_names if name.startswith(TENSOR)]
    marks = [table[name].is_valid().to_numpy() for name in keys]
    marks += [table[name].fill_null(-99).to_numpy() for name in (*BINS, "histogram.sampled")]
    with_bins = table[COUNTS].is_valid().to_numpy()
    known = np.array([mark.astype("f8") for mark in marks[: len(keys)]])
    bins = np.array([mark.astype("f8") for mark in marks[len(keys) :]])
    cuts = [0, *_changes(known, with_bins, bins), table.num_rows]
    for begin, end in pairwise(cuts):
        if end > begin:
            yield _report(table.slice(begin, end - begin).combine_chunks(), source)


def _changes(known: Array, with_bins: Array, bins: Array) -> list[int]:
    """Rows at which a report must end: other columns, or histograms of other bins."""
    changed = (known[:, 1:] != known[:, :-1]).any(axis=0) if len(known) else np.zeros(0, bool)
    at = set((np.flatnonzero(changed) + 1).tolist())
    having = np.flatnonzero(with_bins)
    other = (bins[:, having[1:]] != bins[:, having[:-1]]).any(axis=0)
    return sorted(at | set(having[1:][other].tolist()))


def _report(table: pa.Table, source: Source) -> Report:
    shape = (table.num_rows, len(source.manifest.tensors))
    scalars, tensors = {}, {}
    for name in table.column_names:
        column = table[name]
        if column.null_count == len(column):
            continue
        if name.startswith(SCALAR):
            scalars[name.removeprefix(SCALAR)] = _column(_floats(column))
        elif name.startswith(TENSOR):
            values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
            tensors[name.removeprefix(TENSOR)] = _column(_narrow(values.reshape(shape)))
    whole = Report(
        attempt=source.attempt,
        rank=source.rank,
        optimizer=source.optimizer,
        sequence=0,
        manifest=source.manifest.hash,
        steps=_column(table["step"].to_numpy()),
        scalars=scalars,
        tensors=tensors,
        time=_column(_floats(table["time"])),
    )
    return replace(whole, histograms=_histograms(table, shape[1]))


def _histogram_columns(histograms: Histograms, steps: Array) -> dict[str, pa.Array]:
    counts, at = _array(histograms.counts), _array(histograms.steps)
    where = {int(step): row for row, step in enumerate(at)}
    rows = [where.get(int(step)) for step in steps]
    head = (histograms.bins_per_octave, histograms.lowest_exponent)
    lists = [None if r is None else [_trimmed(one) for one in counts[r]] for r in rows]
    columns = {COUNTS: pa.array(lists, pa.list_(pa.list_(pa.uint64())))}
    for name, value in zip(BINS, head, strict=True):
        columns[name] = pa.array([None if r is None else value for r in rows], pa.int32())
    shares = [None if r is None else histograms.sampled for r in rows]
    columns["histogram.sampled"] = pa.array(shares, pa.float64())
    return columns


def _histograms(table: pa.Table, tensors: int) -> Histograms | None:
    kept = table.filter(table[COUNTS].is_valid())
    if not kept.num_rows:
        return None
    nested = kept[COUNTS].to_pylist()
    width = max((len(one) for row in nested for one in row), default=0) or 1
    counts = np.zeros((len(nested), tensors, width), "<u8")
    for row, item in enumerate(nested):
        for tensor, one in enumerate(item):
            counts[row, tensor, : len(one)] = one
    return Histograms(
        steps=_column(kept["step"].to_numpy()),
        bins_per_octave=kept[BINS[0]][0].as_py(),
        lowest_exponent=kept[BINS[1]][0].as_py(),
        sampled=kept["histogram.sampled"][0].as_py(),
        counts=_column(_narrow(counts)),
    )


def _lists(values: Array, kind: pa.DataType) -> pa.Array:
    """[S, T] as one list per step; null at a step where a counting column has no number."""
    missing = None
    if pa.types.is_integer(kind) and values.dtype.kind == "f":
        # Counts are kept as floats beside steps at which they were not counted.
        empty: Array = np.asarray(np.isnan(values).any(axis=1))
        missing = pa.array(empty)
        values = np.where(empty.reshape(-1, 1), 0, values)
    offsets = np.arange(values.shape[0] + 1, dtype="<i4") * values.shape[1]
    flat = pa.array(np.ascontiguousarray(values).reshape(-1)).cast(kind)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=missing)


def _trimmed(counts: Array) -> Array:
    used = np.flatnonzero(counts)
    return counts[: used[-1] + 1 if len(used) else 0]


def _nullable(values: Array) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))


def _floats(column: Any) -> Array:
    values: Array = column.to_numpy().astype("<f8")
    return values


def _narrow(values: Array) -> Array:
    """Counts in four bytes where they fit, as clients send them."""
    if values.dtype.str == "<u8" and (not values.size or values.max() < 2**32):
        return values.astype("<u4")
    return values


def _array(column: Column) -> Array:
    return np.frombuffer(column.data, "<" + column.dtype).reshape(column.shape)


def _column(values: Array) -> Column:
    kind = f"{values.dtype.kind}{values.dtype.itemsize}"
    return Column(kind, values.shape, np.ascontiguousarray(values).tobytes())


def scalars_of(table: pa.Table) -> Iterator[Mapping[str, float]]:
    """Rows without tensors as objects for ``POST /runs/{run}/steps``."""
    names = {n: n.removeprefix(SCALAR) for n in table.column_names if n.startswith(SCALAR)}
    names |= {"step": "step", "time": "time"}
    for row in table.select(list(names)).to_pylist():
        yield {names[key]: value for key, value in row.items() if value is not None}
