"""What the training thread pays for handing over, and how long it is kept from the interpreter.

    python -m benchmarks handover [--samples 3000] [--rounds 7]

First table: one call of ``put``, with the service there and away. CPU time is the thread's own; wall
time beside it also holds whatever else the machine was doing.

Second table: a burst of 50 steps is packed and sent while another thread spins. Held is the CPU time
that the reporter's thread used between two turns of the spinning one: what it kept the interpreter
for, or more (it also computes without holding it), but nothing that other processes did. With the
pauses in its work and, in turn, without them.
"""

import argparse
import math
import os
import platform
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch
from benchmarks.machine import cpu_name
from tests.client.reporting import samples
from tests.guarantees.fault_server import FaultServer

from gradwatch.reporting import pause
from gradwatch.reporting.reporter import Reporter
from gradwatch.reporting.sample import Sample
from gradwatch.statistics import STATISTICS

PAUSE_SECONDS = 0.001  # a fast training step
BURST = 50


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    count = options.samples
    torch.set_num_threads(1)
    print(
        f"{cpu_name()}, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}; {count} samples per row"
    )
    print("| tensors | service | CPU p50, us | CPU p99, us | wall p50, us | wall p99, us |")
    print("|---|---|---|---|---|---|")
    for tensors in (10, 1000):
        for away in (False, True):
            cpu, wall = measure(tensors, count, away=away)
            cells = [
                f"{values[int(q * count)] / 1e3:.0f}" for values in (cpu, wall) for q in (0.5, 0.99)
            ]
            print(f"| {tensors} | {'away' if away else 'there'} | {' | '.join(cells)} |")
    print(f"\nload {os.getloadavg()[0]:.1f}; {options.rounds} rounds")
    print("| tensors | pauses | longest hold, ms, median | largest | p99 of the holds |")
    print("|---|---|---|---|---|")
    for tensors in (200, 1000):
        report_holds(tensors, options.rounds)


def report_holds(tensors: int, rounds: int) -> None:
    """Print one row with the pauses and one without, taken in turns."""
    holds: dict[str, list[list[float]]] = {"yes": [], "no": []}
    usual = pause.WORK_SECONDS
    for _ in range(rounds):
        for kind, work in (("yes", usual), ("no", math.inf)):
            pause.WORK_SECONDS = work
            holds[kind].append(held(tensors))
    pause.WORK_SECONDS = usual
    for kind, each in holds.items():
        longest = [max(one) for one in each]
        every = sorted(hold for one in each for hold in one)
        cells = [statistics.median(longest), max(longest), every[int(0.99 * (len(every) - 1))]]
        print(f"| {tensors} | {kind} | {' | '.join(f'{1e3 * cell:.2f}' for cell in cells)} |")


def held(tensors: int) -> list[float]:
    """Seconds that the reporter used between turns of a spinning thread, during one burst."""
    server = FaultServer()
    found: list[float] = []
    over = threading.Event()
    stats = samples.stats(tensors=tensors)
    with tempfile.TemporaryDirectory() as directory:
        before = set(threading.enumerate())
        reporter = Reporter(samples.settings(server.url, Path(directory)), samples.IDENTITY)
        reporter.register("default", samples.manifest(tensors=tensors), STATISTICS)
        (thread,) = (t for t in set(threading.enumerate()) - before if t.name == "gradwatch")
        assert thread.ident is not None
        clock = time.pthread_getcpuclockid(thread.ident)
        reporter.put(Sample("default", 0, stats, {}, time.time()))
        assert reporter.flush(30.0)  # connected and registered: what follows is the usual work

        def spin() -> None:
            last = time.clock_gettime(clock)
            while not over.is_set():
                now = time.clock_gettime(clock)
                if now > last:
                    found.append(now - last)
                last = now

        spinner = threading.Thread(target=spin)
        spinner.start()
        for step in range(1, BURST + 1):
            reporter.put(Sample("default", step, stats, {"loss": 1.0}, time.time()))
        assert reporter.flush(60.0)
        over.set()
        spinner.join()
        reporter.close("completed", 5.0)
    server.close()
    return found


def measure(tensors: int, count: int, *, away: bool) -> tuple[list[int], list[int]]:
    """Nanoseconds of CPU and of wall time per put, sorted."""
    server = FaultServer()
    if away:
        server.close()
    stats = samples.stats(tensors=tensors)
    cpu, wall = [], []
    with tempfile.TemporaryDirectory() as directory:
        reporter = Reporter(samples.settings(server.url, Path(directory)), samples.IDENTITY)
        reporter.register("default", samples.manifest(tensors=tensors), STATISTICS)
        for step in range(count):
            sample = Sample("default", step, stats, {"loss": 1.0}, time.time())
            cpu_before, before = time.thread_time_ns(), time.perf_counter_ns()
            reporter.put(sample)
            wall.append(time.perf_counter_ns() - before)
            cpu.append(time.thread_time_ns() - cpu_before)
            time.sleep(PAUSE_SECONDS)
        reporter.close("completed", 5.0)
    server.close()
    return sorted(cpu), sorted(wall)


if __name__ == "__main__":
    main()
