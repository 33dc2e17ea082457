"""A recommendation as values: what was asked, what is answered, in the fields of the REST answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gradwatch_service.detectors.base import RunContext
from gradwatch_wire import Problem

__all__ = [
    "PREFERENCE_NAMES",
    "STATUSES",
    "Asked",
    "BadQuestion",
    "Preference",
    "Status",
    "version",
]

Status = Literal["none", "provisional", "estimated", "validated"]
STATUSES: tuple[Status, ...] = ("none", "provisional", "estimated", "validated")
Preference = Literal["tight", "balanced", "guard"]
PREFERENCE_NAMES: tuple[Preference, ...] = ("tight", "balanced", "guard")


class BadQuestion(ValueError):  # noqa: N818 - the asker's mistake, told as a sentence
    """Bounds or options that contradict themselves; ``at`` names the parameter."""

    def __init__(self, at: str, why: str) -> None:
        super().__init__(why)
        self.at = at

    def problem(self) -> Problem:
        """The mistake as one field of an answer."""
        return Problem(self.at, str(self))


@dataclass(frozen=True, slots=True)
class Asked:
    """What the asker wants besides the threshold itself.

    Args:
        preference: ``tight`` clips at the lowest tenth of the recent norms, ``guard`` only at what
            would be a spike, ``balanced`` between the two: the more spikes, the tighter.
        default: What to use while there is no threshold. Inside the bounds, finite, above 0.
        minimum: Lower bound of the effective threshold. Finite, above 0.
        maximum: Upper bound of the effective threshold. Finite, above 0.

    Raises:
        BadQuestion: A value is out of range or they contradict each other.
    """

    preference: Preference = "balanced"
    default: float | None = None
    minimum: float | None = None
    maximum: float | None = None

    def __post_init__(self) -> None:
        if self.preference not in PREFERENCE_NAMES:
            raise BadQuestion(
                "preference",
                f"preference={self.preference!r}: allowed are {', '.join(PREFERENCE_NAMES)}.",
            )
        for name, value in (
            ("default", self.default),
            ("min", self.minimum),
            ("max", self.maximum),
        ):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise BadQuestion(name, f"{name}={value!r}: give a finite number above 0.")
        low = self.minimum if self.minimum is not None else 0.0
        high = self.maximum if self.maximum is not None else math.inf
        if low > high:
            raise BadQuestion(
                "min", f"min={low!r} is above max={high!r}: no threshold can satisfy both."
            )
        if self.default is not None and not low <= self.default <= high:
            raise BadQuestion(
                "default",
                f"default={self.default!r} lies outside min..max ({self.minimum}..{self.maximum}): "
                "give a default that the bounds allow.",
            )

    def effective(self, threshold: float | None) -> float | None:
        """The threshold held in the bounds, or the default while there is none."""
        if threshold is None:
            return self.default
        if self.minimum is not None:
            threshold = max(threshold, self.minimum)
        if self.maximum is not None:
            threshold = min(threshold, self.maximum)
        return threshold


def version(context: RunContext | None, age: int) -> int:
    """A number that grows with every attempt and, within one, with ``age``: the newer one wins.

    A restarted job may remember the version it followed last, so a new attempt must not count
    from 0 again.
    """
    return (context.attempt if context else 0) * 2**32 + age
