"""Traces brought to a real service over HTTP, in any order and more than once; its incidents back."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx
from benchmarks.trace_reports import manifest_of, reports
from benchmarks.trace_scorer import Incident, Trace

from gradwatch_wire import CONTENT_TYPE, encode

__all__ = ["WAYS", "served"]

REPEATED: Final = 0.2  # share of the deliveries that come twice

# Way of delivery to steps per delivery, and whether they come shuffled and partly twice.
WAYS: Final[Mapping[str, tuple[int, bool]]] = {
    "1 step": (1, False),
    "10 steps": (10, False),
    "50 steps": (50, False),
    "10 steps, shuffled, a fifth of them twice": (10, True),
}


def served(
    http: httpx.Client, traces: Sequence[Trace], *, batch: int, shuffled: bool, **options: Any
) -> dict[str, list[Incident]]:
    """What a service says of each trace: critical and warning, without notices.

    Args:
        http: A client whose base is the service's ``/api/v1/``.
        traces: One run each, named after the trace and the way of delivery.
        batch: Steps per delivery.
        shuffled: Deliveries come in any order, a fifth of them twice.
        options: For :func:`benchmarks.trace_reports.reports`.
    """
    found = {}
    for trace in traces:
        run = f"{trace.name}-{batch}{'s' if shuffled else ''}"
        _checked(http.put(f"runs/{run}", json=manifest_of(trace).to_json()))
        bodies = [encode(report) for report, _ in reports(trace, batch=batch, **options)]
        if shuffled:
            rng = random.Random(trace.name)
            bodies += rng.sample(bodies, int(REPEATED * len(bodies)))
            rng.shuffle(bodies)
        for body in bodies:
            headers = {"content-type": CONTENT_TYPE}
            _checked(http.post(f"runs/{run}/reports", content=body, headers=headers))
        ended = _checked(http.post(f"runs/{run}/finish", json={"status": "completed"}))
        if not ended["analysed"]:
            raise RuntimeError(f"{run}: not analysed in time")
        told = _checked(http.get(f"runs/{run}/incidents"))["items"]
        found[trace.name] = [
            Incident(i["kind"], i["opened_step"], i["last_step"], frozenset(i["tensors"]))
            for i in told
            if i["severity"] != "info" and i["status"] != "retracted"
        ]
    return found


def _checked(answer: httpx.Response) -> Any:
    if answer.is_error:
        raise RuntimeError(f"{answer.request.method} {answer.request.url}: {answer.text}")
    return answer.json()
