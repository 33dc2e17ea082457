"""Compaction, roll-ups and retention change where steps are kept, never what is read."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.contract.engines import delivery, open_engine
from tests.service import jobs

import gradwatch_wire as wire
from gradwatch_service.queries.quantities import run_quantity
from gradwatch_service.queries.series import Pieces
from gradwatch_service.store.sqlite import compacting
from gradwatch_service.store.sqlite.keeping import used_bytes
from gradwatch_service.store.sqlite.piece_cache import PieceCache

MANIFEST = jobs.manifest()
WHOLE = {"attempt": 0, "optimizer": "default", "rank": 0}


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 64 steps, so that few steps make many."""
    monkeypatch.setattr(compacting, "MAX_STEPS", 64)


@pytest.fixture
def store(tmp_path):
    opened = open_engine("sqlite", tmp_path)
    opened.register("run", MANIFEST, now=time.time())
    yield opened
    opened.close()


def append(store, steps, **fields):
    made = delivery("run", jobs.report(steps, **fields), MANIFEST)
    store.append(made).result()
    return made.rows


def whole(store, **which):
    """Everything read, as one mapping of arrays."""
    blocks = list(store.read("run", **(WHOLE | which)))
    if not blocks:
        return {}
    found = {"steps": np.concatenate([rows.steps for rows in blocks])}
    for name in blocks[0].tensors:
        found[name] = np.concatenate([rows.tensors[name] for rows in blocks])
    for name in blocks[0].scalars:
        found[name] = np.concatenate([rows.scalars[name] for rows in blocks])
    found["time"] = np.concatenate([rows.time for rows in blocks])
    return found


