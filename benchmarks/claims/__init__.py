"""What is claimed of zero-centred clipping, tested; writes docs/claims.md.

    python -m benchmarks claims                 # all, about eight minutes on two idle cores
    python -m benchmarks claims --only language # one claim's table, nothing written
    python -m benchmarks claims --resume        # goes on where the last run stopped

Outcomes are kept in build/claims.pickle. ``--resume`` trusts them: after a change of a job, leave it out.
"""

import argparse
import os
import pickle
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.claims.catalog import JOBS
from benchmarks.claims.page import page, provenance, table
from benchmarks.claims.progress import progress
from benchmarks.claims.registry import CLAIMS
from benchmarks.claims.tuning import Outcomes, conduct

__all__ = ["main"]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "claims.md"
FILE = ROOT / "build" / "claims.pickle"

WORKERS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[judge.__name__ for judge in CLAIMS], help="One claim.")
    parser.add_argument("--resume", action="store_true", help="Keep what the last run has done.")
    arguments = parser.parse_args()
    kept = Kept.load() if arguments.resume else Kept()
    # One claim alone must not throw away what a whole run has done.
    keep = arguments.resume or not arguments.only
    resumed, started = bool(kept.outcomes), time.monotonic()
    with progress() as step:
        found = conduct(
            [JOBS[job] for job in jobs_of(arguments.only)],
            workers=WORKERS,
            on_step=lambda *done: (step(*done), kept.save_now_and_then() if keep else None),
            outcomes=kept.outcomes,
        )
    if keep:
        kept.save()
    if arguments.only:
        print(table([judge(found) for judge in CLAIMS if judge.__name__ == arguments.only]))
        return
    took = None if resumed else time.monotonic() - started
    measured = provenance(took, os.getloadavg()[0])
    PAGE.write_text(page([judge(found) for judge in CLAIMS], found, measured), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


def jobs_of(claim: str | None) -> list[str]:
    """What a claim rests on, or all jobs."""
    if claim is None:
        return list(JOBS)
    return [job for judge, jobs in CLAIMS.items() if judge.__name__ == claim for job in jobs]


@dataclass
class Kept:
    """Outcomes so far, on disk every half minute."""

    outcomes: Outcomes = field(default_factory=dict)
    saved: float = field(default_factory=time.monotonic)

    @classmethod
    def load(cls) -> "Kept":
        """What the last run left; nothing if there was none."""
        if not FILE.exists():
            return cls({})
        return cls(pickle.loads(FILE.read_bytes()))  # noqa: S301 - our own, in a folder git ignores

    def save_now_and_then(self) -> None:
        if time.monotonic() - self.saved > 30:
            self.save()

    def save(self) -> None:
        FILE.parent.mkdir(exist_ok=True)
        fresh = FILE.with_suffix(".new")
        fresh.write_bytes(pickle.dumps(self.outcomes))
        fresh.replace(FILE)
        self.saved = time.monotonic()
