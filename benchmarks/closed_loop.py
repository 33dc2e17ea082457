"""Training in a closed loop: recommended thresholds beside fixed ones, published rules and none.

    python -m benchmarks closed_loop --quick             # minutes: 2 seeds, no learning rates
    python -m benchmarks closed_loop --out loop.jsonl    # all of it; goes on where it was stopped

Every arm is a policy of the client on a real job. ``clip.recommended`` follows a live ``gradwatch
serve`` that this starts. Each training is one line of the file; a training that is there is not
done again. Then every arm gets its own best of four learning rates: chosen on the first two seeds,
judged on all.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.closed_loop_arms import ARMS, LIVE, Unit, run, serving
from benchmarks.closed_loop_figures import Figures, figures
from benchmarks.closed_loop_tables import CHOSEN_ON, FACTORS, best_factor, report
from benchmarks.small_jobs import SMALL_JOBS

Done = dict[Unit, dict[str, Any]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks closed_loop", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 seeds at the given rates only.")
    parser.add_argument("--out", type=Path, help="Trainings so far, one per line; taken up again.")
    parser.add_argument("--steps", type=int, default=300, help="Steps per training.")
    parser.add_argument("--seeds", type=int, help="Seeds per job and arm: 5, or 2 when quick.")
    parser.add_argument("--jobs", nargs="+", choices=list(SMALL_JOBS), default=list(SMALL_JOBS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--table", action="store_true", help="Train nothing; show what is there.")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    os.environ.setdefault("GRADWATCH_QUIET", "1")  # the live arm's watches would tell of every run
    seeds = range(given.seeds or (2 if given.quick else 5))
    done = read(given.out)
    first = [
        Unit(job, arm, seed, given.steps)
        for seed in seeds
        for job in given.jobs
        for arm in given.arms
    ]
    with ExitStack() as stack:
        loop = Loop(done, given.out, stack, only_read=given.table)
        loop.train(first)
        if not given.quick:
            loop.train(replace(u, factor=f) for u in first if u.seed in CHOSEN_ON for f in FACTORS)
            found = judged(done)
            loop.train(replace(u, factor=best_factor(found, u)) for u in first)
    print(report(judged(done), given.jobs, given.arms, len(seeds), given.steps))


class Loop:
    """Trains what is not done yet, and writes each training down as soon as it ends.

    Args:
        done: Trainings so far; added to.
        out: File they are written to.
        stack: Closes the service in the end; it is started when the first training needs it.
        only_read: Train nothing.
    """

    def __init__(
        self, done: Done, out: Path | None, stack: ExitStack, *, only_read: bool = False
    ) -> None:
        self.done, self._out, self._stack, self._only_read = done, out, stack, only_read
        self._url: str | None = None

    def train(self, units: Iterable[Unit]) -> None:
        """Train each unit that is not done."""
        for unit in units:
            if unit in self.done or self._only_read:
                continue
            if unit.arm == LIVE and self._url is None:
                self._url = self._stack.enter_context(serving())
            self.done[unit] = result = run(unit, self._url)
            if self._out is not None:
                append(self._out, json.dumps({"unit": asdict(unit), "result": result}))


def read(path: Path | None) -> Done:
    """Trainings of earlier calls; a last line that was cut off is as if it was never there."""
    done: Done = {}
    if path is None or not path.exists():
        return done
    for line in path.read_text().splitlines():
        try:
            given = json.loads(line)
        except json.JSONDecodeError:
            continue
        done[Unit(**given["unit"])] = given["result"]
    return done


def append(path: Path, line: str) -> None:
    """Add a line, below what is left of one that was cut off."""
    cut = path.exists() and path.read_bytes()[-1:] not in {b"", b"\n"}
    with path.open("a") as out:
        out.write("\n" * cut + line + "\n")


def judged(done: Mapping[Unit, dict[str, Any]]) -> dict[Unit, Figures]:
    """The figures of every training."""
    return {unit: figures(result["losses"], unit.steps) for unit, result in done.items()}


if __name__ == "__main__":
    main()
