"""``gradwatch import``: a run from a file that ``gradwatch export`` wrote, into a service."""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from gradwatch_cli.errors import CommandError
from gradwatch_cli.parquet.layout import Head, Source, opened
from gradwatch_cli.parquet.rows import reports_of, scalars_of
from gradwatch_cli.progress import shown
from gradwatch_cli.rest import Rest, Url, print_json, run_path
from gradwatch_cli.tables import console
from gradwatch_wire import encode

__all__ = ["command"]

NUMBERS = 2**19  # in one delivery: 2 MB, a quarter of what a service takes
MOST_STEPS = 1000


@dataclass
class Brought:
    """What became of the rows."""

    steps: int = 0
    stored: int = 0
    sequences: dict[tuple[int, int], "itertools.count[int]"] = field(default_factory=dict)

    def next_sequence(self, source: Source) -> int:
        """Deliveries of an attempt and rank are numbered over all its optimizers."""
        key = (source.attempt, source.rank)
        return next(self.sequences.setdefault(key, itertools.count()))


def command(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `gradwatch export` wrote.")],
    run: Annotated[str | None, typer.Option(help="Run id to store it under. [its own]")] = None,
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was stored as JSON.")] = False,
) -> None:
    """Store an exported run in a service: the same attempts, ranks, steps and numbers.

    The service diagnoses it anew. Can be interrupted and repeated: nothing is counted twice. A run
    of that id with other reports is left alone, and the command fails.
    """
    parquet, head = opened(file)
    rest = Rest(url)
    run = run or head.run
    _register(rest, run, head)
    brought = Brought()
    with parquet, shown(run, head.steps) as advance:
        try:
            for source, table in _tables(parquet, head):
                _send(rest, run, source, table, brought)
                advance(table.num_rows)
        except (pa.ArrowException, OSError) as error:
            raise CommandError(
                f"{file} is damaged after {brought.steps} steps: {str(error).splitlines()[0]}"
            ) from error
    if brought.steps != head.steps:
        raise CommandError(f"{file} is damaged: {brought.steps} of {head.steps} steps are in it")
    if head.status:
        rest.post(run_path(run, "/finish"), {"status": head.status})
    if as_json:
        print_json({"run": run, "steps": brought.steps, "stored": brought.stored, "url": rest.url})
        return
    before = brought.steps - brought.stored
    known = f", {before} were there before" if before else ""
    console().print(f"{run}: {brought.stored} steps stored{known}", highlight=False)


def _register(rest: Rest, run: str, head: Head) -> None:
    """Open the same attempts in the same order.

    Raises:
        CommandError: The run is there with attempts of its own.
    """
    mark = hashlib.sha256(head.to_bytes()).hexdigest()[:24]
    for source in head.sources:
        if not source.manifest.tensors:
            continue  # scripts post such steps without a manifest
        session = f"import-{mark}-{source.attempt}"
        manifest = replace(source.manifest, session=session, extends=None)
        attempt = rest.put(run_path(run), manifest.to_json())["attempt"]
        if attempt != source.attempt:
            raise CommandError(
                f"run {run!r} is on {rest.url} already, with reports of its own; "
                "--run stores the file under another id"
            )


def _tables(parquet: pq.ParquetFile, head: Head) -> Iterator[tuple[Source, pa.Table]]:
    """The rows in order, a piece of one source at a time, never more than a row group in memory."""
    known = {(s.attempt, s.optimizer, s.rank): s for s in head.sources}
    widest = max((len(s.manifest.tensors) for s in head.sources), default=1)
    size = max(1, min(MOST_STEPS, NUMBERS // max(1, widest * 16)))
    for batch in parquet.iter_batches(batch_size=size):
        table = pa.Table.from_batches([batch])
        names = ("attempt", "optimizer", "rank")
        keys = list(zip(*(table[name].to_pylist() for name in names), strict=True))
        begin = 0
        for key, group in itertools.groupby(keys):
            end = begin + sum(1 for _ in group)
            if key not in known:
                raise CommandError(f"the file is damaged: its head does not name {key}", code=2)
            yield known[key], table.slice(begin, end - begin)
            begin = end


def _send(rest: Rest, run: str, source: Source, table: pa.Table, brought: Brought) -> None:
    brought.steps += table.num_rows
    if not source.manifest.tensors:
        answer = rest.post(run_path(run, "/steps"), list(scalars_of(table)))
        brought.stored += answer["steps"]
        return
    for report in reports_of(table, source):
        numbered = replace(report, sequence=brought.next_sequence(source))
        answer = rest.send(run_path(run, "/reports"), encode(numbered))
        brought.stored += answer["steps"] if answer["stored"] else 0
