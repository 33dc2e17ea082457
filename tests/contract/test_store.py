"""What every store promises, whatever engine keeps it."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest
from tests.contract.engines import ENGINES, delivery, open_engine
from tests.service import jobs

import gradwatch_wire as wire
from gradwatch_service.store.base import (
    DeletedRunError,
    ManifestConflictError,
    SequenceConflictError,
    StoreUnavailableError,
    UnknownAttemptError,
    UnknownManifestError,
    UnknownRunError,
)

MANIFEST = jobs.manifest()
WHOLE = {"attempt": 0, "optimizer": "default", "rank": 0}


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture
def store(engine, tmp_path):
    opened = open_engine(engine, tmp_path)
    yield opened
    opened.close()


def made(steps, **fields):
    return delivery("run", jobs.report(steps, **fields), MANIFEST)


def read(store, **which):
    return list(store.read("run", **(WHOLE | which)))


def steps_of(blocks):
    return [step for rows in blocks for step in rows.steps.tolist()]


def test_what_was_appended_is_read_back_bit_for_bit(store):
    store.register("run", MANIFEST, now=time.time())
    sent = made(range(10))

    assert store.append(sent).result().stored is True

    (rows,) = read(store)
    assert rows.steps.tolist() == list(range(10))
    assert [t.name for t in rows.manifest.tensors] == [t.name for t in MANIFEST.tensors]
    for name, values in sent.rows.tensors.items():
        assert rows.tensors[name].tobytes() == np.ascontiguousarray(values).tobytes(), name
    for name, values in sent.rows.scalars.items():
        assert rows.scalars[name].tobytes() == values.tobytes(), name


def test_a_delivery_is_stored_once_and_other_content_refused(store):
    store.register("run", MANIFEST, now=time.time())

    assert store.append(made(range(4))).result().stored is True
    assert store.append(made(range(4))).result().stored is False
    with pytest.raises(SequenceConflictError):
        store.append(made(range(4), seed=1)).result()

    assert store.run("run").steps == 4


def test_what_was_never_registered_is_refused(store):
    with pytest.raises(UnknownRunError):
        store.append(made(range(4))).result()
    store.register("run", MANIFEST, now=time.time())

    with pytest.raises(UnknownAttemptError):
        store.append(made(range(4), attempt=1)).result()
    with pytest.raises(UnknownManifestError):
        store.append(made(range(4), rank=1)).result()
    assert store.run("run").steps == 0


def test_rows_come_in_step_order_whatever_the_order_of_arrival(store):
    store.register("run", MANIFEST, now=time.time())
    for sequence in (3, 0, 2, 1):
        store.append(made(range(sequence * 5, sequence * 5 + 5), sequence=sequence)).result()

    assert steps_of(read(store)) == list(range(20))
    assert steps_of(read(store, start=7, end=12)) == list(range(7, 13))
    assert steps_of(read(store, start=7, limit=4)) == list(range(7, 11))


def test_of_two_deliveries_with_the_same_step_the_higher_sequence_counts(store):
    store.register("run", MANIFEST, now=time.time())
    new = made(range(5, 10), sequence=1)
    store.append(new).result()
    store.append(made(range(8), sequence=0)).result()

    (rows,) = read(store)
    assert rows.steps.tolist() == list(range(10))
    assert np.array_equal(rows.tensors["norm"][5:], new.rows.tensors["norm"])
    assert store.run("run").steps == 10


def test_one_tensor_and_one_column_are_read_alone(store):
    store.register("run", MANIFEST, now=time.time())
    sent = made(range(6))
    store.append(sent).result()

    (rows,) = read(store, tensors=[2, 0], columns=["norm"])

    assert [t.name for t in rows.manifest.tensors] == [
        MANIFEST.tensors[2].name,
        MANIFEST.tensors[0].name,
    ]
    assert list(rows.tensors) == ["norm"]
    assert np.array_equal(rows.tensors["norm"], sent.rows.tensors["norm"][:, [2, 0]])


def test_a_tensor_added_later_is_absent_before(store):
    more = wire.TensorInfo("added.weight", (4, 4), "float32", "added")
    grown = jobs.manifest((*MANIFEST.tensors, more), extends=MANIFEST.hash)
    store.register("run", MANIFEST, now=time.time())
    store.append(made(range(4))).result()
    store.register("run", grown, now=time.time())
    late = jobs.report(range(4, 8), made=grown, sequence=1)
    store.append(delivery("run", late, grown)).result()

    before, after = read(store)
    assert (len(before.manifest.tensors), len(after.manifest.tensors)) == (3, 4)
    with pytest.raises(ManifestConflictError):
        store.register("run", jobs.manifest(MANIFEST.tensors[:2]), now=time.time())


def test_a_newer_attempt_supersedes_the_tail_of_the_older(store):
    for session in ("a", "b"):
        store.register("run", jobs.manifest(session=session), now=time.time())
    store.append(made(range(100))).result()
    store.append(made(range(60, 90), attempt=1)).result()

    old, new = store.streams("run")
    assert (old.valid_to, new.valid_to) == (59, None)
    assert store.run("run").last_step == 89
    assert steps_of(read(store)) == list(range(100))


def test_gaps_say_how_far_the_deliveries_are_complete(store):
    store.register("run", MANIFEST, now=time.time())
    assert store.gaps("run", 0) == {}
    for sequence in (0, 1, 3, 4, 7):
        store.append(made([sequence * 10], sequence=sequence)).result()

    (gap,) = store.gaps("run", 0).values()
    assert (gap.contiguous, gap.highest, gap.steps) == (1, 7, {"default": 10})

    store.append(made([20], sequence=2)).result()
    assert store.gaps("run", 0)[0].contiguous == 4


def test_listeners_hear_of_a_commit_after_it_can_be_read(store):
    heard = []

    def listen(commits):
        for commit in commits:
            rows = 0 if commit.rows is None else len(commit.rows)
            heard.append((commit.kind, rows, store.run("run").steps))

    store.on_commit(listen)
    store.register("run", MANIFEST, now=time.time())
    store.append(made(range(4))).result()
    store.append(made(range(4))).result()
    store.finish("run", "completed", now=time.time())
    store.close()

    assert heard == [("registered", 0, 0), ("report", 4, 4), ("finished", 0, 4)]


def test_documents_change_together_and_go_with_the_run(store):
    store.register("run", MANIFEST, now=time.time())
    store.save("run", {"a": {"x": b"1", "y": b"2"}, "b": {"x": b"3"}})
    store.save("run", {"a": {"x": b"4", "y": None}})

    assert store.documents("run", "a") == {"x": b"4"}
    assert list(store.all_documents("b")) == [("run", "x", b"3")]
    assert list(store.all_documents("b", project="other")) == []
    store.delete("run")
    with pytest.raises(DeletedRunError):
        store.documents("run", "a")


def test_pages_of_runs_hold_each_run_once_newest_first(store):
    names = [f"run-{n:02}" for n in range(25)]
    for index, name in enumerate(names):
        project = "odd" if index % 2 else "even"
        store.register(name, jobs.manifest(project=project, tags={"n": str(index)}), now=index)

    seen, cursor = [], None
    while True:
        page = store.runs(limit=7, cursor=cursor)
        seen += [record.run for record in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == names[::-1]
    assert len(store.runs(project="odd").items) == 12
    assert [r.run for r in store.runs(q="RUN-07").items] == ["run-07"]
    assert len(store.runs(q="%").items) == 0
    with pytest.raises(ValueError, match="cursor"):
        store.runs(cursor="nonsense")


def test_a_clock_that_goes_back_loses_nothing(store):
    store.register("run", MANIFEST, now=2e9)
    for sequence, received in enumerate((2e9, 1e9, 1.5e9)):
        report = jobs.report([sequence], sequence=sequence)
        store.append(delivery("run", report, MANIFEST, received=received)).result()

    assert store.run("run").steps == 3
    assert store.run("run").last_report_at == 2e9


def test_everything_is_there_after_opening_again(engine, tmp_path):
    store = open_engine(engine, tmp_path)
    store.register("run", MANIFEST, now=time.time())
    store.append(made(range(50))).result()
    store.save("run", {"a": {"x": b"1"}})
    before = store.run("run")
    store.close()

    store = open_engine(engine, tmp_path)
    try:
        after = store.run("run")
        assert dataclasses.asdict(after) == dataclasses.asdict(before)
        assert steps_of(read(store)) == list(range(50))
        assert store.append(made(range(50))).result().stored is False
    finally:
        store.close()


def test_concurrent_writers_each_get_their_answer(store):
    store.register("run", MANIFEST, now=time.time())
    results = {}

    def write(sequence):
        sent = made([sequence], sequence=sequence)
        results[sequence] = [store.append(sent).result().stored for _ in range(2)]

    threads = [threading.Thread(target=write, args=(n,)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == {n: [True, False] for n in range(40)}
    assert steps_of(read(store)) == list(range(40))


def test_a_failed_write_takes_nothing_of_others_back(store):
    store.register("run", MANIFEST, now=time.time())
    store.append(made([0], sequence=0)).result()
    good = [store.append(made([n], sequence=n)) for n in range(1, 20)]
    bad = store.append(made([99], sequence=0, seed=5))
    more = [store.append(made([n], sequence=n)) for n in range(20, 40)]

    assert all(future.result().stored for future in (*good, *more))
    with pytest.raises(SequenceConflictError):
        bad.result()
    assert store.run("run").steps == 40


def test_a_closed_store_says_so(store):
    store.register("run", MANIFEST, now=time.time())
    store.close()
    store.close()

    with pytest.raises(StoreUnavailableError):
        store.append(made(range(4))).result()
