"""Counting is exact, additive, and the same after a restart."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.service.live_runs import NOW, count, manifest, rows

from gradwatch_service import live
from gradwatch_service.live.counts import MAGNITUDE_BOUNDS, MAX_GROUPS, NORM_BOUNDS
from gradwatch_service.rows import HistogramRows

KEY = str(hash(manifest().tensors))


def test_elements_and_steps_add_up_by_group_and_over_the_run():
    tensors = manifest(["a", "b"], tensors_per_group=2, numel=10)
    delivery = rows(
        tensors,
        steps=[0, 1],
        clipped_count=[[1, 2, 3, 4], [0, 0, 0, 0]],
        nonfinite_count=[[0, 0, 0, 0], [0, 0, 5, 0]],
        zero_count=[[1, 1, 0, 0], [1, 1, 0, 0]],
    )

    counts = count(delivery, delivery).counts

    assert (counts.steps, counts.clipped_steps, counts.nonfinite_steps) == (4, 2, 2)
    assert (counts.elements, counts.clipped_elements, counts.nonfinite_elements) == (160, 20, 10)
    assert counts.groups["a"].clipped == 6
    assert counts.groups["a"].zero == 8
    assert counts.groups["b"].nonfinite == 10


def test_a_tensor_without_a_gradient_has_no_elements():
    tensors = manifest(["a"], tensors_per_group=2, numel=10)

    counts = count(rows(tensors, steps=[0, 1], present=[[1, 1], [1, 0]])).counts

    assert counts.elements == 30


def test_every_finite_step_is_in_one_norm_bucket_and_no_other_step_is():
    tensors = manifest(["a"], tensors_per_group=1)
    norms = [[0.05], [0.1], [0.2], [5000.0], [7.0]]
    bad = [[0], [0], [0], [0], [1]]

    counts = count(rows(tensors, steps=range(5), norm=np.array(norms), nonfinite_count=bad)).counts

    expected = [0] * (len(NORM_BOUNDS) + 1)
    expected[NORM_BOUNDS.index(0.1)] = 1  # 0.05
    expected[NORM_BOUNDS.index(0.3)] = 2  # float32(0.1) lies above 0.1, and 0.2
    expected[-1] = 1  # 5000
    assert counts.norm_buckets == tuple(expected)
    assert counts.norm_sum == pytest.approx(5000.35)


def test_steps_between_reports_are_counted_when_the_client_thins():
    since = {
        "steps_since": [10, 10],
        "nonfinite_steps_since": [2, 0],
        "clipped_steps_since": [3, 1],
    }

    counts = count(rows(steps=[10, 20], scalars=since)).counts

    assert (counts.steps, counts.nonfinite_steps, counts.clipped_steps) == (20, 2, 4)


def test_the_short_way_needs_no_tensors():
    bare = rows(manifest([]), steps=[3], scalars={"global_norm": [2.0], "loss": [1.5]})

    counters = count(bare)

    assert counters.counts.steps == 1
    assert counters.newest["default"].norm == 2.0
    assert counters.newest["default"].loss == 1.5
    assert sum(counters.counts.norm_buckets) == 1


def test_a_replica_changes_nothing_but_its_drops_and_freshness():
    lead = count(rows(rank=0))
    replica = live.summarise(rows(rank=1), manifest=KEY, dropped={"queue_full": 3})

    both = live.add(lead, replica, at=NOW + 5)

    assert both.counts == lead.counts
    assert both.newest == lead.newest
    assert both.dropped == {"queue_full": 3}
    assert both.last_report_at == NOW + 5


def test_a_rank_with_tensors_of_its_own_adds_elements_but_no_steps():
    other = manifest(["head"])

    counters = count(rows(rank=0), rows(other, rank=1))

    assert counters.counts.steps == 1
    assert set(counters.counts.groups) == {"encoder", "decoder", "head"}
    assert sum(counters.counts.norm_buckets) == 1


def test_a_shard_counts_only_once_it_is_whole():
    part = live.summarise(rows(), manifest=KEY, partial=True)

    assert live.add(live.EMPTY, part, at=NOW).counts == live.EMPTY.counts


def test_gauges_never_show_a_number_of_a_step_that_was_not_finite():
    tensors = manifest(["good", "bad"], tensors_per_group=1)

    newest = count(rows(tensors, max_abs=1.0, nonfinite_count=[[0, 1]])).newest["default"]

    assert (newest.norm, newest.norm_after, newest.max_abs) == (None, None, None)
    assert newest.groups["bad"].norm is None
    assert newest.groups["good"].norm == 0.5


def test_late_steps_do_not_replace_newer_values_but_a_new_attempt_does():
    newer, older, restarted = rows(steps=[9], norm=9.0), rows(steps=[3]), rows(attempt=1, norm=2.0)

    assert count(newer, older).newest["default"].step == 9
    assert count(newer, older, restarted).newest["default"].step == 0
    assert count(newer, restarted).last_step == 0


def test_threshold_changes_are_counted_across_deliveries_and_small_moves_are_not():
    steady = rows(scalars={"threshold": 1.0})
    moved = rows(steps=[1, 2], scalars={"threshold": [0.5, 0.51]})

    assert count(steady, steady).threshold_changes == 0
    assert count(steady, moved).threshold_changes == 1
    assert count(steady, moved, steady).threshold_changes == 2


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(0, 1e6), st.integers(0, 3), st.integers(0, 5)), min_size=2, max_size=12
    ),
    st.data(),
)
def test_how_steps_are_split_into_deliveries_changes_no_count(steps, data):
    tensors = manifest(["a"], tensors_per_group=1)

    def delivery(start, stop):
        part = steps[start:stop]
        return rows(
            tensors,
            steps=range(start, stop),
            norm=np.array([[n] for n, _, _ in part]),
            nonfinite_count=[[b] for _, b, _ in part],
            clipped_count=[[c] for _, _, c in part],
            scalars={"threshold": [1.0 + c for _, _, c in part]},
        )

    cut = data.draw(st.integers(1, len(steps) - 1))
    whole = count(delivery(0, len(steps)))
    split = count(delivery(0, cut), delivery(cut, len(steps)))

    assert split.threshold_changes == whole.threshold_changes
    assert split.newest == whole.newest
    assert split.counts.norm_sum == pytest.approx(whole.counts.norm_sum)
    assert split.counts.norm_buckets == whole.counts.norm_buckets
    assert split.counts.groups == whole.counts.groups


def test_counters_come_back_from_the_store_as_they_were():
    part = HistogramRows(np.array([0]), 4, -48, 1.0, np.ones((1, 4, 64), "u4"))
    delivery = rows(clipped_count=1, max_abs=2.0, scalars={"threshold": 1.0, "loss": 2.5})
    counters = count(
        type(delivery)(
            **{f: getattr(delivery, f) for f in delivery.__slots__} | {"histograms": (part,)}
        ),
        dropped={"queue_full": 2},
    )

    assert live.load(live.dump(counters)) == counters


@pytest.mark.parametrize(
    "damaged", [b"", b"[]", b'{"version": 2, "counters": {}}', b'{"version": 1}']
)
def test_damaged_counters_are_refused(damaged):
    with pytest.raises(ValueError):  # noqa: PT011 - orjson's own error for what is no JSON is one
        live.load(damaged)


def test_groups_beyond_the_limit_are_one_group_and_no_element_is_lost():
    tensors = manifest([f"g{i}" for i in range(100)], tensors_per_group=1, numel=7)

    counters = count(rows(tensors, norm=1.0))

    assert len(counters.counts.groups) == MAX_GROUPS
    assert counters.folded == 37
    assert sum(g.elements for g in counters.counts.groups.values()) == 700
    assert counters.newest["default"].groups["other"].norm == pytest.approx(math.sqrt(37))


def test_a_hostile_client_cannot_make_a_counter_infinite_or_negative():
    scalars = {"duration_seconds": -5.0, "overhead_seconds": 1e308, "steps_since": -3.0}
    bare = rows(manifest([]), scalars={"global_norm": 1.7e308, **scalars})

    counts = count(*[bare] * 4).counts

    assert math.isfinite(counts.norm_sum)
    assert counts.training_seconds == 0
    assert counts.overhead_seconds == 0
    assert counts.steps == 4


def test_magnitudes_land_in_the_decade_that_holds_them():
    tensors = manifest(["a"], tensors_per_group=1)
    # One octave per bin from 2^-48: 1e-9 lies in bin 18, 1 in bin 48, 1e6 above every bound.
    bins = np.zeros((1, 1, 70), "u4")
    bins[0, 0, [18, 48, 67]] = [5, 7, 11]
    part = HistogramRows(np.array([0]), 1, -48, 1.0, bins)
    given = rows(tensors)
    delivery = type(given)(
        **{f: getattr(given, f) for f in given.__slots__} | {"histograms": (part,)}
    )

    magnitude = count(delivery).counts.groups["a"].magnitude

    assert magnitude is not None
    assert sum(magnitude) == 23
    assert magnitude[MAGNITUDE_BOUNDS.index(1e-8)] == 5  # [2^-30, 2^-29) ends above 1e-9
    assert magnitude[MAGNITUDE_BOUNDS.index(10.0)] == 7  # [1, 2)
    assert magnitude[-1] == 11


def test_the_peak_of_a_minute_outlives_the_step_that_made_it():
    counters = count(rows(norm=50.0))
    later = live.add(counters, live.summarise(rows(steps=[1]), manifest=KEY), at=NOW + 30)

    assert max(peak for _, peak in later.peaks) == pytest.approx(100.0)

    latest = live.add(later, live.summarise(rows(steps=[2]), manifest=KEY), at=NOW + 90)
    assert max(peak for _, peak in latest.peaks) == pytest.approx(1.0)
