"""Other trackers under the same numbers; run by ``python -m benchmarks ingest --peers``.

Imports nothing of ours, so that any interpreter that has a peer can run it:

    python benchmarks/peers.py NAME STEPS SAMPLES

logs SAMPLES scalars at each of STEPS steps and prints JSON: CPU seconds of the process and of the
processes it started, and the bytes that were left on disk.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

DISTINCT = 8  # steps with numbers of their own
Log = Callable[[int, dict[str, float]], None]
Peer = Callable[[str], tuple[Log, Callable[[], None]]]


def tensorboard(folder: str) -> tuple[Log, Callable[[], None]]:
    """One event per step that holds every scalar: the cheapest that its format allows."""
    writers = importlib.import_module("tensorboard.summary.writer.event_file_writer")
    event = importlib.import_module("tensorboard.compat.proto.event_pb2")
    summary = importlib.import_module("tensorboard.compat.proto.summary_pb2")
    writer = writers.EventFileWriter(folder)

    def log(step: int, values: dict[str, float]) -> None:
        scalars = [summary.Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        writer.add_event(event.Event(step=step, summary=summary.Summary(value=scalars)))

    return log, writer.close


def wandb(folder: str) -> tuple[Log, Callable[[], None]]:
    """Offline: nothing is sent."""
    module = importlib.import_module("wandb")
    run = module.init(mode="offline", dir=folder, settings={"silent": True})

    def finish() -> None:
        run.finish()
        module.teardown()  # ends its second process, whose CPU is counted only then

    return lambda step, values: run.log(values, step=step), finish


def trackio(folder: str) -> tuple[Log, Callable[[], None]]:
    """On this machine alone."""
    os.environ["TRACKIO_DIR"] = folder
    module = importlib.import_module("trackio")
    module.init(project="bench")
    return lambda step, values: module.log(values, step=step), module.finish


PEERS: dict[str, Peer] = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}
# What a peer does beyond storing numbers; said beside every ratio.
DOES_MORE = {
    "tensorboard": "every scalar under a name of its own; in the training process, no service",
    "wandb": "every scalar under a name of its own, system metrics; files only, nothing served",
    "trackio": "every scalar under a name of its own, as JSON in SQLite; in the training process",
    "Pushgateway": "every scalar a labelled series, ready to be scraped; keeps the newest value only",
    "VictoriaMetrics": "every scalar a labelled series, found by any label; acknowledges before disk",
    "Prometheus remote write": "every scalar a labelled series, PromQL, rules; log not synced",
    "MLflow server": "every scalar a row under a name of its own, in SQL; runs, artifacts, a page",
}


def run(name: str, steps: int, samples: int) -> dict[str, float]:
    """Log, finish, and say what it took; what importing and starting takes is left out."""
    rows = [
        {
            f"layers.{i // 10}.weight/{i % 10}": (i * 7919 + k * 104729) % 9973 / 997
            for i in range(samples)
        }
        for k in range(DISTINCT)
    ]
    with tempfile.TemporaryDirectory() as folder:
        log, finish = PEERS[name](folder)
        before = cpu_seconds()
        for step in range(steps):
            log(step, rows[step % DISTINCT])
        finish()
        cpu = cpu_seconds() - before
        size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
    return {"cpu": cpu, "bytes": size}


def cpu_seconds() -> float:
    """User and system time of this process and of those it started that have ended."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(who) for who in whose]
    return sum(u.ru_utime + u.ru_stime for u in used)


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
