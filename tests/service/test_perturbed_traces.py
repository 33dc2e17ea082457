"""What is found does not hang on one number: recorded faults, moved, thinned, rounded, scaled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.detectors import counted, incidents
from benchmarks.trace_scorer import Fault, Score, Trace, load_split, score_split

TRACES = Path(__file__).parent / "traces"
PER_TENSOR = ("norm", "absmax", "mean", "cos", "pnorm", "zeros", "nonfinite", "hist")


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    return [t for t in load_split(TRACES) if t.faults]


def later(trace: Trace, steps: int = 37) -> Trace:
    """The run without its first steps: every fault comes that much earlier."""
    kept = {
        name: values if name == "sizes" else values[steps:]
        for name, values in trace.columns.items()
    }
    faults = [f for f in trace.faults if f.start > 2 * steps or not f.start]
    moved = [_moved(fault, -min(steps, fault.start)) for fault in faults]
    return replace(trace, steps=trace.steps - steps, columns=kept, faults=tuple(moved))


def _moved(fault: Fault, by: int) -> Fault:
    start, end, over = fault.start + by, fault.end + by, fault.aftermath_end + by
    return replace(fault, start=start, end=end, aftermath_end=over)


def rounded(trace: Trace) -> Trace:
    """Norms as float16 keeps them."""
    return _columns(trace, norm=trace.columns["norm"].astype(np.float16).astype(np.float32))


def scaled(trace: Trace) -> Trace:
    """All gradients 4096 times as large, as under a constant loss scale that is not undone."""
    return _columns(trace, norm=trace.columns["norm"] * 4096, gnorm=trace.columns["gnorm"] * 4096)


def every_other_tensor(trace: Trace) -> Trace:
    """Half of the tensors are watched, those of the faults among them."""
    named = set().union(*(fault.tensors for fault in trace.faults))
    keep = [i for i, n in enumerate(trace.tensors) if i % 2 == 0 or n in named]
    columns: dict[str, Any] = {
        name: values[:, keep] if name in PER_TENSOR else values
        for name, values in trace.columns.items()
    }
    columns["sizes"] = trace.columns["sizes"][keep]
    return replace(trace, tensors=tuple(trace.tensors[i] for i in keep), columns=columns)


def _columns(trace: Trace, **columns: Any) -> Trace:
    return replace(trace, columns={**trace.columns, **columns})


def score(traces: list[Trace], change: Callable[[Trace], Trace]) -> Score:
    other = [change(trace) for trace in traces]
    return score_split(other, {t.name: counted(incidents(t)) for t in other})


@pytest.mark.parametrize("change", [later, rounded, scaled, every_other_tensor])
def test_faults_are_found_under_their_name_and_nothing_else_is(
    traces: list[Trace], change: Callable[[Trace], Trace]
) -> None:
    result = score(traces, change)
    missed = [(o.trace, o.fault.kind) for o in result.visible if not o.right_class]
    assert len(missed) <= 1, missed
    assert result.false_incidents == []
    assert result.figures()["delay_p90"] <= 5
