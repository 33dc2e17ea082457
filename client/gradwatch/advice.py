"""Which of the service's recommendations a threshold follows, and how fast. Pure."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

__all__ = ["MAX_FALL", "MAX_RISE_PER_STEP", "Advice", "accept"]

MAX_FALL = 0.5
MAX_RISE_PER_STEP = 0.001
_MOST_STEPS = 100_000  # a rise by 10^43; more would overflow


@dataclass(frozen=True, slots=True)
class Advice:
    """A threshold to apply at the next step boundary.

    Attributes:
        threshold: In gradient units, within the user's bounds.
        version: Version of the recommendation it follows.
    """

    threshold: float
    version: int


def accept(
    recommendation: Mapping[str, Any],
    *,
    policy: str,
    current: Advice,
    minimum: float,
    maximum: float,
    steps: int,
) -> Advice | None:
    """Where a recommendation moves the threshold to, if it may move it at all.

    However wrong the service is, the threshold stays finite, within the user's bounds, falls at most
    by half per recommendation and rises at most by 0.1 % per step. Without recommendations it stays.

    Args:
        recommendation: As it came.
        policy: The kind it must be for, ``norm`` or ``value``.
        current: The threshold in force and the version it followed (0: none yet).
        minimum: Lowest threshold the user allows.
        maximum: Highest threshold the user allows.
        steps: Steps since the threshold was last moved.

    Returns:
        The threshold to apply, or None when nothing is to change.
    """
    target, version = recommendation.get("threshold"), recommendation.get("version")
    if recommendation.get("policy") != policy or not _is_number(target) or target <= 0:
        return None
    if not isinstance(version, int) or isinstance(version, bool) or version < current.version:
        return None
    # Refused and not clamped: a target beyond the bounds says that they or the service are wrong.
    if not minimum <= target <= maximum:
        return None
    target = float(target)
    if target < current.threshold:
        # One message, one fall: only a newer one may lower the threshold further.
        if version == current.version:
            return None
        threshold = max(target, MAX_FALL * current.threshold)
    else:
        rise = (1 + MAX_RISE_PER_STEP) ** min(max(0, steps), _MOST_STEPS)
        threshold = min(target, current.threshold * rise)
    # The threshold in force may lie outside bounds that a resumed job has narrowed.
    threshold = min(max(threshold, minimum), maximum)
    if threshold == current.threshold and version == current.version:
        return None
    return Advice(threshold, version)


def _is_number(value: object) -> TypeGuard[float]:
    # Compared, not converted: a whole number of JSON may be too large for any float.
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )
