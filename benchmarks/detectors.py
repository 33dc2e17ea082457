"""Score the service's detectors on recorded traces, beside published rules.

    python -m benchmarks.detectors TRACES                  # our row, the baselines, per kind
    python -m benchmarks.detectors TRACES --ours           # without the baselines: your recordings
    python -m benchmarks.detectors TRACES --service        # over HTTP: batches, disorder, repeats
    python -m benchmarks.detectors TRACES --leave-one-out  # limits chosen without the job scored
    python -m benchmarks.detectors TRACES --healthy        # long healthy runs: every incident
    python -m benchmarks.detectors TRACES --json FILE      # incidents, as predictions for a scorer
    python -m benchmarks.detectors --speed                 # milliseconds per 50 steps x 200 tensors

TRACES is a folder of ``<job>.<run>.npz`` and ``.json`` as ``benchmarks.record_traces`` writes them;
``docs/diagnosis.md`` says what they hold, for those who want to score recordings of their own.
Every trace is turned into reports in the compact wire form, decoded and validated as the service
does, and analysed delivery by delivery.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.fault_kinds import NEW_KINDS
from benchmarks.queries import serving
from benchmarks.served_traces import WAYS, served
from benchmarks.trace_baselines import BASELINES, score_detector
from benchmarks.trace_reports import reports
from benchmarks.trace_scorer import Incident, Outcome, Score, Trace, load_split, score_split

from gradwatch_service.analysis.incidents import Incident as Found
from gradwatch_service.analysis.optimizer_analysis import OptimizerAnalysis
from gradwatch_service.detectors import rules
from gradwatch_service.detectors.base import RunContext
from gradwatch_service.detectors.diagnosis import Diagnosis
from gradwatch_service.ingest.validation import numel_of, rows_of
from gradwatch_service.rows import StepRows
from gradwatch_service.settings import Settings
from gradwatch_wire import Manifest, TensorInfo, decode, encode

SCALES = (0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5, 1.75)
KINDS_APART: Mapping[str, Callable[[Outcome], bool]] = {
    "known kinds": lambda outcome: outcome.fault.kind not in NEW_KINDS,
    "new kinds": lambda outcome: outcome.fault.kind in NEW_KINDS,
}
LIMITS = (
    "ALONE",
    "TOGETHER",
    "LASTING",
    "REPEATED",
    "SCALED",
    "SCALED_THRICE",
    "STEP_UP",
    "LOSS_FAR",
    "LOSS_LASTING",
)
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "ours, deliveries of 10 steps": {},
    "ours, cosines and histograms at every 10th step": {"cosine_every": 10},
    "ours, deliveries of 1 step": {"batch": 1},
    "ours, no cosine": {"without": ("cosine_previous",)},
    "ours, no loss": {"without": ("loss",)},
    "ours, no learning rate": {"without": ("learning_rate",)},
    "ours, norms and counts only": {"without": ("cosine_previous", "loss", "learning_rate")},
}


def incidents(trace: Trace, **options: Any) -> list[Found]:
    """What the service would have said of a trace, newest state of every incident."""
    context = RunContext(run=trace.name, optimizer_class=trace.about.get("optimizer"))
    state = OptimizerAnalysis.start(context)
    found: dict[str, Found] = {}
    settings = Settings()
    for report, manifest in reports(trace, **options):
        rows = rows_of(decode(encode(report)), manifest, numel_of(manifest), settings)
        end = int(rows.steps[-1])
        state, changed = OptimizerAnalysis.advance(state, {0: [rows]}, end, certain=True)
        found |= {incident.id: incident for incident in changed}
    return list(found.values())


def counted(found: Iterable[Found]) -> list[Incident]:
    """Return what counts: critical and warning, without the notices."""
    return [
        Incident(i.kind, i.opened_step, i.last_step, frozenset(i.tensors))
        for i in found
        if i.severity != "info" and not i.is_notice
    ]


def score(traces: Sequence[Trace], **options: Any) -> Score:
    """Score our detectors on these traces."""
    return score_split(traces, {t.name: counted(incidents(t, **options)) for t in traces})


@contextlib.contextmanager
def limits_scaled(factor: float) -> Iterator[None]:
    """Move every limit of the exploding detector by one factor."""
    before = {name: getattr(rules, name) for name in LIMITS}
    for name, value in before.items():
        setattr(rules, name, value * factor)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(rules, name, value)


def leave_one_out(traces: Sequence[Trace]) -> tuple[Score, dict[str, float]]:
    """Choose the factor on the limits without a job, then score that job with it."""
    jobs = sorted({trace.job for trace in traces})
    found: dict[float, dict[str, list[Incident]]] = {}
    for factor in SCALES:
        with limits_scaled(factor):
            found[factor] = {trace.name: counted(incidents(trace)) for trace in traces}
    final: dict[str, list[Incident]] = {}
    chosen: dict[str, float] = {}
    for job in jobs:
        others = [trace for trace in traces if trace.job != job]
        costs = {factor: _cost(score_split(others, found[factor])) for factor in SCALES}
        least = min(costs.values())
        good = [factor for factor in SCALES if costs[factor] == least]
        chosen[job] = good[len(good) // 2]
        final |= {t.name: found[chosen[job]][t.name] for t in traces if t.job == job}
    return score_split(traces, final), chosen


def _cost(result: Score) -> tuple[int, float]:
    """Faults missed and false incidents; among equals the delay decides."""
    missed = sum(not outcome.right_class for outcome in result.visible)
    late = result.figures()["delay_p90"]
    return missed + len(result.false_incidents), math.inf if late is None else late


def table(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Print figures as a Markdown table."""
    print(
        "| detector | recall | right class, hard kinds | precision | false / 1000 healthy steps "
        "(95 %) | delay median / p90 | localisation | incidents per fault |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, f in rows:
        low, high = f["false_per_1000_interval"]
        delay = f"{_figure(f['delay_median'], 1)} / {_figure(f['delay_p90'], 1)}"
        print(
            f"| {name} | {_figure(f['recall'])} | {_figure(f['right_class_hard'])} | "
            f"{_figure(f['precision'])} | {f['false_per_1000']:.2f} ({low:.2f}..{high:.2f}) | "
            f"{delay} | {_figure(f['localisation'])} | {_figure(f['incidents_per_fault'])} |"
        )


def _figure(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def healthy(traces: Sequence[Trace]) -> None:
    """Print how often the detectors alarm on runs in which nothing happens."""
    print("| run | steps | critical | warning | info | notices | kinds |")
    print("|---|---|---|---|---|---|---|")
    for trace in traces:
        found = incidents(trace, batch=50)
        severities = Counter(i.severity for i in found if not i.is_notice)
        kinds = Counter(f"{i.kind}/{i.cause}" for i in found)
        told = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(4)) or "-"
        notices = sum(i.is_notice for i in found)
        print(
            f"| {trace.name} | {trace.steps} | {severities['critical']} | {severities['warning']} | "
            f"{severities['info']} | {notices} | {told} |"
        )


def speed(rounds: int = 40) -> None:
    """Print CPU time of the detectors per 50 steps of 200 tensors, calm and disturbed."""
    print("| rows | median ms per 50 steps x 200 tensors | worst |\n|---|---|---|")
    for name, disturbed in (("healthy", False), ("every step disturbed", True)):
        diagnosis, times = Diagnosis(), []
        state = diagnosis.start(RunContext(run="speed"))
        for at in range(rounds):
            rows = _wide_rows(at, disturbed=disturbed and at > 4)
            began = time.process_time()
            state, _ = diagnosis.advance(state, rows)
            times.append(1000 * (time.process_time() - began))
        print(f"| {name} | {statistics.median(times[5:]):.2f} | {max(times[5:]):.2f} |")


def _wide_rows(block: int, *, disturbed: bool, steps: int = 50, tensors: int = 200) -> StepRows:
    rng = np.random.default_rng(block)
    size = 60 * np.exp(rng.normal(0, 1, steps))[:, None] if disturbed else 1.0
    norm = size * np.exp(rng.normal(0, 0.15, (steps, 1)) + rng.normal(0, 0.1, (steps, tensors)))
    infos = (
        TensorInfo(name=f"t{i}.weight", shape=(8, 8), dtype="float32", group="all")
        for i in range(tensors)
    )
    return StepRows(
        attempt=0,
        optimizer="default",
        rank=0,
        steps=np.arange(block * steps, (block + 1) * steps),
        time=np.zeros(steps),
        scalars={
            "loss": 2 + rng.normal(0, 0.1, steps),
            "learning_rate": np.full(steps, 0.1),
            "cosine_previous": rng.normal(0.1, 0.1, steps),
        },
        tensors={
            "norm": norm.astype(np.float32),
            "nonfinite_count": np.zeros((steps, tensors), np.uint32),
        },
        manifest=Manifest(tensors=tuple(infos)),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Score the detectors on recorded traces.")
    parser.add_argument("traces", type=Path, nargs="?")
    parser.add_argument("--leave-one-out", action="store_true")
    parser.add_argument("--healthy", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--ours", action="store_true", help="leave the baselines out")
    parser.add_argument("--service", action="store_true", help="bring them to a real service")
    parser.add_argument("--json", type=Path, help="write the incidents to this file")
    options = parser.parse_args()
    if options.speed or options.traces is None:
        speed()
        return
    traces = load_split(options.traces)
    if options.healthy:
        healthy(traces)
    elif options.leave_one_out:
        result, chosen = leave_one_out(traces)
        table([("ours, each job scored with limits chosen on the others", result.figures())])
        print("\nFactor on the limits, chosen without the job:", chosen)
    elif options.json:
        said = {trace.name: counted(incidents(trace)) for trace in traces}
        plain = {n: [_plain(i) for i in found] for n, found in said.items()}
        options.json.write_text(json.dumps(plain, indent=1) + "\n")
    elif options.service:
        over_http(traces)
    else:
        _compare(traces, {} if options.ours else BASELINES)


def over_http(traces: Sequence[Trace]) -> None:
    """Print our row for every way in which deliveries may come to a real service."""
    scores = {}
    told = {trace.name: set(counted(incidents(trace))) for trace in traces}
    differ: list[str] = []
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (_, http):
        for way, (batch, shuffled) in WAYS.items():
            found = served(http, traces, batch=batch, shuffled=shuffled)
            differ += [f"{n} ({way})" for n, its in found.items() if set(its) != told[n]]
            scores[f"deliveries of {way}"] = score_split(traces, found).figures()
    table(scores.items())
    print("\nTold otherwise than without a service:", ", ".join(differ) or "nothing")


def _plain(incident: Incident) -> dict[str, Any]:
    return {
        "kind": incident.kind,
        "first_step": incident.first_step,
        "last_step": incident.last_step,
        "tensors": sorted(incident.tensors),
    }


def _compare(traces: Sequence[Trace], baselines: Mapping[str, Any]) -> None:
    scores = {name: score(traces, **options) for name, options in VARIANTS.items()}
    scores |= {name: score_detector(detector, traces) for name, detector in baselines.items()}
    table([(name, result.figures()) for name, result in scores.items()])
    ours = scores["ours, deliveries of 10 steps"]
    if any(outcome.fault.kind in NEW_KINDS for outcome in ours.outcomes):
        print("\nOf the first row, kinds that public collections have, and those they lack:\n")
        table(
            (name, replace(ours, outcomes=[o for o in ours.outcomes if want(o)]).figures())
            for name, want in KINDS_APART.items()
        )
    by_kind(ours)
    for outcome in ours.visible:
        if not outcome.right_class:
            fault = outcome.fault
            print(f"\nMissed: {outcome.trace}, {fault.kind} at {fault.start}..{fault.end - 1}")
    for name, it in ours.false_incidents:
        print(f"\nFalse: {name}, {it.kind} at {it.first_step}..{it.last_step}")


def by_kind(ours: Score) -> None:
    """Print how many faults of each kind were found, with the interval of the share."""
    figures = ours.figures()
    print(f"\n{figures['visible_faults']} visible faults, {figures['healthy_steps']} healthy steps")
    print("\n| fault | visible | found | right class | share (95 %) |\n|---|---|---|---|---|")
    kinds = figures["by_kind"]
    hard = [o.right_class for o in ours.hard]
    rows = {kind: (c["faults"], c["hit"], c["right_class"]) for kind, c in kinds.items()}
    rows["all"] = tuple(sum(row[i] for row in rows.values()) for i in range(3))  # type: ignore[assignment]  # three numbers
    rows["all but nan_tensor, fp16_overflow"] = (
        len(hard),
        sum(o.hit for o in ours.hard),
        sum(hard),
    )
    for kind, (faults, hit, right) in rows.items():
        low, high = share_interval(right, faults)
        print(f"| {kind} | {faults} | {hit} | {right} | {low:.2f}..{high:.2f} |")


def share_interval(hits: int, of: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, JASA 22)."""
    if not of:
        return 0.0, 1.0
    z2 = 1.96**2
    middle = (hits + z2 / 2) / (of + z2)
    reach = 1.96 * math.sqrt(hits * (of - hits) / of + z2 / 4) / (of + z2)
    return max(0.0, middle - reach), min(1.0, middle + reach)


if __name__ == "__main__":
    main()