def same(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.tobytes() == other[name].tobytes(), name


def hot_rows(store):
    with store.database.reader() as connection:
        return connection.execute(
            "SELECT count(*) FROM delivery WHERE payload IS NOT NULL"
        ).fetchone()[0]


def test_compaction_changes_nothing_that_is_read(store, small_chunks):
    for sequence in range(20):
        append(store, range(sequence * 25, sequence * 25 + 25), sequence=sequence)
    before = whole(store)

    assert store.maintenance.compact(quiet=True) >= 500 // 64

    assert hot_rows(store) == 0
    same(whole(store), before)
    same(whole(store, start=77, end=301), {k: v[77:302] for k, v in before.items()})
    (rows,) = store.read("run", **WHOLE, start=3, end=9, tensors=[1], columns=["norm"])
    assert np.array_equal(rows.tensors["norm"][:, 0], before["norm"][3:10, 1])


def test_a_repeat_is_known_after_its_steps_moved_into_a_chunk(store):
    append(store, range(10))
    store.maintenance.compact(quiet=True)
    again = delivery("run", jobs.report(range(10)), MANIFEST)

    assert store.append(again).result().stored is False


def test_histograms_survive_compaction(store):
    counts = np.arange(2 * 3 * 8, dtype="<u4").reshape(2, 3, 8) % 7
    histograms = wire.Histograms(
        jobs.column(np.array([2, 5], "<i8")), 4, -48, 0.5, jobs.column(counts)
    )
    append(store, range(8), histograms=histograms)
    store.maintenance.compact(quiet=True)

    (rows,) = store.read("run", **WHOLE, tensors=[2])

    (kept,) = rows.histograms
    assert (kept.steps.tolist(), kept.sampled, kept.lowest_exponent) == ([2, 5], 0.5, -48)
    assert np.array_equal(kept.counts[:, 0], counts[:, 2])


def test_a_late_delivery_is_merged_into_the_chunk_it_belongs_to(store, small_chunks):
    for sequence in (0, 1, 3, 4):
        append(store, range(sequence * 25, sequence * 25 + 25), sequence=sequence)
    store.maintenance.compact(quiet=True)
    append(store, range(50, 75), sequence=2)
    before = whole(store)
    assert before["steps"].tolist() == list(range(125))

    store.maintenance.compact(quiet=True)

    assert hot_rows(store) == 0
    same(whole(store), before)
    curve = pieces(store, "global_norm", points=1)
    assert curve.count.sum() == 125


def test_steps_strewn_over_a_whole_run_do_not_drag_it_through_memory(store, small_chunks):
    for sequence in range(30):
        append(store, range(sequence * 64, sequence * 64 + 64), sequence=sequence)
    store.maintenance.compact(quiet=True)
    append(store, [5, 10**6], sequence=30)
    before = whole(store)

    store.maintenance.compact(quiet=True)

    same(whole(store), before)
    assert before["steps"].tolist() == [*range(1920), 10**6]


def pieces(store, metric, *, points, tensor=None, **span):
    found = []
    for item in store.curve("run", **WHOLE, metric=metric, tensor=tensor, points=points, **span):
        if isinstance(item, Pieces):
            found.append(item)
            continue
        values = run_quantity(item, metric) if tensor is None else item.tensors[metric][:, 0]
        nonfinite = np.zeros(len(item))
        found.append(Pieces.of_steps(item.steps, values, nonfinite, every_step=False))
    return Pieces(*(np.concatenate([getattr(p, name) for p in found]) for name in Pieces.__slots__))


@pytest.mark.parametrize("tensor", [None, 1])
@pytest.mark.parametrize("span", [{}, {"start": 1000, "end": 8000}, {"start": 70, "end": 9990}])
def test_a_coarse_curve_covers_every_step_once_with_exact_extremes(store, span, tensor):
    for sequence in range(10):
        append(store, range(sequence * 1000, sequence * 1000 + 1000), sequence=sequence)
    store.maintenance.compact(quiet=True)
    append(store, range(10_000, 10_100), sequence=10)
    metric = "global_norm" if tensor is None else "norm"
    steps = whole(store, **span)
    norms = steps["norm"].astype(np.float64)
    truth = np.sqrt((norms**2).sum(axis=1)) if tensor is None else norms[:, tensor]

    curve = pieces(store, metric, points=10, tensor=tensor, **span)

    assert len(curve) < len(truth) / 5
    assert curve.count.sum() == len(truth)
    assert curve.start.min() == steps["steps"][0]
    assert curve.end.max() == steps["steps"][-1]
    assert curve.low.min() == pytest.approx(truth.min(), rel=1e-12)
    assert curve.high.max() == pytest.approx(truth.max(), rel=1e-12)
    assert curve.total.sum() == pytest.approx(truth.sum(), rel=1e-6)


def test_old_detail_goes_but_every_spike_and_what_is_around_incidents_stays(tmp_path, small_chunks):
    store = open_engine("sqlite", tmp_path, retention_full_seconds=0)
    try:
        store.register("run", MANIFEST, now=time.time())
        for sequence in range(60):
            append(store, range(sequence * 64, sequence * 64 + 64), sequence=sequence)
        incident = b'{"opened_step": 2000, "onset_step": 1990, "last_step": 2010, "attempt": 0}'
        store.save("run", {"incident": {"i": incident}})
        before = whole(store)
        truth = np.sqrt((before["norm"].astype(np.float64) ** 2).sum(axis=1))
        store.maintenance.compact(quiet=True)

        assert store.maintenance.retain() > 30

        left = whole(store)["steps"]
        assert set(range(1478, 2523)) <= set(left.tolist())
        assert len(left) < 1500
        curve = pieces(store, "global_norm", points=100_000)
        assert curve.count.sum() == len(truth)
        for start, end, high in zip(curve.start, curve.end, curve.high, strict=True):
            assert high == pytest.approx(truth[start : end + 1].max(), rel=1e-12)
    finally:
        store.close()


def test_the_oldest_detail_goes_when_the_store_is_too_large(tmp_path):
    store = open_engine("sqlite", tmp_path, retention_bytes=2**20)
    try:
        wide = jobs.manifest(40)
        store.register("run", wide, now=time.time())
        for sequence in range(40):
            report = jobs.report(
                range(sequence * 100, sequence * 100 + 100), sequence=sequence, made=wide
            )
            store.append(delivery("run", report, wide)).result()
        store.maintenance.compact(quiet=True)
        store.maintenance.shrink()
        before = store.size_bytes()

        assert store.maintenance.retain() > 0
        store.maintenance.shrink()

        assert store.size_bytes() < before / 2
        assert pieces(store, "global_norm", points=10).count.sum() == 4000
    finally:
        store.close()


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_order_overlap_and_moment_of_compaction_reads_the_same(tmp_path_factory, data):
    """Against a model: a dictionary from step to the values of the highest sequence."""
    store = open_engine("sqlite", tmp_path_factory.mktemp("store"))
    try:
        store.register("run", MANIFEST, now=time.time())
        model = {}
        starts = data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=12))
        order = data.draw(st.permutations(range(len(starts))))
        for sequence in order:
            length = data.draw(st.integers(1, 90))
            stride = data.draw(st.sampled_from([1, 1, 3]))
            steps = range(starts[sequence], starts[sequence] + length * stride, stride)
            rows = append(store, steps, sequence=sequence)
            for row, step in enumerate(rows.steps.tolist()):
                if model.get(step, (-1,))[0] < sequence:
                    model[step] = (sequence, rows.tensors["norm"][row])
            if data.draw(st.booleans()):
                store.maintenance.compact(quiet=True)

        found = whole(store)
        assert found["steps"].tolist() == sorted(model)
        expected = np.array([model[step][1] for step in sorted(model)])
        assert np.array_equal(found["norm"], expected)
        assert store.run("run").steps == len(model)
    finally:
        store.close()


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_curve_asked_again_and_again_is_the_one_that_a_new_process_gives(
    tmp_path_factory, small_chunks, data
):
    """What was decoded before is used again: never of a chunk that has been made anew since."""
    store = open_engine("sqlite", tmp_path_factory.mktemp("store"))
    asked_for = [
        {"metric": metric, "tensor": tensor, **span}
        for metric, tensor in (("norm", 1), ("loss", None))
        for span in ({}, {"start": 100, "end": 4700})
    ]
    try:
        store.register("run", MANIFEST, now=time.time())
        for sequence in range(10):
            append(store, range(sequence * 500, sequence * 500 + 500), sequence=sequence)
        for sequence in range(10, 14):
            store.maintenance.compact(quiet=True)
            asked = [pieces(store, points=10, **what) for what in asked_for]
            kept, store._pieces = store._pieces, PieceCache()
            anew = [pieces(store, points=10, **what) for what in asked_for]
            store._pieces = kept
            for one, other in zip(asked, anew, strict=True):
                for name in Pieces.__slots__:
                    assert np.array_equal(getattr(one, name), getattr(other, name)), name
            # Known steps with other values, new ones, or both: their chunk is made anew.
            first = data.draw(st.sampled_from([0, 64, 4990, 5000 + 50 * (sequence - 10)]))
            append(store, range(first, first + data.draw(st.integers(1, 70))), sequence=sequence)
    finally:
        store.close()


