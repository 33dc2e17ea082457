"""How long things take on this machine, beside each other."""

import statistics
import time
from collections.abc import Callable

__all__ = ["median_ratio"]


def median_ratio(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 9
) -> float:
    """Return the CPU time of one thing as a multiple of another's; they take turns, median of rounds."""
    ratios = []
    for number in range(rounds + 1):
        seconds = []
        for turn in (ours, theirs):
            start = time.process_time()
            turn()
            seconds.append(time.process_time() - start)
        if number:  # the first round warms caches
            ratios.append(seconds[0] / max(seconds[1], 1e-9))
    return statistics.median(ratios)
