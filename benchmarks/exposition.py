"""Writing /metrics: CPU per page beside prometheus_client, and what a scrape costs other requests.

    python -m benchmarks exposition [--series 100000] [--rounds 5] [--seconds 8]

CPU is that of the writing thread (`time.thread_time`), the ways interleaved round by round. A run
whose report has come since the last page is written anew.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import http.client
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from gradwatch_service import live
from gradwatch_service.app import create_app
from gradwatch_service.exposition.page import Exposition
from gradwatch_service.instruments import Instruments
from gradwatch_service.live.view import LiveView
from gradwatch_service.rows import StepRows
from gradwatch_service.server import Server, bind, configure
from gradwatch_service.settings import Settings
from gradwatch_service.store.base import Commit, RunRecord
from gradwatch_service.store.opening import open_store
from gradwatch_wire import Manifest, TensorInfo

GROUPS = 32
LIMIT_MS = 20.0


def counters() -> live.Counters:
    """Counters of a run with 32 groups after one delivery of ten steps."""
    tensors = tuple(TensorInfo(f"l.{i}.w", (64, 64), "float32", f"l.{i}") for i in range(GROUPS))
    manifest = Manifest(tensors=tensors)
    random = np.random.default_rng(0)
    shape = (10, GROUPS)
    columns = {
        name: random.random(shape).astype("f4") for name in ("norm", "max_abs", "norm_after")
    }
    columns |= {name: np.ones(shape, "u4") for name in ("clipped_count", "zero_count")}
    scalars = {name: np.ones(10) for name in ("loss", "threshold", "learning_rate")}
    rows = StepRows(0, "default", 0, np.arange(10), np.zeros(10), scalars, columns, manifest)
    return live.add(live.EMPTY, live.summarise(rows, manifest=manifest.hash), at=time.time())


def record(run: str, known: live.Counters) -> RunRecord:
    """A run as the store tells it."""
    fields = dict.fromkeys(RunRecord.__slots__)
    return RunRecord(
        **fields
        | {
            "run": run,
            "project": "bench",
            "tags": {},
            "world_size": 1,
            "counters": known,
            "created_at": time.time(),
        }
    )


def change(view: LiveView, share: int) -> None:
    """Report once for every ``share``-th run."""
    for index, run in enumerate(view.runs(view.clock())):
        if index % share == 0:
            step = replace(run.counters, threshold_changes=run.counters.threshold_changes + 1)
            view.committed([Commit("report", run.run, "bench", counters=step)])


def view_of(series: int) -> tuple[LiveView, int]:
    """A live view with about this many series, and how many there are."""
    view, known = LiveView(), counters()
    view.restore([record("run-0", known)])
    per_run = Exposition(view, Instruments())._write(None).series
    runs = max(1, round(series / per_run))
    view.restore(record(f"run-{i}", known) for i in range(runs))
    return view, runs * per_run


class _Samples(Collector):
    """The same samples, handed over at every scrape: what a careful exporter does."""

    def __init__(self, samples: dict[str, list[tuple[dict[str, str], float]]]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, series in self._samples.items():
            names = list(series[0][0])
            family = GaugeMetricFamily(name, "The same series.", labels=names)
            for labels, value in series:
                family.add_metric(list(labels.values()), value)
            yield family


def samples_of(page: bytes) -> dict[str, list[tuple[dict[str, str], float]]]:
    """The page's samples of runs by name."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            if "run" in sample.labels:
                found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def gauges(samples: dict[str, list[tuple[dict[str, str], float]]]) -> CollectorRegistry:
    """The same samples as one Gauge child each: what most services do."""
    registry = CollectorRegistry()
    for name, series in samples.items():
        gauge = Gauge(name, "The same series.", list(series[0][0]), registry=registry)
        for labels, value in series:
            gauge.labels(*labels.values()).set(value)
    return registry


def cpu(work: Callable[[], object]) -> float:
    """Milliseconds of CPU that this thread spends."""
    begun = time.thread_time()
    work()
    return (time.thread_time() - begun) * 1e3


