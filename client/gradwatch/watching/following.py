"""Following the service's recommended threshold, at step boundaries and within the user's bounds."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradwatch.advice import Advice, accept
from gradwatch.clipping.clipper import Clipper
from gradwatch.clipping.policies import Agc, Norm, PerTensor, Policy, Recommended, Value, walk
from gradwatch.watching.agreement import Agreement

__all__ = ["Following", "recommended_part"]

Newest = Callable[[], Mapping[str, Any] | None]


def recommended_part(policy: Policy | None) -> Recommended | None:
    """Return the part of a policy that follows the service, the first of several; None without one."""
    return next((part for part in walk(policy) if isinstance(part, Recommended)), None)


@dataclass(slots=True)
class Following:
    """Moves one optimizer's threshold at steps that the policy's interval divides.

    Between two boundaries, and whenever the service is away, the threshold stays. What is applied is
    in the reports (``threshold``, ``recommendation_version``), so a replay gives the same weights.

    Args:
        part: The policy that follows.
        clipper: Told the new threshold.
        newest: Returns the newest recommendation that has arrived; None before the first.
        agreement: Joins the ranks of a data-parallel job; None for one rank.
    """

    part: Recommended
    clipper: Clipper
    newest: Newest
    agreement: Agreement | None = None
    current: Advice | None = None
    moved_at: int = 0
    _planned: Advice | None = None

    def __call__(self, step: int) -> None:
        """Move the threshold if this step is a boundary and the service has advice."""
        if step % self.part.interval:
            return
        advice = self._decide(step)
        if self.agreement is not None:
            # Decisions that are on their way are what the next one is measured against.
            self._planned = advice or self._planned
            advice = self.agreement.exchange(step // self.part.interval, advice)
        if advice is not None:
            self.clipper.follow(advice.threshold, advice.version)
            self.current = advice

    def _decide(self, step: int) -> Advice | None:
        base = self.part.base
        recommendation = self.newest()
        if recommendation is None or isinstance(base, PerTensor):
            return None
        advice = accept(
            recommendation,
            policy=base.kind,
            current=self._planned or self.current or Advice(_own(base), 0),
            minimum=self.part.minimum or 0.0,
            maximum=self.part.maximum or math.inf,
            steps=step - self.moved_at,
        )
        if advice is not None:
            self.moved_at = step
        return advice

    def state_dict(self) -> dict[str, Any]:
        """Return what is in force."""
        if self.current is None:
            return {}
        return {
            "threshold": self.current.threshold,
            "version": self.current.version,
            "moved_at": self.moved_at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the threshold that was in force."""
        if "threshold" in state:
            self.current = Advice(float(state["threshold"]), int(state["version"]))
            self.moved_at = int(state["moved_at"])


def _own(base: Value | Norm | Agc) -> float:
    """Return the threshold that the policy itself names."""
    match base:
        case Value(limit):
            return limit
        case Norm(max_norm):
            return max_norm
        case Agc(ratio):
            return ratio
