"""What such a file holds: columns by name, and a head in the file's metadata."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradwatch_cli.errors import CommandError
from gradwatch_wire import TENSOR_COLUMNS, UNKNOWN_COLUMN, Manifest, WireError

__all__ = ["BINS", "COUNTS", "SCALAR", "TENSOR", "Head", "Source", "opened", "schema"]

FORMAT = 1
KEY = b"gradwatch"
SCALAR, TENSOR = "scalar.", "tensor."
COUNTS, BINS = "histogram.counts", ("histogram.bins_per_octave", "histogram.lowest_exponent")
TYPES = {"f4": pa.float32(), "f8": pa.float64(), "u1": pa.uint8(), "i8": pa.int64()}


@dataclass(frozen=True)
class Source:
    """One attempt, optimizer and rank, with the tensors that its lists hold, in their order."""

    attempt: int
    optimizer: str
    rank: int
    steps: int
    manifest: Manifest


@dataclass(frozen=True)
class Head:
    """What a file says of its run.

    Attributes:
        run: Run id.
        status: How it ended, or None.
        note: What somebody wrote about it, or None.
        sources: Who reported, by attempt, optimizer and rank, as the rows are ordered.
    """

    run: str
    status: str | None
    note: str | None
    sources: tuple[Source, ...]

    @property
    def steps(self) -> int:
        """Rows in the file."""
        return sum(source.steps for source in self.sources)

    def to_bytes(self) -> bytes:
        """The head as it stands in the file's metadata."""
        sources = [
            {**vars(source), "manifest": source.manifest.to_json()} for source in self.sources
        ]
        content = {**vars(self), "format": FORMAT, "sources": sources}
        return json.dumps(content, sort_keys=True).encode()

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Head":
        """Read it back.

        Raises:
            KeyError, TypeError, WireError: It is not what :meth:`to_bytes` wrote.
        """
        sources = [
            Source(
                int(item["attempt"]),
                str(item["optimizer"]),
                int(item["rank"]),
                int(item["steps"]),
                Manifest.from_json(item["manifest"]),
            )
            for item in content["sources"]
        ]
        return cls(content["run"], content["status"], content["note"], tuple(sources))


def schema(scalars: Iterable[str], tensors: Iterable[str], head: Head) -> pa.Schema:
    """The columns of a file with these scalars and statistics."""
    fields = [
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("optimizer", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("time", pa.float64()),
    ]
    fields += [pa.field(SCALAR + name, pa.float64()) for name in scalars]
    fields += [pa.field(TENSOR + name, pa.list_(_type(name))) for name in tensors]
    fields += [pa.field(COUNTS, pa.list_(pa.list_(pa.uint64())))]
    fields += [pa.field(name, pa.int32()) for name in BINS]
    fields += [pa.field("histogram.sampled", pa.float64())]
    return pa.schema(fields, metadata={KEY: head.to_bytes()})


def opened(path: Path) -> tuple[pq.ParquetFile, Head]:
    """Open a file that ``gradwatch export`` wrote.

    Raises:
        CommandError: There is none, or it is another program's.
    """
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise CommandError(f"{str(path)!r}: no such file", code=2) from None
    except (OSError, pa.ArrowException) as error:
        raise CommandError(f"{str(path)!r} is no Parquet file: {_line(error)}", code=2) from error
    data = (file.schema_arrow.metadata or {}).get(KEY)
    try:
        content = json.loads(data) if data is not None else {}
        found = content.get("format")
        if found != FORMAT:
            raise CommandError(
                f"{str(path)!r} was "
                + (
                    "not written by `gradwatch export`"
                    if found is None
                    else f"written in format {found!r:.20}"
                )
                + f"; `gradwatch import` reads format {FORMAT} of what it writes",
                code=2,
            )
        head = Head.from_json(content)
    except (ValueError, KeyError, TypeError, AttributeError, WireError) as error:
        raise CommandError(f"{str(path)!r}: its head is damaged: {_line(error)}", code=2) from error
    return file, head


def _type(name: str) -> pa.DataType:
    kind = TENSOR_COLUMNS.get(name, UNKNOWN_COLUMN)
    return pa.uint64() if kind.count else TYPES[kind.dtypes[0]]


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
