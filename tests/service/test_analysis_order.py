"""Incidents do not depend on how, when or how often reports arrive, nor on crashes in between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.service.analysed import (
    MANIFEST,
    MemoryStore,
    analysis_of,
    healthy_rows,
    settle,
    told,
    troubled_rows,
)

from gradwatch_service.analysis.gaps import GapWatch
from gradwatch_service.analysis.run_analysis import RunAnalysis
from gradwatch_service.rows import StepRows
from gradwatch_service.store.base import Gap, Stream

STEPS = 200


def _in_order(*streams: StepRows) -> list[dict[str, object]]:
    store = MemoryStore()
    for rows in streams:
        store.deliver(0, rows)
    analysis = analysis_of(store)
    settle(analysis, 0.0)
    return told(analysis)


def _note(analysis: RunAnalysis, unheard: list[StepRows]) -> None:
    while unheard:
        analysis.note(unheard.pop(0))


@dataclass(frozen=True)
class History:
    """How the deliveries of one run came in: numbers only, so that a failure prints short."""

    seed: int
    borders: list[int]
    order: list[int]  # deliveries by number, repeats included
    waits: list[int]  # seconds before each
    crashes: list[int]  # deliveries after which the process is gone
    told: list[str]  # how the analysis hears of each: with its numbers, without, or a tick later


@st.composite
def _histories(draw: st.DrawFn) -> History:
    cuts = sorted(draw(st.sets(st.integers(1, STEPS - 1), max_size=7)))
    parts = range(len(cuts) + 1)
    repeats = draw(st.lists(st.sampled_from(parts), max_size=2))
    order = [*draw(st.permutations(parts)), *repeats]
    waits = draw(st.lists(st.sampled_from([0, 1, 40]), min_size=len(order), max_size=len(order)))
    crashes = draw(st.lists(st.sampled_from(range(len(order))), max_size=2))
    ways = st.sampled_from(["whole", "whole", "bare", "later"])
    told = draw(st.lists(ways, min_size=len(order), max_size=len(order)))
    return History(draw(st.integers(0, 3)), [0, *cuts, STEPS], order, waits, crashes, told)


# Shrinking replays the whole history hundreds of times; the numbers printed are short as they are.
@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(_histories())
def test_any_batching_order_repeat_and_crash_ends_in_the_incidents_of_an_ordered_replay(
    history: History,
) -> None:
    rows = troubled_rows(STEPS, seed=history.seed)
    store = MemoryStore()
    analysis = analysis_of(store)
    now = 0.0
    unheard: list[StepRows] = []
    for at, sequence in enumerate(history.order):
        part = rows.cut(*history.borders[sequence : sequence + 2])
        store.deliver(sequence, part)
        unheard.append(part.bare() if history.told[at] == "bare" else part)
        if history.told[at] != "later":
            _note(analysis, unheard)
        now += history.waits[at]
        analysis.tick(now)
        analysis.save()
        if at in history.crashes:
            analysis, unheard = analysis_of(store), []
    _note(analysis, unheard)
    settle(analysis, now)
    assert told(analysis) == _in_order(rows)
    assert analysis.complete


def test_commits_in_order_are_taken_in_without_reading_them_back() -> None:
    rows = troubled_rows(STEPS)
    store = CountingStore()
    analysis = analysis_of(store)
    for sequence in range(10):
        part = rows.cut(20 * sequence, 20 * sequence + 20)
        store.deliver(sequence, part)
        analysis.note(part)
        analysis.tick(float(sequence))
        if sequence == 0:
            # The first look reads, since it cannot know what was there before.
            at_first = store.reads
    assert store.reads == at_first
    assert told(analysis) == _in_order(rows)


@dataclass
class CountingStore(MemoryStore):
    """Counts how often steps are read."""

    reads: int = 0

    def read(self, *args: Any, **options: Any) -> Iterator[StepRows]:
        self.reads += 1
        return super().read(*args, **options)


def test_the_troubled_rows_hold_what_the_property_is_about() -> None:
    kinds = [(item["kind"], item["opened_step"]) for item in _in_order(troubled_rows())]
    assert sorted(kinds, key=lambda pair: pair[1]) == [
        ("exploding", 60),
        ("nonfinite", 85),
        ("vanishing", 111),
        ("exploding", 151),
    ]


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(10)))
def test_steps_posted_without_sequence_in_any_order_end_the_same(order: list[int]) -> None:
    rows = troubled_rows(STEPS)
    parts = {at: rows.cut(20 * at, 20 * at + 20) for at in range(10)}
    store = MemoryStore(numbered=False)
    analysis = analysis_of(store)
    for at, part in enumerate(order):
        store.deliver(part, parts[part])
        analysis.note(parts[part])
        analysis.tick(float(at))
        if at == 5:
            analysis.save()
            analysis = analysis_of(store)
    settle(analysis, 99.0)
    assert told(analysis) == _in_order(rows)


def test_an_incident_that_late_data_refutes_is_retracted_and_one_they_change_is_revised() -> None:
    rows = troubled_rows(STEPS)
    calm = healthy_rows(STEPS).cut(0, 60)
    store = MemoryStore()
    analysis = analysis_of(store)
    # Without the steps 20 to 59 the history is short, and the dead layer is found all the same.
    for sequence, part in ((0, calm.cut(0, 20)), (2, rows.cut(60, STEPS))):
        store.deliver(sequence, part)
        analysis.note(part)
        analysis.tick(0.0)
    assert [i.status for i in analysis.log.all()] == []
    settle(analysis, 31.0)
    early = {i.id: i for i in analysis.log.all()}
    assert early
    assert all(i.provisional for i in early.values())
    late = calm.cut(20, 60)
    store.deliver(1, late)
    analysis.note(late)
    settle(analysis, 32.0)
    final = {i.id: i for i in analysis.log.all()}
    assert early.keys() <= final.keys(), "an incident is never deleted"
    assert not any(i.provisional for i in final.values() if i.status != "retracted")
    for key, incident in final.items():
        before = early.get(key)
        same = before is not None and replace(incident, provisional=True) == before
        assert same or before is None or incident.revision == before.revision + 1


def test_a_missing_sequence_is_waited_for_thirty_seconds_and_no_longer() -> None:
    rows = healthy_rows(100)
    store = MemoryStore()
    analysis = analysis_of(store)
    store.deliver(0, rows.cut(0, 40))
    store.deliver(2, rows.cut(60, 100))
    analysis.tick(100.0)
    assert analysis.newest is not None
    assert analysis.newest.state.position == 39
    _, again = analysis.tick(129.0)
    assert analysis.newest.state.position == 39
    assert again == 130.0
    analysis.tick(130.0)
    assert analysis.newest.state.position == 99
    assert not analysis.complete


def test_trouble_on_one_of_several_ranks_is_one_incident_that_names_the_rank() -> None:
    one, two = healthy_rows(100), replace(healthy_rows(100, seed=5), rank=1)
    bad = two.tensors["nonfinite_count"].copy()
    bad[50, 2] = 7
    two = replace(two, tensors={**two.tensors, "nonfinite_count": bad})
    (incident,) = _in_order(one, two)
    assert (incident["kind"], incident["ranks"], incident["cause"]) == (
        "nonfinite",
        [1],
        "one_rank",
    )
    assert "rank 1" in str(incident["verdict"])


def test_a_rank_that_stops_is_told_within_sixty_seconds_and_taken_back_when_it_returns() -> None:
    store = MemoryStore()
    analysis = analysis_of(store)
    lead, other = healthy_rows(200), replace(healthy_rows(200), rank=1)
    for rows in (lead.cut(0, 50), other.cut(0, 50)):
        store.deliver(0, rows)
    analysis.tick(0.0)
    store.deliver(1, lead.cut(50, 100))
    for now in range(0, 61, 5):
        analysis.tick(float(now))
    (notice,) = analysis.log.all()
    assert (notice.kind, notice.ranks, notice.status) == ("rank_missing", (1,), "open")
    assert analysis.newest is not None
    assert analysis.newest.state.position == 99, "the others are not held up"
    late = other.cut(50, 100)
    store.deliver(1, late)
    analysis.note(late)
    analysis.tick(62.0)
    (notice,) = analysis.log.all()
    assert notice.status == "closed"


def test_a_replica_that_checks_in_every_fifty_steps_is_not_missing() -> None:
    store = MemoryStore()
    analysis = analysis_of(store)
    lead = healthy_rows(240)
    checks = healthy_rows(240)
    every = np.arange(0, 240, 50)
    sums = np.where(np.isin(np.arange(240), every), 1.25, np.nan)
    lead = replace(lead, scalars={**lead.scalars, "weight_checksum": sums})
    for at, step in enumerate(every.tolist()):
        part = checks.cut(step, step + 1)
        scalars = {**part.scalars, "weight_checksum": np.array([1.25])}
        store.deliver(at, replace(part, rank=1, scalars=scalars))
    store.deliver(0, lead)
    for now in range(0, 200, 20):
        analysis.tick(float(now))
    assert analysis.log.all() == []


def test_a_replica_whose_parameters_drift_is_noticed_by_its_checksum() -> None:
    lead, other = healthy_rows(200), replace(healthy_rows(200), rank=1)
    sums = np.where(np.arange(200) % 50 == 0, 1.25, np.nan)
    drifted = sums.copy()
    drifted[100:] *= 1 + 1e-6
    lead = replace(lead, scalars={**lead.scalars, "weight_checksum": sums})
    other = replace(other, scalars={**other.scalars, "weight_checksum": drifted})
    (notice,) = _in_order(lead, other)
    assert (notice["kind"], notice["opened_step"], notice["ranks"]) == ("replicas_apart", 100, [1])


def test_a_shard_that_stops_is_missing_although_it_never_has_steps_of_its_own() -> None:
    watch = GapWatch(30)
    whole = Stream(0, "default", 0, MANIFEST, 0, 40, 41, None)
    for now in range(0, 61, 5):
        gaps = {
            0: Gap(now, now, {"default": 40 + now}),
            1: Gap(now, now, {"default": 40 + now}),
            2: Gap(7, 7, {"default": 40}),
        }
        watch.look([whole], gaps, "default", float(now))
        watch.look_at_shards([1, 2], gaps, "default", float(now))
    gone, _ = watch.missing(60.0)
    assert gone == (2,)