def write_pages(series: int, rounds: int) -> None:
    """Print CPU per page for every way of writing it."""
    view, number = view_of(series)
    exposition = Exposition(view, Instruments())
    page = exposition.body()
    samples = samples_of(page)
    registry = gauges(samples)
    collected = CollectorRegistry()
    collected.register(_Samples(samples))
    fresh: list[Exposition] = []
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "gradwatch, first page after a start": (
            lambda: fresh.append(Exposition(view, Instruments())),
            lambda: fresh.pop().body(),
        ),
        "gradwatch, every run changed": (lambda: change(view, 1), exposition.body),
        "gradwatch, a tenth changed": (lambda: change(view, 10), exposition.body),
        "gradwatch, nothing changed": (lambda: None, exposition.body),
        "prometheus_client, custom collector": (lambda: None, lambda: generate_latest(collected)),
        "prometheus_client, gauges": (lambda: None, lambda: generate_latest(registry)),
        "gzip level 1 (gradwatch)": (lambda: None, lambda: gzip.compress(page, 1)),
        "gzip level 9 (make_asgi_app)": (lambda: None, lambda: gzip.compress(page, 9)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (prepare, work) in ways.items():
            prepare()
            times[name].append(cpu(work))
    warm = statistics.median(times["gradwatch, a tenth changed"])
    print(f"\n{number} series, page of {len(page) / 1e6:.1f} MB, {rounds} rounds interleaved\n")
    print(f"| {'way':<38} | CPU ms, median | lowest | highest | x warm |")
    print(f"|{'-' * 40}|---------------:|-------:|--------:|-------:|")
    for name, taken in times.items():
        middle = statistics.median(taken)
        print(
            f"| {name:<38} | {middle:14.1f} | {min(taken):6.1f} | {max(taken):7.1f} | {middle / warm:6.1f} |"
        )


def serve(series: int) -> None:
    """Serve that many series until standard input ends; a tenth of the runs reports every second."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(store=f"sqlite:///{Path(folder) / 'bench.db'}")
        app = create_app(settings, open_store(settings))
        listener = bind(settings, 0)
        server = Server(configure(app, settings))
        serving = threading.Thread(target=server.run, args=([listener],), daemon=True)
        serving.start()
        while not server.started:
            time.sleep(0.01)
        view: LiveView = app.state.service.live
        donor, _ = view_of(series)
        view.restore(record(run.run, run.counters) for run in donor.runs(donor.clock()))
        print(listener.getsockname()[1], flush=True)
        over = threading.Event()
        threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
        while not over.wait(1.0):
            change(view, 10)
        server.should_exit = True
        serving.join(20)


@contextlib.contextmanager
def served(series: int) -> Iterator[int]:
    """Port of a service in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.exposition", "--serve", "--series", str(series)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(30)


def probe(port: int, seconds: float, scrape_every: float | None) -> tuple[list[float], list[float]]:
    """Milliseconds of every /healthz, and of every scrape beside them."""
    over, scrapes, answers = threading.Event(), [], []

    def scrape() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while scrape_every is not None and not over.wait(scrape_every):
            begun = time.perf_counter()
            connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
            connection.getresponse().read()
            scrapes.append((time.perf_counter() - begun) * 1e3)

    scraper = threading.Thread(target=scrape)
    scraper.start()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        answers.append((time.perf_counter() - begun) * 1e3)
        time.sleep(0.002)
    over.set()
    scraper.join()
    return answers, scrapes


def delay_others(series: int, seconds: float) -> None:
    """Print what /healthz takes while nobody scrapes and while somebody does, in turns."""
    quiet: list[float] = []
    busy: list[float] = []
    scrapes: list[float] = []
    with served(series) as port:
        probe(port, 1.0, None)
        for _ in range(4):
            quiet += probe(port, seconds / 8, None)[0]
            answers, taken = probe(port, seconds / 8, 0.2)
            busy, scrapes = busy + answers, scrapes + taken
    print(
        f"\n/healthz while {len(scrapes)} scrapes of {series} series (gzip) went on, 0.2 s apart\n"
    )
    print("| /healthz        | requests | p50 ms | p99 ms | highest ms |")
    print("|-----------------|---------:|-------:|-------:|-----------:|")
    for name, answers in (("no scrape", quiet), ("scraped", busy)):
        ordered = sorted(answers)
        p99 = ordered[int(len(ordered) * 0.99)]
        middle = statistics.median(ordered)
        print(
            f"| {name:<15} | {len(ordered):8} | {middle:6.2f} | {p99:6.2f} | {ordered[-1]:10.2f} |"
        )
    print(
        f"\na scrape took {statistics.median(scrapes):.0f} ms (median), longest {max(scrapes):.0f} ms"
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks exposition", description=__doc__)
    parser.add_argument("--series", type=int, default=100_000, help="series of runs on the page")
    parser.add_argument("--rounds", type=int, default=5, help="pages per way of writing")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long /healthz is asked")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.series)
        return
    against = f"prometheus_client {version('prometheus-client')}"
    print(f"Python {platform.python_version()}, {platform.machine()}, {against}")
    write_pages(options.series, options.rounds)
    delay_others(options.series, options.seconds)


if __name__ == "__main__":
    main()
