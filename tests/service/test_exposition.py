"""The page is right for any run: unique finite series, whole families, nothing injected."""

import gzip
import re
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.service.live_runs import NOW, commit, count, manifest, record, rows, view
from tests.service.scraped import read
from tests.tools import tool

from gradwatch_service import live
from gradwatch_service.exposition.page import Exposition, Limits
from gradwatch_service.exposition.tags import RESERVED, TagLabels
from gradwatch_service.exposition.template import ALL_SERIES
from gradwatch_service.instruments import REJECTION_REASONS, Instruments
from gradwatch_service.live.view import LiveView

R = {"project": "default", "run": "r"}


def scrape(known, *, limits=None, tags=(), project=None):
    """One page of these runs, read strictly."""
    exposition = Exposition(known, Instruments(), limits, TagLabels(tags))
    return read(exposition.body(project=project))


def test_a_new_run_has_every_counter_at_zero_before_its_first_report():
    page = scrape(view(record()))

    counters = [
        s.family
        for s in ALL_SERIES
        if s.family.kind == "counter" and "group" not in s.family.labels
    ]
    assert counters
    for family in counters:
        values = [v for labels, v in page.named(family.name) if labels["run"] == "r"]
        assert values, family.name
        assert set(values) == {0}, family.name
    assert page.value("gradwatch_run_incidents_total", **R, kind="nonfinite") == 0
    assert page.value("gradwatch_client_dropped_reports_total", **R, reason="queue_full") == 0
    assert page.value("gradwatch_run_gradient_norm", **R) is None


def test_the_services_own_counters_exist_at_zero_from_the_start():
    page = scrape(view())

    for reason in REJECTION_REASONS:
        assert page.value("gradwatch_ingest_rejected_reports_total", reason=reason) == 0
    for name in ("reports", "duplicate_reports", "tensors", "bytes"):
        assert page.value(f"gradwatch_ingest_{name}_total") == 0
    for scope in ("run", "scrape"):
        assert page.value("gradwatch_series_dropped_total", scope=scope) == 0
    assert page.value("gradwatch_runs", state="healthy") == 0
    assert not [name for name in page.kinds if name.endswith("_created")]


def test_a_reason_to_reject_that_nobody_documented_is_refused():
    with pytest.raises(ValueError, match="allowed: invalid, overload"):
        Instruments().rejected("weather")


def test_values_are_those_of_the_newest_step():
    delivery = rows(
        manifest(["a"], tensors_per_group=1, numel=10),
        norm=2.0,
        norm_after=1.0,
        max_abs=0.7,
        clipped_count=4,
        scalars={"threshold": 1.0, "loss": 2.5, "learning_rate": 0.1},
    )

    page = scrape(view(record(counters=count(delivery))))

    assert page.value("gradwatch_run_gradient_norm", **R) == 2.0
    assert page.value("gradwatch_run_clipped_gradient_norm", **R) == 1.0
    assert page.value("gradwatch_run_gradient_norm_window_max", **R) == 2.0
    assert page.value("gradwatch_run_clip_threshold", **R) == 1.0
    assert page.value("gradwatch_run_loss", **R) == 2.5
    assert page.value("gradwatch_run_clipped_elements_total", **R) == 4
    assert page.value("gradwatch_group_clipped_elements_total", **R, group="a") == 4
    assert page.value("gradwatch_run_gradient_norm_per_step_bucket", **R, le="3.0") == 1
    assert page.value("gradwatch_run_gradient_norm_per_step_bucket", **R, le="1.0") == 0


def test_group_families_that_need_an_optional_statistic_exist_only_with_it():
    without = scrape(view(record(counters=count(rows()))))
    having = scrape(view(record(counters=count(rows(zero_count=1, cosine_previous=0.5)))))

    for name in ("gradwatch_group_zero_elements_total", "gradwatch_group_gradient_cosine"):
        assert not without.named(name)
        assert having.named(name)


