"""Every panel shows something on thirty days of history, written by the real page."""

import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from tests.deploy.deployed import queries
from tests.deploy.prometheus_server import prometheus
from tests.deploy.substituted import substitute
from tests.service.live_runs import NOW, commit, manifest, record, rows
from tests.tools import tool

from gradwatch_service import live
from gradwatch_service.exposition.page import Exposition
from gradwatch_service.instruments import Instruments
from gradwatch_service.live.view import LiveView
from gradwatch_service.rows import HistogramRows

DAYS, INTERVAL = 30, 7200
TICKS = DAYS * 86_400 // INTERVAL
TARGET = 'job="gradwatch",instance="gradwatch:8642"'


def pages():
    """(time, page) every two hours of thirty days of a run that gets into trouble at the end."""
    clock = SimpleNamespace(now=NOW - DAYS * 86_400)
    known, instruments = LiveView(clock=lambda: clock.now), Instruments()
    exposition = Exposition(known, instruments)
    instruments.queue(capacity=100, length=lambda: 3)
    instruments.storage_size(lambda: 10_000)
    for histogram in (instruments.detection, instruments.recommendation, instruments.storage_write):
        histogram.observe(0.01)
    counters, tensors = live.EMPTY, manifest()
    for tick in range(TICKS):
        clock.now += INTERVAL
        delivery = _delivery(tensors, tick)
        counters = live.add(
            counters,
            live.summarise(delivery, manifest="m", dropped={"queue_full": tick % 2}),
            at=clock.now,
        )
        known.committed([commit(kind="registered", record=record("lstm", counters=counters))])
        known.analysed("lstm", _analysis(tick))
        instruments.reports(tensors=4, size=1000, seconds=0.01)
        instruments.http_requests.labels("POST", "/api/v1/runs/{run}/reports", "200").inc()
        instruments.http_duration.labels("POST", "/api/v1/runs/{run}/reports").observe(0.01)
        yield clock.now, exposition.body().decode()


def _delivery(tensors, tick):
    bins = HistogramRows(np.array([tick]), 1, -48, 1.0, np.full((1, 4, 64), tick, "u4"))
    given = rows(
        tensors,
        steps=[tick],
        norm=1.0 + tick % 7,
        norm_after=1.0,
        max_abs=0.5,
        clipped_count=3,
        zero_count=1,
        nonfinite_count=0,
        cosine_previous=0.2,
        weight_norm=10.0,
        scalars={
            "loss": 2.0,
            "threshold": 1.0 + tick % 3,
            "learning_rate": 0.1,
            "duration_seconds": 1.0,
            "overhead_seconds": 0.01,
        },
    )
    fields = {name: getattr(given, name) for name in given.__slots__}
    return type(given)(**fields | {"histograms": (bins,)})


def _analysis(tick):
    incident = SimpleNamespace(
        kind="exploding",
        severity="critical",
        status="open",
        onset_step=700,
        first_tensor="encoder.0",
    )
    found = [incident] if tick > TICKS - 20 else []
    return SimpleNamespace(
        active={"exploding": len(found)},
        total={"exploding": len(found)},
        open=found,
        changed=[],
        recommendation={"threshold": 0.84, "status": "estimated"},
    )


def as_openmetrics(history):
    """The pages as one OpenMetrics document with timestamps: what promtool can read back in."""
    families = {}
    for at, page in history:
        family = ""
        for line in page.splitlines():
            if line.startswith("# TYPE "):
                _, _, family, kind = line.split(" ")
                name = family.removesuffix("_total") if kind == "counter" else family
                families.setdefault(family, [f"# TYPE {name} {kind}\n"])
            elif not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                head, brace, labels = series.partition("{")
                labels = labels.removesuffix("}") if brace else ""
                inside = f"{TARGET},{labels}" if labels else TARGET
                families[family].append(f"{head}{{{inside}}} {value} {at:.0f}\n")
        for name, value in (("up", 1), ("scrape_duration_seconds", 0.02)):
            lines = families.setdefault(name, [f"# TYPE {name} gauge\n"])
            lines.append(f"{name}{{{TARGET}}} {value} {at:.0f}\n")
    return "".join([*("".join(lines) for lines in families.values()), "# EOF\n"])


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """A Prometheus that has thirty days behind it."""
    folder = tmp_path_factory.mktemp("history")
    document = folder / "history.om"
    document.write_text(as_openmetrics(pages()))
    command = [tool("promtool"), "tsdb", "create-blocks-from", "openmetrics", "--quiet"]
    subprocess.run(
        [*command, "--max-block-duration=744h", str(document), str(folder / "data")],
        check=True,
        capture_output=True,
    )
    with prometheus(folder, flags=["--query.lookback-delta=2h"]) as server:
        yield server


def test_every_panel_and_annotation_shows_something_on_thirty_days(history):
    empty = []
    for uid, title, expr in queries():
        query = substitute(expr, run="lstm", interval="8h", span="30d")
        series = history.graph(query, NOW - DAYS * 86_400, NOW, 6 * 3600)
        if not any(one["values"] for one in series):
            empty.append((uid, title, query))

    assert empty == []


def test_the_picture_of_the_history_is_right(history):
    at = f"@ {NOW:.0f}"

    norm = history.value(f'gradwatch_run_gradient_norm{{run="lstm"}} {at}')
    steps = history.value(f'increase(gradwatch_run_steps_total{{run="lstm"}}[30d] {at})')
    onset = history.query(f"gradwatch_run_incident_onset_step {at}")

    tick = TICKS - 1
    assert norm == pytest.approx(2 * (1.0 + tick % 7))
    assert steps == pytest.approx(TICKS, rel=0.01)
    assert [(labels["first_tensor"], value) for labels, value in onset] == [("encoder.0", 700)]
