"""The one word that says how a run is doing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["RUN_STATES", "run_state"]

WARM_UP_STEPS: Final = 12  # reported finite steps before which nothing but NaN can be judged
RUN_STATES: Final = (
    "warming_up",
    "healthy",
    "exploding",
    "vanishing",
    "oscillating",
    "nonfinite",
    "silent",
    "finished",
    "failed",
    "interrupted",
)
_FINISHED: Final = {"completed": "finished", "failed": "failed", "interrupted": "interrupted"}
_WORST_FIRST: Final = ("nonfinite", "exploding", "vanishing", "oscillating")


def run_state(
    *, status: str | None, active: Mapping[str, int], steps: int, quiet_seconds: float, limit: float
) -> str:
    """Return the state of a run, one of :data:`RUN_STATES`.

    Args:
        status: What ``finish`` said, or None while the run goes on; it wins over all else.
        active: Open incidents of severity critical or warning, by kind.
        steps: Steps analysed.
        quiet_seconds: Seconds since the last report.
        limit: Silence from which a run counts as silent.
    """
    if status is not None:
        return _FINISHED[status]
    if quiet_seconds > limit:
        return "silent"
    for kind in _WORST_FIRST:
        if active.get(kind):
            return kind
    return "healthy" if steps >= WARM_UP_STEPS else "warming_up"
