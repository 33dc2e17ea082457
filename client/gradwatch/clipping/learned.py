"""What policies share that learn from the joint norm of each step.

All they know lies on the device; a step with a non-finite element changes none of it.
"""

import math
import numbers
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gradwatch.clipping.norms import joint_norm
from gradwatch.clipping.policies import Policy
from gradwatch.clipping.stages import Scope, Situation, Stage
from gradwatch.errors import PolicyError
from gradwatch.kernels import Row

__all__ = ["JointPolicy", "JointStage", "LearnedPolicy", "check", "nonfinite", "shrink"]

# As Norm: rounding may leave a scaled gradient this little above its limit.
_SLACK = 1 + 2.0**-22


class LearnedPolicy(Policy):
    """A policy that learns from step to step, so that a call that forgets cannot carry it out."""


class JointPolicy(LearnedPolicy):
    """One that needs the joint norm of all gradients before any of them is used."""


class JointStage(Stage):
    """Scales all gradients together, by what the joint norms of the steps so far say."""

    kind: ClassVar[Literal["limit", "scale", "unit"]] = "scale"

    def __init__(self, scope: Scope, **initial: float) -> None:
        super().__init__(scope, math.inf)
        self._initial |= initial

    def coefficients(self, now: Situation) -> Tensor:
        """Return the [] factor; what was learned and ``threshold`` are brought up to date."""
        norms, bad = now.norms(2), nonfinite(now)
        if self.mask is not None:
            norms, bad = torch.where(self.mask, norms, 0), torch.where(self.mask, bad, 0)
        norm = joint_norm(norms)
        return self.judge(norm, (bad.sum() <= 0) & norm.isfinite())

    def judge(self, norm: Tensor, usable: Tensor) -> Tensor:
        """Return the [] factor for a step of this norm.

        Args:
            norm: [] joint norm of the finite elements.
            usable: [] flag, whether all elements were finite; without it nothing may be learned.
        """
        raise NotImplementedError

    def learn(self, usable: Tensor, **new: Tensor) -> None:
        """Take over new values of the state if ``usable``."""
        for name, value in new.items():
            self.tensors[name] = torch.where(usable, value, self.tensors[name])

    def state(self) -> dict[str, Tensor]:
        """Return everything: the threshold too, so that a report after a restart is the same."""
        return dict(self.tensors)


def nonfinite(now: Situation) -> Tensor:
    """Return the [T] counts of non-finite elements, of the whole tensors."""
    counts = now.rows[Row.NONFINITE]
    return counts if now.reduce is None else now.reduce(counts, "sum")


def shrink(limit: Tensor, norm: Tensor, epsilon: float = 0.0) -> Tensor:
    """Return ``limit / (norm + epsilon)`` where the norm is above its limit, else 1."""
    above = norm > limit * _SLACK
    return torch.where(above, (limit / (norm + epsilon)).clamp(max=1), 1)


def check(
    policy: Policy,
    maker: str,
    field: str,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
    whole: bool = False,
    optional: bool = False,
) -> None:
    """Check one number of a policy and store it as a float, or as an int if ``whole``.

    Raises:
        PolicyError: Not a finite number within the bounds; says which.
    """
    value = getattr(policy, field)
    if optional and value is None:
        return
    wanted = numbers.Integral if whole else numbers.Real
    number = float(value) if isinstance(value, wanted) else math.nan
    if isinstance(value, bool) or not (above < number < below and least <= number <= most):
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (
                ("above", above),
                ("at least", least),
                ("below", below),
                ("at most", most),
            )
            if math.isfinite(bound)
        ]
        kind = "whole number" if whole else "finite number"
        also = ", or None" if optional else ""
        raise PolicyError(
            f"{maker}({field}={value!r}): give a {kind} {' and '.join(bounds)}{also}."
        )
    object.__setattr__(policy, field, int(number) if whole else number)
