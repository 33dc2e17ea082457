"""What the training thread pays for handing a sample over, with the service there and away.

    python -m benchmarks handover [--samples 3000]

CPU time is the thread's own; wall time beside it also holds whatever else the machine was doing.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

from tests.client.reporting import samples
from tests.guarantees.fault_server import FaultServer

from gradwatch.reporting.reporter import Reporter
from gradwatch.reporting.sample import Sample
from gradwatch.statistics import STATISTICS

PAUSE_SECONDS = 0.001  # a fast training step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=3000)
    count = parser.parse_args().samples
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
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
