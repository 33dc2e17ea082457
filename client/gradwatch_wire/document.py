"""A report as a JSON document, whose arrays either form spells in its own way."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from gradwatch_wire.column import Column
from gradwatch_wire.errors import Problem, UnknownVersionError, WireError
from gradwatch_wire.fields import Fields
from gradwatch_wire.kinds import TENSOR_COLUMNS, UNKNOWN_COLUMN, ColumnKind
from gradwatch_wire.manifest import HASH_PATTERN
from gradwatch_wire.report import WIRE_VERSION, Histograms, Partial, Report

__all__ = ["MAX_COLUMNS", "MAX_SCALARS", "ReadArray", "parse", "spell"]

MAX_COLUMNS = 32
MAX_SCALARS = 64
MAX_REASONS = 32
MAX_RANKS = 4096
BINS_PER_OCTAVE = (1, 2, 4, 8)
SUPPORTED = (WIRE_VERSION,)
_SCALAR = ColumnKind(("f8",), signed=True)


class ReadArray(Protocol):
    """Reads one array of a document."""

    def __call__(
        self,
        given: object,
        dtypes: tuple[str, ...],
        *,
        at: str,
        dimensions: int,
        pad: int = 0,
        nulls: bool = False,
    ) -> Column:
        """The array as a column of one of ``dtypes``.

        Raises:
            WireError: It is no such array.
        """
        ...


def spell(report: Report, write: Callable[[Column], Any]) -> dict[str, Any]:
    """The report's document; ``write`` spells each array. What is not set is left out."""
    document: dict[str, Any] = {
        "version": report.version,
        "attempt": report.attempt,
        "rank": report.rank,
        "optimizer": report.optimizer,
        "sequence": report.sequence,
        "manifest": report.manifest,
        "steps": write(report.steps),
        "scalars": {name: write(column) for name, column in report.scalars.items()},
        "tensors": {name: write(column) for name, column in report.tensors.items()},
    }
    if report.histograms is not None:
        document["histograms"] = {
            "steps": write(report.histograms.steps),
            "bins_per_octave": report.histograms.bins_per_octave,
            "lowest_exponent": report.histograms.lowest_exponent,
            "sampled": report.histograms.sampled,
            "counts": write(report.histograms.counts),
        }
    if report.time is not None:
        document["time"] = write(report.time)
    if report.partial is not None:
        document["partial"] = {
            "ranks": list(report.partial.ranks),
            "weights": write(report.partial.weights),
            "local_numel": write(report.partial.local_numel),
        }
    if report.dropped:
        document["dropped"] = dict(report.dropped)
    return document


def parse(obj: object, read: ReadArray) -> Report:
    """The report that a document spells; unknown fields are ignored.

    Raises:
        WireError: It does not keep to the format; every wrong field is named.
    """
    fields = Fields(obj)
    version = fields.get("version")
    if version is not None and (isinstance(version, bool) or version not in SUPPORTED):
        raise UnknownVersionError(version, SUPPORTED)
    empty = Column("i8", (0,), b"")
    manifest = fields.matching("manifest", HASH_PATTERN)
    if manifest is None and fields.get("manifest") is None:
        fields.refuse("manifest", "required: the hash that registering answered")
    report = Report(
        attempt=fields.integer("attempt", 0),
        rank=fields.integer("rank", 0),
        optimizer=fields.text("optimizer", "default"),
        sequence=fields.integer("sequence", 0, 0, 2**53),
        manifest=manifest or "",
        steps=fields.read(lambda: _steps(fields, read), empty),
        scalars=_columns(fields, "scalars", MAX_SCALARS, read),
        tensors=_columns(fields, "tensors", MAX_COLUMNS, read),
        histograms=fields.read(lambda: _histograms(fields, read), None),
        time=fields.read(lambda: _optional(fields, "time", read), None),
        partial=fields.read(lambda: _partial(fields, read), None),
        dropped=_dropped(fields),
    )
    fields.done()
    return report


def _steps(fields: Fields, read: ReadArray) -> Column:
    given = fields.get("steps")
    if given is None:
        raise WireError(Problem("steps", "required: a list of steps, strictly increasing"))
    return read(given, ("i8",), at="steps", dimensions=1)


def _optional(fields: Fields, name: str, read: ReadArray) -> Column | None:
    given = fields.get(name)
    return None if given is None else read(given, ("f8",), at=fields.path(name), dimensions=1)


def _columns(fields: Fields, name: str, limit: int, read: ReadArray) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for key, given in fields.mapping(name, limit).items():
        if not 1 <= len(key) <= 128 or not key.isprintable():
            fields.refuse(name, f"{key[:40]!r}: a name has 1 to 128 printable characters")
            continue
        if given is None:
            continue
        kind = TENSOR_COLUMNS.get(key, UNKNOWN_COLUMN) if name == "tensors" else _SCALAR
        at, dimensions = f"{name}.{key}", 2 if name == "tensors" else 1
        take = partial(read, given, kind.dtypes, at=at, dimensions=dimensions, nulls=kind.optional)
        column = fields.read(take, None)
        if column is not None:
            columns[key] = column
    return columns


def _histograms(fields: Fields, read: ReadArray) -> Histograms | None:
    given = fields.get("histograms")
    if given is None:
        return None
    inner = Fields(given, "histograms")
    bins_per_octave = inner.integer("bins_per_octave", 4)
    if bins_per_octave not in BINS_PER_OCTAVE:
        inner.refuse("bins_per_octave", f"{bins_per_octave} given; allowed: 1, 2, 4, 8")
    lowest_exponent = inner.integer("lowest_exponent", -48, -2048, 2048)
    sampled = inner.number("sampled", 1.0, 0.0, 1.0)
    steps = read(inner.get("steps"), ("i8",), at="histograms.steps", dimensions=1)
    counts = read(
        inner.get("counts"), ("u4", "u8"), at="histograms.counts", dimensions=3, pad=64 * 8
    )
    inner.done()
    return Histograms(steps, bins_per_octave, lowest_exponent, sampled, counts)


def _partial(fields: Fields, read: ReadArray) -> Partial | None:
    given = fields.get("partial")
    if given is None:
        return None
    inner = Fields(given, "partial")
    ranks = inner.get("ranks")
    if (
        not isinstance(ranks, list)
        or not 1 <= len(ranks) <= MAX_RANKS
        or not all(isinstance(r, int) and not isinstance(r, bool) and 0 <= r < 2**31 for r in ranks)
        or len(set(ranks)) != len(ranks)
    ):
        raise WireError(Problem("partial.ranks", "required: the ranks, each once"))
    weights = read(inner.get("weights"), ("f8",), at="partial.weights", dimensions=1)
    local_numel = read(inner.get("local_numel"), ("u8",), at="partial.local_numel", dimensions=1)
    return Partial(tuple(ranks), weights, local_numel)


def _dropped(fields: Fields) -> dict[str, int]:
    given = fields.mapping("dropped", MAX_REASONS)
    inner = Fields(dict(given), "dropped")
    counts = {
        reason: inner.integer(reason, 0, 0, 2**53)
        for reason in given
        if 1 <= len(reason) <= 64 and reason.isprintable()
    }
    fields.read(inner.done, None)
    if len(counts) != len(given):
        fields.refuse("dropped", "a reason has 1 to 64 printable characters")
    return counts
