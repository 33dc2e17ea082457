"""``gradwatch export``: a run as one Parquet file."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer

from gradwatch_cli.errors import CommandError
from gradwatch_cli.parquet.layout import SCALAR, TENSOR, Head, Source, schema
from gradwatch_cli.parquet.rows import NewColumn, rows_of
from gradwatch_cli.progress import shown
from gradwatch_cli.rest import Rest, Url, print_json, run_path
from gradwatch_cli.tables import console
from gradwatch_wire import Manifest, Report, decode

__all__ = ["command"]


def command(
    *,
    run: Annotated[str, typer.Argument(help="Run id.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file. [RUN.parquet]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    url: Url = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was written as JSON.")
    ] = False,
) -> None:
    """Write a run to a Parquet file: one row per step, every number that is kept of it.

    Steps whose detail retention has let go are not in it. The file is complete or not there at all.
    """
    rest = Rest(url)
    head = _head(rest, run)
    path = output or Path(f"{run}.parquet")
    if path.exists() and not overwrite:
        raise CommandError(f"{path} is there already; --overwrite replaces it", code=2)
    partial = path.with_name(path.name + ".partial")
    try:
        written = _write(rest, head, partial)
        partial.replace(path)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    size = path.stat().st_size
    if as_json:
        print_json({"run": run, "file": str(path), "steps": written, "bytes": size})
        return
    console().print(f"{run}: {written} steps in {path}, {size / 1e6:.1f} MB", highlight=False)


def _head(rest: Rest, run: str) -> Head:
    summary = rest.get(run_path(run))
    found = rest.get(run_path(run, "/manifests"))["items"]
    sources = [
        Source(
            item["attempt"],
            item["optimizer"],
            item["rank"],
            item["steps"],
            Manifest.from_json(item["manifest"]),
        )
        for item in found
    ]
    return Head(run, summary["status"], summary["note"], tuple(sources))


def _write(rest: Rest, head: Head, path: Path) -> int:
    """Write the file. What it has no column for, found on the way, begins it again with one."""
    scalars: dict[str, None] = {}
    tensors: dict[str, None] = {}
    for source in head.sources:
        first = next(_reports(rest, head.run, source), None)
        if first is not None:
            scalars |= dict.fromkeys(first.scalars)
            tensors |= dict.fromkeys(first.tensors)
    while True:
        try:
            with shown(head.run, head.steps) as advance:
                return _written(rest, head, path, (list(scalars), list(tensors)), advance)
        except NewColumn as new:
            name = str(new)
            kind, prefix = (scalars, SCALAR) if name.startswith(SCALAR) else (tensors, TENSOR)
            kind[name.removeprefix(prefix)] = None


def _written(
    rest: Rest,
    head: Head,
    path: Path,
    columns: tuple[list[str], list[str]],
    advance: Callable[[int], None],
) -> int:
    written = 0
    made = schema(*columns, head)
    with pq.ParquetWriter(path, made, compression="zstd") as file:
        for source in head.sources:
            for report in _reports(rest, head.run, source):
                file.write_table(rows_of(report, made))
                written += report.steps.items
                advance(report.steps.items)
    return written


def _reports(rest: Rest, run: str, source: Source) -> Iterator[Report]:
    start = 0
    while True:
        body = rest.fetch(
            run_path(run, "/steps"),
            attempt=source.attempt,
            optimizer=source.optimizer,
            rank=source.rank,
            start=start,
        )
        report = decode(body)
        steps = report.steps.flat()
        if not steps:
            return
        yield report
        start = steps[-1] + 1