def test_a_deleted_run_leaves_nothing_behind_and_others_alone(store, small_chunks):
    store.register("other", MANIFEST, now=time.time())
    for sequence in range(20):
        append(store, range(sequence * 64, sequence * 64 + 64), sequence=sequence)
    made = delivery("other", jobs.report(range(64)), MANIFEST)
    store.append(made).result()
    store.maintenance.compact(quiet=True)
    append(store, range(1280, 1300), sequence=20)

    store.delete("run")
    assert store.maintenance.purge() > 0
    assert store.maintenance.purge() == 0

    with store.database.reader() as connection:
        for table in ("delivery", "chunk", "chunk_tensor", "rollup", "stream", "manifest"):
            runs = connection.execute(f"SELECT DISTINCT run_id FROM {table}").fetchall()  # noqa: S608 - our names
            assert runs == [(2,)], table
    assert len(next(iter(store.read("other", **WHOLE)))) == 64


def test_what_is_left_of_old_steps_survives_compaction_on_both_sides_of_them(
    tmp_path, small_chunks
):
    store = open_engine("sqlite", tmp_path, retention_full_seconds=0)
    try:
        store.register("run", MANIFEST, now=time.time())
        append(store, range(10), sequence=0)
        store.maintenance.compact(quiet=True)
        append(store, range(2000, 2064), sequence=1)
        store.maintenance.compact(quiet=True)
        incident = b'{"opened_step": 5, "onset_step": 5, "last_step": 5, "attempt": 0}'
        store.save("run", {"incident": {"i": incident}})
        assert store.maintenance.retain() == 1
        append(store, range(3000, 3010), sequence=2)
        store.maintenance.compact(quiet=True)

        assert whole(store)["steps"].tolist() == [*range(10), *range(3000, 3010)]
        for tensor, metric in ((None, "global_norm"), (1, "norm")):
            curve = pieces(store, metric, points=100_000, tensor=tensor)
            assert curve.count.sum() == 84
            assert ((curve.start >= 2000) & (curve.end < 2064)).any()
    finally:
        store.close()


def test_one_step_to_a_delivery_leaves_no_page_for_each_behind(store):
    wide = jobs.manifest(100)
    store.register("wide", wide, now=time.time())
    for step in range(300):
        report = jobs.report([step], sequence=step, made=wide)
        store.append(delivery("wide", report, wide))
    store.maintenance.compact(quiet=True)
    store.maintenance.shrink()
    with store.database.reader() as connection:
        (kept,) = connection.execute("SELECT sum(length(body)) FROM chunk_tensor").fetchone()
        used = used_bytes(connection)
    assert used - kept < 300 * 1000, "about a hundred bytes are left of each, not 4 kB"
