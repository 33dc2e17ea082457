"""Incidents as others see them: one per cause, stable ids, cards, and the routes that list them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from tests.conftest import Served

from gradwatch_service.analysis.cards import write_card
from gradwatch_service.analysis.incident_log import IncidentLog
from gradwatch_service.analysis.incidents import Incident, IncidentTracker, incident_id
from gradwatch_service.analysis.run_state import RUN_STATES, run_state
from gradwatch_service.analysis.snapshots import SnapshotKey, superfluous
from gradwatch_service.detectors.base import Finding, RunContext

CONTEXT = RunContext(run="r")
SPIKE = Finding(
    kind="exploding",
    step=7,
    onset_step=6,
    severity="warning",
    tensors=("b",),
    first_tensor="b",
    observed=40.0,
    expected=1.0,
    score=2.0,
)


def track(findings: list[Finding], last: int) -> list[Incident]:
    """Return the newest form of every incident over the steps 0 to ``last``."""
    tracker, found = IncidentTracker(CONTEXT), {}
    for step in range(last + 1):
        tracker, changed = tracker.advance([step], [f for f in findings if f.step == step])
        found |= {incident.id: incident for incident in changed}
    return list(found.values())


def test_evidence_at_many_steps_and_tensors_is_one_incident_with_the_worst_numbers() -> None:
    later = replace(
        SPIKE, step=9, tensors=("a", "b"), observed=90.0, score=5.0, severity="critical"
    )
    (incident,) = track([SPIKE, later], 30)
    assert (incident.opened_step, incident.onset_step, incident.last_step) == (7, 6, 9)
    assert (incident.status, incident.closed_step) == ("closed", 19)
    assert (incident.tensors, incident.first_tensor) == (("b", "a"), "b")
    assert (incident.observed, incident.score, incident.severity) == (90.0, 5.0, "critical")


def test_quiet_of_nine_steps_keeps_an_incident_open_and_ten_close_it() -> None:
    (still,) = track([SPIKE], 16)
    (closed,) = track([SPIKE], 17)
    assert (still.status, closed.status) == ("open", "closed")
    assert len(track([SPIKE, replace(SPIKE, step=18)], 40)) == 2
    assert len(track([SPIKE, replace(SPIKE, step=17)], 40)) == 1


def test_tensors_that_die_much_later_are_another_incident() -> None:
    first = [replace(SPIKE, kind="vanishing", step=s, onset_step=5) for s in range(7, 60)]
    joins = replace(
        SPIKE, kind="vanishing", step=12, onset_step=11, tensors=("c",), first_tensor="c"
    )
    late = replace(
        SPIKE, kind="vanishing", step=50, onset_step=49, tensors=("d",), first_tensor="d"
    )
    one, two = track([*first, joins, late], 60)
    assert (one.tensors, two.tensors) == (("b", "c"), ("d",))


def test_a_better_cause_replaces_a_vaguer_one_but_never_the_other_way_round() -> None:
    known = replace(SPIKE, step=8, cause="learning_rate_change", evidence={"at_step": 6})
    vague = replace(SPIKE, step=9, cause="unusual_batch")
    (incident,) = track([SPIKE, known, vague], 12)
    assert (incident.cause, incident.evidence) == ("learning_rate_change", {"at_step": 6})


def test_ids_are_stable_and_tell_every_part_apart() -> None:
    base: dict[str, Any] = {
        "run": "r",
        "attempt": 0,
        "optimizer": "default",
        "kind": "exploding",
        "opened_step": 7,
        "first_tensor": "b",
    }
    assert incident_id(**base) == incident_id(**base) == "f162d5fae1672e3c"
    others = [
        {"run": "s"},
        {"attempt": 1},
        {"optimizer": "d"},
        {"kind": "vanishing"},
        {"opened_step": 8},
        {"first_tensor": None},
    ]
    assert len({incident_id(**{**base, **other}) for other in others} | {incident_id(**base)}) == 7


def test_the_log_gives_every_id_once_and_never_forgets_one() -> None:
    (incident,) = track([SPIKE], 12)
    log = IncidentLog({})
    log.progress([incident])
    log.progress([incident])
    assert log.total() == {"exploding": 1}
    log.reconcile(0, "default", since=3, found={})
    (retracted,) = log.all()
    assert (retracted.status, retracted.revision) == ("retracted", 1)
    log.reconcile(0, "default", since=3, found={incident.id: incident})
    (again,) = log.all()
    assert (again.status, again.revision) == ("open", 2)
    assert log.total() == {"exploding": 1}


def test_a_replay_that_finds_the_same_changes_nothing() -> None:
    (incident,) = track([SPIKE], 12)
    log = IncidentLog({})
    log.progress([incident])
    log.take_unsaved()
    assert log.reconcile(0, "default", since=3, found={incident.id: incident}) == []
    assert log.take_unsaved() == {}


def test_an_incident_survives_its_document() -> None:
    (incident,) = track([SPIKE], 12)
    log = IncidentLog({})
    log.progress([incident])
    stored = {key: data for key, data in log.take_unsaved().items() if data is not None}
    assert IncidentLog(stored).all() == [incident]


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("exploding", "unknown"),
        ("exploding", "learning_rate_change"),
        ("exploding", "zero_grad_missing"),
        ("exploding", "same_batch_again"),
        ("exploding", "loss_scale"),
        ("exploding", "unusual_batch"),
        ("exploding", "weights_jumped"),
        ("nonfinite", "unknown"),
        ("nonfinite", "loss_scale"),
        ("nonfinite", "overflow"),
        ("nonfinite", "one_rank"),
        ("nonfinite", "after_exploding"),
        ("vanishing", "dead_layer"),
        ("vanishing", "saturation"),
        ("vanishing", "whole_gradient"),
        ("vanishing", "initialisation"),
        ("oscillating", "unknown"),
        ("oscillating", "learning_rate_change"),
        ("replicas_apart", "parameters_differ"),
        ("replicas_apart", "gradients_differ"),
        ("rank_missing", "silent"),
        ("overclipping", "threshold_too_low"),
        ("underflow", "loss_scale"),
        ("reports_dropped", "queue_full"),
        ("exploding", "a cause of the future"),
    ],
)
def test_every_card_says_what_why_and_what_to_do(kind: str, cause: str) -> None:
    card = write_card(
        kind=kind,
        cause=cause,
        observed=3.0,
        expected=1.0,
        first_tensor="a",
        tensors=("a", "b"),
        ranks=(0,),
        evidence={},
    )
    assert len(card.verdict) > 10
    assert len(card.why) > 10
    assert len(card.next) > 20


def test_snapshots_are_thinned_by_age_and_the_newest_stay() -> None:
    positions = [512 * n - 1 for n in range(1, 2001)]
    gone = set(superfluous(positions, 512))
    kept = [p for p in positions if p not in gone]
    assert kept[-8:] == positions[-8:]
    assert len(kept) < 25
    late = 512 * 1000
    nearest = max(p for p in kept if p < late)
    assert late - nearest < 512 * 1100


def test_a_snapshot_key_survives_any_optimizer_name() -> None:
    key = SnapshotKey(3, "critic/a b", 511)
    assert SnapshotKey.parse(key.text()) == key


@pytest.mark.parametrize(
    ("given", "state"),
    [
        ({"steps": 3}, "warming_up"),
        ({}, "healthy"),
        ({"active": {"vanishing": 1, "exploding": 2}}, "exploding"),
        ({"active": {"nonfinite": 1, "exploding": 2}}, "nonfinite"),
        ({"quiet_seconds": 61.0, "active": {"exploding": 1}}, "silent"),
        ({"status": "completed", "active": {"exploding": 1}}, "finished"),
        ({"status": "failed"}, "failed"),
        ({"status": "interrupted"}, "interrupted"),
    ],
)
def test_the_state_of_a_run_is_the_worst_that_holds(given: dict[str, Any], state: str) -> None:
    usual: dict[str, Any] = {
        "status": None,
        "active": {},
        "steps": 100,
        "quiet_seconds": 0.0,
        "limit": 60.0,
    }
    assert run_state(**{**usual, **given}) == state
    assert state in RUN_STATES


def _spiky_run(service: Served, run: str = "spiky") -> None:
    tensors = [{"name": "a.w", "shape": [10, 10]}, {"name": "b.w", "shape": [100]}]
    answer = service.http.put(service.api(f"runs/{run}"), json={"tensors": tensors})
    norms = [[1 + 0.05 * (s % 3), 0.5 + 0.02 * (s % 5)] for s in range(200)]
    norms[150][1] = 500.0
    bad = [[3 if s == 180 else 0, 0] for s in range(200)]
    report = {
        "attempt": 0,
        "rank": 0,
        "optimizer": "default",
        "sequence": 0,
        "manifest": answer.json()["manifest"],
        "steps": list(range(200)),
        "tensors": {"norm": norms, "nonfinite_count": bad},
        "dropped": {"queue_full": 4},
    }
    assert service.http.post(service.api(f"runs/{run}/reports"), json=report).status_code == 200
    finished = service.http.post(service.api(f"runs/{run}/finish"), json={"status": "completed"})
    assert finished.json()["analysed"] is True


def _items(service: Served, path: str) -> list[dict[str, Any]]:
    answer = service.http.get(service.api(path))
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def test_incidents_are_listed_with_every_field_and_filtered(service: Served) -> None:
    _spiky_run(service)
    found = _items(service, "runs/spiky/incidents")
    assert [(i["kind"], i["opened_step"], i["first_tensor"]) for i in found] == [
        ("nonfinite", 180, "a.w"),
        ("exploding", 150, "b.w"),
    ]
    assert set(found[0]) >= set(Incident.__dataclass_fields__)
    assert _items(service, "incidents") == found
    assert _items(service, "runs/spiky/incidents?kind=nonfinite") == found[:1]
    assert _items(service, "runs/spiky/incidents?status=open") == []
    assert _items(service, f"incidents?severity={found[1]['severity']}&kind=exploding") == found[1:]
    (notice,) = _items(service, "runs/spiky/notices")
    assert (notice["kind"], notice["observed"], notice["cause"]) == (
        "reports_dropped",
        4.0,
        "queue_full",
    )


def test_long_lists_are_read_page_by_page(service: Served) -> None:
    _spiky_run(service)
    first = service.http.get(service.api("incidents?limit=1")).json()
    second = service.http.get(
        service.api("incidents"), params={"limit": 1, "cursor": first["next_cursor"]}
    ).json()
    assert [page["items"][0]["opened_step"] for page in (first, second)] == [180, 150]
    assert second["next_cursor"] is None


def test_an_incident_is_acknowledged_and_annotated_and_stays_so(service: Served) -> None:
    _spiky_run(service)
    key = _items(service, "runs/spiky/incidents")[0]["id"]
    path = service.api(f"runs/spiky/incidents/{key}/acknowledge")
    answer = service.http.post(path, json={"by": "ada", "note": "bad shard"})
    assert answer.status_code == 200
    (marked,) = [i for i in _items(service, "runs/spiky/incidents") if i["id"] == key]
    assert (marked["acknowledged_by"], marked["note"]) == ("ada", "bad shard")
    assert marked["acknowledged_at"] == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("runs/absent/incidents", 404),
        ("runs/spiky/incidents?kind=dead", 422),
        ("runs/spiky/incidents?status=shut", 422),
        ("runs/spiky/notices?kind=exploding", 422),
        ("incidents?limit=0", 422),
    ],
)
def test_wrong_questions_are_answered_with_a_problem(
    service: Served, path: str, status: int
) -> None:
    _spiky_run(service)
    answer = service.http.get(service.api(path))
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_acknowledging_an_unknown_incident_is_404(service: Served) -> None:
    _spiky_run(service)
    path = service.api("runs/spiky/incidents/0000/acknowledge")
    assert service.http.post(path, json={}).status_code == 404
    assert service.http.post(path, json={"who": 1}).status_code == 422