def test_one_state_and_one_recommendation_status_are_one():
    page = scrape(view(record(status="failed")))

    for name in ("gradwatch_run_state", "gradwatch_run_recommendation_status"):
        assert sum(v for _, v in page.named(name)) == 1
    assert page.value("gradwatch_run_state", **R, state="failed") == 1
    assert page.value("gradwatch_runs", state="failed") == 1


def test_what_the_analyser_says_is_on_the_page():
    known = view(record(counters=count(rows())))
    incident = SimpleNamespace(
        kind="exploding", severity="critical", status="open", onset_step=41, first_tensor="a.0"
    )
    known.analysed(
        "r",
        SimpleNamespace(
            active={"exploding": 1},
            total={"exploding": 3, "nonfinite": 1},
            open=[incident],
            changed=[incident],
            recommendation={"threshold": 0.84, "status": "estimated"},
        ),
    )

    page = scrape(known)

    assert page.value("gradwatch_run_incidents_total", **R, kind="exploding") == 3
    assert page.value("gradwatch_run_incidents_active", **R, kind="exploding") == 1
    assert page.value("gradwatch_run_critical_incidents_active", **R, kind="exploding") == 1
    onset = {"kind": "exploding", "severity": "critical", "first_tensor": "a.0"}
    assert page.value("gradwatch_run_incident_onset_step", **R, **onset) == 41
    assert page.value("gradwatch_run_recommended_clip_threshold", **R) == 0.84
    assert page.value("gradwatch_run_recommendation_status", **R, status="estimated") == 1
    assert page.value("gradwatch_run_state", **R, state="exploding") == 1


def test_an_incident_between_two_scrapes_is_still_shown_for_two_minutes():
    clock = SimpleNamespace(now=NOW)
    known = LiveView(clock=lambda: clock.now)
    known.restore([record(counters=count(rows()))])
    over = SimpleNamespace(
        kind="nonfinite", severity="critical", status="closed", onset_step=7, first_tensor=None
    )
    known.analysed(
        "r",
        SimpleNamespace(
            active={}, total={"nonfinite": 1}, open=[], changed=[over], recommendation=None
        ),
    )
    exposition = Exposition(known, Instruments())

    shown = read(exposition.body()).named("gradwatch_run_incident_onset_step")
    assert [(labels["kind"], value) for labels, value in shown] == [("nonfinite", 7)]
    clock.now += 121
    assert not read(exposition.body()).named("gradwatch_run_incident_onset_step")


def test_values_expire_after_five_minutes_and_the_state_says_silent_until_the_next_day():
    clock = SimpleNamespace(now=NOW)
    known = LiveView(clock=lambda: clock.now)
    known.restore([record(counters=count(rows()))])
    exposition = Exposition(known, Instruments())

    def at(seconds):
        clock.now = NOW + seconds
        return read(exposition.body())

    assert at(299).value("gradwatch_run_gradient_norm", **R) is not None
    quiet = at(301)
    assert quiet.value("gradwatch_run_gradient_norm", **R) is None
    assert not quiet.named("gradwatch_group_elements_total")
    assert not quiet.named("gradwatch_run_steps_total")
    assert quiet.value("gradwatch_run_state", **R, state="silent") == 1
    assert quiet.value("gradwatch_run_last_report_timestamp_seconds", **R) == NOW
    assert at(86_399).named("gradwatch_run_info")
    assert not at(86_401).named("gradwatch_run_info")


def test_the_largest_norm_of_a_minute_leaves_the_page_by_itself():
    clock = SimpleNamespace(now=NOW)
    known = LiveView(clock=lambda: clock.now)
    known.restore([record(counters=count(rows()))])
    exposition = Exposition(known, Instruments())

    assert read(exposition.body()).value("gradwatch_run_gradient_norm_window_max", **R) == 1.0
    clock.now += 66
    assert read(exposition.body()).value("gradwatch_run_gradient_norm_window_max", **R) is None


