"""Turn what a client left in its spool into traces, to be labelled and scored.

    GRADWATCH_MODE=offline GRADWATCH_DIR=spool python train.py
    python -m benchmarks spool_traces spool TRACES
    python -m benchmarks detectors TRACES --healthy       # every incident, by run
    python -m benchmarks detectors TRACES --ours          # scored, once faults are labelled

One trace per run, start, optimizer and rank: ``<run>.<n>-rank<r>.npz`` and ``.json``. Write what went wrong into
``faults`` of the ``.json``; ``docs/diagnosis.md`` says how.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from benchmarks.client_trace import read_spools
from benchmarks.trace_files import save_trace


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Turn a spool into traces.")
    parser.add_argument("spool", type=Path)
    parser.add_argument("traces", type=Path)
    options = parser.parse_args()
    options.traces.mkdir(parents=True, exist_ok=True)
    starts: Counter[tuple[str, int]] = Counter()
    for recorded in read_spools(options.spool):
        number = starts[recorded.run, recorded.rank]
        starts[recorded.run, recorded.rank] += 1
        name = f"{recorded.run.replace('.', '_')}.{number}-rank{recorded.rank}"
        save_trace(
            options.traces,
            name,
            recorded.columns,
            recorded.manifest,
            rank=recorded.rank,
            world_size=recorded.manifest.world_size,
        )
        print(f"{name}: {len(recorded.columns['step'])} steps")
    if not starts:
        raise SystemExit(f"{options.spool}: no spool here; train with GRADWATCH_MODE=offline")


if __name__ == "__main__":
    main()
