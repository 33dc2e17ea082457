"""Following the service's recommended threshold, at step boundaries and within the user's bounds."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradwatch.advice import Advice, accept
from gradwatch.clipping.clipper import Clipper
from gradwatch.clipping.policies import Norm, Policy, Recommended, Value, walk

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
    """

    part: Recommended
    clipper: Clipper
    newest: Newest
    current: Advice | None = None
    moved_at: int = 0

    def __call__(self, step: int) -> None:
        """Move the threshold if this step is a boundary and the service has advice."""
        if step % self.part.interval:
            return
        base = self.part.base
        recommendation = self.newest()
        if recommendation is None or not isinstance(base, Norm | Value):
            return
        in_force = base.max_norm if isinstance(base, Norm) else base.limit
        current = self.current or Advice(in_force, 0)
        advice = accept(
            recommendation,
            policy=base.kind,
            current=current,
            minimum=self.part.minimum or 0.0,
            maximum=self.part.maximum or math.inf,
            steps=step - self.moved_at,
        )
        if advice is not None:
            self.clipper.follow(advice.threshold, advice.version)
            self.current, self.moved_at = advice, step

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