def test_a_finished_run_keeps_its_values_until_they_expire():
    known = view(record(counters=count(rows())))
    known.committed(
        [commit(kind="finished", record=record(counters=count(rows()), status="completed"))]
    )

    page = scrape(known)

    assert page.value("gradwatch_run_state", **R, state="finished") == 1
    assert page.value("gradwatch_run_gradient_norm", **R) == 1.0


def test_a_deleted_run_leaves_nothing_behind():
    known = view(record(counters=count(rows())))
    known.committed([commit(kind="deleted")])

    assert not [labels for _, labels in scrape(known).samples if ("run", "r") in labels]


def test_a_run_that_comes_back_after_a_day_is_there_again():
    known = LiveView(clock=lambda: NOW)
    known.committed([commit(counters=count(rows()), received=NOW)])

    assert scrape(known).value("gradwatch_run_steps_total", **R) == 1


hostile = st.text(st.characters(codec=None), max_size=160)


@settings(deadline=None, max_examples=60)
@given(st.lists(hostile, min_size=1, max_size=6, unique=True), hostile, hostile)
def test_no_name_can_break_the_page_or_pass_for_another(groups, name, tag):
    tensors = manifest(groups, tensors_per_group=1, numel=7)
    known = view(record(counters=count(rows(tensors)), name=name, tags={"team": tag}))

    page = scrape(known, tags=["team"])

    assert len(page.named("gradwatch_group_elements_total")) == len(groups)


def test_injected_labels_arrive_as_text():
    group = 'a"} 1\ngradwatch_run_loss{project="x",run="y"} 666\n#\\'

    page = scrape(view(record(counters=count(rows(manifest([group], tensors_per_group=1))))))

    assert page.value("gradwatch_group_elements_total", **R, group=group) == 100
    assert not page.named("gradwatch_run_loss")


def test_long_names_are_cut_and_stay_different():
    groups = ["x" * 128 + "1", "x" * 128 + "2"]

    page = scrape(view(record(counters=count(rows(manifest(groups))))))

    shown = {labels["group"] for labels, _ in page.named("gradwatch_group_elements_total")}
    assert len(shown) == 2
    assert {len(name) for name in shown} == {128}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=12), max_size=8))
