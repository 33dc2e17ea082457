"""Shards: parts of every rank make the numbers of the whole tensors, once all of them are there."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from tests.conftest import poll, serving
from tests.contract.engines import delivery, open_engine
from tests.service import jobs

import gradwatch_wire as wire

RANKS = (0, 1, 2)
NUMEL = np.array([t.numel for t in jobs.TENSORS])
WHOLE = {"attempt": 0, "optimizer": "default", "rank": 0}


def split(steps, seed=0):
    """Random gradients as whole tensors, and each rank's part of them as a report."""
    rng = np.random.default_rng(seed)
    gradients = {
        step: [rng.normal(0, 1, n) * (rng.random(n) > 0.1) for n in NUMEL] for step in steps
    }
    cuts = [np.sort(rng.integers(0, n + 1, len(RANKS) - 1)) for n in NUMEL]
    reports = {}
    for rank in RANKS:
        pieces = {
            step: [np.split(g, cut)[rank] for g, cut in zip(tensors, cuts, strict=True)]
            for step, tensors in gradients.items()
        }
        reports[rank] = part(rank, pieces)
    return gradients, reports


def part(rank, pieces, sequence=0):
    steps = sorted(pieces)
    local = np.array([len(g) for g in pieces[steps[0]]])

    def column(measure, kind):
        values = [[measure(g) if len(g) else 0 for g in pieces[step]] for step in steps]
        return jobs.column(np.array(values, dtype=kind))

    tensors = {
        "norm": column(np.linalg.norm, "<f4"),
        "max_abs": column(lambda g: np.abs(g).max(), "<f4"),
        "mean": column(np.mean, "<f4"),
        "zero_count": column(lambda g: (g == 0).sum(), "<u4"),
        "nonfinite_count": column(lambda g: 0, "<u4"),
        "clipped_count": column(lambda g: (np.abs(g) > 1).sum(), "<u4"),
        "norm_after": column(lambda g: np.linalg.norm(np.clip(g, -1, 1)), "<f4"),
        "dot_after": column(lambda g: (g * np.clip(g, -1, 1)).sum(), "<f4"),
    }
    weights, elements = np.ones(len(local)), local.astype("<u8")
    partial = wire.Partial(RANKS, jobs.column(weights), jobs.column(elements))
    return jobs.report(
        steps, rank=rank, sequence=sequence, tensors=tensors, partial=partial, scalars={}
    )


def expected(gradients):
    clipped = {s: [np.clip(g, -1, 1) for g in tensors] for s, tensors in gradients.items()}

    def table(measure):
        return np.array([[measure(g) for g in gradients[s]] for s in sorted(gradients)])

    after = np.array([[np.linalg.norm(g) for g in clipped[s]] for s in sorted(clipped)])
    dot = table(lambda g: (g * np.clip(g, -1, 1)).sum())
    norm = table(np.linalg.norm)
    return {
        "norm": norm,
        "max_abs": table(lambda g: np.abs(g).max()),
        "mean": table(np.mean),
        "zero_count": table(lambda g: (g == 0).sum()),
        "clipped_count": table(lambda g: (np.abs(g) > 1).sum()),
        "norm_after": after,
        "cosine_after": dot / (norm * after),
    }


@pytest.fixture
def store(tmp_path):
    opened = open_engine("sqlite", tmp_path)
    for rank in RANKS:
        opened.register("run", jobs.manifest(rank=rank, world_size=3, session="s"), now=time.time())
    yield opened
    opened.close()


def put(store, report):
    made = jobs.manifest(rank=report.rank, world_size=3, session="s")
    return store.append(delivery("run", report, made)).result()


def read(store):
    return list(store.read("run", **WHOLE))


@pytest.mark.parametrize("order", list(itertools.permutations(RANKS)))
def test_the_parts_of_all_ranks_give_the_numbers_of_the_whole_tensors(store, order):
    gradients, reports = split(range(6))
    for rank in order:
        assert read(store) == []
        assert put(store, reports[rank]).stored is True
        store.combiner.work()

    (rows,) = read(store)
    assert rows.steps.tolist() == list(range(6))
    assert rows.rank == 0
    for name, values in expected(gradients).items():
        np.testing.assert_allclose(rows.tensors[name], values, rtol=2e-5, atol=1e-6, err_msg=name)
    assert store.run("run").steps == 6
    assert [s.steps for s in store.streams("run")] == [6, 0, 0]
    assert all(put(store, reports[rank]).stored is False for rank in RANKS)


def test_ranks_may_cut_their_deliveries_differently(store):
    gradients, _ = split(range(10), seed=1)
    rng = np.random.default_rng(1)
    cuts = [np.sort(rng.integers(0, n + 1, 2)) for n in NUMEL]
    batches = {0: [range(10)], 1: [range(4), range(4, 10)], 2: [range(7), range(7, 10)]}
    for rank, sequence in [(2, 1), (0, 0), (1, 0), (2, 0), (1, 1)]:
        pieces = {
            step: [np.split(g, cut)[rank] for g, cut in zip(gradients[step], cuts, strict=True)]
            for step in batches[rank][sequence]
        }
        put(store, part(rank, pieces, sequence))
        store.combiner.work()

    steps = np.concatenate([rows.steps for rows in read(store)])
    norm = np.concatenate([rows.tensors["norm"] for rows in read(store)])
    assert steps.tolist() == list(range(10))
    np.testing.assert_allclose(norm, expected(gradients)["norm"], rtol=2e-5)


def test_a_rank_that_never_delivers_is_given_up_and_counted(tmp_path):
    store = open_engine("sqlite", tmp_path, partial_seconds=0)
    try:
        for rank in RANKS:
            store.register("run", jobs.manifest(rank=rank, session="s"), now=time.time())
        _, reports = split(range(5))
        put(store, reports[0])
        put(store, reports[1])
        time.sleep(0.01)
        store.combiner.work()

        assert read(store) == []
        assert store.run("run").dropped == {"incomplete_shards": 5}
        assert store.combiner.work() == 0
    finally:
        store.close()


def test_parts_over_http_are_in_the_series_once_they_are_whole(tmp_path):
    gradients, reports = split(range(8), seed=3)
    with serving(tmp_path) as service:
        for rank in RANKS:
            jobs.register(service.http, "run", jobs.manifest(rank=rank, session="s", world_size=3))
        for rank in RANKS[:2]:
            assert jobs.post(service.http, "run", reports[rank]).status_code == 200
        series = "/api/v1/runs/run/series?metric=global_norm"
        assert service.http.get(series).json()["count"] == []

        jobs.post(service.http, "run", reports[2])

        poll(lambda: sum(service.http.get(series).json()["count"]) == 8)
        norms = np.sqrt((expected(gradients)["norm"] ** 2).sum(axis=1))
        assert service.http.get(series).json()["max"] == pytest.approx(norms.tolist(), rel=1e-5)
