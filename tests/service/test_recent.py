"""Rows kept in memory for a while are those of the store, and never more than the bound."""

from __future__ import annotations

import time

import numpy as np
import pytest
from tests.contract.engines import delivery, open_engine
from tests.service import jobs

from gradwatch_service import live
from gradwatch_service.store.records import Commit
from gradwatch_service.store.sqlite.recent import ENTRY_BYTES, Recent

MANIFEST = jobs.manifest()
WHOLE = {"attempt": 0, "optimizer": "default", "rank": 0}


@pytest.fixture
def store(tmp_path):
    opened = open_engine("sqlite", tmp_path)
    opened.register("run", MANIFEST, now=time.time())
    yield opened
    opened.close()


def append(store, sequence, count=10):
    first = sequence * count
    made = delivery("run", jobs.report(range(first, first + count), sequence=sequence), MANIFEST)
    store.append(made).result()
    store.writer.call(int)  # listeners have heard of the commit before
    return made.rows


def read(store, **which):
    return list(store.read("run", **WHOLE, **which))


def same(one, other):
    assert [len(rows) for rows in one] == [len(rows) for rows in other]
    for left, right in zip(one, other, strict=True):
        assert left.tensors.keys() == right.tensors.keys()
        columns = [(v, right.tensors[n]) for n, v in left.tensors.items()]
        columns += [(v, right.scalars[n]) for n, v in left.scalars.items()]
        for mine, theirs in (*columns, (left.steps, right.steps), (left.time, right.time)):
            assert mine.dtype == theirs.dtype
            assert np.ascontiguousarray(mine).tobytes() == np.ascontiguousarray(theirs).tobytes()


@pytest.mark.parametrize(
    "which",
    [{}, {"start": 4, "end": 23}, {"tensors": [2, 0]}, {"columns": ["norm"]}, {"limit": 7}],
)
def test_what_is_read_from_memory_is_what_is_read_from_the_file(store, which):
    for sequence in range(3):
        append(store, sequence)
    assert store.recent.nbytes > 0
    from_memory = read(store, **which)
    store.recent.drop("run", 0, 0, range(3))
    assert store.recent.nbytes == 0
    same(from_memory, read(store, **which))


def test_what_was_compacted_is_read_from_its_chunk_although_memory_still_has_it(store):
    append(store, 0)
    kept = store.recent
    store.maintenance.compact(quiet=True)
    assert kept.nbytes == 0, "compaction lets go of what it moved"
    with store.database.reader() as connection:
        connection.execute("SELECT 1 FROM chunk").fetchone()
    # A reader that listed the delivery before it moved finds that out, as without a memory.
    kept.committed([commit("run", 0, append(store, 1))])
    store.maintenance.compact(quiet=True)
    assert [len(rows) for rows in read(store)] == [20]


def commit(run, sequence, rows):
    return Commit(
        "report", run, "default", live.EMPTY, rows.attempt, "default", rows.rank, sequence, rows
    )


def test_a_deleted_run_whose_row_numbers_come_again_shows_nothing_of_itself(store):
    append(store, 0)
    store.delete("run")
    store.maintenance.purge()
    other = jobs.manifest(5)
    store.register("other", other, now=time.time())
    made = delivery("other", jobs.report(range(10), made=other, seed=9), other)
    store.append(made).result()
    (rows,) = store.read("other", **WHOLE)
    assert np.array_equal(rows.tensors["norm"], made.rows.tensors["norm"])


def test_memory_is_bounded_in_bytes_and_in_time(store):
    rows = append(store, 0)
    now = [0.0]
    size = rows.nbytes + ENTRY_BYTES
    recent = Recent(limit=3 * size, seconds=5.0, clock=lambda: now[0])
    for sequence in range(10):
        recent.committed([commit("run", sequence, rows)])
        assert recent.nbytes <= 3 * size
    held = [recent.of("run")(0, 0, sequence) is not None for sequence in range(10)]
    assert held == [True] * 3 + [False] * 7, "the oldest are compacted next"
    recent.committed([commit("run", 2, rows)])
    assert recent.nbytes == 3 * size, "the same once more takes no room"
    now[0] = 5.1
    recent.expire()
    assert recent.nbytes == 0
