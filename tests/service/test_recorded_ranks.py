"""Two ranks of a real data-parallel training with one fault each, as they reported it, told rightly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.trace_reports import manifest_of, reports
from benchmarks.trace_scorer import load_trace

from gradwatch_wire import CONTENT_TYPE, encode

RANKS = Path(__file__).parent / "traces_of_ranks"

# Case to what must be said of it: kind, ranks, cause, and the steps at which it may be said.
TOLD = {
    "healthy": [],
    "nan_data": [("nonfinite", [0], "backward", range(263, 264))],
    "nan_on_one": [
        ("nonfinite", [1], "one_rank", range(271, 301)),
        ("replicas_apart", [1], "parameters_differ", range(271, 301)),
    ],
    "drift": [("replicas_apart", [1], "parameters_differ", range(233, 251))],
    "not_reduced": [("replicas_apart", [1], "gradients_differ", range(240, 251))],
}


def bring(service: Any, case: str, *, batch: int, first_rank: int = 0) -> dict[str, Any]:
    """Both ranks' reports to the service, one rank after the other; the answer of ``finish``."""
    for rank in (first_rank, 1 - first_rank):
        trace = load_trace(RANKS / f"{case}.rank{rank}.json")
        manifest = manifest_of(trace, session="f" * 16)
        known = service.http.put(service.api(f"runs/{case}"), json=manifest.to_json())
        assert known.status_code in {200, 201}, known.text
        for report, _ in reports(trace, batch=batch):
            answer = service.http.post(
                service.api(f"runs/{case}/reports"),
                content=encode(report),
                headers={"content-type": CONTENT_TYPE},
            )
            assert answer.status_code == 200, answer.text
    return service.http.post(
        service.api(f"runs/{case}/finish"), json={"status": "completed"}
    ).json()


def told(service: Any, case: str) -> list[dict[str, Any]]:
    """Everything said of a run that stands, by step and kind."""
    items = [
        item
        for what in ("incidents", "notices")
        for item in service.http.get(service.api(f"runs/{case}/{what}")).json()["items"]
        if item["status"] != "retracted"
    ]
    return sorted(items, key=lambda item: (item["opened_step"], item["kind"]))


@pytest.mark.parametrize("case", TOLD)
def test_a_fault_of_one_rank_is_told_once_and_of_that_rank(service: Any, case: str) -> None:
    ended = bring(service, case, batch=100)
    assert ended["analysed"] is True
    found = told(service, case)
    assert [(i["kind"], i["ranks"], i["cause"]) for i in found] == [
        (kind, ranks, cause) for kind, ranks, cause, _ in TOLD[case]
    ]
    for item, (_, _, _, steps) in zip(found, TOLD[case], strict=True):
        assert item["opened_step"] in steps
        assert item["onset_step"] <= item["opened_step"]
        assert not item["provisional"]


def test_which_rank_reports_first_does_not_matter(service: Any) -> None:
    for case in ("nan_data", "nan_on_one"):
        bring(service, case, batch=100, first_rank=1)
        assert [(i["kind"], i["ranks"], i["cause"]) for i in told(service, case)] == [
            (kind, ranks, cause) for kind, ranks, cause, _ in TOLD[case]
        ]


def test_bad_data_of_one_rank_show_in_the_gradient_of_all(service: Any) -> None:
    bring(service, "bad_data", batch=100)
    (found,) = told(service, "bad_data")
    assert found["kind"] == "exploding"
    assert found["opened_step"] in range(257, 260)