def test_labels_made_of_tags_are_valid_and_never_collide(names):
    chosen = list(TagLabels(names).of({}))

    assert len(chosen) == len(set(names))
    assert len(set(chosen)) == len(chosen)
    assert not RESERVED & set(chosen)
    assert all(re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", label) for label in chosen)
    assert not any(label.startswith("__") for label in chosen)


def test_tags_are_copied_into_the_info_alone():
    known = view(record(tags={"team": "vision", "node": "n1"}, counters=count(rows())))

    page = scrape(known, tags=["team"])

    (info, _) = page.named("gradwatch_run_info")[0]
    assert info["team"] == "vision"
    assert "node" not in info
    assert "team" not in page.named("gradwatch_run_state")[0][0]


def test_another_projects_page_shows_only_its_runs_and_nothing_of_the_service():
    known = view(record("mine", project="a"), record("theirs", project="b"))

    page = scrape(known, project="a")

    assert {labels["run"] for labels, _ in page.named("gradwatch_run_info")} == {"mine"}
    assert sum(v for _, v in page.named("gradwatch_runs")) == 1
    assert not page.named("gradwatch_ingest_reports_total")


def test_what_the_limits_leave_out_is_counted_and_the_newest_stay():
    crowd = [record(f"r{i}", counters=count(rows(), at=NOW - i)) for i in range(5)]
    whole = scrape(view(*crowd))
    per_run = len([1 for _, labels in whole.samples if ("run", "r0") in labels])

    page = scrape(view(*crowd), limits=Limits(series=2 * per_run))

    shown = len([1 for _, labels in page.samples if dict(labels).get("run")])
    dropped = page.value("gradwatch_series_dropped_total", scope="scrape")
    assert shown <= 2 * per_run
    assert shown + dropped == 5 * per_run
    assert page.value("gradwatch_series_exposed") == shown
    assert page.value("gradwatch_run_gradient_norm", project="default", run="r0") is not None


def test_a_full_page_gives_up_groups_before_runs():
    crowd = [record(f"r{i}", counters=count(rows(), at=NOW - i)) for i in range(2)]
    one = scrape(view(crowd[0]))
    per_run = len([1 for _, labels in one.samples if ("run", "r0") in labels])

    page = scrape(view(*crowd), limits=Limits(series=2 * per_run - 1))

    runs = {labels["run"] for labels, _ in page.named("gradwatch_run_steps_total")}
    groups = {labels["run"] for labels, _ in page.named("gradwatch_group_elements_total")}
    assert groups < runs


def test_a_run_with_too_many_series_loses_whole_families_from_the_end():
    counters = count(rows(zero_count=1))

    page = scrape(view(record(counters=counters)), limits=Limits(series_per_run=70))

    assert page.value("gradwatch_run_gradient_norm", **R) == 1.0
    assert page.value("gradwatch_series_dropped_total", scope="run") > 0
    assert not page.named("gradwatch_group_zero_elements_total")


def test_the_defaults_carry_500_runs_of_32_groups_with_nothing_dropped():
    tensors = manifest([f"layer.{i}" for i in range(32)], tensors_per_group=1)
    counters = count(rows(tensors, clipped_count=1, zero_count=1, max_abs=1.0, cosine_previous=0.1))
    known = view(*(record(f"run-{i}", counters=counters) for i in range(500)))
    exposition = Exposition(known, Instruments())

    page = exposition.body().decode()

    for scope in ("run", "scrape"):
        assert f'gradwatch_series_dropped_total{{scope="{scope}"}} 0.0' in page
    lines = [line for line in page.splitlines() if 'run="run-' in line]
    assert len(lines) == len({line.rpartition(" ")[0] for line in lines})
    assert sum(line.startswith("gradwatch_group_gradient_norm{") for line in lines) == 500 * 32


def test_a_page_follows_every_change_although_blocks_are_kept():
    known = view(record(counters=count(rows(steps=[0]))))
    exposition = Exposition(known, Instruments())
    assert read(exposition.body()).value("gradwatch_run_last_step", **R) == 0

    known.committed([commit(counters=count(rows(steps=[0, 1])))])
    assert read(exposition.body()).value("gradwatch_run_last_step", **R) == 1

    new_groups = count(rows(manifest(["only"]), steps=[2], nonfinite_count=1))
    known.committed([commit(counters=new_groups)])
    page = read(exposition.body())
    assert page.value("gradwatch_run_gradient_norm", **R) is None
    assert {labels["group"] for labels, _ in page.named("gradwatch_group_elements_total")} == {
        "only"
    }

    known.committed([commit(kind="edited", record=record(counters=new_groups, name="renamed"))])
    assert read(exposition.body()).named("gradwatch_run_info")[0][0]["name"] == "renamed"


def test_the_compressed_page_is_the_same_page():
    known = view(record(counters=count(rows())))
    exposition = Exposition(known, Instruments())

    plain = read(exposition.body())
    zipped = read(gzip.decompress(exposition.body(compressed=True)))

    own = lambda page: {k: v for k, v in page.samples.items() if ("run", "r") in k[1]}  # noqa: E731 - used twice, here
    assert own(plain) == own(zipped)


def test_promtool_finds_nothing_to_say():
    counters = count(
        rows(zero_count=1, cosine_previous=0.1, weight_norm=2.0, scalars={"loss": 1.0})
    )
    page = Exposition(view(record(counters=counters)), Instruments()).body()

    checked = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=page, capture_output=True, check=False
    )

    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_counters_are_immutable_so_that_a_page_in_writing_sees_one_moment():
    counters = count(rows())

    with pytest.raises(AttributeError):
        counters.attempt = 3
    assert replace(counters, attempt=3) is not counters
    assert live.EMPTY.counts.steps == 0
